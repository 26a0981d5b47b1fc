"""The report: verdicts, tables, figures and the runs behind them, as files and as one page that needs nothing else.

    report/index.html            the page: no request to any other host
    report/tables/<table>.csv    .md  .tex
    report/figures/<figure>.svg  .png
    report/verdicts.json

Everything is written into a folder beside the old report and put in its place when it is complete.
"""

from __future__ import annotations

import html
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from cope.errors import UserError
from cope.report.cells import cells
from cope.report.claims import Verdict, judge, read_claims
from cope.report.comparison import comparison_table, provenance
from cope.report.findings import Findings
from cope.report.paper_figures import draw_paper_figures
from cope.report.plan import Plan

MARKER = "verdicts.json"  # by which a folder is known as a report


@dataclass(frozen=True)
class Report:
    """What is reported: every table's plan, and what its runs found."""

    plans: Sequence[Plan]
    findings: Findings
    verdicts: Sequence[Verdict]


def collect(plans: Sequence[Plan]) -> Report:
    """The report of what is finished now."""
    findings = Findings(plans)
    return Report(plans, findings, [judge(claim, findings) for claim in read_claims()])


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    lines = ["| claim | where | verdict |", "|---|---|---|"]
    lines += [f"| {verdict.number}. {verdict.claim} | {verdict.source} | **{verdict.outcome}** |" for verdict in verdicts]
    return "\n".join(lines)


def write_report(report: Report, folder: Path, command: str) -> Path:
    """Write all of it to ``folder`` and return the page's path; what was there stays until then.

    Args:
        command: that makes it again, to be shown.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(f"{folder} is not a report of this project, and would be replaced; allowed: a new or empty folder.")
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "tables").mkdir(parents=True)
        (partial / "figures").mkdir()
        table = cells(report.plans, report.findings)
        _write_tables(report, table, partial / "tables")
        pictures = draw_paper_figures(report.findings, partial / "figures")
        verdicts = [asdict(verdict) for verdict in report.verdicts]
        (partial / MARKER).write_text(json.dumps(verdicts, indent=2) + "\n")
        (partial / "verdicts.md").write_text(verdict_table(report.verdicts) + "\n")
        (partial / "index.html").write_text(_page(report, table, pictures, command), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written ({reason}); the report that was there is kept.") from error
    return folder / "index.html"


def _write_tables(report: Report, table: pd.DataFrame, folder: Path) -> None:
    for plan in report.plans:
        own = table[table["table"] == plan.name].drop(columns="table")
        own.to_csv(folder / f"{plan.name}.csv", index=False, float_format="%.6g")
        text = own.to_latex(index=False, float_format="%.3g", na_rep="missing", caption=plan.title, escape=True)
        (folder / f"{plan.name}.tex").write_text(text)
        parts = [f"# {plan.title}\n"]
        parts += [
            comparison_table(section, plan.results(section), len(plan.seeds), plan.splits) + "\n" for section in plan.sections
        ]
        finished = [result for run in plan.runs if (result := run.result()) is not None]
        parts.append(provenance(finished) if finished else "")
        (folder / f"{plan.name}.md").write_text("\n".join(parts) + "\n")


def _page(report: Report, table: pd.DataFrame, pictures: dict[str, Path], command: str) -> str:
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("cope.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    counts: dict[str, int] = {}
    for verdict in report.verdicts:
        counts[verdict.outcome] = counts.get(verdict.outcome, 0) + 1
    return template.render(
        command=command,
        date=date.today().isoformat(),
        verdicts=report.verdicts,
        counts=counts,
        plans=[
            {"name": plan.name, "title": plan.title, "rows": _rows(table[table["table"] == plan.name])} for plan in report.plans
        ],
        figures=[(title, Markup(_inline(path))) for title, path in pictures.items()],
        runs=[_run(run, result) for run, result in report.findings.runs()],
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells as the page shows them."""
    rows = []
    for cell in table.to_dict("records"):
        ours = "missing" if not cell["seeds"] else f"{cell['mean']:.4g}"
        if cell["seeds"] and not math.isnan(cell["std"]):
            ours += f" ({cell['std']:.3g})"
        interval = "" if math.isnan(cell["low"]) else f"{cell['low']:.4g} to {cell['high']:.4g}"
        paper = "" if math.isnan(cell["paper"]) else f"{cell['paper']:g}"
        if paper and not math.isnan(cell["paper_std"]):
            paper += f" ({cell['paper_std']:g})"
        keys = ("section", "row", "split", "metric", "seeds", "planned")
        rows.append({key: cell[key] for key in keys} | {"ours": ours, "interval": interval, "paper": paper})
    return rows


def _run(run: Any, result: dict[str, Any]) -> dict[str, Any]:
    keys = ("task", "encoding", "seed", "scale", "commit", "date", "num_parameters", "time_s")
    return {key: result.get(key, "") for key in keys} | {
        "section": run.section,
        "row": run.row,
        "command": run.command,
        "folder": str(run.folder.path),
        "hardware": ", ".join(f"{key} {value}" for key, value in result.get("hardware", {}).items()),
        "config": json.dumps(result.get("config", {}), indent=1),
    }


def _inline(svg: Path) -> str:
    """The drawing without what stands before its root, so that it can stand inside a page."""
    text = svg.read_text(encoding="utf-8")
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(svg.stem)}"', 1)

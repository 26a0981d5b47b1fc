"""The report: verdicts, tables, figures and the runs behind them, as files and as one page that shows them.

    report/index.html            the page: no request to any host
    report/tables/<table>.csv    .md  .tex
    report/tables/differences.csv
    report/figures/<figure>.svg
    report/verdicts.json
    report/runs/                 where asked for: what of each run it was made from

Everything is written into a folder beside the old report and put in its place when it is complete.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd

from cope.errors import AlreadyRunning, UserError
from cope.files import lock
from cope.report.cells import cells, differences
from cope.report.claims import ClaimsPlan, Verdict, judge_all
from cope.report.drawing import Drawing
from cope.report.findings import LEARNED_PERCENT, Findings
from cope.report.markdown import write_tables
from cope.report.page_content import RunList, difference_sections, tables
from cope.report.paper_figures import FIGURES_DRAWN, draw_paper_figures
from cope.report.published import check_nothing_is_lost, copy_runs
from cope.report.run_pictures import copy_position_alone, draw_gates_of_tasks
from cope.report.table_figures import TABLES_DRAWN, draw_table_figures
from cope.report.verdicts import verdict_reasons, verdict_table
from cope.sweep.plan import Plan

MARKER = "verdicts.json"  # by which a folder is known as a report
WRITTEN = re.compile(
    r"verdicts\.(json|md)|index\.html|tables/(table\d+|figure\d+|differences)\.(csv|md|tex)"
    r"|figures/(table\d+|figure\d+|gates_\w+|position_alone_\d+)\.(svg|png)|runs/.+"
)


@dataclass(frozen=True)
class Report:
    """What is reported: every table's plan, and what its runs found."""

    plans: Sequence[Plan]
    findings: Findings
    verdicts: Sequence[Verdict]
    claims_plan: ClaimsPlan


def collect(plans: Sequence[Plan], claims_plan: ClaimsPlan) -> Report:
    """The report of what is finished now."""
    findings = Findings(plans)
    return Report(plans, findings, judge_all(claims_plan, findings), claims_plan)


def write_report(report: Report, folder: Path, command: str, with_runs: bool = False) -> Path:
    """Write all of it to ``folder`` and return the page's path; what was there stays until then.

    Args:
        command: that makes it again, to be shown.
        with_runs: copy the runs too, to ``runs/``.

    Raises:
        UserError: the folder cannot be written, holds something that would be lost, or is being written by another process.
    """
    folder = folder.resolve()
    try:
        alone = lock(folder.with_name(f".{folder.name}.lock"))
    except AlreadyRunning as error:
        raise UserError(f"another process is writing {folder}; wait for it.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.filename}: {error.strerror}).") from error
    with alone:
        return _write_report(report, folder, command, with_runs)


def _check_folder(report: Report, folder: Path, with_runs: bool) -> None:
    """Raise UserError if something in ``folder`` would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; allowed: a folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(f"{folder} is not a report of this project, and would be replaced; allowed: a new or empty folder.")
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    strangers = sorted(path for path in there if not WRITTEN.fullmatch(path))
    if strangers:
        raise UserError(f"{folder} holds {', '.join(strangers)}, which no report writes, and would lose it. Move it elsewhere.")
    if there and not report.findings.runs():
        raise UserError(f"no run is finished: the report in {folder} is kept. To begin anew, delete it.")
    check_nothing_is_lost(report.findings, folder / "runs", with_runs)


def _write_report(report: Report, folder: Path, command: str, with_runs: bool) -> Path:
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # an earlier report was stopped before it could put its own there
        old.rename(folder)
    _check_folder(report, folder, with_runs)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "tables").mkdir(parents=True)
        (partial / "figures").mkdir()
        table = cells(report.plans, report.findings)
        beside_cope = differences(report.plans, report.findings, report.claims_plan.margins)
        write_tables(report.plans, report.findings, table, partial / "tables")
        beside_cope.to_csv(partial / "tables" / "differences.csv", index=False, float_format="%.6g")
        drawings = _draw(report, partial / "figures")
        verdicts = [verdict.as_json() for verdict in report.verdicts]
        (partial / MARKER).write_text(json.dumps(verdicts, indent=2) + "\n")
        (partial / "verdicts.md").write_text(f"{verdict_table(report.verdicts)}\n\n{verdict_reasons(report.verdicts)}\n")
        page = _page(report, table, beside_cope, drawings, command)
        (partial / "index.html").write_text(page, encoding="utf-8")
        if with_runs:
            copy_runs(report.findings, partial / "runs")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        kept = "; the report that was there is kept" if folder.exists() else ""
        raise UserError(f"{folder} cannot be written ({reason}){kept}.") from error
    return folder / "index.html"


def _draw(report: Report, folder: Path) -> list[Drawing]:
    return [
        *draw_table_figures(report.plans, report.findings, folder),
        *draw_paper_figures(report.plans, report.findings, folder),
        *copy_position_alone(report.findings, folder),
        *draw_gates_of_tasks(report.findings, folder),
    ]


def _page(report: Report, table: pd.DataFrame, beside_cope: pd.DataFrame, drawings: Sequence[Drawing], command: str) -> str:
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("cope.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    runs = RunList(report.findings)
    drawn = {"figure4" if drawing.path.stem.startswith("position_alone") else drawing.path.stem for drawing in drawings}
    return template.render(
        command=command,
        date=date.today().isoformat(),
        learned_percent=LEARNED_PERCENT,
        rule=report.claims_plan.margins.rule,
        seeds=f"{report.claims_plan.seeds[0]} to {report.claims_plan.seeds[-1]}",
        is_fresh=report.claims_plan.is_fresh,
        verdicts=report.verdicts,
        counts=Counter(str(verdict.outcome) for verdict in report.verdicts),
        tables=tables(report.plans, table, runs),
        differences=difference_sections(beside_cope, runs),
        figures=[(drawing, runs.behind(drawing)) for drawing in drawings],
        not_drawn=sorted({*TABLES_DRAWN, *FIGURES_DRAWN, "figure4"} & {plan.name for plan in report.plans} - drawn),
        runs=runs.entries(),
    )

"""The report: verdicts, tables, figures and the runs behind them, as files and as one page that shows them.

    report/index.html            the page: no request to any host
    report/tables/<table>.csv    .md  .tex
    report/tables/differences.csv
    report/figures/<figure>.svg
    report/verdicts.json
    report/runs/                 where asked for: what of each run it was made from

Everything is written into a new folder beside the old report, which takes its place when it is complete. One process at a time
writes a report, and clears up after one that was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd

from cope.errors import UserError
from cope.files import lock
from cope.report.cells import cells, differences
from cope.report.claims import ClaimsPlan, Verdict, judge_all
from cope.report.drawing import Drawing
from cope.report.findings import LEARNED_PERCENT, Findings
from cope.report.names import table_title
from cope.report.page_content import RunList, anchor, in_a_sentence, links_to, published, table_of, tables
from cope.report.paper_figures import draw_paper_figures
from cope.report.plan_sheets import write_tables
from cope.report.published import check_nothing_is_lost, copy_runs
from cope.report.run_pictures import copy_position_alone, draw_gates_of_tasks
from cope.report.table_figures import draw_table_figures
from cope.report.verdicts import verdict_reasons, verdict_table
from cope.sweep.plan import Plan

VERDICTS = "verdicts.json"  # what every report has
WRITTEN = ("index.html", VERDICTS, "verdicts.md", "tables", "figures", "runs")
BESIDE = ("tuning",)  # what may be there before a report is
LEAD = ("table4", "table2")  # the picture on the page's first screen: the first of these that there is, else any


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
        UserError: the folder cannot be written, or holds something that would be lost.
    """
    folder = folder.resolve()
    try:
        new, old = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
        mine = folder.with_name(f".{folder.name}.lock")
        held = lock(mine, wait=f"Another process is writing {folder}: waiting for it.")
        try:
            if old.exists():  # of a process that was killed while it put the new one in place
                _move_back(old, folder)
            _check_folder(report, folder, with_runs)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            _fill(report, new, folder, command, with_runs)
            _put_in_place(new, old, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            mine.unlink(missing_ok=True)  # while it is ours: who waited for it makes another (filelock looks)
            held.release()
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        kept = "; the report that was there is kept" if folder.exists() else ""
        raise UserError(f"{folder} cannot be written ({reason}){kept}.") from error
    return folder / "index.html"


def _check_folder(report: Report, folder: Path, with_runs: bool) -> None:
    """Raise UserError if something in ``folder`` would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; allowed: a folder.")
    is_there = folder.exists() and any(path.name not in BESIDE for path in folder.iterdir())
    if is_there and not (folder / VERDICTS).exists():
        raise UserError(f"{folder} is not a report of this project, and would be replaced; allowed: a new or empty folder.")
    if is_there and not report.findings.runs():
        raise UserError(f"no run is finished: the report in {folder} is kept. To begin anew, delete it.")
    check_nothing_is_lost(report.findings, folder / "runs", with_runs)


def _fill(report: Report, new: Path, folder: Path, command: str, with_runs: bool) -> None:
    """Write the report to ``new``, with links as they will be right in ``folder``."""
    (new / "tables").mkdir()
    (new / "figures").mkdir()
    table = cells(report.plans, report.findings)
    beside_cope = differences(report.plans, report.findings, report.claims_plan.margins)
    write_tables(report.plans, report.findings, table, new / "tables")
    beside_cope.to_csv(new / "tables" / "differences.csv", index=False, float_format="%.6g")
    drawings = _draw(report, new / "figures")
    (new / VERDICTS).write_text(json.dumps([verdict.as_json() for verdict in report.verdicts], indent=2) + "\n")
    (new / "verdicts.md").write_text(f"{verdict_table(report.verdicts)}\n\n{verdict_reasons(report.verdicts)}\n")
    runs = RunList(report.findings, links_to(folder, with_runs))
    (new / "index.html").write_text(_page(report, table, beside_cope, drawings, runs, command), encoding="utf-8")
    if with_runs:
        copy_runs(report.findings, new / "runs")


def _put_in_place(new: Path, old: Path, folder: Path) -> None:
    """Let ``new`` be ``folder``; if that cannot be, what was there is there again. On the way that is ``old``."""
    if folder.exists():
        folder.rename(old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    if old.exists():
        _move_back(old, folder)


def _move_back(old: Path, folder: Path) -> None:
    """Let ``folder`` have what ``old`` has and a report has not, such as tuning's trials, and notes; all if there is none."""
    if not folder.exists():
        old.rename(folder)
        return
    for other in old.iterdir():
        if other.name not in WRITTEN:
            other.rename(folder / other.name)
    shutil.rmtree(old, ignore_errors=True)


def _draw(report: Report, folder: Path) -> list[Drawing]:
    return [
        *draw_table_figures(report.plans, report.findings, folder),
        *draw_paper_figures(report.plans, report.findings, folder),
        *copy_position_alone(report.findings, folder),
        *draw_gates_of_tasks(report.findings, folder),
    ]


def _page(
    report: Report, table: pd.DataFrame, beside_cope: pd.DataFrame, drawings: Sequence[Drawing], runs: RunList, command: str
) -> str:
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("cope.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    shown = tables(report.plans, report.verdicts, table, beside_cope, drawings, runs)
    names = {entry["name"] for entry in shown}
    by_name = {drawing.path.stem: drawing for drawing in drawings}
    return template.render(
        command=command,
        date=date.today().isoformat(),
        learned_percent=LEARNED_PERCENT,
        rule=report.claims_plan.margins.rule,
        seeds=f"{report.claims_plan.seeds[0]} to {report.claims_plan.seeds[-1]}",
        is_fresh=report.claims_plan.is_fresh,
        sentence=in_a_sentence(report.verdicts),
        claims=[(verdict, anchor(verdict.source), published(verdict)) for verdict in report.verdicts],
        lead=next((by_name[name] for name in LEAD if name in by_name), next(iter(drawings), None)),
        tables=shown,
        names=names,
        gates=[(drawing, runs.behind(drawing)) for drawing in drawings if table_of(drawing) not in names],
        missing=[table_title(name) for name in sorted({plan.name for plan in report.plans} - names)],
        runs=runs.by_task(),
        encodings={run["encoding"]: run["label"] for found in runs.by_task().values() for run in found},
    )

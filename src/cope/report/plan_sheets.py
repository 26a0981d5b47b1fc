"""A task's results beside the paper's, in the paper's own form: a row an encoding, a column a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cope.metrics import METRICS, Metric, percent
from cope.report.findings import Findings
from cope.report.names import row_name, section_name, split_name, table_title
from cope.report.paper import paper_values
from cope.report.provenance import provenance_line
from cope.report.sheets import Sheet, as_text, show
from cope.report.statistics import MISSING, spread
from cope.sweep.plan import Plan

FAILED = "failed"
PAPER_INDENT = "  "  # of a row with the paper's figures, which stands below ours


def plan_sheets(plan: Plan, findings: Findings) -> list[Sheet]:
    """A table's sections; below the last, what they were made from."""
    sheets = [comparison_sheet(plan, section, findings) for section in plan.sections]
    headlines = {findings.headline(section) for section in plan.sections}
    has_one_split = all(len(findings.shown_splits(plan, section)) == 1 for section in plan.sections)
    if len(sheets) > 1 and len(headlines) == 1 and has_one_split:
        sheets.insert(0, _side_by_side(plan, sheets, METRICS[headlines.pop()]))
    finished = [result for section in plan.sections for row in plan.rows(section) for result in findings.results(section, row)]
    if finished:
        sheets[-1] = replace(sheets[-1], notes=(*sheets[-1].notes, provenance_line(finished)))
    return sheets


def show_tables(plans: Iterable[Plan], findings: Findings, form: str) -> None:
    """Print tables below their titles; in the forms that are pasted, all as one document."""
    if form != "table":
        show([sheet for plan in plans for sheet in plan_sheets(plan, findings)], form)
        return
    for plan in plans:
        print(f"\n{table_title(plan.name)}: {plan.title}\n", flush=True)
        show(plan_sheets(plan, findings))


def write_tables(plans: Iterable[Plan], findings: Findings, cells: pd.DataFrame, folder: Path) -> None:
    """Each table as it is printed (Markdown, LaTeX), and every number of it (CSV)."""
    for plan in plans:
        own = cells[cells["table"] == plan.name].drop(columns="table")
        own.to_csv(folder / f"{plan.name}.csv", index=False, float_format="%.6g")
        sheets = plan_sheets(plan, findings)
        (folder / f"{plan.name}.tex").write_text(as_text(sheets, "latex") + "\n")
        (folder / f"{plan.name}.md").write_text(f"# {plan.title}\n\n{as_text(sheets, 'markdown')}\n")


def comparison_sheet(plan: Plan, section: str, findings: Findings) -> Sheet:
    """Mean (standard deviation) over seeds, below it the paper's; how many seeds there are, how many learned, their time.

    Where no run is finished the figure is "missing" or "failed"; what the paper has no figure of either is named below. Where
    that is every row, all are "missing". If runs ended after different numbers of steps, the validation at the step that all
    came to stands beside what each came to in the end.
    """
    metric = METRICS[findings.headline(section)]
    splits = findings.shown_splits(plan, section)
    paper = paper_values().get(section, {})
    failed = findings.failures(section)
    equal_step, at_equal_step = findings.at_equal_steps(section, plan.rows(section))
    rows: list[dict[str, str]] = []
    equal = f"validation at step {equal_step}"
    numbers = set()  # of the seeds of a row
    lacking = findings.without_figures(plan, section)
    not_run = [] if len(lacking) == len(plan.rows(section)) else lacking
    for row in plan.rows(section):
        if row in not_run:
            continue
        runs, learned = findings.results(section, row), findings.learned(section, row)
        improving = findings.still_improving(section, row)
        name = row_name(row)
        lost = no_figure(failed[row])
        numbers |= {len(runs)} if runs else set()
        cells = {"": name}
        for split in splits:
            figure = _shown(findings.values(section, row, split), metric)
            cells[split_name(split, not metric.is_percentage)] = figure if runs else lost
        if equal_step is not None:
            cells[equal] = _shown(at_equal_step.get(row, {}), metric)
        cells["seeds"] = num_runs_text(len(runs), failed[row])
        if metric.is_percentage:
            cells["learned"] = "" if learned is None else f"{learned[0]} of {learned[1]}"
        if any("still_improving" in run for run in runs):
            cells["still improving"] = str(improving)
        cells["seconds"] = f"{np.mean([run['time_s'] for run in runs]):.0f}" if runs else ""
        rows.append(cells)
        if any(split in paper.get(row, {}) for split in splits):
            figures = {split: published_text(paper[row].get(split), metric) for split in splits}
            rows.append(
                {"": f"{PAPER_INDENT}{name}, paper"}
                | {split_name(split, not metric.is_percentage): figure for split, figure in figures.items()}
            )
    return Sheet.of(
        f"{section_name(section)}, {metric.label}{_over_seeds(numbers)}",
        rows,
        notes=[f"Not run: {'; '.join(map(row_name, not_run))}."] if not_run else [],
        faint=_published(cells[""] for cells in rows),
        aside=frozenset({equal, "seeds", "learned", "still improving", "seconds"}),
    )


def _side_by_side(plan: Plan, sheets: Iterable[Sheet], metric: Metric) -> Sheet:
    """The first figures of each section, which is a column then; for the others there is its own sheet."""
    rows: dict[str, dict[str, str]] = {}
    for section, sheet in zip(plan.sections, sheets, strict=True):
        for name, figure, *_ in sheet.rows:
            rows.setdefault(name, {"": name})[section_name(section)] = figure
    return Sheet.of(f"{plan.title}, {metric.label}", list(rows.values()), faint=_published(rows))


def _published(names: Iterable[str]) -> frozenset[int]:
    """Which rows have the paper's figures."""
    return frozenset(index for index, name in enumerate(names) if name.startswith(PAPER_INDENT))


def _over_seeds(numbers: set[int]) -> str:
    """``, mean (SD) over 9 seeds``; nothing where no row has more than one run."""
    most = max(numbers, default=0)
    least = "" if most == min(numbers, default=0) else f"{min(numbers)} to "
    return f", mean (SD) over {least}{most} seeds" if most > 1 else ""


def no_figure(num_failed: int) -> str:
    """What stands where no run is finished."""
    return FAILED if num_failed else MISSING


def num_runs_text(num_finished: int, num_failed: int) -> str:
    """``2, 1 failed``."""
    return f"{num_finished}" + (f", {num_failed} failed" if num_failed else "")


def _shown(values: dict[int, float], metric: Metric) -> str:
    return spread([value / metric.factor for value in values.values()], metric)


def published_text(figures: list[float] | None, metric: Metric) -> str:
    """The paper's mean and, where it has one, standard deviation, in its digits."""
    digits = max((len(f"{value:g}".partition(".")[2]) for value in figures or []), default=0)
    texts = [percent(value / 100) if metric.is_percentage else f"{value:.{max(1, digits)}f}" for value in figures or []]
    return texts[0] + (f" ({texts[1]})" if len(texts) > 1 else "") if texts else ""

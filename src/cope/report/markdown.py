"""A task's results beside the paper's, in the paper's own form: a row an encoding, a column a split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from cope.metrics import METRICS
from cope.report.findings import Findings
from cope.report.paper import paper_values
from cope.report.provenance import provenance_line
from cope.report.tables import MISSING, Table, spread
from cope.sweep.plan import Plan

FAILED = "failed"


def plan_tables(plan: Plan, findings: Findings) -> str:
    """A table's sections, and what they were made from, in Markdown."""
    parts = [comparison_table(plan, section, findings).render("markdown") for section in plan.sections]
    finished = [result for section in plan.sections for row in plan.rows(section) for result in findings.results(section, row)]
    return "\n\n".join([*parts, provenance_line(finished)] if finished else parts)


def write_tables(plans: Iterable[Plan], findings: Findings, cells: pd.DataFrame, folder: Path) -> None:
    """Each table as it is printed (Markdown, LaTeX), and every number of it (CSV)."""
    for plan in plans:
        own = cells[cells["table"] == plan.name].drop(columns="table")
        own.to_csv(folder / f"{plan.name}.csv", index=False, float_format="%.6g")
        tables = [comparison_table(plan, section, findings) for section in plan.sections]
        (folder / f"{plan.name}.tex").write_text("\n".join(table.render("latex") for table in tables))
        (folder / f"{plan.name}.md").write_text(f"# {plan.title}\n\n{plan_tables(plan, findings)}\n")


def comparison_table(plan: Plan, section: str, findings: Findings) -> Table:
    """Mean (standard deviation) over seeds, beside it the paper's; how many seeds there are, how many learned, their time.

    Where no run is finished the figure is "missing" or "failed". If runs ended after different numbers of steps, the validation
    at the step that all came to stands beside what each came to in the end.
    """
    metric = METRICS[findings.headline(section)]
    splits = findings.shown_splits(plan, section)
    paper = paper_values().get(section, {})
    failed = findings.failures(section)
    equal_step, at_equal_step = findings.at_equal_steps(section, plan.rows(section))
    rows = {}
    for row in plan.rows(section):
        runs, learned = findings.results(section, row), findings.learned(section, row)
        improving = findings.still_improving(section, row)
        lost = no_figure(failed[row])
        cells: dict[str, str] = {}
        for split in splits:
            cells[split] = _shown(findings.values(section, row, split), metric.factor, section, findings) if runs else lost
            if any(split in figures for figures in paper.values()):
                cells[f"{split}, paper"] = _published(paper.get(row, {}).get(split))
        if equal_step is not None:
            cells[f"validation at step {equal_step}"] = _shown(at_equal_step.get(row, {}), metric.factor, section, findings)
        cells["seeds"] = num_runs_text(len(runs), failed[row])
        if metric.is_percentage:
            cells["learned"] = "" if learned is None else f"{learned[0]} of {learned[1]}"
        if any("still_improving" in run for run in runs):
            cells["still improving"] = str(improving)
        cells["seconds a run"] = f"{np.mean([run['time_s'] for run in runs]):.0f}" if runs else lost
        rows[row] = cells
    return Table.of(f"{section}, {metric.label}", rows)


def no_figure(num_failed: int) -> str:
    """What stands where no run is finished."""
    return FAILED if num_failed else MISSING


def num_runs_text(num_finished: int, num_failed: int) -> str:
    """``2, 1 failed``."""
    return f"{num_finished}" + (f", {num_failed} failed" if num_failed else "")


def _shown(values: dict[int, float], factor: float, section: str, findings: Findings) -> str:
    return spread([value / factor for value in values.values()], METRICS[findings.headline(section)])


def _published(figures: list[float] | None) -> str:
    """The paper's mean and, where it has one, standard deviation."""
    if figures is None:
        return ""
    return f"{figures[0]}" + (f" ({figures[1]})" if len(figures) > 1 else "")

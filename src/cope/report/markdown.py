"""A Markdown table of a task's results beside the paper's."""

from __future__ import annotations

from cope.metrics import METRICS
from cope.report.findings import Findings
from cope.report.paper import paper_values
from cope.report.provenance import provenance_line
from cope.report.tables import MISSING, spread
from cope.sweep.plan import Plan

FAILED = "failed"


def plan_tables(plan: Plan, findings: Findings) -> str:
    """A table's sections, and what they were made from."""
    parts = [comparison_table(plan, section, findings) for section in plan.sections]
    finished = [result for section in plan.sections for row in plan.rows(section) for result in findings.results(section, row)]
    return "\n\n".join([*parts, provenance_line(finished)] if finished else parts)


def comparison_table(plan: Plan, section: str, findings: Findings) -> str:
    """One row an encoding or variant, one column a test split: mean (standard deviation) here, and below it the paper's.

    Rows with fewer runs than the plan has seeds say so; where none is finished the figure is "missing" or "failed".
    """
    num_seeds = len(plan.seeds)
    results = {row: findings.results(section, row) for row in plan.rows(section)}
    failed = findings.failures(section)
    if not any(results.values()):
        planned, num_failed = num_seeds * len(results), sum(failed.values())
        some = f" ({num_failed} of {planned} runs failed)" if 0 < num_failed < planned else ""
        return f"**{section}**: {no_figure(num_failed, planned)}{some}"
    metric = METRICS[findings.headline(section)]
    splits = findings.shown_splits(plan, section)
    paper = paper_values().get(section, {})
    lines = [
        f"**{section}**, {metric.label}",
        "",
        "| | " + " | ".join(splits) + " | seconds a run |",
        "|---" * (len(splits) + 2) + "|",
    ]
    for row, runs in results.items():
        lost = no_figure(failed[row], num_seeds)
        cells = []
        for split in splits:
            values = [value / metric.factor for value in findings.values(section, row, split).values()]
            cell = spread(values, metric) if values or runs else lost
            cells.append(cell + _published(paper.get(row, {}).get(split)))
        seconds = f"{sum(run['time_s'] for run in runs) / len(runs):.0f}" if runs else lost
        complete = len(runs) == num_seeds
        name = row if complete else f"{row} ({num_runs_text(len(runs), failed[row], num_seeds)})"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(lines)


def no_figure(num_failed: int, num_seeds: int) -> str:
    """What stands where no run is finished: "failed" if all of them ended with an error."""
    return FAILED if num_failed and num_failed >= num_seeds else MISSING


def num_runs_text(num_finished: int, num_failed: int, num_seeds: int) -> str:
    """``2 of 3 seeds, 1 failed``."""
    return f"{num_finished} of {num_seeds} seeds" + (f", {num_failed} failed" if num_failed else "")


def _published(figures: list[float] | None) -> str:
    """The paper's mean and, where it has one, standard deviation."""
    if figures is None:
        return ""
    deviation = f" ({figures[1]})" if len(figures) > 1 else ""
    return f"<br>*paper {figures[0]}{deviation}*"

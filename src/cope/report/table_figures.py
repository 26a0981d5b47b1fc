"""Tables 2 to 5 as pictures: each seed, mean and spread, and the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from cope.metrics import METRICS
from cope.report.drawing import OURS, PAPER, Drawing, report_style, save, table_command
from cope.report.findings import Findings
from cope.report.markdown import no_figure
from cope.report.paper import paper_values
from cope.report.statistics import mean_and_spread
from cope.sweep.plan import Plan

TABLES_DRAWN = ("table2", "table3", "table4", "table5")
CAPTION = "Small dots: seeds; large dots with bars: mean and standard deviation; diamonds: the paper's."
OTHER_TEXT = (
    "The paper's perplexities have axes of their own, since those of other texts, vocabularies and sizes cannot be compared."
)


@dataclass(frozen=True)
class _Panel:
    section: str
    split: str
    rows: tuple[str, ...]
    lost: dict[str, str]  # what stands for our figure where there is none, by row: missing or failed
    ours: bool = True
    paper: bool = True


def draw_table_figures(plans: Iterable[Plan], findings: Findings, folder: Path) -> list[Drawing]:
    """Draw each of the tables that there are runs for, as SVG and PNG."""
    drawn = []
    for plan in plans:
        sections = [section for section in plan.sections if findings.splits(section)]
        if plan.name not in TABLES_DRAWN or not sections:
            continue
        lines = [_panels(plan, section, findings) for section in sections]
        if all(len(panels) == 1 for panels in lines):
            lines = [[panels[0] for panels in lines]]
        with report_style(plan.name):
            path = _draw(lines, findings, folder, plan.name)
        caption = CAPTION
        if any(not METRICS[findings.headline(section)].is_percentage for section in sections):
            caption += f" {OTHER_TEXT}"
        if absent := [section for section in plan.sections if section not in sections]:
            caption += f" Missing: {'; '.join(absent)}."
        title = f"{plan.name.replace('table', 'Table ')}: {plan.title.lower()}"
        drawn.append(Drawing(path, title, caption, table_command([plan.name]), tuple(sections)))
    return drawn


def _panels(plan: Plan, section: str, findings: Findings) -> list[_Panel]:
    """One for each split; of perplexities, which are drawn apart, those splits that the paper has."""
    rows = plan.rows(section)
    failed = findings.failures(section)
    lost = {row: no_figure(failed[row]) for row in rows}
    splits = findings.shown_splits(plan, section)
    if METRICS[findings.headline(section)].is_percentage:
        return [_Panel(section, split, rows, lost) for split in splits]
    paper = paper_values().get(section, {})
    known = [split for split in splits if any(split in figures for figures in paper.values())] or list(splits)
    return [_Panel(section, split, rows, lost, ours, not ours) for split in known for ours in (True, False)]


def _draw(lines: Sequence[Sequence[_Panel]], findings: Findings, folder: Path, name: str) -> Path:
    num_columns = max(len(panels) for panels in lines)
    heights = [0.3 * max(len(panel.rows) for panel in panels) + 1.0 for panels in lines]
    figure, axes = plt.subplots(
        len(lines), num_columns, figsize=(2.2 + 2.6 * num_columns, sum(heights) + 0.4), layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for panels, row_axes in zip(lines, axes, strict=True):
        for column, axis in enumerate(row_axes):
            if column < len(panels):
                _draw_panel(axis, panels[column], findings, has_names=column == 0 or panels[column].rows != panels[0].rows)
            else:
                axis.set_axis_off()
    handles = [
        Line2D([], [], marker="o", linestyle="", color=OURS, label="here"),
        Line2D([], [], marker="D", linestyle="", color=PAPER, markerfacecolor="none", label="paper"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    return save(figure, folder, name)


def _draw_panel(axis: Axes, panel: _Panel, findings: Findings, has_names: bool) -> None:
    metric = METRICS[findings.headline(panel.section)]
    paper = paper_values().get(panel.section, {})
    for place, row in enumerate(panel.rows):
        values = list(findings.values(panel.section, row, panel.split).values())
        if panel.ours and values:
            axis.plot(values, [place - 0.15] * len(values), "o", color=OURS, alpha=0.45, markersize=3, linestyle="")
            mean, spread = mean_and_spread(values)
            axis.errorbar(mean, place - 0.15, xerr=spread, fmt="o", color=OURS, markersize=6, capsize=2)
        elif panel.ours:
            axis.text(
                0.02, place - 0.15, panel.lost[row], transform=axis.get_yaxis_transform(), va="center", fontsize=7, alpha=0.6
            )
        figures = paper.get(row, {}).get(panel.split)
        if panel.paper and figures:
            axis.errorbar(
                figures[0], place + 0.15, xerr=figures[1] if len(figures) > 1 else None, fmt="D", color=PAPER,
                markerfacecolor="none", markersize=5, capsize=2,
            )  # fmt: skip
    axis.set_yticks(range(len(panel.rows)), panel.rows if has_names else [""] * len(panel.rows))
    axis.set_ylim(len(panel.rows) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    whose = "" if panel.ours else ", paper"
    axis.set_title(f"{panel.section}\n{panel.split}{whose}", fontsize=9)
    axis.set_xlabel(metric.label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if metric.is_percentage:
        right = min(103.0, axis.get_xlim()[1])  # no bar can mean more than 100% or less than 0
        axis.set_xlim(-0.03 * right, right)

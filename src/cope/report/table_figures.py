"""Tables 2 to 5, 7 and 8 as pictures: each seed, their mean, and the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from cope.metrics import METRICS
from cope.report.drawing import (
    Drawing,
    draw_published,
    draw_seeds,
    key_of_marks,
    save,
    value_axis,
)  # fmt: skip
from cope.report.findings import Findings
from cope.report.names import ENCODINGS, row_name, section_name, split_name, table_title
from cope.report.paper import paper_values
from cope.report.plan_sheets import no_figure
from cope.report.style import COLUMN, SOFT, look_of, picture_style
from cope.sweep.plan import Plan

TABLES_DRAWN = ("table2", "table3", "table4", "table5", "table7", "table8")
CAPTION = (
    "Strokes: seeds; marks: their mean, with a bar from the least to the largest; open diamonds: the paper's, dotted: its "
    "standard deviation."
)
OTHER_TEXT = (
    "The paper's perplexities have axes of their own, since those of other texts, vocabularies and sizes cannot be compared."
)
ROW_HEIGHT, PANEL_HEIGHT = 0.17, 0.62  # inches; of a row, and of what is above and below the rows
OFFSET = 0.17  # of the paper's mark from ours, in rows


@dataclass(frozen=True)
class _Row:
    name: str  # in the plan
    encoding: str
    place: float
    lost: str  # what stands for our figure where there is none: missing or failed


@dataclass(frozen=True)
class _Panel:
    section: str
    split: str
    rows: tuple[_Row, ...]
    ticks: dict[str, float]  # names of lines of the picture, and where they are
    ours: bool = True
    paper: bool = True


def draw_table_figures(plans: Iterable[Plan], findings: Findings, folder: Path) -> list[Drawing]:
    """Draw each of the tables that there are runs for."""
    drawn = []
    for plan in plans:
        sections = [section for section in plan.sections if findings.splits(section)]
        if plan.name not in TABLES_DRAWN or not sections:
            continue
        with picture_style(plan.name):
            path = _draw([_panels(plan, section, findings) for section in sections], findings, folder, plan.name)
        caption = CAPTION
        if any(not METRICS[findings.headline(section)].is_percentage for section in sections):
            caption += f" {OTHER_TEXT}"
        if absent := [section_name(section) for section in plan.sections if section not in sections]:
            caption += f" Missing: {'; '.join(absent)}."
        if empty := dict.fromkeys(row_name(row) for section in sections for row in findings.without_figures(plan, section)):
            caption += f" Not run: {'; '.join(empty)}."
        title = f"{table_title(plan.name)}: {plan.title}"
        drawn.append(Drawing(path, title, caption, tuple(sections)))
    return drawn


def _panels(plan: Plan, section: str, findings: Findings) -> list[_Panel]:
    """One for each split; of perplexities, which are drawn apart, those splits that the paper has."""
    rows, ticks = _rows(plan, section, findings)
    splits = findings.shown_splits(plan, section)
    if METRICS[findings.headline(section)].is_percentage:
        return [_Panel(section, split, rows, ticks) for split in splits]
    paper = paper_values().get(section, {})
    known = [split for split in splits if any(split in figures for figures in paper.values())] or list(splits)
    return [_Panel(section, split, rows, ticks, ours, not ours) for split in known for ours in (True, False)]


def _rows(plan: Plan, section: str, findings: Findings) -> tuple[tuple[_Row, ...], dict[str, float]]:
    """Each row on a line of its own; where rows are an encoding and a shape, encodings of a shape share one."""
    failed = findings.failures(section)
    empty = findings.without_figures(plan, section)
    runs = {name: run for name, run in plan.rows(section).items() if name not in empty}
    shapes = {name: name.partition(", ")[2] for name in runs if name.partition(", ")[0] in ENCODINGS}
    if not (all(shapes.values()) and len(shapes) == len(runs)):
        rows = [
            _Row(name, run.folder.encoding, float(place), no_figure(failed[name]))
            for place, (name, run) in enumerate(runs.items())
        ]
        return tuple(rows), {row_name(row.name): row.place for row in rows}
    lines = list(dict.fromkeys(shapes.values()))
    encodings = list(dict.fromkeys(run.folder.encoding for run in runs.values()))
    height = len(encodings)
    rows = []
    for name, run in runs.items():
        encoding = run.folder.encoding
        place = lines.index(shapes[name]) * (height + 0.6) + encodings.index(encoding)
        rows.append(_Row(name, encoding, place, no_figure(failed[name])))
    return tuple(rows), {
        line.replace(", ", ",\n"): index * (height + 0.6) + (height - 1) / 2 for index, line in enumerate(lines)
    }


def _draw(lines: Sequence[Sequence[_Panel]], findings: Findings, folder: Path, name: str) -> Path:
    """Two panels side by side, in a column's width; sections of one panel each share lines."""
    panels = [panel for section in lines for panel in section]
    by_two = [panels] if all(len(section) == 1 for section in lines) else list(lines)
    grid = [list(section[start : start + 2]) for section in by_two for start in range(0, len(section), 2)]
    heights = [ROW_HEIGHT * (max(max(row.place for row in panel.rows) for panel in line) + 1) + PANEL_HEIGHT for line in grid]
    num_columns = max(len(line) for line in grid)
    grouped = any(len(panel.ticks) < len(panel.rows) for panel in panels)
    figure, axes = plt.subplots(
        len(grid), num_columns, figsize=(COLUMN, sum(heights) + 0.25 + 0.15 * grouped), layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for line, row_axes in zip(grid, axes, strict=True):
        for column, axis in enumerate(row_axes):
            if column < len(line):
                panel, is_new = line[column], column == 0 or line[column].section != line[0].section
                _draw_panel(axis, panel, findings, column == 0 or panel.ticks != line[0].ticks, is_new)
            else:
                axis.set_axis_off()
    handles = key_of_marks(any(_is_published(panel) for panel in panels))
    if grouped:
        encodings = dict.fromkeys(row.encoding for panel in panels if len(panel.ticks) < len(panel.rows) for row in panel.rows)
        looks = [look_of(encoding) for encoding in encodings]
        handles += [Line2D([], [], marker=k.marker, linestyle="", color=k.colour, markersize=4, label=k.label) for k in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.4)
    return save(figure, folder, name)


def _is_published(panel: _Panel) -> bool:
    paper = paper_values().get(panel.section, {})
    return panel.paper and any(panel.split in paper.get(row.name, {}) for row in panel.rows)


def _draw_panel(axis: Axes, panel: _Panel, findings: Findings, has_names: bool, is_first_of_section: bool) -> None:
    metric = METRICS[findings.headline(panel.section)]
    paper = paper_values().get(panel.section, {})
    drawn: list[float] = []
    missing = []
    for row in panel.rows:
        look = look_of(row.encoding)
        values = list(findings.values(panel.section, row.name, panel.split).values())
        published = paper.get(row.name, {}).get(panel.split) if panel.paper else None
        apart = OFFSET if panel.ours and published else 0.0
        if panel.ours and values:
            draw_seeds(axis, row.place - apart, values, look)
            drawn += values
        elif panel.ours:
            missing.append(row)
        if published:
            draw_published(axis, row.place + apart, published, look)
            drawn.append(published[0])
    if metric.is_percentage:
        value_axis(axis, drawn)
    else:
        axis.margins(x=0.1)
    for row in missing:
        axis.text(0.02, row.place, row.lost, transform=axis.get_yaxis_transform(), va="center", fontsize=6, color=SOFT)
    axis.set_yticks(list(panel.ticks.values()), list(panel.ticks) if has_names else [""] * len(panel.ticks))
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(max(row.place for row in panel.rows) + 0.6, -0.6)
    axis.grid(axis="x")
    whose = "" if panel.ours and panel.paper else ", here" if panel.ours else ", paper"
    of_text = not metric.is_percentage
    title = section_name(panel.section) if is_first_of_section else ""
    axis.set_title(f"{title}\n{split_name(panel.split, of_text)}{whose}", loc="left")
    axis.set_xlabel(metric.label.replace(" %", " (%)"))

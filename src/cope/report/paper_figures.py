"""Figures 2, 3 and 5 of the paper with our points beside the paper's, from result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cope.report.drawing import Drawing, paper_mark, save, value_axis
from cope.report.findings import Findings
from cope.report.paper import paper_values
from cope.report.style import COLUMN, SOFT, look_of, picture_style
from cope.sweep.plan import Plan

FIGURES_DRAWN = ("figure2", "figure3", "figure5")
PROGRAMS = (2000, 3000, 5000, 10000)
PROGRAM_SECTIONS = tuple(f"counting, {number} programs" for number in PROGRAMS)
CONTEXT_SECTIONS = ("trained at the full context", "trained at half of it")
CONTEXT_FACTORS = {"test": 1.0, "longer_1_5": 1.5, "longer_2": 2.0, "longer_2_5": 2.5}
CONTEXT_RANGE = (0.9, 2.6)
OUR_LINES = "Thick lines with marks: means over seeds; thin ones: the seeds."


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    sections: tuple[str, ...]
    draw: Callable[[Any, Findings], bool]  # onto the axes of a grid; whether there was anything of ours
    grid: tuple[int, int] = (1, 1)
    has_paper: bool = True


def draw_paper_figures(plans: Iterable[Plan], findings: Findings, folder: Path) -> list[Drawing]:
    """Draw those of the figures that are planned and that there are runs for."""
    figures = {
        "figure2": _Figure(
            "Figure 2: counting by the number of training programs",
            f"{OUR_LINES} Open diamonds: the paper's, read off its plot.",
            PROGRAM_SECTIONS, _draw_programs,
        ),
        "figure3": _Figure(
            "Figure 3: perplexity in longer contexts than in training",
            f"{OUR_LINES} Below: the paper's, read off its plot (trained at 1024 and at 512 tokens), on axes of their own, "
            "since perplexities of other texts, vocabularies and sizes cannot be compared; only the shapes can. Its curves "
            "for 512 go on to five times that.",
            CONTEXT_SECTIONS, _draw_contexts, (2, 2),
        ),
        "figure5": _Figure(
            "Figure 5: how fast flip-flop is learned",
            f"{OUR_LINES} Where runs have ended, the mean is of those that go on. "
            "The paper prints no numbers for this figure, only that CoPE is best by step 2,500 of 10,000, so "
            "there are no points of its own here.",
            ("flip_flop",), _draw_speed, has_paper=False,
        ),
    }  # fmt: skip
    drawn = []
    for name in [plan.name for plan in plans if plan.name in FIGURES_DRAWN]:
        wanted = figures[name]
        with picture_style(name):
            rows, columns = wanted.grid
            size = (COLUMN, 0.4 + (2.1 if rows == 1 else 1.7) * rows)
            figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
            if wanted.draw(axes, findings):
                labelled: dict[str, Any] = {}  # our line of an encoding; where there is none, the paper's
                for axis in axes.flat:
                    for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                        labelled.setdefault(label, handle)
                handles = [*labelled.values(), *([paper_mark()] if wanted.has_paper else [])]
                figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=2.4, columnspacing=1.0)
                path = save(figure, folder, name)
                drawn.append(Drawing(path, wanted.title, wanted.caption, wanted.sections))
            plt.close(figure)
    return drawn


def _draw_programs(axes: Any, findings: Findings) -> bool:
    published, axis = paper_values(), axes[0, 0]
    drawn: list[float] = []
    found = False
    for row in ("relative", "cope"):
        values = [list(findings.values(section, row, "validation").values()) for section in PROGRAM_SECTIONS]
        found |= _curve(axis, dict(zip(PROGRAMS, values, strict=True)), row)
        paper = [published[section][row]["validation"][0] for section in PROGRAM_SECTIONS]
        _paper_curve(axis, PROGRAMS, paper, row)
        drawn += [value for several in values for value in several] + paper
    value_axis(axis, drawn, along="y")
    axis.set(xlabel="training programs", ylabel="validation error (%)", title="Counting", xlim=(0, None))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(axis="y")
    return found


def _draw_contexts(axes: Any, findings: Findings) -> bool:
    published = paper_values()
    found = False
    for (ours, theirs), section in zip(axes.T, CONTEXT_SECTIONS, strict=True):
        any_here = False
        for row in ("relative", "relative_capped", "cope"):
            points = {factor: list(findings.values(section, row, split).values()) for split, factor in CONTEXT_FACTORS.items()}
            any_here |= _curve(ours, points, row)
            paper = published[section][row]
            known = {factor: paper[split][0] for split, factor in CONTEXT_FACTORS.items() if split in paper}
            _paper_curve(theirs, list(known), list(known.values()), row)
        ours.set(title=f"{section},\nhere".capitalize(), xlim=CONTEXT_RANGE)
        theirs.set(title=f"{section},\npaper".capitalize(), xlim=CONTEXT_RANGE)
        for axis in (ours, theirs):
            axis.set(xlabel="context / trained context", ylabel="perplexity")
            axis.grid(axis="y")
        if not any_here:
            ours.set_yticks([])
            ours.text(0.5, 0.5, "missing", ha="center", va="center", transform=ours.transAxes, color=SOFT)
        found |= any_here
    return found


def _draw_speed(axes: Any, findings: Findings) -> bool:
    axis = axes[0, 0]
    drawn: list[float] = []
    found = False
    for row in ("absolute", "rope", "cope"):
        curves = findings.curve("flip_flop", row)
        steps = sorted({step for curve in curves.values() for step, _ in curve})
        values = {step: [value for curve in curves.values() for at, value in curve if at == step] for step in steps}
        found |= _curve(axis, values, row)
        drawn += [value for several in values.values() for value in several]
    value_axis(axis, drawn, along="y")
    axis.set(xlabel="step", ylabel="validation error (%)", title="Flip-flop", xlim=(0, None))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(axis="y")
    return found


def _curve(axis: Axes, points: Mapping[int, list[float]] | Mapping[float, list[float]], row: str) -> bool:
    """The mean over seeds as a line with marks, each seed as a thin one; whether there was anything to draw."""
    found = [(place, values) for place, values in points.items() if values]
    if not found:
        return False
    look, places = look_of(row), [place for place, _ in found]
    for seed in range(max(len(values) for _, values in found)):
        own = [(place, values[seed]) for place, values in found if seed < len(values)]
        axis.plot(*zip(*own, strict=True), "-", color=look.colour, alpha=0.35, linewidth=0.6, zorder=2)
    axis.plot(places, [np.mean(values) for _, values in found], **look.line)
    return True


def _paper_curve(axis: Axes, places: Sequence[float], values: Sequence[float], row: str) -> None:
    look = look_of(row)
    axis.plot(
        places, values, ":", marker="D", markersize=3.6, markerfacecolor="none", markeredgewidth=0.9, linewidth=0.8,
        color=look.colour, zorder=look.order, label=look.label,
    )  # fmt: skip

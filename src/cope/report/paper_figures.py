"""Figures 2, 3 and 5 of the paper with our points beside the paper's, from result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cope.report.drawing import Drawing, report_style, save, table_command
from cope.report.findings import Findings
from cope.report.paper import paper_values
from cope.sweep.plan import Plan

FIGURES_DRAWN = ("figure2", "figure3", "figure5")
PROGRAMS = (2000, 3000, 5000, 10000)
PROGRAM_SECTIONS = tuple(f"counting, {number} programs" for number in PROGRAMS)
CONTEXT_SECTIONS = ("trained at the full context", "trained at half of it")
CONTEXT_FACTORS = {"test": 1.0, "longer_1_5": 1.5, "longer_2": 2.0, "longer_2_5": 2.5}
CONTEXT_RANGE = (0.9, 2.6)
OUR_LINES = "Lines: means over seeds; bands: least to largest."


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    sections: tuple[str, ...]
    draw: Callable[[Any, Findings], bool]  # onto the axes of a grid; whether there was anything of ours
    grid: tuple[int, int] = (1, 1)


def draw_paper_figures(plans: Iterable[Plan], findings: Findings, folder: Path) -> list[Drawing]:
    """Draw those of the figures that are planned and that there are runs for, as SVG and PNG."""
    figures = {
        "figure2": _Figure(
            "Figure 2: counting by the number of training programs",
            f"{OUR_LINES} Dotted: the paper's, read off its plot.",
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
            f"{OUR_LINES} The paper prints no numbers for this figure, only that CoPE is best by step 2,500 of 10,000, so "
            "there are no points of its own here.",
            ("flip_flop",), _draw_speed,
        ),
    }  # fmt: skip
    drawn = []
    for name in [plan.name for plan in plans if plan.name in FIGURES_DRAWN]:
        wanted = figures[name]
        with report_style(name):
            rows, columns = wanted.grid
            size = (5.5 * columns, 3.6 * rows)
            figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
            if wanted.draw(axes, findings):
                path = save(figure, folder, name)
                drawn.append(Drawing(path, wanted.title, wanted.caption, table_command([name]), wanted.sections))
            plt.close(figure)
    return drawn


def _draw_programs(axes: Any, findings: Findings) -> bool:
    published, axis = paper_values(), axes[0, 0]
    for index, row in enumerate(("relative", "cope")):
        values = [list(findings.values(section, row, "validation").values()) for section in PROGRAM_SECTIONS]
        _with_spread(axis, dict(zip(PROGRAMS, values, strict=True)), f"C{index}", row)
        paper = [published[section][row]["validation"][0] for section in PROGRAM_SECTIONS]
        axis.plot(PROGRAMS, paper, ":", marker="D", markersize=4, color=f"C{index}", label=f"{row}, paper")
    axis.set(xlabel="training programs", ylabel="validation error (%)", ylim=(0, None))
    return _legend(axis)


def _draw_contexts(axes: Any, findings: Findings) -> bool:
    published = paper_values()
    found = False
    for (ours, theirs), section in zip(axes.T, CONTEXT_SECTIONS, strict=True):
        for index, row in enumerate(("relative", "relative_capped", "cope")):
            points = {factor: list(findings.values(section, row, split).values()) for split, factor in CONTEXT_FACTORS.items()}
            _with_spread(ours, points, f"C{index}", row)
            paper = published[section][row]
            known = {factor: paper[split][0] for split, factor in CONTEXT_FACTORS.items() if split in paper}
            theirs.plot(
                list(known), list(known.values()), ":", marker="D", markersize=4, color=f"C{index}", label=f"{row}, paper"
            )
        ours.set(title=section, ylabel="test perplexity", xlim=CONTEXT_RANGE)
        theirs.set(title=f"{section}: the paper's", ylabel="validation perplexity, paper", xlim=CONTEXT_RANGE)
        theirs.set_xlabel("context, in multiples of the trained one")
        theirs.legend(fontsize=8)
        if not _legend(ours):
            ours.text(0.5, 0.5, "missing", ha="center", va="center", transform=ours.transAxes)
        found |= bool(ours.lines)
    return found


def _draw_speed(axes: Any, findings: Findings) -> bool:
    axis = axes[0, 0]
    for index, row in enumerate(("absolute", "rope", "cope")):
        curves = findings.curve("flip_flop", row)
        steps = sorted({step for curve in curves.values() for step, _ in curve})
        values = {step: [value for curve in curves.values() for at, value in curve if at == step] for step in steps}
        _with_spread(axis, values, f"C{index}", row)
    axis.set(xlabel="step", ylabel="validation error (%)", ylim=(0, None))
    return _legend(axis)


def _with_spread(axis: Axes, points: Mapping[int, list[float]] | Mapping[float, list[float]], colour: str, label: str) -> None:
    """The mean over seeds as a line, least and largest as a band; places without values are left out."""
    found = [(place, values) for place, values in points.items() if values]
    if not found:
        return
    places = [place for place, _ in found]
    axis.plot(places, [np.mean(values) for _, values in found], marker="o", markersize=3, color=colour, label=label)
    lowest, highest = [min(values) for _, values in found], [max(values) for _, values in found]
    axis.fill_between(places, lowest, highest, color=colour, alpha=0.15)


def _legend(axis: Axes) -> bool:
    """Add a legend; whether any of our own lines is there."""
    labels = [label for label in axis.get_legend_handles_labels()[1] if not label.endswith(", paper")]
    if labels:
        axis.legend(fontsize=8)
    return bool(labels)

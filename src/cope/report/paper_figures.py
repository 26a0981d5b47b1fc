"""Figures 2, 3 and 5 of the paper with our points beside the paper's, from result files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cope.report.comparison import paper_figures
from cope.report.findings import Findings

PROGRAMS = (2000, 3000, 5000, 10000)
SPLIT_FACTORS = {"test": 1.0, "longer_1_5": 1.5, "longer_2": 2.0, "longer_2_5": 2.5}


def draw_paper_figures(findings: Findings, folder: Path) -> dict[str, Path]:
    """Draw what there are runs for, as SVG and PNG; returns the SVG files by title."""
    figures: dict[str, tuple[str, Callable[[list[Axes], Findings], bool], int]] = {
        "Figure 2: counting by the number of training programs": ("figure2", _draw_programs, 1),
        "Figure 3: perplexity in longer contexts than in training": ("figure3", _draw_contexts, 2),
        "Figure 5: how fast flip-flop is learned": ("figure5", _draw_speed, 1),
    }
    drawn = {}
    with plt.rc_context({"svg.fonttype": "none"}):
        for title, (name, draw, columns) in figures.items():
            figure, axes = plt.subplots(1, columns, figsize=(5.5 * columns, 3.6), layout="constrained", squeeze=False)
            if draw(list(axes[0]), findings):
                for suffix in (".svg", ".png"):
                    figure.savefig(folder / f"{name}{suffix}", dpi=120)
                drawn[title] = folder / f"{name}.svg"
            plt.close(figure)
    return drawn


def _draw_programs(axes: list[Axes], findings: Findings) -> bool:
    published, (axis,) = paper_figures(), axes
    for index, row in enumerate(("relative", "cope")):
        points = {n: list(findings.values(f"counting, {n} programs", row, "validation").values()) for n in PROGRAMS}
        _with_spread(axis, {n: values for n, values in points.items() if values}, f"C{index}", row)
        paper = [published[f"counting, {n} programs"][row]["validation"][0] for n in PROGRAMS]
        axis.plot(PROGRAMS, paper, ":", color=f"C{index}", label=f"{row}, paper")
    axis.set(xlabel="training programs", ylabel="validation error (%)", ylim=(0, None))
    return _legend(axis)


def _draw_contexts(axes: list[Axes], findings: Findings) -> bool:
    found = False
    for axis, section in zip(axes, ("trained at the full context", "trained at half of it"), strict=True):
        for index, row in enumerate(("relative", "relative_capped", "cope")):
            points = {factor: list(findings.values(section, row, split).values()) for split, factor in SPLIT_FACTORS.items()}
            _with_spread(axis, {factor: values for factor, values in points.items() if values}, f"C{index}", row)
        axis.set(title=section, xlabel="context, in multiples of the trained one", ylabel="test perplexity")
        found |= _legend(axis)
    return found


def _draw_speed(axes: list[Axes], findings: Findings) -> bool:
    (axis,) = axes
    for index, row in enumerate(("absolute", "rope", "cope")):
        curves = findings.curve("flip_flop", row)
        steps = sorted({step for curve in curves.values() for step, _ in curve})
        values = {step: [value for curve in curves.values() for at, value in curve if at == step] for step in steps}
        _with_spread(axis, values, f"C{index}", row)
    axis.set(xlabel="step", ylabel="validation error (%)", ylim=(0, None))
    return _legend(axis)


def _with_spread(axis: Axes, points: dict[int, list[float]] | dict[float, list[float]], colour: str, label: str) -> None:
    """The mean over seeds as a line, least and largest as a band."""
    if not points:
        return
    places = list(points)
    axis.plot(places, [np.mean(values) for values in points.values()], marker="o", markersize=3, color=colour, label=label)
    lowest, highest = [min(values) for values in points.values()], [max(values) for values in points.values()]
    axis.fill_between(places, lowest, highest, color=colour, alpha=0.15)


def _legend(axis: Axes) -> bool:
    """Add a legend; whether any of our own lines is there."""
    labels = [label for label in axis.get_legend_handles_labels()[1] if not label.endswith(", paper")]
    if labels:
        axis.legend(fontsize=8)
    return bool(labels)

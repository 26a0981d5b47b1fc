"""What every picture of the report shares: its files, its caption, and how ours and the paper's numbers look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image

from cope.report.style import INK, Look

HIDDEN_BELOW = 1 / 25  # of the largest value: smaller ones could not be told from 0 on a linear axis
LINEAR_UP_TO = 1.0  # percent, of an axis that is logarithmic beyond


@dataclass(frozen=True)
class Drawing:
    """One picture of the report; an SVG, but of measurements that have a PNG alone."""

    path: Path
    title: str
    caption: str
    sections: tuple[str, ...] = ()  # whose runs are drawn
    run_folders: tuple[Path, ...] = ()  # or single runs


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write ``figure`` as SVG, close it, and return its path."""
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    in_few_bytes(path)
    return path


def in_few_bytes(picture: Path) -> None:
    """An SVG without indentation, its places to the hundredth of a point (Matplotlib's: a millionth): two fifths smaller."""

    def rounded(tag: re.Match[str]) -> str:  # not what is written between tags, such as a p-value
        return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])

    text = re.sub(r"\n +", "\n", picture.read_text(encoding="utf-8"))
    picture.write_text(re.sub(r"<[^>]+>", rounded, text), encoding="utf-8")


def in_few_colours(picture: Path) -> None:
    """A PNG in 256 colours, more than our pictures have but for smoothed edges: less than half the size."""
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


def table_command(names: Sequence[str]) -> str:
    """What runs everything that some tables need."""
    return "make " + " ".join(names)


def value_axis(axis: Axes, values: Sequence[float], along: str = "x") -> None:
    """An axis of errors in percent: linear from 0; logarithmic above 1% where a small value would hide beside a large one."""
    largest = max(values, default=1.0)
    far = any(0 < value < HIDDEN_BELOW * largest for value in values)
    limits = axis.set_xlim if along == "x" else axis.set_ylim
    if far and largest > 10 * LINEAR_UP_TO:
        {"x": axis.set_xscale, "y": axis.set_yscale}[along]("symlog", linthresh=LINEAR_UP_TO, linscale=0.5)
        which = {"x": axis.xaxis, "y": axis.yaxis}[along]
        which.set_ticks([0, 1, 10, 100])
        which.set_minor_locator(NullLocator())
        which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        limits(-0.12, min(130.0, 1.6 * largest))
    else:
        top = min(104.0, 1.08 * largest) if largest > 0 else 1.0
        limits(-0.03 * top, top)


def draw_seeds(axis: Axes, place: float, values: Sequence[float], look: Look) -> None:
    """Along the x axis: every seed as a stroke, their mean as a large one, and a bar from the least to the largest."""
    axis.plot(values, [place] * len(values), "|", color=look.colour, markersize=5.5, markeredgewidth=0.9)
    mean = float(np.mean(values))
    axis.plot([min(values), max(values)], [place] * 2, "-", color=look.colour, linewidth=0.9, solid_capstyle="butt")
    axis.plot(mean, place, look.marker, color=look.colour, markersize=4.5, zorder=look.order)


def draw_published(axis: Axes, place: float, figures: Sequence[float], look: Look) -> None:
    """The paper's mean as an open diamond; where it prints a deviation, a bar of that, which never goes below 0."""
    mean = figures[0]
    if len(figures) > 1:
        axis.plot([max(0.0, mean - figures[1]), mean + figures[1]], [place] * 2, ":", color=look.colour, linewidth=0.8)
    axis.plot(mean, place, "D", color=look.colour, markerfacecolor="white", markersize=3.6, markeredgewidth=0.9, zorder=6)


def key_of_marks(has_paper: bool = True) -> list[Any]:
    """Handles of a legend that says what marks mean."""
    handles = [
        Line2D([], [], marker="o", linestyle="-", color=INK, markersize=4.5, linewidth=0.9, label="mean, least to largest"),
        Line2D([], [], marker="|", linestyle="", color=INK, markersize=5.5, markeredgewidth=0.9, label="seed"),
    ]
    return [*handles, paper_mark()] if has_paper else handles


def paper_mark() -> Line2D:
    """For a legend."""
    return Line2D([], [], marker="D", linestyle="", color=INK, markerfacecolor="none", markersize=3.6, label="paper")

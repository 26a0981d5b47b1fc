"""The look of every picture: one colour, marker and line for each encoding wherever it is drawn, and sizes that print well.

CoPE is the one strong colour and the one thick line. The others are lighter, so that they stay apart from it in grey too, and
differ from one another by marker and dashes as well as by colour.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cope.report.names import FAMILIES, encoding_name

COLUMN = 3.5  # inches: a column of a paper
PAGE = 7.2  # both columns

INK = "#222222"
SOFT = "#6b7280"
BOUNDARY = "#3b5b92"
GATE = "#9db4d6"

STRONG = "#c8102e"
WARM = ("#e4572e", "#e07a5f", "#d1495b", "#ef8354", "#f4a259", "#b56576")
OTHERS = ("#3f6fb5", "#2a9d8f", "#8d6fb8", "#5b8c3a", "#b8860b", "#4ba3c7", "#7a7a7a")
MARKERS = ("s", "^", "v", "P", "X", "<", ">", "h", "p")
DASHES: tuple[Any, ...] = ("--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)), (0, (6, 2)))

_LOOKS = list(zip(OTHERS * len(MARKERS), (marker for marker in MARKERS for _ in OTHERS), strict=True))


@dataclass(frozen=True)
class Look:
    """How an encoding is drawn."""

    label: str
    colour: str
    marker: str
    dashes: Any
    width: float
    order: int  # what lies on top of what

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of ``plot`` for a curve of means."""
        return {
            "color": self.colour, "marker": self.marker, "linestyle": self.dashes, "linewidth": self.width,
            "markersize": 4, "zorder": self.order, "label": self.label,
        }  # fmt: skip


def look_of(encoding: str) -> Look:
    """The same for an encoding in every picture; one that is not known here gets one that its name determines."""
    label = encoding_name(encoding)
    if encoding in FAMILIES["strongest"]:
        return Look(label, STRONG, "o", "-", 2.0, 5)
    relatives, others = list(FAMILIES["relatives"]), list(FAMILIES["others"])
    if encoding in relatives:
        place = relatives.index(encoding)
        return Look(label, WARM[place], MARKERS[place], DASHES[place % len(DASHES)], 1.3, 4)
    free = len(_LOOKS) - len(others)
    place = others.index(encoding) if encoding in others else len(others) + zlib.crc32(encoding.encode()) % free
    colour, marker = _LOOKS[_shuffled(place)]
    return Look(label, colour, marker, DASHES[place % len(DASHES)], 1.2, 3)


def _shuffled(place: int) -> int:
    """Neighbours in the list differ in colour and marker: both are taken in turn, which meets every pair of them once."""
    return (place % len(OTHERS)) + len(OTHERS) * (place % len(MARKERS))


@contextmanager
def picture_style(name: str) -> Iterator[None]:
    """Text stays text in an SVG, and the same numbers give the same file; ``name`` keeps identifiers apart."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["DejaVu Sans"], "font.size": 7, "axes.titlesize": 7.5,
        "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 7, "legend.fontsize": 6.5, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
        "ytick.major.width": 0.6, "axes.edgecolor": SOFT, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "grid.color": "#d9dce1", "grid.linewidth": 0.5, "axes.axisbelow": True, "savefig.dpi": 300,
        "figure.constrained_layout.h_pad": 0.03, "figure.constrained_layout.w_pad": 0.03,
    }  # fmt: skip
    with plt.rc_context(settings):
        yield

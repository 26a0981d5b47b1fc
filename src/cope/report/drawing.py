"""What every picture of the report shares: its files, its caption, and how ours and the paper's numbers look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

OURS, PAPER = "C0", "C1"


@dataclass(frozen=True)
class Drawing:
    """One picture of the report."""

    path: Path
    title: str
    caption: str
    command: str  # that makes the runs behind it
    sections: tuple[str, ...] = ()  # whose runs are drawn
    run_folders: tuple[Path, ...] = ()  # or single runs


@contextmanager
def report_style(name: str) -> Iterator[None]:
    """Text stays text in an SVG, and the same numbers give the same file; ``name`` keeps identifiers apart."""
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        yield


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write ``figure`` as SVG, close it, and return the file's path."""
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def table_command(names: Sequence[str]) -> str:
    """What runs everything that some tables need."""
    return "make " + " ".join(names)

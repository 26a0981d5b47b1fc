"""What heads attend to by position alone, from a run's files: a table of heads, and a picture of the best two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HEADS_IN_THE_TABLE = 10
BOUNDARY_COLOUR = "#c0392b"
LABEL_CHARACTERS = 28
LABEL_DISTANCE = 1 / 36  # of the window: closer labels would lie over each other


def read_scores(folder: Path) -> dict[str, Any]:
    """What was measured."""
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def position_alone_tables(scores: dict[str, Any]) -> str:
    """What was measured and, for each kind of boundary, how many heads are significant, and the ten furthest above chance."""
    lines = [
        f"{scores['encoding']} on {scores['task']} (seed {scores['training_seed']}): attention by position alone in "
        f"{scores['num_windows']} windows of {scores['context']} tokens from {scores['num_documents']} test documents",
        "share: of a query's attention inside its segment; excess: beyond what the head gives on average to as many tokens",
        "from the same place; by chance: the excess with the boundaries shifted, mean and 95% interval",
    ]
    for kind, found in scores["kinds"].items():
        lines += [
            "",
            f"{kind}: {found['num_significant']} of {len(found['heads'])} heads are above chance (p below {scores['level']} "
            f"after Holm's correction; {found['num_queries']:,} queries, {found['num_shifts']:,} shifts)",
            _table(found["heads"][:HEADS_IN_THE_TABLE]),
        ]
    if scores["counted"]:
        lines += ["", "what each head counts: its mean gate, and the tokens that open it most (of those that occur 20 times)"]
        lines += [_counted_line(head) for head in scores["counted"]]
    return "\n".join(lines)


def _counted_line(head: dict[str, Any]) -> str:
    tokens = ", ".join(f"{token['token']!r} {token['gate']:.2f}" for token in head["tokens"])
    return f"{head['layer']:6} {head['head']:5} {head['mean_gate']:.3f}  {tokens or 'none occurs so often'}"


def _table(heads: list[dict[str, Any]]) -> str:
    rows = [
        {
            "layer": head["layer"],
            "head": head["head"],
            "share": f"{head['share']:.3f}",
            "excess": f"{head['excess']:+.4f}",
            "by chance": f"{head['shifted_excess']:+.4f}",
            "95% interval": f"{head['shifted_excess_low']:+.4f} to {head['shifted_excess_high']:+.4f}",
            "p": f"{head['p_value']:.4f}",
            "p corrected": f"{head['p_corrected']:.4f}",
        }
        for head in heads
    ]
    return pd.DataFrame(rows).to_string(index=False)


def draw_position_alone(folder: Path) -> Path:
    """Attention by position alone and gates of the head that is best for paragraphs (above) and for sections (below).

    Best is the one furthest above chance where boundaries are shifted by whole sentences, or lines.
    """
    scores = read_scores(folder)
    with np.load(folder / "arrays.npz", allow_pickle=False) as content:
        arrays = dict(content)
    has_gates = "gates" in arrays
    figure, axes = plt.subplots(
        2, 1 + has_gates, figsize=(8.0 + 5.6 * has_gates, 12.5), layout="constrained", squeeze=False, sharex=True
    )
    for row, kind in enumerate(scores["drawn"]["kinds"]):
        segment, best = kind.partition(",")[0], scores["kinds"][kind]["heads"][0]
        marked = arrays["line_is_heading"] | (segment == "paragraph")
        starts, titles = arrays["line_starts"][marked], arrays["line_titles"][marked]
        head = f"layer {best['layer']}, head {best['head']}"
        attention = arrays["attention"][row] / arrays["attention"][row].max(-1, keepdims=True)
        standing = f"best for {segment}s, corrected p {best['p_corrected']:.2g}"
        _draw(axes[row, 0], attention, starts, titles, f"{head}: attention by position alone\n({standing})")
        if has_gates:
            _draw(axes[row, 1], arrays["gates"][row], starts, titles, f"{head}: gates\n")
            axes[row, 1].set(yticks=[], ylabel="")
    for axis in axes[-1]:
        axis.set_xlabel("key (tokens)")
    drawn = scores["drawn"]
    figure.colorbar(
        axes[0, 0].images[0], ax=axes, shrink=0.4, pad=0.01, label="gate; attention, divided by the query's largest"
    )
    figure.suptitle(
        f"{scores['encoding']}: “{drawn['title']}”, tokens {drawn['start']} to {drawn['start'] + scores['context'] - 1}. "
        "Lines: where paragraphs (above), sections (below) begin",
        fontsize=11,
    )
    path = folder / "position_alone.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _draw(axis: Axes, values: np.ndarray, starts: np.ndarray, titles: np.ndarray, title: str) -> None:
    num_tokens = len(values)
    shown = np.ma.masked_where(np.triu(np.ones_like(values, dtype=bool), 1), values)  # keys after the query stay white
    axis.imshow(shown, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    for start in starts:
        # To the diagonal from the left, and from there down: the segment is the triangle to the right of the line.
        axis.plot([start - 0.5] * 2, [start - 0.5, num_tokens - 0.5], color=BOUNDARY_COLOUR, linewidth=1)
        axis.plot([-0.5, start - 0.5], [start - 0.5] * 2, color=BOUNDARY_COLOUR, linewidth=0.6, alpha=0.6)
    labelled: list[int] = []
    for index, start in enumerate(starts):
        if not labelled or start - starts[labelled[-1]] >= num_tokens * LABEL_DISTANCE:
            labelled.append(index)
    axis.set_yticks(starts[labelled], [_shortened(titles[index]) for index in labelled], fontsize=8)
    axis.set_ylabel("query")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _shortened(title: str) -> str:
    safe = title.replace("$", r"\$")  # or it begins a formula
    return safe if len(title) <= LABEL_CHARACTERS else f"{safe[:LABEL_CHARACTERS]}…"

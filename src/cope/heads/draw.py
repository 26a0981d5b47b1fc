"""What heads attend to by position alone, from a run's files: a table of heads, and a picture of the best two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cope.errors import counted
from cope.files import read_json, write_atomically
from cope.report.names import encoding_name, task_in_text
from cope.report.style import BOUNDARY, PAGE, look_of, picture_style

SCORES = "scores.json"
HEADS_IN_THE_TABLE = 10
LABEL_CHARACTERS = 20
LABEL_DISTANCE = 1 / 40  # of the window: closer labels would lie over each other


def position_alone_tables(folder: Path) -> str:
    """What was measured and, for each kind of boundary, how many heads are significant, and the ten furthest above chance."""
    scores = read_json(folder / SCORES)
    lines = [
        f"{scores['encoding']} on {scores['task']} (seed {scores['training_seed']}): attention by position alone in "
        f"{scores['num_windows']} windows of {scores['context']} tokens from "
        f"{counted(scores['num_documents'], 'test document')}",
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
    """What the last query of a window attends to by position alone, in the head that is best for paragraphs and for sections.

    Best is the one furthest above chance where boundaries are shifted by whole sentences, or lines. Below each its gates.
    """
    scores = read_json(folder / SCORES)
    with np.load(folder / "arrays.npz", allow_pickle=False) as content:
        arrays = dict(content)
    curves = [name for name in ("attention", "gates") if name in arrays]
    kinds = scores["drawn"]["kinds"]
    with picture_style("position_alone"):
        figure, axes = plt.subplots(
            len(kinds) * len(curves), 1, figsize=(PAGE, 1.5 * len(kinds) * len(curves) + 1.0), layout="constrained",
            squeeze=False, sharex=True,
        )  # fmt: skip
        for index, kind in enumerate(kinds):
            segment = kind.partition(",")[0]
            marked = arrays["line_is_heading"] | (segment == "paragraph")
            starts, titles = arrays["line_starts"][marked], arrays["line_titles"][marked]
            for place, name in enumerate(curves):
                axis = axes[index * len(curves) + place, 0]
                values = np.atleast_2d(arrays[name][index])[-1]  # the last query, over keys; arrays once held all queries
                label = "gate"
                if name == "attention":
                    values, label = values / values.max(), "attention by\nposition alone"
                    axis.set_title(_finding(segment, scores["kinds"][kind], scores["level"]), loc="left")
                    _name_boundaries(axis, starts, titles, len(values))
                _draw(axis, values, starts, label, look_of(scores["encoding"]).colour)
        axes[-1, 0].set_xlabel("key (tokens); the query is the last one")
        drawn = scores["drawn"]
        figure.suptitle(
            f"{encoding_name(scores['encoding'])}, {task_in_text(scores['task'])}, seed {scores['training_seed']}: "
            f"“{_safe(drawn['title'])}”, tokens {drawn['start']} to {drawn['start'] + scores['context'] - 1}",
            fontsize=8,
        )
        path = folder / "position_alone.png"
        write_atomically(path.with_suffix(".svg"), lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=200))
        plt.close(figure)
    return path


def _finding(segment: str, found: dict[str, Any], level: float) -> str:
    """Whether any head keeps to the segment, in a sentence."""
    best = found["heads"][0]
    head = f"layer {best['layer']}, head {best['head']}"
    excess, p_value = best["excess"] - best["shifted_excess"], f"corrected p {best['p_corrected']:.2g}"
    if best["p_corrected"] >= level:
        return f"{segment.capitalize()}s: no head keeps to them more than chance explains. The nearest is {head} ({p_value})."
    return (
        f"{segment.capitalize()}s: {head} has {100 * excess:.1f}% more of its attention inside the current one than chance "
        f"explains ({p_value})."
    )


def _draw(axis: Axes, values: np.ndarray, starts: np.ndarray, label: str, colour: str) -> None:
    keys = np.arange(len(values))
    axis.fill_between(keys, values, step="mid", color=colour, alpha=0.2, linewidth=0)
    axis.plot(keys, values, color=colour, linewidth=0.8, drawstyle="steps-mid")
    for start in starts:
        axis.axvline(start - 0.5, color=BOUNDARY, linewidth=0.7, linestyle="--")
    axis.set(ylim=(0, 1.05), yticks=(0, 1), xlim=(-0.5, len(values) - 0.5))
    axis.set_ylabel(label)


def _name_boundaries(axis: Axes, starts: np.ndarray, titles: np.ndarray, num_tokens: int) -> None:
    """What begins at each boundary, where names would not lie over each other."""
    last = -num_tokens
    for start, title in zip(starts, titles, strict=True):
        if start - last >= num_tokens * LABEL_DISTANCE:
            last = start
            axis.text(
                start, 0.97, _shortened(title), rotation=90, fontsize=5.5, va="top", ha="left", color=BOUNDARY,
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip


def _shortened(title: str) -> str:
    return _safe(title if len(title) <= LABEL_CHARACTERS else f"{title[:LABEL_CHARACTERS]}…")


def _safe(title: str) -> str:
    return title.replace("$", r"\$")  # or it begins a formula

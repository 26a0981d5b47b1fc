"""Pictures of one run, drawn from the files in its folder."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cope.metrics import METRICS
from cope.run.folder import RunFolder

GATE_COLOUR = "#9ecae1"
POSITION_COLOUR = "#c0392b"
MOST_TOKENS = 96  # more cannot be read side by side


def draw_run(folder: RunFolder) -> dict[str, Path]:
    """Draw what the folder has the data for; returns the pictures by their key in W&B."""
    folder.figures.mkdir(parents=True, exist_ok=True)
    pictures = {"figures/learning_curves": draw_learning_curves(folder)}
    arrays = folder.figures / "gates.npz"
    if arrays.exists():
        pictures["figures/gates"] = draw_gates(arrays)
    return pictures


def draw_learning_curves(folder: RunFolder) -> Path:
    """Training loss, and the task's metrics on the validation split, over the steps."""
    lines = folder.read_metrics()
    figure, (loss, metrics) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for key, label in (("train/loss", "training"), ("eval/validation/loss", "validation")):
        loss.plot(*_series(lines, key), label=label)
    loss.set(xlabel="step", ylabel="loss (nats per predicted token)", yscale="log")
    loss.legend()
    found = [name for name in METRICS if any(f"eval/validation/{name}" in line for line in lines)]
    for name in [name for name in found if METRICS[name].is_percentage] or found[:1]:  # perplexities differ too much in size
        steps, values = _series(lines, f"eval/validation/{name}")
        metrics.plot(steps, METRICS[name].factor * values, marker="o", markersize=3, label=METRICS[name].label)
    metrics.set(xlabel="step", ylabel="on the validation split", ylim=(0, None))
    if found:
        metrics.legend()
    return _save(figure, folder.figures / "learning_curves.png")


def _series(lines: list[dict[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in lines if key in line]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values)


def draw_gates(arrays: Path) -> Path:
    """Draw :func:`gates_figure` beside ``arrays``."""
    return _save(gates_figure(arrays), arrays.with_name("gates.png"))


def gates_figure(arrays: Path) -> Figure:
    """For each layer and head, what the query that has to answer counts: its gate at every token, and the positions they add up
    to. Positions are sums from each token to the query, so they grow from right to left. Of a long sequence the last tokens.
    """
    with np.load(arrays, allow_pickle=False) as content:
        words, query = content["words"], int(content["query"])
        shown = slice(max(0, query + 1 - MOST_TOKENS), query + 1)
        gates, positions = (content[name] for name in ("gates", "positions"))  # (layers, heads, key)
    if gates.ndim == 4:  # of every query: runs from before one was kept
        gates, positions = gates[:, :, query], positions[:, :, query]
    gates, positions = gates[:, :, shown], positions[:, :, shown]
    num_layers, num_heads, num_keys = gates.shape
    figure, axes = plt.subplots(
        num_layers * num_heads, 1, figsize=(max(6.0, 0.27 * num_keys), 1.7 * num_layers * num_heads + 0.8),
        layout="constrained", sharex=True, squeeze=False,
    )  # fmt: skip
    for row, axis in enumerate(axes[:, 0]):
        layer, head = divmod(row, num_heads)
        _draw_counting(axis, gates[layer, head], positions[layer, head])
        axis.set_ylabel(f"layer {layer + 1}\nhead {head + 1}", rotation=0, ha="right", va="center")
    axes[-1, 0].set_xticks(range(num_keys), words[shown], rotation=90, family="monospace")
    answer = words[query + 1]
    of_all = f"; the last {num_keys} of {query + 1} tokens" if num_keys <= query else ""
    figure.suptitle(
        f"What the last token counts before it answers “{answer}”: gates (bars, left) and positions (line, right){of_all}",
        fontsize=10,
    )
    return figure


def _draw_counting(axis: Axes, gates: np.ndarray, positions: np.ndarray) -> None:
    keys = np.arange(len(gates))
    axis.bar(keys, gates, color=GATE_COLOUR, width=0.9)
    axis.set(ylim=(0, 1.05), yticks=(0, 1))
    counted = axis.twinx()
    counted.plot(keys, positions, color=POSITION_COLOUR, marker=".", markersize=4, linewidth=1)
    counted.set(ylim=(0, max(1.0, float(positions.max())) * 1.1))
    counted.tick_params(axis="y", colors=POSITION_COLOUR)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path

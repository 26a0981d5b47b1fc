"""Pictures of one run, drawn from the files in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from cope.errors import UserError
from cope.files import write_atomically
from cope.metrics import METRICS
from cope.report.drawing import value_axis
from cope.report.names import encoding_name, split_name, task_in_text
from cope.report.style import GATE, INK, PAGE, SOFT, STRONG, look_of, picture_style
from cope.run.folder import RunFolder

MOST_TOKENS = 96  # more cannot be read side by side
MOST_HEADS = 4  # that are drawn unless others are asked for
SPLIT_MARKERS = ("s", "^", "v", "P", "X", "D")

Heads = Sequence[tuple[int, int]]  # (layer, head), both from 1


def draw_run(folder: RunFolder, heads: Heads | None = None) -> dict[str, Path]:
    """Draw what the folder has the data for; returns the pictures by their key in W&B.

    Args:
        heads: whose gates are drawn; None takes the most telling ones, none at all takes all.
    """
    folder.figures.mkdir(parents=True, exist_ok=True)
    pictures = {"figures/learning_curves": draw_learning_curves(folder)}
    if folder.gates.exists():
        pictures["figures/gates"] = draw_gates(folder, heads)
    return pictures


def run_title(folder: RunFolder) -> str:
    """``CoPE, counting, seed 1, laptop scale``."""
    contents = (folder.read_config(), folder.sound_result())  # a published run has its result alone
    scale = next((content["scale"] for content in contents if content and "scale" in content), "")
    seed = folder.place.name.replace("=", " ")
    parts = [encoding_name(folder.encoding), task_in_text(folder.task), seed, f"{scale} scale" if scale else ""]
    return ", ".join(part for part in parts if part)


# ---- learning curves -------------------------------------------------------------------------------------------------


def draw_learning_curves(folder: RunFolder) -> Path:
    """Loss of training and validation over the steps; the task's metrics on every split that was scored."""
    lines = folder.read_metrics()
    colour = look_of(folder.encoding).colour
    with picture_style("learning_curves"):
        figure, (loss, scores) = plt.subplots(1, 2, figsize=(PAGE, 2.5), layout="constrained")
        loss.plot(*_series(lines, "train/loss"), color=SOFT, linewidth=0.8, label="training")
        loss.plot(*_series(lines, "eval/validation/loss"), "o--", color=colour, markersize=3, label="validation")
        loss.set(xlabel="step", ylabel="loss (nats per predicted token)", yscale="log", title="Loss", xlim=(0, None))
        loss.yaxis.set_major_formatter("{x:g}")
        lowest, highest = loss.get_ylim()
        loss.yaxis.set_minor_formatter("{x:g}" if highest < 10 * lowest else NullFormatter())
        loss.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.legend()
        _draw_scores(scores, lines, colour)
        figure.suptitle(run_title(folder), fontsize=8)
        return _save(figure, folder.figures / "learning_curves.png")


def _draw_scores(axis: Axes, lines: list[dict[str, float]], colour: str) -> None:
    """Each metric's validation curve, the splits watched, and the best checkpoint's score on each at the right end."""
    scored = {name: _series(lines, f"eval/validation/{name}") for name in METRICS}
    scored = {name: found for name, found in scored.items() if len(found[0])}
    of_text = not any(METRICS[name].is_percentage for name in scored)
    if of_text:  # perplexities per token, per word and bits per byte differ too much in size for one axis
        scored = dict(list(scored.items())[:1])
    else:
        scored = {name: found for name, found in scored.items() if METRICS[name].is_percentage}
    drawn: list[np.ndarray] = []
    last = 1.0
    for name, (steps, values) in scored.items():
        values, metric = METRICS[name].factor * values, METRICS[name]
        if any(np.array_equal(values, other) for other in drawn):
            continue  # one answer token a sequence: both errors are the same line
        axis.plot(
            steps, values, "o-" if not drawn else "o:", color=colour if not drawn else SOFT, markersize=3,
            label=f"validation, {metric.label}", zorder=3,
        )  # fmt: skip
        drawn.append(values)
        last = max(last, float(steps[-1]))
    shown = [float(value) for values in drawn for value in values]
    headline = next(iter(scored), None)
    if headline is not None:
        ending = f"/{headline}"
        watched = {
            key.split("/")[1] for line in lines if "eval/validation/loss" in line for key in line if key.endswith(ending)
        }
        final = {key.split("/")[1]: value for line in lines for key, value in line.items() if key.endswith(ending)}
        tests = {split: METRICS[headline].factor * value for split, value in final.items() if split != "validation"}
        for place, (split, value) in enumerate(tests.items()):
            marker = SPLIT_MARKERS[place % len(SPLIT_MARKERS)]
            if split in watched:
                steps, values = _series(lines, f"eval/{split}{ending}")
                axis.plot(steps, METRICS[headline].factor * values, f"{marker}-", color=SOFT, linewidth=0.8, markersize=3)
                shown += list(METRICS[headline].factor * values)
            axis.plot(
                last * (1.04 + 0.035 * place), value, marker, color=INK, markerfacecolor="white", markersize=4.5, clip_on=False,
                label=f"{split_name(split, of_text)}, at the end",
            )  # fmt: skip
            shown.append(value)
        axis.set_ylabel(METRICS[headline].label.replace(" %", " (%)"))
        if METRICS[headline].is_percentage:
            value_axis(axis, shown, along="y")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set(xlabel="step", title="Scores", xlim=(0, None))
    axis.set_xticks([tick for tick in MaxNLocator(integer=True).tick_values(0, last) if tick <= last])


def _series(lines: list[dict[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in lines if key in line]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values)


# ---- gates -----------------------------------------------------------------------------------------------------------


def draw_gates(folder: RunFolder, heads: Heads | None = None) -> Path:
    """Draw :func:`gates_figure` beside its arrays."""
    with picture_style("gates"):
        return _save(gates_figure(folder, heads), folder.gates.with_name("gates.png"))


def gates_figure(folder: RunFolder, heads: Heads | None = None) -> Figure:
    """For some heads, what the query that has to answer counts: its gate at every token, and the positions they add up to.

    Positions are sums from each token to the query, so they grow from right to left. Of a long sequence the last tokens.

    Raises:
        UserError: a head that the model has not, or damaged arrays.
    """
    arrays = _arrays_of(folder)
    words, query = arrays["words"], int(arrays["query"])
    shown = slice(max(0, query + 1 - MOST_TOKENS), query + 1)
    gates, positions = arrays["gates"], arrays["positions"]  # (layers, heads, key)
    if gates.ndim == 4:  # of every query: runs from before one was kept
        gates, positions = gates[:, :, query], positions[:, :, query]
    gates, positions = gates[:, :, shown], positions[:, :, shown]
    spread = gates.std(-1)  # a head whose gates are all alike counts tokens, as any relative position does
    chosen = _most_telling(spread) if heads is None else _checked(heads, spread.shape)
    num_keys = gates.shape[-1]
    figure, axes = plt.subplots(
        len(chosen), 1, figsize=(max(PAGE, 0.12 * num_keys), 1.05 * len(chosen) + 1.0), layout="constrained", sharex=True,
        squeeze=False,
    )  # fmt: skip
    for axis, (layer, head) in zip(axes[:, 0], chosen, strict=True):
        _draw_counting(axis, gates[layer, head], positions[layer, head])
        axis.set_title(
            f"layer {layer + 1}, head {head + 1} (standard deviation of its gates {spread[layer, head]:.2f})", loc="left"
        )
    axes[-1, 0].set_xticks(range(num_keys), words[shown], rotation=90, family="monospace")
    of_all = f", the last {num_keys} of {query + 1} tokens" if num_keys <= query else ""
    which = f"; {len(chosen)} of {spread.size} heads" if len(chosen) < spread.size else ""
    figure.suptitle(f"{run_title(folder)}{of_all}{which}\n{_answer(arrays)}", fontsize=8)
    return figure


def _answer(arrays: dict[str, Any]) -> str:
    expected = str(arrays["words"][int(arrays["query"]) + 1])
    if "answer" not in arrays:  # of runs from before it was kept
        return f"What the last token counts before it answers “{expected}”"
    given, is_right = str(arrays["answer"]), bool(arrays["is_right"])
    said = "which is right" if is_right else f"which is wrong: it is “{expected}”"
    return f"What the last token counts before the model answers “{given}”, {said}".replace("$", r"\$")


def _most_telling(spread: np.ndarray) -> list[tuple[int, int]]:
    """The heads whose gates differ most from token to token, in the model's order."""
    largest = np.argsort(-spread, axis=None, kind="stable")[:MOST_HEADS]
    return sorted(divmod(int(index), spread.shape[1]) for index in largest)


def _checked(heads: Heads, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    for layer, head in heads:
        if not (1 <= layer <= shape[0] and 1 <= head <= shape[1]):
            raise UserError(
                f"heads={layer}.{head}: the model has no such head; allowed: layer.head, from 1.1 to {shape[0]}.{shape[1]}."
            )
    return [(layer - 1, head - 1) for layer, head in heads] or [divmod(i, shape[1]) for i in range(shape[0] * shape[1])]


def _arrays_of(folder: RunFolder) -> dict[str, Any]:
    path = folder.gates
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        if missing := {"words", "query", "gates", "positions"} - arrays.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except Exception as error:  # of five kinds, by which part of it is damaged
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}). It is damaged or was cut off: delete it to do without its picture, or start "
            "the run over with force=true."
        ) from error
    return arrays


def _draw_counting(axis: Axes, gates: np.ndarray, positions: np.ndarray) -> None:
    keys = np.arange(len(gates))
    axis.bar(keys, gates, color=GATE, width=0.9)
    axis.set(ylim=(0, 1.05), yticks=(0, 1), ylabel="gate")
    axis.set_xlim(-0.8, len(gates) - 0.2)
    counted = axis.twinx()
    counted.plot(keys, positions, color=STRONG, marker=".", markersize=3, linewidth=1)
    counted.set(ylim=(0, max(1.0, float(positions.max())) * 1.1), ylabel="position")
    counted.spines["right"].set_visible(True)
    counted.tick_params(axis="y", colors=STRONG)
    counted.yaxis.label.set_color(STRONG)


def _save(figure: Figure, path: Path) -> Path:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=200))
    plt.close(figure)
    return path

"""Training on one GPU: tokens a second by encoding, precision and way of running a
step, alone and side by side.

    python benchmarks/gpu_training.py to=outputs/benchmark/gpu_training
    # only some parts, in at most two minutes
    python benchmarks/gpu_training.py to=FOLDER parts=check,alone limit=120

Parts, in this order: ``check`` (graphs compute what plain steps compute;
nothing waits for the GPU), ``alone`` (recipes of ``scale``, one run at a time),
``gpt2`` (the shape of GPT-2 on random tokens), ``together`` (several runs on
the card at once), ``compile`` (``torch.compile``). Each figure is the median of
windows of steps of the project's own training loop, after two to warm up. Cells
run in a process of their own, which is replaced when one fails: what failed
says why in the table, what time did not suffice for says so. Writes
``results.json`` and ``results.md`` into the folder, again after every cell.

    to=            the folder to write
    parts=         only these, with commas between
    scale=paper    one with recipes for counting, flip_flop and wikipedia
    seconds=3      of measurement a cell
    limit=240      seconds of everything
    device=auto    or cpu, cuda
    processes=6    numbers of runs at once, with commas between
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from profiling import read_recipe
from timing import as_cell, circumstances
from workers import find_all

from cope.cli import read_settings, run_command
from cope.errors import check_at_least, check_choice
from cope.run.experiment import Experiment
from cope.run.loggers import NoLogger
from cope.run.loop import TrainingLoop
from cope.tasks.base import Examples, Specimen, Task

STEPS_PER_WINDOW = 20
WARM_UP = 2  # windows
PRECISIONS = ("bf16-mixed", "tf32", "32-true")
WAYS = {
    "eager": ("trainer.cuda_graphs=false",),
    "graphs": ("trainer.cuda_graphs=true",),
    "compile": ("trainer.cuda_graphs=false", "trainer.compile=true"),
    "compile + graphs": ("trainer.cuda_graphs=true", "trainer.compile=true"),
}
CHECKED_STEPS = 40
GPT2 = ("task=wikipedia", "model.dropout=0", "trainer.batch_size=16")
PARTS = ("check", "alone", "gpt2", "together", "compile")


@dataclass(frozen=True)
class BenchmarkSettings:
    """The keys.

    Args:
        to: the folder to write.
        scale: one with recipes for counting, flip_flop and wikipedia.
        seconds: of measurement a cell.
        limit: seconds of everything.
        processes: numbers of runs at once.
    """

    to: Path
    parts: tuple[str, ...] = PARTS
    scale: str = "paper"
    seconds: float = 3.0
    limit: float = 240.0
    device: str = "auto"
    processes: tuple[int, ...] = (6,)

    def __post_init__(self) -> None:
        for part in self.parts:
            check_choice("parts", part, PARTS)
        check_at_least("processes", min(self.processes), 2)
        check_choice("device", self.device, ["auto", "cpu", "cuda"])


@dataclass(frozen=True)
class Cell:
    """One figure of the table."""

    part: str
    setting: str  # the run's, apart from its precision and way
    precision: str
    way: str
    processes: int
    seconds: float  # of measurement
    longest: float  # seconds before it is given up
    overrides: tuple[str, ...]

    def recipe(self, way: str | None = None) -> str:
        """As on the command line of ``train.py``."""
        return " ".join((*self.setting.split(), f"trainer.precision={self.precision}", *WAYS[way or self.way], *self.overrides))

    def find(self, all_are_warm: Callable[[], None]) -> dict[str, Any]:
        """See :mod:`workers`."""
        return check(self) if self.part == "check" else measure(self, all_are_warm)

    def together(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """See :mod:`workers`."""
        return together(found)


def cells(parts: list[str], scale: str, seconds: float, device: str, processes: list[int]) -> list[Cell]:
    """What is measured, the most important first."""
    # More steps than there is time for.
    common = (f"scale={scale}", f"trainer.device={device}", "data_dir=data", "trainer.steps=10000000")
    counting = [f"task=counting pe={pe}" for pe in ("cope", "rope")]
    flip_flop = ["task=flip_flop pe=cope"]
    gpt2 = [" ".join((*GPT2, f"pe={pe}")) for pe in ("cope", "rope")]
    planned = {
        "check": [(setting, "32-true", "graphs", 1) for setting in counting],
        "alone": [
            (setting, precision, way, 1)
            for way, precisions in (("graphs", PRECISIONS), ("eager", (PRECISIONS[0], PRECISIONS[-1])))
            for precision in precisions
            for setting in counting + flip_flop
        ],
        "gpt2": [(setting, "bf16-mixed", way, 1) for way in ("eager", "graphs") for setting in gpt2],
        "together": [
            (setting, "bf16-mixed", "graphs", number) for number in processes for setting in (counting[0], flip_flop[0])
        ],
        "compile": [
            (setting, "bf16-mixed", way, 1) for way in ("compile + graphs", "compile") for setting in flip_flop + counting
        ],
    }
    longest = {"check": 90.0, "together": 60.0, "compile": 90.0}
    return [
        Cell(part, *cell, seconds=seconds, longest=longest.get(part, 45.0), overrides=common)
        for part in PARTS
        if part in parts
        for cell in planned[part]
    ]


# ---- in a process of its own ---------------------------------------------------------------------------------------------


class RandomTokens(Task):
    """Sequences of random tokens as long as the context: a language task's work without its text."""

    fingerprint = ""
    test_splits = ()

    def __init__(self, context: int, vocab_size: int, num: int) -> None:
        super().__init__(name="random_tokens")
        self.loss, self._context, self._vocab_size = "everywhere", context, vocab_size
        tokens = np.random.default_rng(0).integers(0, vocab_size, (num, context + 1), dtype=np.int32)
        self._examples = Examples(tokens, np.full(num, context + 1), np.ones(tokens.shape, dtype=bool))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(map(str, range(self._vocab_size)))

    def context_of(self, split: str) -> int:
        return self._context

    def training_examples(self, seed: int, epoch: int) -> Examples:
        return self._examples

    def evaluation_examples(self, split: str) -> Examples:
        return self._examples

    def specimen(self, num_tokens: int) -> Specimen:
        raise AssertionError("nothing is drawn here")


def training_loop(recipe: str) -> TrainingLoop:
    """The loop that ``train.py`` would run, in a folder that is never written to."""
    config = read_recipe(recipe)
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        experiment = Experiment(config)
    task = experiment.task
    if "task=wikipedia" in recipe:
        task = RandomTokens(task.context_of("train"), task.vocab_size, 4 * config.trainer.batch_size)
    loop = TrainingLoop(
        experiment.model, task, config.seed, experiment.trainer, experiment.optimizer, experiment.trainer.fabric(),
        experiment.folder, NoLogger(), "benchmark", show_progress=False,
    )  # fmt: skip
    loop.model.train()
    return loop


def measure(cell: Cell, all_are_warm: Callable[[], None]) -> dict[str, Any]:
    """Tokens a second, and each window's begin, end and tokens; of several processes each waits until all are warm."""
    loop = training_loop(cell.recipe())
    windows: list[tuple[float, float, int]] = []
    begun, enough = time.time(), None
    with loop.batches_at_hand() as batch_of:
        while enough is None or time.time() < enough:
            start, tokens = time.time(), loop.num_tokens
            for _ in range(STEPS_PER_WINDOW):
                loop.train_on(batch_of(loop.step))
            loop.look()  # the end of the window waits for the device
            windows.append((start, time.time(), loop.num_tokens - tokens))
            if len(windows) == WARM_UP:
                if cell.processes > 1:
                    all_are_warm()
                enough = time.time() + cell.seconds
    measured = windows[WARM_UP:] or windows[-1:]
    return {
        "tokens_per_s": statistics.median(tokens / (end - start) for start, end, tokens in measured),
        "ms_per_step": 1000 * statistics.median(end - start for start, end, _ in measured) / STEPS_PER_WINDOW,
        "tokens_per_step": loop.num_tokens / loop.step,
        "warm_up_s": windows[min(WARM_UP, len(windows)) - 1][1] - begun,
        "windows": windows,
        **_memory(loop.fabric.device),
    }


def _memory(device: torch.device) -> dict[str, float]:
    return {"peak_gib": torch.cuda.max_memory_reserved() / 2**30} if device.type == "cuda" else {}


def check(cell: Cell) -> dict[str, Any]:
    """The largest relative difference of a step's loss between graphs and plain steps, dropout included; and what waits."""
    losses: dict[str, list[float]] = {}
    waits: dict[str, list[str]] = {}
    for way in ("eager", cell.way):
        loop = training_loop(cell.recipe(way))
        losses[way] = []
        with loop.batches_at_hand() as batch_of:
            for _ in range(CHECKED_STEPS):
                before = loop.unlogged_loss, loop.unlogged_targets
                loop.train_on(batch_of(loop.step))
                loop.look()
                losses[way].append((loop.unlogged_loss - before[0]) / (loop.unlogged_targets - before[1]))
            waits[way] = _what_waits(loop, batch_of)
    differences = [abs(own / other - 1) for own, other in zip(losses[cell.way], losses["eager"], strict=True)]
    return {
        "largest_difference": max(differences),
        "difference_of_step_10": max(differences[:10]),
        "losses": losses,
        "waits": waits,
    }


def _what_waits(loop: TrainingLoop, batch_of: Any) -> list[str]:
    """What PyTorch says of each wait for the device within further steps; nothing should wait."""
    if loop.fabric.device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(10):
                loop.train_on(batch_of(loop.step))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    loop.look()
    places = [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in caught]
    return [place for place in places if "synchroniz" in place]


# ---- in the main process -------------------------------------------------------------------------------------------------


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The rates of several processes added up, over windows during which all were measured."""
    begin = max(one["windows"][min(WARM_UP, len(one["windows"]) - 1)][0] for one in found)
    end = min(one["windows"][-1][1] for one in found)
    rates = [
        [tokens / (stop - start) for start, stop, tokens in one["windows"] if start >= begin and stop <= end] for one in found
    ]
    if not all(rates):
        return {"error": "the processes were not measured at the same time; take a larger seconds="}
    rate = sum(statistics.median(own) for own in rates)
    return {"tokens_per_s": rate, "windows_together": min(map(len, rates)), "warm_up_s": max(one["warm_up_s"] for one in found)}


def rows_of(planned: list[Cell], limit: float) -> Iterator[dict[str, Any]]:
    """Each cell with what was found within ``limit`` seconds of all, as soon as it is; it is told as well."""
    begun = time.monotonic()
    for cell, found in zip(planned, find_all(planned, limit), strict=True):
        told = {key: value for key, value in found.items() if key not in ("windows", "losses", "waits")}
        print(
            f"[{time.monotonic() - begun:4.0f} s] {cell.part}: {cell.setting}, {cell.precision}, {cell.way}, "
            f"{cell.processes} process(es): {told}", flush=True,
        )  # fmt: skip
        yield asdict(cell) | {"found": found}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| part | run | precision | step | processes | tokens/s | ms a step | of RoPE's | warm-up s | memory GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rope = {
        (row["part"], row["setting"].replace("pe=rope", "pe=cope"), row["precision"], row["way"]): row["found"]
        for row in rows
        if "pe=rope" in row["setting"] and "error" not in row["found"]
    }
    for row in rows:
        found = row["found"]
        begin = f"| {row['part']} | `{row['setting']}` | {row['precision']} | {row['way']} | {row['processes']} |"
        if "error" in found:
            lines.append(f"{begin} {as_cell(found['error'])} | | | | |")
        elif row["part"] == "check":
            waits = {way: len(places) for way, places in found["waits"].items()}
            told = f"loss differs by {found['largest_difference']:.1e} at most; waits: {waits}"
            lines.append(f"{begin} {told} | | | | |")
        else:
            other = rope.get((row["part"], row["setting"], row["precision"], row["way"]))
            share = f"{found['tokens_per_s'] / other['tokens_per_s']:.2f}" if other else ""
            cell = [f"{found['tokens_per_s']:,.0f}", f"{found.get('ms_per_step', float('nan')):.2f}", share]
            cell += [f"{found['warm_up_s']:.1f}", f"{found['peak_gib']:.1f}" if "peak_gib" in found else ""]
            lines.append(f"{begin} {' | '.join(cell)} |".replace("nan", ""))
    return lines


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, BenchmarkSettings, "python benchmarks/gpu_training.py to=FOLDER")
    folder, scale = settings.to, settings.scale
    folder.mkdir(parents=True, exist_ok=True)
    planned = cells(list(settings.parts), scale, settings.seconds, settings.device, list(settings.processes))
    taken = circumstances("cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu")
    rows = []
    for row in rows_of(planned, settings.limit):
        rows.append(row)
        (folder / "results.json").write_text(json.dumps(taken | {"scale": scale, "cells": rows}, indent=1) + "\n")
        lines = [f"{taken['in_words']}; scale={scale}.", "", *table(rows)]
        (folder / "results.md").write_text("\n".join(lines) + "\n")
    print((folder / "results.md").read_text())


if __name__ == "__main__":
    run_command(main, __doc__)

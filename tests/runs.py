"""Runs at the smallest scale, in this process or in one of their own, and what can be compared of them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from omegaconf import DictConfig

from cope.run.experiment import Experiment
from cope.run.folder import RunFolder
from cope.run.loop import TrainingLoop
from cope.tasks.base import Examples
from cope.tasks.synthetic import SyntheticTask

# Of result.json: what two runs need not share, though their numbers are the same. The code's commit may change in between.
CIRCUMSTANCES = ("time_s", "peak_memory_mib", "date", "commit")


_made: dict[tuple[Any, ...], Examples] = {}


def _made_once(task: SyntheticTask, stream: str, num: int, seed: int | None) -> Examples:
    """The examples of a fixed set. To make them is a quarter of a short run; test_task_contract.py makes them again."""
    key = repr(task), stream, num, seed
    if key not in _made:
        _made[key] = _fixed_examples(task, stream, num, seed)
    return _made[key]


_fixed_examples = SyntheticTask.fixed_examples


def run(config: DictConfig) -> tuple[RunFolder, dict[str, Any]]:
    """Run what ``train.py`` would run, and let go of the folder as the end of the process would."""
    experiment = Experiment(config)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SyntheticTask, "fixed_examples", _made_once)
        try:
            return experiment.folder, experiment.run(show_progress=False)
        finally:
            release(experiment.folder)


def release(folder: RunFolder) -> None:
    """Give up the folder's lock."""
    if folder._lock is not None:
        folder._lock.release()


def folder_of(config: DictConfig) -> RunFolder:
    """The folder that ``config`` runs in."""
    return Experiment(config).folder


def after_step(step: int, act: Callable[[TrainingLoop], None]) -> Callable[[TrainingLoop], None]:
    """A ``TrainingLoop._end_if_asked`` that calls ``act`` once that many steps are done, then does what the real one does."""
    real = TrainingLoop._end_if_asked

    def end_if_asked(loop: TrainingLoop) -> None:
        if loop.step == step:
            act(loop)
        real(loop)

    return end_if_asked


def without_times(folder: RunFolder) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """``metrics.jsonl`` and ``result.json`` without what two equal runs need not share."""
    metrics = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line in metrics:
        line.pop("train/tokens_per_s", None)
    result = json.loads(folder.result.read_text())
    for key in CIRCUMSTANCES:
        del result[key]
    return metrics, result


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but the lock, which says nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two checkpoints have the same weights and the same state of the optimiser, to the bit."""
    return _same(*(_comparable(torch.load(path, weights_only=True)) for path in (first, second)))


def _comparable(state: dict[str, Any]) -> dict[str, Any]:
    return {key: state[key] for key in ("model", "optimizer", "step", "num_tokens", "best")}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def command_here(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python script ...`` in this process, since to start one and to import PyTorch and the rest takes some six seconds."""
    path = ROOT / script
    said, complained = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True) for _ in range(2))
    # A command sets these for its process.
    handlers, level, interrupt = logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGINT)
    logging.root.handlers = list(handlers)
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        patched.setattr(sys, "argv", [str(path), *arguments])
        patched.setattr("cope.command_start.start_command", lambda *_, **__: None)  # signals and streams are the tests' own
        patched.setattr(sys, "path", [str(path.parent), *sys.path])
        patched.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            runpy.run_path(str(path), run_name="__main__")
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        finally:
            logging.root.handlers = handlers
            logging.root.setLevel(level)
            signal.signal(signal.SIGINT, interrupt)
    told = [stream.buffer.getvalue().decode() for stream in (said, complained)]  # type: ignore[attr-defined]  # a BytesIO
    return subprocess.CompletedProcess(sys.argv, status, *told)


def train_here(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``python train.py`` in this process, with its folders under ``folder``."""
    return command_here("train.py", *arguments, *places(folder))


def train(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python train.py`` in a process of its own, with its folders under ``folder``."""
    return subprocess.run(
        command(*arguments, folder=folder), capture_output=True, text=True, cwd=folder, timeout=300,
        env=clean_environment() | environment,
    )  # fmt: skip


def command(*arguments: str, folder: Path) -> list[str]:
    """The command line of :func:`train`."""
    return [sys.executable, str(ROOT / "train.py"), *arguments, *places(folder)]


def places(folder: Path) -> list[str]:
    """The settings by which a run's folders are under ``folder``."""
    return [f"output_dir={folder / 'outputs'}", f"data_dir={folder / 'data'}"]


def clean_environment() -> dict[str, str]:
    """Ours, with one thread, since the machine may be busy, and without a wish for stack traces."""
    return {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"} | {"OMP_NUM_THREADS": "1"}


def completed(result: dict[str, Any]) -> str:
    """What ``result.json`` holds of a run that had ``result``, and what a test does not care for filled in."""
    counts = dict.fromkeys(("count", "errors", "token_count", "token_errors", "num_cut"), 0)
    filled: dict[str, Any] = {
        "task": "counting", "encoding": "cope", "scale": "smoke", "headline": "error", "seed": 1, "best_step": 1, "steps": 1,
        "num_parameters": 1, "num_tokens": 1, "time_s": 1.0, "hardware": {}, "versions": {}, "config": {}, "commit": None,
        "date": "2026-01-02",
    } | result  # fmt: skip
    splits = result.get("splits") or {"test": {filled["headline"]: 0.0}}
    return json.dumps(filled | {"splits": {split: counts | found for split, found in splits.items()}})

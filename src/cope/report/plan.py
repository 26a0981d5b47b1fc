"""Which runs a table needs, as ``configs/table/<name>.yaml`` says, and running those that are not finished.

A table has sections, a section has rows, and a row is a list of overrides of ``train.py``; each is run with every seed. At
some scale a task may need further ones (``at_scale``). What identifies a run is what ``train.py`` would compose, so that a run
made by hand counts as well.
"""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir

from cope.configuration import run_hash
from cope.errors import check_at_least, check_choice
from cope.report.tables import run_line
from cope.results.record import RunFolder
from cope.sweep import num_cores


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table."""

    section: str
    row: str
    seed: int
    overrides: tuple[str, ...]
    folder: RunFolder

    @property
    def command(self) -> str:
        """What to type for it."""
        return shlex.join(["python", "train.py", *self.overrides])

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder.path / "output.log"

    def result(self) -> dict[str, Any] | None:
        """Its result, None while it is not finished."""
        return self.folder.read_result()

    @property
    def failed(self) -> bool:
        """Whether its last try ended with an error."""
        return (self.folder.path / "failed.txt").exists() and self.result() is None


@dataclass(frozen=True)
class Plan:
    """The runs of a table, seed by seed, so that a table half run has all of its rows."""

    name: str
    title: str
    seeds: tuple[int, ...]
    splits: tuple[str, ...] | None  # to be shown; None shows every test split
    sections: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    def results(self, section: str) -> dict[str, list[dict[str, Any]]]:
        """The finished runs of a section, by row."""
        found: dict[str, list[dict[str, Any]]] = {run.row: [] for run in self.runs if run.section == section}
        for run in self.runs:
            if run.section == section and (result := run.result()) is not None:
                found[run.row].append(result)
        return found


def read_plan(configs: Path, name: str, overrides: Sequence[str], num_seeds: int | None = None) -> Plan:
    """The plan of ``configs/table/<name>.yaml``.

    Args:
        overrides: of every run, the last word.
        num_seeds: 1 to this, instead of the table's own; None takes those.

    Raises:
        UserError: there is no such table.
        HydraException: an override that does not exist.
    """
    check_choice("table", name, sorted(path.stem for path in (configs / "table").glob("*.yaml")))
    content = yaml.safe_load((configs / "table" / f"{name}.yaml").read_text())
    if num_seeds is not None:
        check_at_least("number of seeds", num_seeds, 1)
    seeds = tuple(content["seeds"] if num_seeds is None else range(1, num_seeds + 1))
    runs = []
    with initialize_config_dir(str(configs), version_base="1.3"):
        for section, rows in content["sections"].items():
            for row, own in rows.items():
                config = compose("train", overrides=[*own, *overrides])  # once: the seed is no part of the hash
                further = content.get("at_scale", {}).get(config.scale, {}).get(config.task.name)
                if further:
                    own = [*own, *further]
                    config = compose("train", overrides=[*own, *overrides])
                for seed in seeds:
                    folder = RunFolder.of(config.output_dir, config.task.name, config.pe.name, run_hash(config), seed)
                    runs.append(PlannedRun(section, row, seed, (*own, *overrides, f"seed={seed}"), folder))
    runs.sort(key=lambda run: run.seed)
    splits = tuple(content["splits"]) if "splits" in content else None
    return Plan(name, content["title"], seeds, splits, tuple(content["sections"]), tuple(runs))


def minutes_to_do(runs: Sequence[PlannedRun], num_jobs: int) -> float | None:
    """What the runs that are not finished may take: each as long as the finished ones of its task, and None without such."""
    times: dict[str, list[float]] = {}
    for run in runs:
        if (result := run.result()) is not None:
            times.setdefault(result["task"], []).append(result["time_s"])
    if not times:
        return None
    everywhere = [seconds for found in times.values() for seconds in found]
    task_of = {run: run.folder.path.parts[-4] for run in runs}
    expected = [
        sum(found) / len(found)
        for run in runs if run.result() is None for found in [times.get(task_of[run], everywhere)]
    ]  # fmt: skip
    return sum(expected) / num_jobs / 60


def num_places() -> int:
    """Runs that the machine has room for: one a GPU, or one a core where there is none."""
    return torch.cuda.device_count() or num_cores()


def run_all(runs: Sequence[PlannedRun], root: Path, num_jobs: int) -> list[PlannedRun]:
    """Run those that are not finished, ``num_jobs`` at a time, telling each result as it comes; returns those that failed."""
    waiting = [run for run in runs if run.result() is None]
    num_jobs = min(num_jobs, max(1, len(waiting)))
    threads = max(1, num_cores() // num_jobs)

    free_gpus = queue.SimpleQueue[int]()
    for gpu in range(torch.cuda.device_count()):
        free_gpus.put(gpu)

    def start(run: PlannedRun) -> bool:
        run.folder.path.mkdir(parents=True, exist_ok=True)
        gpu = None if free_gpus.empty() else free_gpus.get()
        environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
        try:
            return train(run, environment)
        finally:
            if gpu is not None:
                free_gpus.put(gpu)

    def train(run: PlannedRun, environment: Mapping[str, str]) -> bool:
        with run.log.open("a") as log:
            command = [sys.executable, str(root / "train.py"), *run.overrides, f"trainer.threads={threads}"]
            return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode == 0

    failed = []
    started = time.monotonic()
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished; {num_jobs} at a time", flush=True)
    pool = ThreadPoolExecutor(num_jobs)
    try:
        futures = {pool.submit(start, run): run for run in waiting}
        for number, future in enumerate(as_completed(futures), start=1):
            run = futures[future]
            result = run.result() if future.result() else None
            if result is None:
                failed.append(run)
            told = run_line(result) if result else f"FAILED: {run.command}; see {run.log}"
            left = (time.monotonic() - started) / number * (len(waiting) - number)
            print(f"[{number}/{len(waiting)}, about {left / 60:.0f} min left] {told}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the runs that go on save their state and end; no other begins
    return failed

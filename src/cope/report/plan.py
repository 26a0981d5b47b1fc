"""Which runs a table needs, as ``configs/table/<name>.yaml`` says, and running those that are not finished.

A table has sections, a section has rows, and a row is a list of overrides of ``train.py``; each is run with every seed. What
identifies a run is what ``train.py`` would compose, so that a run made by hand counts as well.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir

from cope.configuration import run_hash
from cope.errors import UserError, check_choice
from cope.report.tables import run_line
from cope.results.record import RunFolder


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table."""

    section: str
    row: str
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


def read_plan(configs: Path, name: str, overrides: Sequence[str], seeds: Sequence[int] | None) -> Plan:
    """The plan of ``configs/table/<name>.yaml``.

    Args:
        overrides: of every run, the last word.
        seeds: instead of the table's own; None takes those.

    Raises:
        UserError: there is no such table.
        HydraException: an override that does not exist.
    """
    check_choice("table", name, sorted(path.stem for path in (configs / "table").glob("*.yaml")))
    content = yaml.safe_load((configs / "table" / f"{name}.yaml").read_text())
    chosen = tuple(seeds or content["seeds"])
    runs = []
    with initialize_config_dir(str(configs), version_base="1.3"):
        for seed in chosen:
            for section, rows in content["sections"].items():
                for row, own in rows.items():
                    all_of_them = (*own, *overrides, f"seed={seed}")
                    config = compose("train", overrides=list(all_of_them))
                    folder = RunFolder.of(config.output_dir, config.task.name, config.pe.name, run_hash(config), seed)
                    runs.append(PlannedRun(section, row, all_of_them, folder))
    splits = tuple(content["splits"]) if "splits" in content else None
    return Plan(name, content["title"], chosen, splits, tuple(content["sections"]), tuple(runs))


def run_all(runs: Sequence[PlannedRun], root: Path, num_jobs: int | None) -> list[PlannedRun]:
    """Run those that are not finished, ``num_jobs`` at a time, telling each result as it comes; returns those that failed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_jobs is not None and num_jobs < 1:
        raise UserError(f"--jobs {num_jobs} is too small; allowed: 1 or more.")
    waiting = [run for run in runs if run.result() is None]
    num_jobs = min(num_jobs or cores, max(1, len(waiting)))
    threads = max(1, cores // num_jobs)

    def start(run: PlannedRun) -> bool:
        run.folder.path.mkdir(parents=True, exist_ok=True)
        with run.log.open("a") as log:
            command = [sys.executable, str(root / "train.py"), *run.overrides, f"trainer.threads={threads}"]
            return subprocess.run(command, cwd=root, stdout=log, stderr=subprocess.STDOUT).returncode == 0

    failed = []
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished; {num_jobs} at a time", flush=True)
    with ThreadPoolExecutor(num_jobs) as pool:
        futures = {pool.submit(start, run): run for run in waiting}
        for number, future in enumerate(as_completed(futures), start=1):
            run = futures[future]
            result = run.result() if future.result() else None
            if result is None:
                failed.append(run)
            told = run_line(result) if result else f"FAILED: {run.command}; see {run.log}"
            print(f"[{number}/{len(waiting)}] {told}", flush=True)
    return failed

"""Runs those of a table's runs that are not finished, several at a time, and tells how far it is."""

from __future__ import annotations

import os
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cope.cli import BUSY, INTERRUPTED
from cope.errors import UserError
from cope.files import read_json, write_text
from cope.report.tables import run_line
from cope.run.configuration import Problems
from cope.sweep.jobs import num_cores
from cope.sweep.places import gpu_names
from cope.sweep.plan import PlannedRun, composed
from cope.sweep.process import RunProcesses

PUBLISHED = "docs/results*/runs"  # the results that come with the project


class Terminated(KeyboardInterrupt):
    """SIGTERM, which reaches this process alone, where Ctrl-C reaches its runs as well."""


class Clock:
    """Guesses how long runs take: as long as finished ones of the same task and scale, those of this machine if there are any.

    Args:
        root: of the project, whose published results serve until a run is finished here.
    """

    def __init__(self, root: Path) -> None:
        self._published = _times(read_json(path) for path in sorted(root.glob(f"{PUBLISHED}/*/*/*/seed=*/result.json")))

    def seconds(self, runs: Sequence[PlannedRun], num_jobs: int) -> float | None:
        """For those of ``runs`` that are not finished, ``num_jobs`` at a time; None where nothing like them was run."""
        results = [(run, run.result()) for run in runs]
        own = _times(result for _, result in results if result is not None)
        expected = []
        for run, result in results:
            if result is None:
                key = (run.folder.path.parts[-4], run.scale)
                times = own.get(key) or self._published.get(key)
                if not times:
                    return None
                expected.append(statistics.fmean(times))
        return sum(expected) / num_jobs


def _times(results: Any) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {}
    for result in results:
        times.setdefault((result["task"], result["scale"]), []).append(result["time_s"])
    return times


def check_settings(runs: Sequence[PlannedRun], configs: Path, check: Callable[[DictConfig], object]) -> None:
    """Raise UserError with everything that is wrong with the runs' settings, so that none begins only to fail.

    Args:
        check: raises UserError if a composed configuration cannot be run.
    """
    problems = Problems()
    for settings in dict.fromkeys(run.settings for run in runs if run.result() is None):
        with problems.collect():
            check(composed(configs, settings))
    problems.messages = list(dict.fromkeys(problems.messages))  # a wrong override is wrong in every row
    problems.raise_if_any()


def run_all(runs: Sequence[PlannedRun], root: Path, num_jobs: int) -> list[PlannedRun]:
    """Run those that are not finished, ``num_jobs`` at a time, telling each result as it comes.

    Returns those that failed, were stopped or are run by another process.

    Each runs in a process of its own, on the GPU with the fewest runs where there are some, with its output in its folder. One
    that fails does not stop the others.

    Raises:
        UserError: a run's folder cannot be written; those that go on end first.
        Terminated, KeyboardInterrupt: once those that went on have saved their state.
    """
    waiting = [run for run in runs if run.result() is None]
    num_jobs = min(num_jobs, max(1, len(waiting)))
    threads = max(1, num_cores() // num_jobs)
    clock = Clock(root)
    gpus = gpu_names()
    free_gpus = queue.SimpleQueue[str]()  # each as often as runs share it, in turn
    for place in range(num_jobs if gpus else 0):
        free_gpus.put(gpus[place % len(gpus)])

    processes = RunProcesses()
    besides: list[float] = []  # seconds that runs took apart from training: to start, and to score their splits

    def start(run: PlannedRun) -> int:
        """The exit status of the run's own process."""
        gpu = free_gpus.get() if gpus else None
        began = time.monotonic()
        environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        has_threads = any(override.startswith("trainer.threads=") for override in run.overrides)
        own = run.overrides if has_threads else (*run.overrides, f"trainer.threads={threads}")
        try:
            run.folder.path.mkdir(parents=True, exist_ok=True)
            run.mark_of_failure.unlink(missing_ok=True)
            try:
                status = processes.run(root / "train.py", own, run.log, environment)
            except (OSError, EOFError) as error:
                with run.log.open("a") as log:
                    log.write(f"The process could not be started: {error}\n")
                status = 1
            if status == 0 and (result := run.result()) is not None:
                besides.append(max(0.0, time.monotonic() - began - result["time_s"]))
            return status
        except OSError as error:
            raise UserError(f"output_dir: {run.folder.path} cannot be written: {error.strerror}.") from error
        finally:
            if gpu is not None:
                free_gpus.put(gpu)

    left_over: list[PlannedRun] = []
    started = time.monotonic()
    at_once = f"; {num_jobs} at a time" if waiting else ""
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished{at_once}", flush=True)
    pool = ThreadPoolExecutor(num_jobs)
    try:
        futures: dict[Future[int], PlannedRun] = {pool.submit(start, run): run for run in waiting}
        unfinished = set(futures)
        while unfinished:
            done, unfinished = wait(unfinished, return_when=FIRST_COMPLETED)
            for future in done:
                told = _conclude(futures[future], future.result(), left_over)
                left = clock.seconds([run for run in runs if run not in left_over], num_jobs)
                running = sum(other.running() for other in unfinished)
                if left is not None and besides:
                    left += statistics.fmean(besides) * len(unfinished) / num_jobs
                guess = "" if left is None else f", about {left / 60:.0f} min left"
                passed = (time.monotonic() - started) / 60
                count = f"{len(waiting) - len(unfinished)} of {len(waiting)}"
                print(f"[{count} done, {running} running, {passed:.0f} min{guess}] {told}", flush=True)
    except Terminated:
        processes.terminate()
        raise
    finally:
        processes.start_no_more()
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, which reaches the runs by itself, they save their state and end
    return left_over


def _conclude(run: PlannedRun, status: int, left_over: list[PlannedRun]) -> str:
    """Note whether ``run`` failed, for the tables; returns the line that tells of it."""
    result = run.result() if status == 0 else None
    if result is not None:
        return run_line(result)
    left_over.append(run)
    if status == INTERRUPTED:  # it saved its state
        return f"stopped: {run.command}; the same table goes on from there"
    if status == BUSY:
        return f"left alone: {run.command}; another process is running it"
    write_text(run.mark_of_failure, f"{run.command}\n")
    return f"FAILED: {run.command}; see {run.log}"

"""The queue behind ``hydra/launcher=local``: several jobs at a time, each in a process of its own.

It tells of each job as it ends, guesses the time that is left, and on Ctrl-C or SIGTERM lets every job save its state.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from cope.cli import message_of
from cope.errors import Interrupted, UserError
from cope.files import user_path
from cope.run.configuration import flatten, run_folder
from cope.run.summary import run_line
from cope.sweep.clock import Clock, duration
from cope.sweep.jobs import Job, error_of, job_of, without_hydra
from cope.sweep.places import gpu_names, num_places
from cope.sweep.process import Lost, Processes, Work, output_to
from cope.threads import num_cores

GPUS = "CUDA_VISIBLE_DEVICES"
NAMED = ("task", "pe", "seed")  # in every line that tells of a run


@dataclass(frozen=True)
class Call:
    """What Hydra gives a launcher to run one job with."""

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig  # of the sweep
    overrides: tuple[str, ...]
    number: int
    singletons: Any

    def composed(self) -> DictConfig:
        """The job's own configuration."""
        return self.context.config_loader.load_sweep_config(self.config, list(self.overrides))

    def __call__(self) -> JobReturn:
        """Run the job in this process, its output in its run's folder."""
        setup_globals()
        Singleton.set_state(self.singletons)
        config = self.composed()
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = self.number, f"{config.hydra.job.name}_{self.number}"
        HydraConfig.instance().set_config(config)
        log = run_folder(without_hydra(config)).log
        try:
            output_to(log)
        except OSError as error:
            return failed(UserError(f"output_dir: {log} cannot be written: {error.strerror}."))
        try:
            returned = run_job(self.task_function, config, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)
        except OSError as error:  # of the folder that Hydra makes for the job
            return failed(UserError(f"hydra.sweep.dir: {error.filename} cannot be made: {error.strerror}."))
        raised = error_of(returned)
        if raised is not None and not isinstance(raised, UserError):
            return failed(RuntimeError(message_of(raised)))  # others may not survive the way back
        return returned


# Of a job that ended: the seconds it took, without those it waited; and how many run at once where it ran.
Ended = tuple[Call, JobReturn, float, int]


def calls_for(launcher: Launcher, jobs: Sequence[Sequence[str]], first: int) -> list[Call]:
    """What runs ``jobs`` of the sweep that ``launcher`` was set up for, numbered from ``first``."""
    context, task_function, config = launcher.hydra_context, launcher.task_function, launcher.config  # type: ignore[attr-defined]
    state = Singleton.get_state()  # a copy, which takes a while, and the same for all
    return [
        Call(context, task_function, config, tuple(overrides), first + index, state) for index, overrides in enumerate(jobs)
    ]


def failed(error: Exception) -> JobReturn:
    """The outcome of a job that raised ``error``."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def told(calls: Sequence[Call], ended: Generator[Ended], at_once: int | None = None) -> list[JobReturn]:
    """The outcome of each of ``calls``, in their order, told of as they end; ``ended`` is closed where that fails.

    Args:
        at_once: how many run at once, where that is known before the first has ended.
    """
    outcomes: dict[int, JobReturn] = {}
    with closing(Progress(calls, at_once)) as progress, closing(ended):
        for call, outcome, seconds, now_at_once in ended:
            config = without_hydra(call.composed())
            job = job_of(config, call.overrides)
            has_result = job.result() is not None
            if error_of(outcome) is None and not has_result:  # as where folders are shared, and slowly
                outcome = failed(RuntimeError(f"it ended, and there is no result in {job.folder.path}"))
            elif isinstance(error_of(outcome), Lost) and has_result and not config.force:  # lost when its run was finished
                outcome = JobReturn(status=JobStatus.COMPLETED)
            outcomes[call.number] = outcome
            progress.tell(call, job, outcome, seconds, now_at_once)
    return [outcomes[call.number] for call in calls]


class LocalQueue:
    """Runs the jobs of one sweep.

    Args:
        jobs_at_once: None takes as many as the machine has room for.
        preload: modules that the task function imports, apart from those of a run.
    """

    def __init__(self, jobs_at_once: int | None, preload: Sequence[str]) -> None:
        self.jobs_at_once = jobs_at_once
        self.processes = Processes(preload)

    def run(self, calls: Sequence[Call]) -> list[JobReturn]:
        """The outcome of each; whatever it is, the others go on.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM, once the jobs that went on have saved their state.
        """
        at_once, why = self._places(calls)
        at_once = min(at_once, len(calls))
        gpus = gpu_names()
        free = [gpus[place % len(gpus)] for place in range(at_once if gpus else 0)]  # each as often as jobs share it, in turn
        threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // at_once))}
        waiting = list(calls)

        def next_work() -> Work | None:
            if not waiting:
                return None
            call, own = waiting.pop(0), {GPUS: free.pop(0)} if gpus else {}
            return Work(call, threads | os.environ | own, call)

        def as_they_end() -> Generator[Ended]:
            with closing(self.processes.as_they_end(at_once, next_work)) as jobs:
                for work, answer in jobs:
                    if gpus:
                        free.append(work.environment[GPUS])
                    try:
                        outcome: JobReturn = answer.result()
                    except (Interrupted, RuntimeError) as error:
                        outcome = failed(error)
                    # What failed before the sweep was stopped is told, and kept, even so.
                    if not self.processes.is_stopping() or not isinstance(error_of(outcome), Interrupted | None):
                        yield work.of, outcome, time.monotonic() - work.began, at_once
            if self.processes.is_stopping():
                raise KeyboardInterrupt

        with self.processes.stopped_by_signals():
            print(f"{len(calls)} to do; {why}", flush=True)
            return told(calls, as_they_end(), at_once)

    def _places(self, calls: Sequence[Call]) -> tuple[int, str]:
        """How many jobs at once, and why."""
        if self.jobs_at_once is not None:
            return self.jobs_at_once, f"{self.jobs_at_once} at a time"
        needed = {tuple(o for o in call.overrides if not o.startswith("seed=")): call for call in calls}  # a seed needs nothing
        return num_places(call.composed() for call in needed.values())


class Progress:
    """Tells of each job as it ends; how many are done and how long it may still take, on a terminal in one line below them.

    Args:
        at_once: as for :func:`told`.
    """

    def __init__(self, calls: Sequence[Call], at_once: int | None) -> None:
        self.clock = Clock(user_path("output_dir", calls[0].composed().output_dir))
        self.waiting = {call.number: _kind(call) for call in calls}
        self.shared = frozenset.intersection(*(frozenset(call.overrides) for call in calls))
        self.num_jobs = len(calls)
        self.started = time.monotonic()
        self.besides: list[float] = []  # seconds that jobs took apart from training: to start, and to score their splits
        self.bar = tqdm(
            total=len(calls), bar_format="{n_fmt} of {total_fmt} runs |{bar}| {desc}", disable=not sys.stderr.isatty(),
            dynamic_ncols=True, leave=False,
        )  # fmt: skip
        self.bar.set_description_str("in the queue" if at_once is None else f"{at_once} running{self._guess(at_once)}")

    def tell(self, call: Call, job: Job, outcome: JobReturn, seconds: float, at_once: int) -> None:
        """Print a line; ``seconds`` and ``at_once`` are as in ``Ended``."""
        del self.waiting[call.number]
        told = self._told(job, outcome, seconds)
        if not self.bar.disable:
            running = min(at_once, len(self.waiting))
            self.bar.set_description_str(f"{running} running{self._guess(at_once)}", refresh=False)
            self.bar.update()
            self.bar.write(told)
            return
        guess = self._guess(at_once) or f" in {duration(time.monotonic() - self.started)}"
        print(f"[{self.num_jobs - len(self.waiting)}/{self.num_jobs}{guess}] {told}", flush=True)

    def close(self) -> None:
        """Take the line away."""
        self.bar.close()

    def _guess(self, at_once: int) -> str:
        left = self.clock.seconds(self.waiting.values(), at_once)
        if left is not None and self.besides:
            left += statistics.fmean(self.besides) * len(self.waiting) / at_once
        return "" if left is None or not self.waiting else f", {duration(left)} left"

    def _told(self, job: Job, outcome: JobReturn, seconds: float) -> str:
        error = error_of(outcome)
        if error is not None:
            return job.ended_with(error)  # which is kept now: the sweep may be interrupted before it ends
        result = job.result()
        assert result is not None
        self.clock.add(result)
        self.besides.append(max(0.0, seconds - result["time_s"]))
        return run_line(result, self._settings(job, result["config"]))

    def _settings(self, job: Job, config: dict[str, Any]) -> list[str]:
        """What tells a job apart from others of its task and encoding: ``num_variables=3``, also where that was a reference."""
        ran_with = flatten(config)
        own = [override.split("=", 1) for override in job.overrides if override not in self.shared and "=" in override]
        return [f"{key.rpartition('.')[2]}={ran_with.get(key, value)}" for key, value in own if key not in NAMED]


def _kind(call: Call) -> tuple[str, str]:
    """The task and scale of a job, without composing it, which takes a tenth of a second."""
    chosen = dict(override.split("=", 1) for override in call.overrides if "=" in override)
    return chosen.get("task", call.config.task.name), chosen.get("scale", call.config.scale)

"""Runs the trials of several encodings, some at a time: always one of the encoding that has fewest."""

from __future__ import annotations

import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock, Timer

from optuna.trial import Trial, TrialState

from cope.errors import Interrupted, UserError
from cope.signals import handled_by
from cope.sweep.process import Processes
from cope.sweep.trial import TrialRun
from cope.sweep.tuning import Tuning
from cope.threads import num_cores


class Tuner:
    """Asks for trials, runs each in a process of its own, and tells Optuna what they found.

    Args:
        run_of: what to run for a trial.
        told: is called after each.
    """

    def __init__(
        self,
        tunings: Sequence[Tuning],
        run_of: Callable[[Tuning, Trial], TrialRun],
        jobs: int,
        told: Callable[[], None],
    ) -> None:
        self.tunings = tunings
        self.run_of = run_of
        self.jobs = jobs
        self.told = told
        self.processes = Processes()
        self._left = [(tuning, trial) for tuning in tunings for trial in tuning.unfinished()]
        self._one_thread = Lock()  # asks and tells
        self.environment = {"OMP_NUM_THREADS": str(max(1, num_cores() // jobs))} | os.environ

    def run(self, limit_s: float | None) -> bool:
        """Run until every encoding has its trials (True), or the time is up or somebody stops it (False).

        Trials that went on have then saved their state.
        """
        timer = Timer(limit_s, self.processes.stop) if limit_s is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        with handled_by(lambda number, frame: self.processes.stop(), signal.SIGINT, signal.SIGTERM):
            pool = ThreadPoolExecutor(self.jobs)
            workers = [pool.submit(self._work) for _ in range(self.jobs)]
            try:
                for worker in as_completed(workers):
                    worker.result()
            except BaseException:
                self.processes.stop()
                raise
            finally:
                pool.shutdown()
                if timer is not None:
                    timer.cancel()
        return not self.processes.is_stopping()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            tuning, trial = found
            started = time.monotonic()
            try:
                losses = self.processes.call(self.run_of(tuning, trial), self.environment)
            except Interrupted:
                return
            if isinstance(losses, UserError):
                raise losses
            with self._one_thread:
                self._tell(tuning, trial, losses, time.monotonic() - started)

    def _next(self) -> tuple[Tuning, Trial] | None:
        with self._one_thread:
            if self.processes.is_stopping():
                return None
            if self._left:
                return self._left.pop(0)
            for tuning in sorted(self.tunings, key=lambda tuning: len(tuning.trials)):
                if (trial := tuning.ask()) is not None:
                    return tuning, trial
        return None

    def _tell(self, tuning: Tuning, trial: Trial, losses: Sequence[float], seconds: float) -> None:
        what = f"{tuning.encoding} trial {trial.number} ({' '.join(tuning.overrides(trial))})"
        if len(losses) < len(tuning.search.seeds):
            tuning.study.tell(trial, state=TrialState.PRUNED)
            print(f"{what}: broken off, {seconds:.0f} s", flush=True)
        else:
            tuning.study.tell(trial, statistics.fmean(losses))
            best = tuning.best()
            lowest = math.inf if best is None or best.value is None else best.value
            shown = " and ".join(f"{loss:.4g}" for loss in losses)
            print(f"{what}: {shown}; best {lowest:.4g}, {seconds:.0f} s", flush=True)
        self.told()

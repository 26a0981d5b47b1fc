"""Runs the trials of several encodings, some at a time: always one of the encoding that has fewest."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice

from optuna.trial import Trial, TrialState

from cope.errors import Interrupted, UserError
from cope.sweep.process import Processes, Work
from cope.sweep.trial import TrialRun
from cope.sweep.tuning import Tuning
from cope.threads import num_cores


@dataclass
class Tuner:
    """Asks for trials, runs each in a process of its own, and tells Optuna what they found.

    Args:
        run_of: what to run for a trial.
        told: is called after each.
    """

    tunings: Sequence[Tuning]
    run_of: Callable[[Tuning, Trial], TrialRun]
    jobs: int
    told: Callable[[], None]

    def __post_init__(self) -> None:
        self.processes = Processes()
        self.left = [(tuning, trial) for tuning in self.tunings for trial in tuning.unfinished()]
        self.environment = {"OMP_NUM_THREADS": str(max(1, num_cores() // self.jobs))} | os.environ

    def run(self, limit_s: float | None) -> bool:
        """Run until every encoding has its trials (True), or the time is up or somebody stops it (False).

        Trials that went on have then saved their state.
        """
        with (
            self.processes.stopped_by_signals(),
            closing(self.processes.as_they_end(self.jobs, self._next_work, limit_s)) as jobs,
        ):
            for work, answer in jobs:
                with suppress(Interrupted):
                    losses = answer.result()
                    if isinstance(losses, UserError):
                        raise losses
                    tuning, trial = work.of
                    self._tell(tuning, trial, losses, time.monotonic() - work.began)
        return not self.processes.is_stopping()

    def _next_work(self) -> Work | None:
        if not self.left:
            fewest_first = sorted(self.tunings, key=lambda tuning: len(tuning.trials))
            asked = ((tuning, trial) for tuning in fewest_first if (trial := tuning.ask()) is not None)
            self.left = list(islice(asked, 1))
        if not self.left:
            return None
        tuning, trial = self.left.pop(0)
        return Work(self.run_of(tuning, trial), self.environment, (tuning, trial))

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

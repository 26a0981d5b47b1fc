"""Runs the trials of several encodings, some at a time: always one of the encoding that has fewest."""

from __future__ import annotations

import math
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice

from optuna.trial import Trial, TrialState
from tqdm import tqdm

from cope.errors import Interrupted, UserError
from cope.sweep.clock import duration
from cope.sweep.process import Processes, Work
from cope.sweep.trial import TrialRun
from cope.sweep.tuning import Tuning
from cope.threads import num_cores


@dataclass
class Tuner:
    """Asks for trials, runs each in a process of its own, and tells Optuna what they found; on a terminal, how many are left.

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
        ended = sum(len(tuning.trials) - len(tuning.unfinished()) for tuning in self.tunings)
        total = max(ended, sum(tuning.search.num_trials for tuning in self.tunings))
        print(f"{ended} of {total} trials are finished; {self.jobs} at once", flush=True)
        with (
            self.processes.stopped_by_signals(),
            tqdm(
                total=total, initial=ended, bar_format="{n_fmt} of {total_fmt} trials |{bar}| {remaining} left", disable=None,
                dynamic_ncols=True, leave=False, smoothing=0,
            ) as bar,
            closing(self.processes.as_they_end(self.jobs, self._next_work, limit_s)) as jobs,
        ):  # fmt: skip
            for work, answer in jobs:
                with suppress(Interrupted):
                    losses = answer.result()
                    if isinstance(losses, UserError):
                        raise losses
                    tuning, trial = work.of
                    bar.update()
                    bar.write(self._told(tuning, trial, losses, time.monotonic() - work.began))
                    sys.stdout.flush()
                    self.told()
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

    def _told(self, tuning: Tuning, trial: Trial, losses: Sequence[float], seconds: float) -> str:
        """Tell Optuna, and say it in lines of at most 80 columns."""
        numbers = [counted.number for counted in tuning.trials]  # Optuna's, as on file: those drawn twice have one as well
        nth = f"{1 + numbers.index(trial.number)} of {tuning.search.num_trials}"
        name = f"{tuning.encoding} trial {trial.number} ({nth})"
        if len(losses) < len(tuning.search.seeds):
            tuning.study.tell(trial, state=TrialState.PRUNED)
            found = "broken off, worse than the median"
        else:
            tuning.study.tell(trial, statistics.fmean(losses))
            best = tuning.best()
            lowest = math.inf if best is None or best.value is None else best.value
            found = f"validation loss {statistics.fmean(losses):.4g}, lowest so far {lowest:.4g}"
        return f"{name}: {found}; {duration(seconds)}\n{indented(tuning.overrides(trial))}"


def indented(overrides: Sequence[str]) -> str:
    """Settings on lines of their own, of at most 80 columns."""
    return textwrap.fill(" ".join(overrides), 80, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)

"""What a sweep would run: each run with its state, and how long the others may take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cope.errors import counted
from cope.sweep.clock import Clock, duration
from cope.sweep.plan import PlannedRun, composed


def print_runs(configs: Path, runs: Sequence[PlannedRun], waiting: Sequence[PlannedRun]) -> None:
    """Print ``runs``, and how many are ``waiting``."""
    for run in runs:
        print(f"{'finished' if run.result() else 'failed' if run.failed else 'to do':8}  {run.command}")
    if not waiting:
        print(f"nothing to do: {counted(len(runs), 'run')} finished")
        return
    from cope.sweep.places import num_places  # it imports PyTorch

    at_once, why = num_places(composed(configs, own) for own in dict.fromkeys(run.settings for run in waiting))
    seconds = Clock(runs[0].folder.outputs).seconds([(run.task, run.scale) for run in waiting], at_once)
    guess = "no finished run to guess the time from" if seconds is None else f"about {duration(seconds)}"
    print(f"{len(waiting)} of {counted(len(runs), 'run')} to do; {guess}\n{why}")

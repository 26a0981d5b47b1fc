"""Breaks real runs in many ways, gives the same command again, and counts those
that came out as unbroken ones.

    # a table, as in docs/faults.md
    make faults
    python benchmarks/faults.py tries=50 faults=killed,killed_preparing
    python benchmarks/faults.py faults=disk_full_run format=json

A run survives if its result, its metrics (times aside) and the weights of its
checkpoints are those of a run that nobody broke, if nothing else is left in its
folder, no process goes on, and what it said on the way was a message and no
stack trace. Some faults need Linux, some to be root (a disk of its own that can
be full); others are left out, and the table says so.

    tries=10           of each fault
    faults=all         or some, with commas between
    seed=1             of moments and places
    format=markdown    or table, csv, latex, json
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.begin import begin

    begin(__doc__)  # before anything is imported that takes seconds

import os
import platform
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import break_disks
import break_files
import break_processes
import break_surroundings
from broken_runs import Harness

from cope.cli import read_settings, run_command
from cope.errors import check_at_least, check_choice
from cope.report.sheets import FORMATS, Sheet, show
from cope.run.provenance import commit

FAULTS = break_processes.FAULTS | break_disks.FAULTS | break_files.FAULTS | break_surroundings.FAULTS


@dataclass(frozen=True)
class FaultSettings:
    tries: int = 10
    faults: tuple[str, ...] = ("all",)
    seed: int = 1
    format: str = "markdown"

    def __post_init__(self) -> None:
        check_at_least("tries", self.tries, 1)
        check_choice("format", self.format, FORMATS)
        for name in self.faults:
            check_choice("faults", name, ["all", *FAULTS])


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, FaultSettings, "python benchmarks/faults.py")
    names = list(FAULTS) if settings.faults == ("all",) else list(settings.faults)
    rows = []
    # A TemporaryDirectory would be deleted by each process forked from this one when it ends.
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        harness = Harness(folder)
        for name in names:
            fault = FAULTS[name]
            if fault.needs:
                rows.append((fault.what, f"not tried: needs {fault.needs}", ""))
                continue
            harness.random = random.Random(f"{settings.seed} {name}")  # the same moments, whichever others are tried
            survived = 0
            for number in range(settings.tries):
                place = folder / f"{name}-{number}"
                survived += (held := fault.act(harness, place))
                print(f"{name} {number + 1}: {'survived' if held else 'NOT survived'}", file=sys.stderr, flush=True)
                shutil.rmtree(place, ignore_errors=True)
            rows.append((fault.what, f"{settings.tries}", f"{survived}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    command = " ".join(["python benchmarks/faults.py", *arguments])
    note = f"`{command}`, {platform.system()}, {os.cpu_count()} cores, commit {commit()}."
    show([Sheet("", ("fault", "tried", "survived"), tuple(rows), (note,))], settings.format)


if __name__ == "__main__":
    run_command(main, __doc__)

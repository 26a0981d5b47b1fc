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

Each try is kept as it ends, and the same command again makes those that are
missing: a count that was broken off still counts, and two commands with other
faults may go on side by side. Tries of another commit are not counted, nor any
of changed files.

    tries=10           of each fault
    faults=all         or some, with commas between
    seed=1             of moments and places
    kept=outputs/faults.jsonl    where tries are kept
    format=markdown    or table, csv, latex, json
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import break_disks
import break_files
import break_processes
import break_surroundings
from broken_runs import Fault, Harness

from cope.cli import read_settings, run_command
from cope.errors import check_at_least, check_choice
from cope.files import append_json_line, user_path
from cope.report.sheets import FORMATS, Sheet, show
from cope.run.provenance import commit

FAULTS = break_processes.FAULTS | break_disks.FAULTS | break_files.FAULTS | break_surroundings.FAULTS


@dataclass(frozen=True)
class FaultSettings:
    tries: int = 10
    faults: tuple[str, ...] = ("all",)
    seed: int = 1
    kept: str = "outputs/faults.jsonl"
    format: str = "markdown"

    def __post_init__(self) -> None:
        check_at_least("tries", self.tries, 1)
        check_choice("format", self.format, FORMATS)
        for name in self.faults:
            check_choice("faults", name, ["all", *FAULTS])


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, FaultSettings, "python benchmarks/faults.py")
    names = list(FAULTS) if settings.faults == ("all",) else list(settings.faults)
    kept = Kept(user_path("kept", settings.kept), settings.seed)
    try:
        with temporary_folder() as folder:
            harness = Harness(folder)
            for name in names:
                for number in range(settings.tries):
                    if not FAULTS[name].needs and (name, number) not in kept.survived:
                        # The same moments, whichever others are tried.
                        harness.random = random.Random(f"{settings.seed} {name} {number}")
                        began = time.monotonic()
                        survived = tried(harness, FAULTS[name], folder / f"{name}-{number}")
                        kept.add(name, number, survived, time.monotonic() - began)
    finally:
        command = " ".join(["python benchmarks/faults.py", *arguments])
        note = f"`{command}`, {platform.system()}, {os.cpu_count()} cores, commit {commit()}."
        show([Sheet("", ("fault", "tried", "survived"), tuple(kept.row(name) for name in names), (note,))], settings.format)


def tried(harness: Harness, fault: Fault, place: Path) -> bool:
    try:
        return fault.act(harness, place)
    except Exception:  # of the harness: the fault did not survive, so that somebody looks
        traceback.print_exc()
        return False
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A TemporaryDirectory would be deleted by each process forked from this one when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Kept:
    """What came of each try of this code, in a file, a line each."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.count = path, {"commit": commit(), "seed": seed}
        self.survived: dict[tuple[str, int], bool] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not str(commit()).endswith("+changes"):
            for line in map(json.loads, path.read_text().splitlines()):
                if self.count.items() <= line.items():
                    self.survived[line["fault"], line["number"]] = line["survived"]

    def add(self, name: str, number: int, survived: bool, seconds: float) -> None:
        self.survived[name, number] = survived
        line = {"fault": name, "number": number, "survived": survived, "seconds": round(seconds, 1)}
        append_json_line(self.path, self.count | line)
        print(f"{name} {number + 1}: {'survived' if survived else 'NOT survived'}", file=sys.stderr, flush=True)

    def row(self, name: str) -> tuple[str, str, str]:
        fault = FAULTS[name]
        if fault.needs:
            return fault.what, f"not tried: needs {fault.needs}", ""
        outcomes = [survived for (of, _), survived in self.survived.items() if of == name]
        return fault.what, f"{len(outcomes)}", f"{sum(outcomes)}"


if __name__ == "__main__":
    run_command(main, __doc__)

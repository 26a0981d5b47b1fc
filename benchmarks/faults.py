"""Breaks real runs in many ways, gives the same command again, and counts those that came out as unbroken ones.

    make faults                                         # a table, as in docs/faults.md
    python benchmarks/faults.py tries=50                   # of each fault that has a random moment or place
    python benchmarks/faults.py faults=killed,disk_full

A run survives if its result, its metrics (times aside) and the weights of its checkpoints are those of a run that nobody broke,
if nothing else is left in its folder, and if what it said on the way was a message and no stack trace. Some faults need Linux,
some to be root (a disk of its own that can be full); others are left out, and the table says so.

    tries=10           of each fault that has a random moment or place
    faults=all         or some, with commas between
    seed=1             of moments and places
    format=markdown    or table, csv, latex, json
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.start import start

    start(__doc__)  # before anything is imported that takes seconds

import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cope.cli import run_command, split_settings
from cope.errors import UserError, check_at_least, check_choice
from cope.report.sheets import FORMATS, Sheet, show
from cope.run.folder import RunFolder
from cope.run.provenance import commit

ROOT = Path(__file__).resolve().parent.parent
RUN = ("pe=cope", "task=counting", "scale=smoke", "logger=none", "trainer.steps=60", "trainer.eval_every=10")
CIRCUMSTANCES = ("time_s", "peak_memory_mib", "date", "commit")


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


class Harness:
    """Runs, broken ones and the unbroken one, in a temporary folder."""

    def __init__(self, place: Path, tries: int, random: random.Random) -> None:
        self.place, self.tries, self.random = place, tries, random
        began = time.monotonic()
        done = self.run(place / "unbroken")
        assert done.returncode == 0, done.stderr
        self.seconds = time.monotonic() - began
        self.unbroken = contents(self.folder(place / "unbroken"))

    def command(self, place: Path, *more: str) -> list[str]:
        folders = (f"output_dir={place / 'outputs'}", f"data_dir={place / 'data'}")
        return [sys.executable, str(ROOT / "train.py"), *RUN, *folders, *more]

    def run(self, place: Path, *more: str, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        place.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            self.command(place, *more), capture_output=True, text=True, timeout=300, cwd=place, preexec_fn=limit
        )

    @contextmanager
    def running(self, place: Path) -> Iterator[subprocess.Popen[str]]:
        place.mkdir(parents=True, exist_ok=True)
        started = subprocess.Popen(self.command(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place)
        try:
            yield started
        finally:
            started.kill()
            started.communicate()

    def folder(self, place: Path) -> RunFolder:
        paths = list(place.glob("outputs/counting/cope/*/seed=1"))
        return RunFolder(paths[0] if paths else place / "none")

    def recovers(self, place: Path) -> bool:
        """Whether the same command ends as if nothing had been."""
        done = self.run(place)
        return done.returncode == 0 and "Traceback" not in done.stderr and contents(self.folder(place)) == self.unbroken


def contents(folder: RunFolder) -> Any:
    """What must be equal, to the bit: every file that is there, and what is in those that hold numbers."""
    names = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())
    result = folder.read_result() or {}
    metrics = [{key: value for key, value in line.items() if key != "train/tokens_per_s"} for line in folder.read_metrics()]
    weights = [
        {name: tensor.numpy().tobytes() for name, tensor in torch.load(path, weights_only=True)["model"].items()}
        for path in (folder.best_checkpoint, folder.last_checkpoint) if path.exists()
    ]  # fmt: skip
    return [names, {key: value for key, value in result.items() if key not in CIRCUMSTANCES}, metrics, weights]


def is_a_message(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command was refused in words."""
    return done.returncode not in (0, None) and bool(done.stderr.strip()) and "Traceback" not in done.stderr


# ---- the faults: each is given the harness and a new folder, and tells whether the run survived


def killed(harness: Harness, place: Path) -> bool:
    """SIGKILL at a random moment, from start-up to the pictures"""
    with harness.running(place) as run:
        time.sleep(harness.random.uniform(0, harness.seconds))
        run.kill()
    return harness.recovers(place)


def stopped(harness: Harness, place: Path) -> bool:
    """SIGSTOP for two seconds at a random moment, as a laptop's sleep"""
    with harness.running(place) as run:
        time.sleep(harness.random.uniform(0, harness.seconds))
        run.send_signal(signal.SIGSTOP)
        time.sleep(2)
        run.send_signal(signal.SIGCONT)
        run.wait(120)
    return harness.recovers(place)


def disk_full(harness: Harness, place: Path) -> bool:
    """A disk that is full after so many bytes (a tmpfs of 16 to 400 KiB), then has room"""
    place.mkdir()
    size = harness.random.randrange(16, 400, 4)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=True)
    try:
        done = harness.run(place)
        told = done.returncode == 0 or is_a_message(done)
        subprocess.run(["mount", "-o", "remount,size=100M", place], check=True)
        return told and harness.recovers(place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def read_only(harness: Harness, place: Path) -> bool:
    """A folder on a disk that is read-only, from the beginning or from a random moment on"""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100M", "tmpfs", place], check=True)
    try:
        moment = harness.random.uniform(0, harness.seconds)
        with harness.running(place) as run:
            time.sleep(moment)
            subprocess.run(["mount", "-o", "remount,ro", place], capture_output=True)  # refused while a file is written
            told, _ = run.communicate(timeout=120)
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        return "Traceback" not in told and harness.recovers(place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def vanished(harness: Harness, place: Path) -> bool:
    """The run's folder is deleted at a random moment"""
    with harness.running(place) as run:
        time.sleep(harness.random.uniform(0.2, 1) * harness.seconds)
        shutil.rmtree(place / "outputs", ignore_errors=True)
        told, _ = run.communicate(timeout=120)
    return "Traceback" not in told and harness.recovers(place)


def few_files(harness: Harness, place: Path) -> bool:
    """No more than 8 to 40 files may be open at once"""
    number = harness.random.randrange(8, 40)
    done = harness.run(place, limit=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (number, number)))
    return (done.returncode == 0 or is_a_message(done)) and harness.recovers(place)


def little_memory(harness: Harness, place: Path) -> bool:
    """Address space of 1 to 6 GiB, of which PyTorch alone takes some"""
    number = harness.random.randrange(1024, 6 * 1024) * 2**20
    done = harness.run(place, limit=partial(resource.setrlimit, resource.RLIMIT_AS, (number, number)))
    return (done.returncode == 0 or is_a_message(done)) and harness.recovers(place)


def damaged(harness: Harness, place: Path) -> bool:
    """A file of an unfinished run cut short, emptied, or with one bit flipped: told, and force=true starts over"""
    shutil.copytree(harness.place / "unbroken", place)
    folder = harness.folder(place)
    folder.result.unlink()
    path = harness.random.choice([folder.config, folder.metrics, folder.last_checkpoint, folder.best_checkpoint])
    content = bytearray(path.read_bytes())
    match harness.random.randrange(3):
        case 0:
            content = content[: harness.random.randrange(len(content))]
        case 1:
            content = bytearray()
        case _:
            content[harness.random.randrange(len(content))] ^= 1 << harness.random.randrange(8)
    path.write_bytes(content)
    done = harness.run(place)
    if done.returncode == 0:  # it was of no consequence, or a number that nobody can know to be wrong
        return "Traceback" not in done.stderr
    again = harness.run(place, "force=true")
    return is_a_message(done) and again.returncode == 0


def two_at_once(harness: Harness, place: Path) -> bool:
    """The same command twice at the same time: one runs, the other says so"""
    with harness.running(place) as one, harness.running(place) as other:
        told = [run.communicate(timeout=120)[0] for run in (one, other)]
        statuses = sorted([one.returncode, other.returncode])
    return statuses in ([0, 75], [0, 0]) and not any("Traceback" in text for text in told) and harness.recovers(place)


def sweep_killed(harness: Harness, place: Path) -> bool:
    """The process that runs a sweep is killed: no job goes on without it, and the same sweep ends"""
    place.mkdir()
    sweep = [sys.executable, str(ROOT / "train.py"), "-m", *RUN, "seed=1,2", f"output_dir={place / 'outputs'}"]
    with subprocess.Popen(sweep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place) as started:
        time.sleep(harness.random.uniform(0.5, 1.5) * harness.seconds)
        started.kill()
    deadline = time.monotonic() + 20
    while (left := processes_with(str(place))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        os.kill(process, signal.SIGKILL)
    again = subprocess.run(sweep, capture_output=True, text=True, cwd=place)
    (place / "outputs" / "none").mkdir(exist_ok=True)
    return not left and again.returncode == 0 and len(list(place.glob("outputs/counting/cope/*/seed=*/result.json"))) == 2


def processes_with(text: str) -> list[int]:
    """Processes whose command or working folder has ``text`` in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes().decode(errors="replace") + os.readlink(process / "cwd")
        except OSError:
            continue
        if text in told and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


FAULTS = {
    fault.__name__: fault
    for fault in (killed, stopped, disk_full, read_only, vanished, few_files, little_memory, damaged, two_at_once, sweep_killed)
}
NEED_ROOT = ("disk_full", "read_only")


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, FaultSettings, "python benchmarks/faults.py")
    if others:
        raise UserError(f"{others[0]} is not a setting; allowed: tries, faults, seed, format.")
    names = list(FAULTS) if settings.faults == ("all",) else list(settings.faults)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        harness = Harness(Path(folder), settings.tries, random.Random(settings.seed))
        for name in names:
            what = (FAULTS[name].__doc__ or "").strip()
            if name in NEED_ROOT and (sys.platform != "linux" or os.geteuid() != 0):
                rows.append((what, "not tried: needs root", ""))
                continue
            survived = 0
            for number in range(settings.tries):
                place = Path(folder) / f"{name}-{number}"
                survived += (held := FAULTS[name](harness, place))
                print(f"{name} {number + 1}: {'survived' if held else 'NOT survived'}", file=sys.stderr, flush=True)
                shutil.rmtree(place, ignore_errors=True)
            rows.append((what, f"{settings.tries}", f"{survived}"))
    note = (
        f"`python benchmarks/faults.py {' '.join(arguments)}`, {platform.system()}, {os.cpu_count()} cores, commit {commit()}."
    )
    show([Sheet("", ("fault", "tried", "survived"), tuple(rows), (note,))], settings.format)


if __name__ == "__main__":
    run_command(main, __doc__)

"""Disks that are full, read-only or gone; quotas; too few open files."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from break_processes import NUM_WRITES, at_write, wait_for
from break_surroundings import clients
from broken_runs import NEEDS_ROOT, Command, Fault, Harness, run_folder, small_disk

# Which folder of a job is written, and the sizes in KiB of which a disk is drawn: too small for some of it.
WRITES: dict[str, tuple[str, Callable[[Harness, Path], Path], tuple[int, int]]] = {
    "run": ("counting", lambda harness, place: place / "outputs", (8, 160)),
    "text": ("text", lambda harness, place: place / "data", (8, 200)),
    "wandb": ("wandb", lambda harness, place: wandb_folder(harness, place), (4, 24)),
    "report": ("report", lambda harness, place: place, (8, 160)),
}


def wandb_folder(harness: Harness, place: Path) -> Path:
    """Where W&B will write, in the folder that the run will have."""
    unbroken = harness.folder / "wandb-unbroken"
    return place / run_folder(unbroken).path.relative_to(unbroken) / "wandb"


def told(command: Command, kind: str) -> bool:
    """Whether a command that could not write said so; W&B's file is not worth a run."""
    fits = command.wait() == 0 and not command.has_a_trace if kind == "wandb" else command.is_told_or_done
    if not fits or command.has_a_trace:
        print(command.said, file=sys.stderr)
    return fits and not command.has_a_trace


def disk_full(kind: str, harness: Harness, place: Path) -> bool:
    name, folder_of, sizes = WRITES[kind]
    job = harness.job(name)
    folder = folder_of(harness, place)
    with small_disk(folder, harness.random.randrange(*sizes, 4)) as remount:
        if not told(harness.finished(job, place), kind):
            return False
        remount("size=100M")
        return harness.recovers(job, place)


def disk_full_compiling(harness: Harness, place: Path) -> bool:
    """A kernel that cannot be kept: plain PyTorch does its work, which is said."""
    job = harness.job("counting")
    with small_disk(place / "kernels", harness.random.randrange(4, 200, 4)):
        command = harness.finished(job, place, COPE_CACHE=str(place / "kernels"))
        if command.status != 0 or command.has_a_trace or "takes blockwise" not in command.said:
            print(command.said, file=sys.stderr)
            return False
        return not any(path.suffix == ".so" for path in (place / "kernels").iterdir())


def quota(kind: str, harness: Harness, place: Path) -> bool:
    """No file may become larger than some KiB."""
    name, _, (least, most) = WRITES[kind]
    job = harness.job(name)
    size = harness.random.randrange(least // 4, most // 4) * 1024
    command = harness.finished(job, place, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))
    return told(command, kind) and harness.recovers(job, place)


def quota_of_wandb(harness: Harness, place: Path) -> bool:
    """W&B's own process alone: its file is smaller than the run's."""
    job = harness.job("wandb")
    size = harness.random.randrange(1, 6) * 1024
    command = harness.started(job, place)
    if not wait_for(lambda: clients(place), command):
        print(command.said, file=sys.stderr)
        return False
    for process in clients(place):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, size))
    return told(command, "wandb") and harness.recovers(job, place)


def quota_used_up(harness: Harness, place: Path) -> bool:
    job = harness.job("counting")

    def refuse() -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    number = harness.random.randrange(NUM_WRITES)
    command = harness.finished(job, place, before=partial(at_write, number, refuse))
    return told(command, "run") and harness.recovers(job, place)


def read_only(kind: str, harness: Harness, place: Path) -> bool:
    """From the beginning or from a random moment on."""
    name, folder_of, _ = WRITES[kind]
    job = harness.job(name)
    with small_disk(folder_of(harness, place), 100_000) as remount:
        command = harness.started(job, place)
        time.sleep(harness.moment(job))
        remount("ro")  # refused while a file is written
        is_told = told(command, kind)
        remount("rw")
        return is_told and harness.recovers(job, place)


def vanished(kind: str, harness: Harness, place: Path) -> bool:
    name, folder_of, _ = WRITES[kind]
    job = harness.job(name)
    command = harness.started(job, place)
    time.sleep(harness.moment(job))
    shutil.rmtree(folder_of(harness, place), ignore_errors=True)
    return told(command, kind) and harness.recovers(job, place)


def few_files(name: str, harness: Harness, place: Path) -> bool:
    job = harness.job(name)
    number = harness.random.randrange(6, 30)
    command = harness.finished(job, place, before=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (number, number)))
    # A kernel that cannot be opened is done without, which is said, and gives the same numbers but for rounding.
    over = ["force=true"] if "takes blockwise" in command.said else []
    return told(command, "run") and harness.recovers(job, place, *over)


FULL = "a disk of 8 to 200 KiB, full while {} is written, then has room"
QUOTA = "no file may be larger than some KiB, while {} is written"
FAULTS = {
    "disk_full_run": Fault(FULL.format("a run: settings, metrics, checkpoints, result"), partial(disk_full, "run"), NEEDS_ROOT),
    "disk_full_text": Fault(FULL.format("a prepared text"), partial(disk_full, "text"), NEEDS_ROOT),
    "disk_full_kernel": Fault("a disk that is full while the kernel is compiled", disk_full_compiling, NEEDS_ROOT),
    "disk_full_wandb": Fault(FULL.format("W&B's file"), partial(disk_full, "wandb"), NEEDS_ROOT),
    "disk_full_report": Fault(FULL.format("a report"), partial(disk_full, "report"), NEEDS_ROOT),
    "quota_run": Fault("a quota that is used up (EDQUOT) when a file of a run is written", quota_used_up),
    "quota_text": Fault(QUOTA.format("a prepared text"), partial(quota, "text")),
    "quota_wandb": Fault(QUOTA.format("W&B's file"), quota_of_wandb),
    "quota_report": Fault(QUOTA.format("a report"), partial(quota, "report")),
    "read_only_run": Fault("a disk that turns read-only during a run, then not", partial(read_only, "run"), NEEDS_ROOT),
    "read_only_text": Fault("likewise while a text is prepared", partial(read_only, "text"), NEEDS_ROOT),
    "vanished_run": Fault("the run's folder is deleted at a random moment", partial(vanished, "run")),
    "vanished_text": Fault("the prepared text is deleted at a random moment", partial(vanished, "text")),
    "few_files_run": Fault("no more than 6 to 30 files may be open at once, in a run", partial(few_files, "counting")),
    "few_files_text": Fault("likewise while a text is prepared", partial(few_files, "text")),
}

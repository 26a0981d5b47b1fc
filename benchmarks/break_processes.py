"""Processes that are killed, stopped, or run twice; a clock that is set back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from broken_runs import Command, Fault, Harness, processes_in

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
NUM_WRITES = 9  # of files that are put in place in one step, in a run of this length


def wait_for(happened: Callable[[], object], command: Command, seconds: float = 600) -> bool:
    """Whether it happened before the command ended."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline or not Path(f"/proc/{command.pid}").exists() or ended(command.pid):
            return False
        time.sleep(0.02)
    return True


def ended(process: int) -> bool:
    """Whether it has, though nobody may have asked for its exit status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def killed(name: str, harness: Harness, place: Path) -> bool:
    job = harness.job(name)
    command = harness.started(job, place)
    time.sleep(harness.moment(job))
    command.send(signal.SIGKILL)
    command.wait()
    return harness.leaves_nobody(place) and harness.recovers(job, place)


def killed_at_start(harness: Harness, place: Path) -> bool:
    """A Python of its own, while it imports PyTorch and the rest."""
    job = harness.job("counting")
    moment = harness.random.uniform(0, harness.seconds_with_start - job.seconds)
    place.mkdir()
    with subprocess.Popen(
        harness.in_python(job, place), cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as started:
        time.sleep(moment)
        started.kill()
    return harness.leaves_nobody(place) and harness.recovers(job, place)


def killed_while_compiling(harness: Harness, place: Path) -> bool:
    job = harness.job("counting")
    cache = place / "kernels"
    moment = harness.random.uniform(0, harness.seconds_with_compiling - job.seconds)
    command = harness.started(job, place, COPE_CACHE=str(cache))
    wait_for(lambda: cache.exists() and any(cache.iterdir()), command)
    time.sleep(moment)
    command.send(signal.SIGKILL)
    command.wait()
    if not harness.leaves_nobody(place, seconds=120):  # a compiler may end what it has begun
        return False
    left = sorted(path.suffix for path in cache.iterdir())
    return harness.recovers(job, place, COPE_CACHE=str(cache)) and (
        sorted(path.suffix for path in cache.iterdir()) == [".lock", ".sha256", ".so"] or bool(print(left, file=sys.stderr))
    )


def killed_in_a_write(harness: Harness, place: Path) -> bool:
    job = harness.job("counting")
    number = harness.random.randrange(NUM_WRITES)
    command = harness.started(job, place, before=partial(at_write, number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    command.wait()
    return harness.recovers(job, place)


def at_write(number: int, act: Callable[[], object]) -> None:
    """In this process: act when the file of this number is written and not yet in its place."""
    real, count = os.fsync, iter(range(10**6))

    def fsync(file: int) -> None:
        if next(count) == number:
            act()
        real(file)

    os.fsync = fsync


def stopped(harness: Harness, place: Path) -> bool:
    job = harness.job("counting")
    command = harness.started(job, place)
    time.sleep(harness.moment(job))
    command.send(signal.SIGSTOP)
    time.sleep(60)
    command.send(signal.SIGCONT)
    return command.wait() == 0 and harness.recovers(job, place)


def clock_set_back(harness: Harness, place: Path) -> bool:
    job = harness.job("counting")
    place.mkdir()
    clock = place / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    faked |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "COPE_CACHE": str(harness.kernels)}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = harness.in_python(job, place)
    with subprocess.Popen(command, cwd=place, **both, text=True, env=os.environ | faked) as started:
        time.sleep(harness.random.uniform(0.5, 1) * harness.seconds_with_start)
        clock.write_text("-1d")
        told, _ = started.communicate(timeout=300)
    if started.returncode != 0 or "Traceback" in told:
        print(told, file=sys.stderr)
        return False
    return harness.recovers(job, place)


# ---- several processes


def sweep(harness: Harness, place: Path) -> Command:
    job = harness.job("counting")
    return harness.started(job, place, "-m", "seed=1,2", "hydra.launcher.jobs=2")


def num_finished(place: Path) -> int:
    return len(list(place.glob("outputs/counting/cope/*/seed=*/result.json")))


def sweep_ends(harness: Harness, place: Path) -> bool:
    """Whether the same sweep leaves both runs finished, one of which we know."""
    again = sweep(harness, place)
    if again.wait() != 0 or again.has_a_trace or num_finished(place) != 2:
        print(again.said, file=sys.stderr)
        return False
    return harness.recovers(harness.job("counting"), place)


def sweep_killed(harness: Harness, place: Path) -> bool:
    command = sweep(harness, place)
    wait_for(lambda: len(jobs_of(command, place)) == 2, command)
    time.sleep(harness.moment(harness.job("counting")))
    command.send(signal.SIGKILL)
    command.wait()
    return harness.leaves_nobody(place) and sweep_ends(harness, place)


def worker_killed(harness: Harness, place: Path) -> bool:
    """The sweep says whose process was lost, and runs the other."""
    command = sweep(harness, place)
    if not wait_for(lambda: len(jobs_of(command, place)) == 2, command):
        print(command.said, file=sys.stderr)
        return False
    time.sleep(harness.moment(harness.job("counting")) / 2)
    lost = jobs_of(command, place)[:1]
    for process in lost:
        os.kill(process, signal.SIGKILL)
    status = command.wait()
    if command.has_a_trace or (lost and status == 0 and num_finished(place) < 2) or num_finished(place) == 0:
        print(command.said, file=sys.stderr)
        return False
    return sweep_ends(harness, place)


def jobs_of(command: Command, place: Path) -> list[int]:
    """The processes of a sweep's jobs: neither the sweep's own, nor those that it started itself."""
    parents = {process: parent_of(process) for process in processes_in(place)}
    return sorted(process for process, parent in parents.items() if parent in parents and parent != command.pid)


def parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def two_at_once(name: str, harness: Harness, place: Path) -> bool:
    """One runs; the other waits, or says that the same command is running already."""
    job = harness.job(name)
    both = [harness.started(job, place) for _ in range(2)]
    statuses = sorted(command.wait() for command in both)
    if statuses not in ([0, 75], [0, 0]) or any(command.has_a_trace for command in both):
        print("\n".join(command.said for command in both), file=sys.stderr)
        return False
    return harness.recovers(job, place)


def two_compile(harness: Harness, place: Path) -> bool:
    """Two runs that find no kernel: one compiles it."""
    job = harness.job("counting")
    cache = {"COPE_CACHE": str(place / "kernels")}
    both = [harness.started(job, place / name, **cache) for name in ("one", "other")]
    if any(command.wait() != 0 or command.has_a_trace for command in both):
        print("\n".join(command.said for command in both), file=sys.stderr)
        return False
    return all(harness.recovers(job, place / name, **cache) for name in ("one", "other"))


FAULTS = {
    "killed_at_start": Fault("SIGKILL while Python and its packages start", killed_at_start),
    "killed": Fault("SIGKILL at a random moment of a run, from its settings to its pictures", partial(killed, "counting")),
    "killed_preparing": Fault("likewise of a run that first prepares its text", partial(killed, "text")),
    "killed_compiling": Fault("likewise while the kernel is compiled", killed_while_compiling),
    "killed_in_a_write": Fault("SIGKILL while a file is written", killed_in_a_write),
    "killed_reporting": Fault("SIGKILL at a random moment of a report", partial(killed, "report")),
    "stopped": Fault("SIGSTOP for a minute, as a laptop's sleep", stopped),
    "clock_set_back": Fault(
        "the clock set back by a day in mid-run",
        clock_set_back,
        "" if FAKETIME else "libfaketime (Debian: apt install faketime)",
    ),
    "sweep_killed": Fault("SIGKILL to the process that runs a sweep: no job goes on", sweep_killed),
    "worker_killed": Fault("SIGKILL to a job of a sweep: the other ends", worker_killed),
    "two_runs": Fault("the same run twice at once", partial(two_at_once, "counting")),
    "two_preparing": Fault("the same run twice at once, its text not prepared", partial(two_at_once, "text")),
    "two_compiling": Fault("two runs at once, no kernel compiled", two_compile),
    "two_reports": Fault("the same report twice at once", partial(two_at_once, "report")),
}

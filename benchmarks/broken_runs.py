"""Commands that can be broken, and whether they came out as unbroken ones: what every fault of ``faults.py`` works with."""

from __future__ import annotations

import atexit
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# All that commands import, for the processes forked from this one.
import datasets  # noqa: F401
import hydra._internal.core_plugins  # noqa: F401
import torch
from hydra import compose, initialize_config_dir

import cope.report.page
import cope.report.run_sheets
import cope.sweep.preload  # noqa: F401
from cope.files import cache_folder
from cope.report.claims import ClaimsPlan
from cope.run.folder import RunFolder
from cope.sweep.plan import planned_seeds, read_plans

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("scale=smoke", "trainer.steps=30", "trainer.eval_every=10", "pe=cope")
COUNTING = ("task=counting", "task.num_validation=16", "task.num_test=16")
TEXT = "".join(f"The {number}th page tells of page {number * 7 % 400}. It has two sentences.\n\n" for number in range(400))
CIRCUMSTANCES = ("time_s", "peak_memory_mib", "date", "commit")
PATIENCE_SECONDS = 900  # of a busy machine


class Command:
    """``python script ...`` in a process of its own, forked from this one: it has imported what would take six seconds.

    Args:
        before: called in the new process before the script runs.
    """

    def __init__(
        self, place: Path, script: str, arguments: list[str], environment: Mapping[str, str], before: Callable[[], None]
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # not in ``place``, whose disk may be full
        self.status: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(place, ROOT / script, arguments, environment, before)

    def _become(
        self, place: Path, script: Path, arguments: list[str], environment: Mapping[str, str], before: Callable[[], None]
    ) -> None:
        status = 1
        try:
            for stream in (1, 2):
                os.dup2(self._output.fileno(), stream)
            os.setpgid(0, 0)
            os.chdir(place)
            os.environ.update(environment)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = [str(script), *arguments]
            sys.path[0] = str(script.parent)
            before()
            try:
                runpy.run_path(str(script), run_name="__main__")
                status = 0
            finally:
                atexit._run_exitfuncs()
                sys.stdout.flush()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except BaseException:
            with suppress(Exception):
                os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit status; of one that a signal ended, the signal's number below 0."""
        deadline = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.status = -signal.SIGKILL
                self._say(b"\nTraceback: it did not end, and was killed\n")
            else:
                time.sleep(0.02)
        return self.status

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.status is None:
                os.kill(self.pid, number)

    def _say(self, text: bytes) -> None:
        self._output.seek(0, os.SEEK_END)
        self._output.write(text)

    @property
    def said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    @property
    def has_a_trace(self) -> bool:
        """Whether a bug of ours was told, or of a library's."""
        return "Traceback" in self.said or "panic" in self.said

    @property
    def is_refused(self) -> bool:
        """Whether it ended with a message."""
        return self.wait() > 0 and bool(self.said.strip()) and not self.has_a_trace

    @property
    def is_told_or_done(self) -> bool:
        return self.wait() == 0 or self.is_refused


class Job:
    """A command whose product can be compared: a run of counting, a run that prepares its text, or a report."""

    def __init__(self, name: str, script: str, arguments: Callable[[Path], list[str]], product: Callable[[Path], Any]) -> None:
        self.name, self.script, self.arguments, self.product = name, script, arguments, product
        self.unbroken: Any = None
        self.seconds = 0.0  # that an unbroken one takes


class Harness:
    """Broken jobs and unbroken ones, in a temporary folder.

    Attributes:
        random: of moments and places.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.random = folder, random.Random(1)
        self.text = folder / "text.txt"
        self.text.write_text(TEXT)
        self.kernels = cache_folder()  # the user's, for all but those who break the compilation
        # Hydra's grammar learns from what it parses, which all processes forked from now on begin with.
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            compose("train", overrides=self.run(*COUNTING, "logger=none", place=folder))
        self._jobs = {
            "counting": Job("counting", "train.py", lambda place: self.run(*COUNTING, "logger=none", place=place), of_run),
            "wandb": Job("wandb", "train.py", lambda place: self.run(*COUNTING, "logger=wandb", place=place), of_run),
            "text": Job("text", "train.py", lambda place: self.run(*self.language(), place=place), of_prepared_run),
            "report": Job("report", "scripts/report.py", self.report, of_report),
        }

    # ---- what is run

    def run(self, *settings: str, place: Path) -> list[str]:
        return [*SHORT, *settings, f"output_dir={place / 'outputs'}", f"data_dir={place / 'data'}"]

    def language(self) -> list[str]:
        """Settings by which a run prepares a text of its own."""
        return ["task=wikipedia", "corpus=files", f"corpus.train={self.text}", "task.max_documents=null", "trainer.steps=20",
                "logger=none"]  # fmt: skip

    def report(self, place: Path) -> list[str]:
        return [f"to={place / 'report'}", "scale=smoke", "logger=none", f"output_dir={self.folder / 'reported' / 'outputs'}"]

    def _make_runs_to_report(self) -> None:
        """Two, of a seed and settings that the paper's tables have."""
        seed = planned_seeds(ROOT / "configs")[0]
        for encoding in ("cope", "relative"):
            settings = ["scale=smoke", "task=counting", f"pe={encoding}", f"seed={seed}", "logger=none"]
            run = Job("reported", "train.py", lambda place, own=settings: [*own, f"output_dir={place / 'outputs'}"], of_run)
            ended = self.finished(run, self.folder / "reported")
            assert ended.status == 0, ended.said

    def job(self, name: str) -> Job:
        """The job, which has been done once, undisturbed."""
        job = self._jobs[name]
        if job.unbroken is None:
            if name == "report":
                self._make_runs_to_report()
                self._read_plans()
            place = self.folder / f"{name}-unbroken"
            self.finished(job, place)
            began = time.monotonic()
            again = self.finished(job, self.folder / f"{name}-again")
            job.seconds = time.monotonic() - began
            assert again.status == 0, again.said
            job.unbroken = job.product(place)
            assert job.unbroken == job.product(self.folder / f"{name}-again"), f"two unbroken jobs differ: {name}"
        return job

    def _read_plans(self) -> None:
        """Compose the runs of every table once, which is most of what a report takes, for all processes forked from now on."""
        configs = ROOT / "configs"
        _, *overrides = self.report(self.folder)
        read_plans(configs, overrides, ClaimsPlan.read(configs).seeds, None)

    # ---- how

    def started(
        self, job: Job, place: Path, *more: str, before: Callable[[], None] = lambda: None, **environment: str
    ) -> Command:
        home = {"HOME": str(self.folder), "WANDB_MODE": "offline"}  # nobody is logged in there
        surroundings = {"COPE_CACHE": str(self.kernels), **home} | environment
        return Command(place, job.script, [*more, *job.arguments(place)], surroundings, before)

    def finished(
        self, job: Job, place: Path, *more: str, before: Callable[[], None] = lambda: None, **environment: str
    ) -> Command:
        command = self.started(job, place, *more, before=before, **environment)
        command.wait()
        return command

    @cached_property
    def seconds_with_start(self) -> float:
        """That a run takes in a Python of its own, which first imports everything."""
        place = self.folder / "with-start"
        place.mkdir()
        command = self.in_python(self.job("counting"), place)
        began = time.monotonic()
        subprocess.run(command, cwd=place, check=True, capture_output=True)
        return time.monotonic() - began

    @cached_property
    def seconds_with_compiling(self) -> float:
        """That a run takes which finds no kernel."""
        began = time.monotonic()
        self.finished(
            self.job("counting"), self.folder / "with-compiling", COPE_CACHE=str(self.folder / "with-compiling-kernels")
        )
        return time.monotonic() - began

    def in_python(self, job: Job, place: Path) -> list[str]:
        """The command, for a Python of its own."""
        return [sys.executable, str(ROOT / job.script), *job.arguments(place)]

    def moment(self, job: Job) -> float:
        """Seconds after which to break it."""
        return self.random.uniform(0, job.seconds)

    def recovers(self, job: Job, place: Path, *more: str, **environment: str) -> bool:
        """Whether the same command ends as if nothing had been."""
        again = self.finished(job, place, *more, **environment)
        if again.status != 0 or again.has_a_trace:
            print(again.said, file=sys.stderr)
            return False
        found = job.product(place)
        differing = [number for number, (one, other) in enumerate(zip(found, job.unbroken, strict=True)) if one != other]
        if differing:
            print(f"differs in {differing}: {found[0]} from {job.unbroken[0]}", file=sys.stderr)
        return not differing

    def leaves_nobody(self, place: Path, seconds: float = 30) -> bool:
        """Whether every process that works in ``place`` ends by itself in time."""
        deadline = time.monotonic() + seconds
        while (left := processes_in(place)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            print(f"goes on: {Path(f'/proc/{process}/cmdline').read_bytes()!r}", file=sys.stderr)
            os.kill(process, signal.SIGKILL)
        return not left


# ---- what must be equal, to the bit


def run_folder(place: Path) -> RunFolder:
    paths = sorted(place.glob("outputs/*/cope/*/seed=1"))
    return RunFolder(paths[0] if paths else place / "none")


def names_below(folder: Path) -> list[str]:
    """Every file that is there, so that nothing is left over.

    But W&B's own folder, which is not ours to keep clean, locks, and what a sweep keeps of what its jobs say.
    """
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    ours = (path for path in paths if path.parts[0] != "wandb" and not path.name.endswith((".lock", "output.log")))
    return sorted(path.as_posix() for path in ours)


def of_run(place: Path) -> Any:
    """Names of files, the result, what was measured, the weights."""
    folder = run_folder(place)
    result = folder.read_result() or {}
    metrics = [{key: value for key, value in line.items() if key != "train/tokens_per_s"} for line in folder.read_metrics()]
    weights = [
        {name: tensor.numpy().tobytes() for name, tensor in torch.load(path, weights_only=True)["model"].items()}
        for path in (folder.best_checkpoint, folder.last_checkpoint) if path.exists()
    ]  # fmt: skip
    return [names_below(folder.path), {k: v for k, v in result.items() if k not in CIRCUMSTANCES}, metrics, weights]


def of_prepared_run(place: Path) -> Any:
    """Those of the run, and every file of the prepared text."""
    names = names_below(place / "data")
    arrays = {name: (place / "data" / name).read_bytes() for name in names if name.endswith((".npy", ".model"))}
    return [names, *of_run(place), arrays]


def of_report(place: Path) -> Any:
    """Names of files, and the verdicts and tables; pictures and the page have dates in them."""
    names = names_below(place)
    folder = place / "report"
    return [names, {n: (place / n).read_bytes() for n in names if n.endswith((".json", ".csv", ".md")) and folder.exists()}]


def processes_in(place: Path) -> list[int]:
    """Processes whose command or working folder has ``place`` in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes().decode(errors="replace") + os.readlink(process / "cwd")
        except OSError:
            continue
        if str(place) in told and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


@dataclass(frozen=True)
class Fault:
    """A way to break a job.

    Args:
        what: is broken, for the table.
        act: breaks it in a new folder, and tells whether it survived.
        needs: what of the machine is needed, if it is not there; else empty.
    """

    what: str
    act: Callable[[Harness, Path], bool]
    needs: str = ""


NEEDS_ROOT = "" if sys.platform == "linux" and os.geteuid() == 0 else "root, for a disk of its own"


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Callable[[str], object]]:
    """A disk of its own at ``place``; what it gives changes its options, such as ``size=1M`` or ``ro``."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", place], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], capture_output=True)
    finally:
        subprocess.run(["umount", "-l", place], check=True)

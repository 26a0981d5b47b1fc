"""A job of a sweep has a process of its own, and a sweep that is stopped leaves every job's state saved and no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, WITH_JOBS
from runs import train_here

from cope.endings import INTERRUPTED
from cope.errors import Interrupted
from cope.sweep.process import CONTEXT, SAVING, Processes


def wait_until(happened: Callable[[], bool], seconds: float = 300) -> None:
    """Return once ``happened()``; fail if it has not in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@WITH_JOBS
def test_jobs_side_by_side_give_their_own_answers() -> None:
    processes = Processes()

    def call(number: int) -> object:
        return processes.call(
            lambda: (number, os.environ.get("COPE_TEST"), os.getcwd()), os.environ | {"COPE_TEST": f"{number}"}
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(10))) == [(number, str(number), os.getcwd()) for number in range(10)]
    assert "COPE_TEST" not in os.environ


@WITH_JOBS
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each job imports for itself")
def test_a_job_starts_with_the_code_imported() -> None:
    wanted = {"torch", "cope.tasks.counting", "cope.positions.contextual"}
    assert Processes().call(lambda: wanted - set(sys.modules), os.environ) == set()


@WITH_JOBS
def test_a_job_that_ends_without_an_answer_is_told() -> None:
    with pytest.raises(RuntimeError, match="ended with exit status 7"):
        Processes().call(lambda: os._exit(7), os.environ)
    with pytest.raises(RuntimeError, match="ended with exit status -9"):
        Processes().call(lambda: os.kill(os.getpid(), signal.SIGKILL), os.environ)


@WITH_JOBS
def test_jobs_that_go_on_can_be_stopped_and_no_more_start(tmp_path: Path) -> None:
    processes = Processes()
    sign = tmp_path / "sign"

    def go_on() -> None:
        sign.touch()
        time.sleep(3600)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(processes.call, go_on, os.environ)
        wait_until(sign.exists)
        processes.stop()
        with pytest.raises(Interrupted, match="was stopped"):
            running.result(timeout=300)
    with pytest.raises(Interrupted, match="not begun"):
        processes.call(go_on, os.environ)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
def test_no_job_goes_on_after_its_sweep_was_killed(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    program = f"""
import os, pathlib, time
from cope.sweep.process import Processes
def go_on():
    pathlib.Path({str(sign)!r}).write_text(str(os.getpid()))
    time.sleep(600)
Processes().call(go_on, os.environ)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as sweep:
        try:
            wait_until(lambda: sign.exists() and sign.read_text() != "")
        finally:
            sweep.kill()
    stat = Path(f"/proc/{sign.read_text()}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")


@WITH_JOBS
def test_a_job_that_was_just_starting_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    start = CONTEXT.Process.start

    def start_slowly(process: object) -> None:
        start(process)
        processes.stop()  # before it is among those that go on

    monkeypatch.setattr(CONTEXT.Process, "start", start_slowly)
    with pytest.raises(Interrupted):
        processes.call(lambda: time.sleep(3600), os.environ)


@WITH_JOBS
def test_ctrl_c_stops_a_sweep_with_its_state_saved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Here, where a server for jobs is there; the signals below reach commands in processes of their own."""
    endless = ("scale=smoke", "logger=none", "trainer.steps=1000000", "trainer.eval_every=50", "hydra.launcher.jobs=1")

    def interrupt() -> None:
        try:
            wait_until(lambda: any(tmp_path.glob("outputs/counting/*/*/seed=*/checkpoints/last.pt")))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        interrupted = pool.submit(interrupt)
        sweep = train_here("-m", "pe=none,rope", *endless, folder=tmp_path)
    interrupted.result()
    assert (sweep.returncode, sweep.stderr) == (INTERRUPTED, "Stopped; the same command goes on from there.\n")
    assert capfd.readouterr().err.endswith(
        "Stopping: the runs that go on save their state. Ctrl-C once more ends them without.\n"
    )
    (log,) = tmp_path.glob("outputs/counting/*/*/seed=*/output.log")
    assert "Stopped after step" in log.read_text()


@WITH_JOBS
def test_a_job_leaves_ctrl_c_to_the_launcher() -> None:
    assert Processes().call(lambda: signal.getsignal(signal.SIGINT), os.environ) == signal.SIG_IGN


@pytest.mark.slow
@pytest.mark.parametrize("trains_already", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["table", "sweep"])
def test_a_signal_stops_a_sweep_and_its_jobs_wherever_they_are(
    tmp_path: Path, kind: str, number: signal.Signals, trains_already: bool
) -> None:
    """SIGTERM reaches the command alone, Ctrl-C all of its processes."""
    endless = ["scale=smoke", "logger=none", "trainer.steps=1000000", "trainer.eval_every=50", f"output_dir={tmp_path}"]
    endless += ["hydra.launcher.jobs=1"]
    started = {
        "table": [str(ROOT / "scripts" / "table.py"), "table=table4", "action=run", "seeds=1"],
        "sweep": [str(ROOT / "train.py"), "-m", "pe=none,absolute,relative,rope,cope"],
    }[kind]
    sweep = subprocess.Popen(
        [sys.executable, *started, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert sweep.stdout is not None
        assert sweep.stdout.readline() == "0 of 5 runs are finished\n"
        assert sweep.stdout.readline() == "5 to do; 1 at a time\n"
        if trains_already:
            wait_until(lambda: any(tmp_path.glob("counting/*/*/seed=*/checkpoints/last.pt")))
        if number == signal.SIGINT:
            os.killpg(sweep.pid, number)
        else:
            sweep.send_signal(number)
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == INTERRUPTED
        doing = {"table": "reading configs and runs", "sweep": "composing the runs"}[kind]
        assert said == f"{doing} ...\n{SAVING}\nStopped; the same command goes on from there.\n"
        wait_until(lambda: not alive(sweep.pid), seconds=30)
    finally:
        if alive(sweep.pid):
            os.killpg(sweep.pid, signal.SIGKILL)
    logs = [path.read_text() for path in tmp_path.glob("counting/*/*/seed=*/output.log")]
    assert len(logs) <= 1
    if trains_already:
        assert "Stopped after step" in logs[0]


def alive(group: int) -> bool:
    """Whether any process of the process group ``group`` is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

"""A run of a table has a process of its own: its settings, environment, output and exit status are those of a command."""

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
from conftest import ROOT

from cope.cli import INTERRUPTED
from cope.sweep.process import RunProcesses

SCRIPT = """
import os, sys, time
preloaded = all(name in sys.modules for name in ("torch", "cope.tasks.counting", "cope.positions.contextual"))
print("settings", sys.argv[1:], "name", __name__, "variable", os.environ.get("COPE_TEST"), "here", os.getcwd())
print("preloaded", preloaded, flush=True)
os.system("echo and what its own processes print")
if "wait" in sys.argv:
    time.sleep(60)
if "fail" in sys.argv:
    raise ValueError("as it was told")
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def wait_until(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Return once ``happened()``; fail if it has not in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def test_runs_get_their_settings_and_give_their_exit_statuses(script: Path, tmp_path: Path) -> None:
    processes = RunProcesses()
    (tmp_path / "3.log").write_text("what was there before\n")

    def run(status: int) -> int:
        return processes.run(script, ["pe=cope", str(status)], tmp_path / f"{status}.log", os.environ | {"COPE_TEST": "set"})

    statuses = [0, 3, 75, *range(10, 17)]
    with ThreadPoolExecutor(4) as pool:  # side by side, as a table's
        assert list(pool.map(run, statuses)) == statuses
    said = (tmp_path / "3.log").read_text()
    assert said.startswith("what was there before\n")
    assert f"settings ['pe=cope', '3'] name __main__ variable set here {os.getcwd()}" in said
    assert "and what its own processes print" in said
    assert "COPE_TEST" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each run imports for itself")
def test_a_run_starts_with_the_code_imported(script: Path, tmp_path: Path) -> None:
    assert RunProcesses().run(script, ["0"], tmp_path / "output.log", os.environ) == 0
    assert "preloaded True" in (tmp_path / "output.log").read_text()


def test_a_run_that_breaks_leaves_its_trace_in_the_log(script: Path, tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    assert RunProcesses().run(script, ["fail"], log, os.environ) == 1
    assert "ValueError: as it was told" in log.read_text() and "variable None" in log.read_text()


def test_runs_that_go_on_can_be_stopped_and_no_more_start(script: Path, tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    processes = RunProcesses()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(processes.run, script, ["wait"], log, os.environ)
        wait_until(lambda: log.exists() and "own processes" in log.read_text())
        processes.terminate()
        assert running.result(timeout=30) == 1
    assert "KeyboardInterrupt" in log.read_text()
    assert processes.run(script, ["0"], tmp_path / "another.log", os.environ) == INTERRUPTED
    assert (tmp_path / "another.log").read_text() == ""


@pytest.mark.parametrize("trains_already", [False, True])
def test_sigterm_stops_a_table_and_its_runs_wherever_they_are(tmp_path: Path, trains_already: bool) -> None:
    endless = ["scale=smoke", "logger=none", "trainer.steps=1000000", "trainer.eval_every=50", f"output_dir={tmp_path}"]
    command = [sys.executable, str(ROOT / "scripts" / "table.py"), "table4", "--run", "--seeds", "1", "--jobs", "1", *endless]
    table = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert table.stdout is not None
        assert table.stdout.readline().startswith("0 of 5 runs are finished")
        sign = "checkpoints/last.pt" if trains_already else "output.log"  # which is made before its process
        wait_until(lambda: any(tmp_path.glob(f"counting/*/*/seed=1/{sign}")))
        table.send_signal(signal.SIGTERM)
        _, said = table.communicate(timeout=120)
        assert table.returncode == INTERRUPTED
        assert said == "Stopped; the same command goes on from there.\n"
        wait_until(lambda: not alive(table.pid), seconds=30)
    finally:
        if alive(table.pid):
            os.killpg(table.pid, signal.SIGKILL)
    logs = [path.read_text() for path in tmp_path.glob("counting/*/*/seed=1/output.log")]
    assert len(logs) == 1
    assert ("Stopped after step" in logs[0]) == trains_already


def alive(group: int) -> bool:
    """Whether any process of the process group ``group`` is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

"""A run of a table has a process of its own: its settings, environment, output and exit status are those of a command."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cope.report.run_process import run_in_process

SCRIPT = """
import os, sys, time
print("settings", sys.argv[1:], "name", __name__, "variable", os.environ.get("COPE_TEST"), "here", os.getcwd(), flush=True)
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


@pytest.mark.parametrize("status", [0, 3, 75])
def test_a_run_gets_its_settings_and_gives_its_exit_status(script: Path, tmp_path: Path, status: int) -> None:
    log = tmp_path / "output.log"
    log.write_text("what was there before\n")
    assert run_in_process(script, ["pe=cope", str(status)], log, os.environ | {"COPE_TEST": "set"}) == status
    said = log.read_text()
    assert said.startswith("what was there before\n")
    assert f"settings ['pe=cope', '{status}'] name __main__ variable set here {os.getcwd()}" in said
    assert "and what its own processes print" in said
    assert "COPE_TEST" not in os.environ


def test_a_run_that_breaks_leaves_its_trace_in_the_log(script: Path, tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    assert run_in_process(script, ["fail"], log, os.environ) == 1
    assert "ValueError: as it was told" in log.read_text() and "variable None" in log.read_text()


def test_a_run_can_be_stopped(script: Path, tmp_path: Path) -> None:
    log = tmp_path / "output.log"

    def stop(process: BaseProcess) -> None:
        def once_it_speaks() -> None:
            while not (log.exists() and "own processes" in log.read_text()):
                time.sleep(0.05)
            process.terminate()

        threading.Thread(target=once_it_speaks).start()

    assert run_in_process(script, ["wait"], log, os.environ, stop) == -signal.SIGTERM

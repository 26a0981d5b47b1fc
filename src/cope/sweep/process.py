"""One run of ``train.py`` in a process of its own, which on Linux is forked from one that has imported everything.

To start Python and import PyTorch, Lightning, SciPy and W&B takes a processor some six seconds, a tenth of a short run's time.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from cope.cli import INTERRUPTED

# Elsewhere a fork can break the system's own libraries, so that each process imports for itself.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")

STOPPING = (signal.SIGINT, signal.SIGTERM)  # what runs are stopped by; the process they are forked from is not

# A process's exit status can be read once, and starting one reads the status of all that have ended: one thread at a time.
_one_thread = threading.Lock()


class RunProcesses:
    """The processes of runs that go on, started and waited for by several threads."""

    def __init__(self) -> None:
        self._running: list[BaseProcess] = []
        self._stopping = False

    def run(self, script: Path, overrides: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run ``script`` with ``overrides``, its output appended to ``log``; returns its exit status once it has ended.

        Args:
            environment: all of its variables.

        Raises:
            OSError, EOFError: ``log`` cannot be written, or the process cannot be started.
        """
        log.open("ab").close()  # told here, where somebody sees it
        with _one_thread:
            if self._stopping:
                return INTERRUPTED
            CONTEXT.set_forkserver_preload(["cope.sweep.preload"])  # without effect where nothing is forked
            process = CONTEXT.Process(target=_run, args=(script, overrides, log, dict(environment)))
            process.start()
            self._running.append(process)
        wait([process.sentinel])
        with _one_thread:
            process.join()
            status = process.exitcode
            self._running.remove(process)
            process.close()  # it holds two files open
        assert status is not None
        return status

    def start_no_more(self) -> None:
        """From now on :meth:`run` starts nothing, and returns the status of a run that was stopped."""
        self._stopping = True

    def terminate(self) -> None:
        """Start no more, and ask those that go on to save their state and end."""
        with _one_thread:
            self._stopping = True
            for process in self._running:
                process.terminate()


def _run(script: Path, overrides: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """What the process does: what a shell would, which starts ``script`` with its output in ``log``."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside of training, too, it ends as after Ctrl-C
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *overrides]
    sys.path.insert(0, str(script.parent))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        runpy.run_path(str(script), run_name="__main__")
    finally:
        if "wandb" in sys.modules:  # whose own hook at the exit of Python is not called in such a process
            sys.modules["wandb"].teardown()

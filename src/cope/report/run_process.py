"""One run of ``train.py`` in a process of its own, which on Linux is forked from one that has imported everything.

To start Python and import PyTorch, Lightning, SciPy and W&B takes a processor some six seconds, a tenth of a short run's time.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# Elsewhere a fork can break the system's own libraries, so that each process imports for itself.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")


def run_in_process(
    script: Path,
    overrides: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    started: Callable[[BaseProcess], object] = lambda process: None,
) -> int:
    """Run ``script`` with ``overrides``, its output appended to ``log``; returns its exit status.

    Args:
        environment: all of its variables.
        started: is given the process once it runs.

    Raises:
        OSError, EOFError: there is no memory for another process.
    """
    CONTEXT.set_forkserver_preload(["cope.report.preload"])  # without effect where nothing is forked
    process = CONTEXT.Process(target=_run, args=(script, overrides, log, dict(environment)))
    process.start()
    started(process)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(script: Path, overrides: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """What the process does: what a shell would, which starts ``script`` with its output in ``log``."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *overrides]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")

"""Measures what heads attend to by position alone, of the runs of Figures 4 and 6."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from cope.files import read_json
from cope.report.findings import measurement
from cope.sweep.plan import PlannedRun

MEASURED_TABLE = "figure4"  # the table whose runs are looked at: Figures 4 and 6 are not of scores


def measure_heads(runs: Iterable[PlannedRun], root: Path, num_windows: int) -> list[PlannedRun]:
    """Let ``scripts/position_alone.py`` measure each finished run that it has not measured yet; returns those that failed."""
    failed = []
    for run in runs:
        result = run.result()
        if result is None:
            continue
        path = measurement(run, result)
        if path is not None and read_json(path)["num_windows"] >= num_windows:
            print(f"measured already: {path}", flush=True)
        elif not run.folder.best_checkpoint.exists():
            print(f"left alone: {run.folder.path} has no weights (a published run)", flush=True)
        else:
            settings = [f"run={run.folder.path}", f"num_windows={num_windows}"]
            if subprocess.run([sys.executable, str(root / "scripts" / "position_alone.py"), *settings]).returncode:
                failed.append(run)
    return failed

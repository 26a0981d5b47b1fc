"""Measures what heads attend to by position alone, of the runs of Figures 4 and 6."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from cope.errors import UserError
from cope.files import read_json
from cope.heads.draw import draw_position_alone, position_alone_tables
from cope.report.findings import measurement
from cope.sweep.plan import PlannedRun

MEASURED_TABLE = "figure4"  # the table whose runs are looked at: Figures 4 and 6 are not of scores


def is_unmeasured(run: PlannedRun) -> bool:
    """Whether a run is finished, has its weights, and nobody has looked at its heads."""
    result = run.result()
    return result is not None and run.folder.best_checkpoint.exists() and measurement(run, result) is None


def measure_heads(runs: Iterable[PlannedRun], num_windows: int) -> list[PlannedRun]:
    """Measure, print and draw each finished run that was not measured yet; returns those that could not be."""
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
            from cope.heads.measure import MeasurementSettings, measure_position_alone  # it imports PyTorch

            try:
                folder = measure_position_alone(MeasurementSettings(run.folder.path, num_windows=num_windows))
            except UserError as error:
                print(error, file=sys.stderr)
                failed.append(run)
            else:
                print(f"{position_alone_tables(folder)}\npicture: {draw_position_alone(folder)}", flush=True)
    return failed

"""The runs behind a report, copied beside it: what judges, tables and figures read, without the weights.

Commands take a copy for the run itself: ``scripts/report.py output_dir=docs/results/runs`` makes the same report from it, and
in ``outputs/`` it is a finished run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cope.errors import UserError
from cope.report.differences import BASELINE
from cope.report.findings import Findings

READ = ("config.yaml", "metrics.jsonl", "result.json")
MEASURED = ("position_alone/*/scores.json", "position_alone/*/position_alone.png")  # below figures/


def check_nothing_is_lost(findings: Findings, folder: Path, with_runs: bool) -> None:
    """Raise UserError if ``folder`` holds a run that would not be copied there again, or one that is to be copied."""
    there = {path.parent.relative_to(folder) for path in folder.glob("*/*/*/seed=*/result.json")}
    if there and not with_runs:
        raise UserError(f"{folder} holds {len(there)} runs and would lose them; allowed: --with-runs, or another folder.")
    if any(run.folder.path.resolve().is_relative_to(folder.resolve()) for run, _ in findings.runs()):
        raise UserError(f"the runs are those of {folder} itself, which is to be replaced; allowed: another folder.")
    lost = sorted(there - {_place(run.folder.path) for run, _ in findings.runs()})
    if lost:
        raise UserError(
            f"{folder} holds {len(lost)} runs that are not finished here, such as {lost[0]}, and would lose them. Take them "
            "over first: make published-runs."
        )


def copy_runs(findings: Findings, folder: Path) -> None:
    """Copy every finished run's files to ``folder``, in folders of the same names."""
    for run, result in findings.runs():
        source, target = run.folder.path, folder / _place(run.folder.path)
        wanted = [source / name for name in READ]
        wanted += [path for pattern in MEASURED for path in run.folder.figures.glob(pattern)]
        if result["encoding"] == BASELINE and run.seed == 1:
            wanted += run.folder.figures.glob("gates.npz")  # those that a report draws
        for path in wanted:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _place(run_folder: Path) -> Path:
    """<task>/<pe>/<hash>/seed=<n>."""
    return Path(*run_folder.parts[-4:])

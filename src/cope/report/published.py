"""The runs behind a report, copied beside it: what judges, tables and figures read, without the weights.

Commands take a copy for the run itself: ``scripts/report.py output_dir=docs/results/runs`` makes the same report from it, and
in ``outputs/`` it is a finished run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cope.errors import UserError
from cope.report.findings import Findings
from cope.report.run_pictures import gates_of, runs_with_gates

READ = ("config.yaml", "metrics.jsonl", "result.json")
MEASURED = ("position_alone/*/scores.json", "position_alone/*/position_alone.png")  # below figures/


def check_nothing_is_lost(findings: Findings, folder: Path, with_runs: bool) -> None:
    """Raise UserError if ``folder`` holds a run's file that would not be copied there again, or a run that is to be copied."""
    there = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    if there and not with_runs:
        raise UserError(f"{folder} holds {len(there)} files and would lose them; allowed: with_runs=true, or another folder.")
    if any(run.folder.path.resolve().is_relative_to(folder.resolve()) for run, _ in findings.runs()):
        raise UserError(f"the runs are those of {folder} itself, which is to be replaced; allowed: another folder.")
    kept = _files(findings)
    lost = sorted(there - kept.keys())
    runs = sorted({path.parent for path in lost if path.name == "result.json"})
    if runs:
        raise UserError(
            f"{folder} holds {len(runs)} runs that this report has not, such as {runs[0]}, and would lose them. If they are "
            "not finished here: make published-runs. If there are more seeds: SEEDS= as many (seeds=). If no table asks for "
            "them any more: delete them there first."
        )
    if lost:
        raise UserError(
            f"{folder} would lose {len(lost)} files that this report has not, such as {lost[0]}. Make them again (what "
            "heads attend to: make figure4), or delete them there first."
        )


def copy_runs(findings: Findings, folder: Path) -> None:
    """Copy every finished run's files to ``folder``, in folders of the same names."""
    for place, path in _files(findings).items():
        if not path.exists():
            raise UserError(f"{path} is missing; run it again, or leave it out.")
        copy = folder / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _files(findings: Findings) -> dict[Path, Path]:
    """What is copied, by where to: <task>/<pe>/<hash>/seed=<n>/<file>."""
    found: dict[Path, Path] = {}
    drawn = runs_with_gates(findings)
    for run, _ in findings.runs():
        source = run.folder.path
        wanted = [source / name for name in READ]
        wanted += [path for pattern in MEASURED for path in run.folder.figures.glob(pattern)]
        wanted += [gates_of(run)] if run in drawn else []
        found |= {Path(*source.parts[-4:]) / path.relative_to(source): path for path in wanted}
    return found

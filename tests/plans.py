"""Tables' plans for tests: composed once, since Hydra takes a tenth of a second a row, and then moved to a folder."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from conftest import CONFIGS

from cope.run.folder import RunFolder
from cope.sweep.plan import Plan, planned_seeds, read_plan

TABLES = sorted(path.stem for path in (CONFIGS / "table").glob("*.yaml"))
NOWHERE = Path("/nonexistent")
SEEDS = planned_seeds(CONFIGS)


@cache
def composed(table: str) -> Plan:
    """The plan at the smallest scale with the planned seeds; none of its runs is there."""
    return read_plan(CONFIGS, table, ["scale=smoke", "logger=none", f"output_dir={NOWHERE}"], SEEDS)


def plan_in(folder: Path, table: str, num_seeds: int = 3) -> Plan:
    """The plan with its runs below ``folder``."""
    plan = composed(table)
    runs = tuple(
        replace(run, folder=RunFolder(folder / run.folder.path.relative_to(NOWHERE)))
        for run in plan.runs
        if run.seed in SEEDS[:num_seeds]
    )
    return replace(plan, seeds=plan.seeds[:num_seeds], runs=runs)

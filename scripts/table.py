"""Tables of the paper: which runs they need, what is there, and each table itself
beside the paper's figures.

    # from finished runs; what has not been run is "missing"
    python scripts/table.py table=table2
    # first runs what is not finished, one a core
    python scripts/table.py table=table2 action=run
    # the runs, which are finished, how long the others may take
    python scripts/table.py table=table2,table5 action=list
    # all of them with seed 1 first, then seed 2, ...
    python scripts/table.py table=all action=run seeds=3
    python scripts/table.py table=table2 action=run hydra.launcher.jobs=2
    # on a cluster
    python scripts/table.py table=all action=run hydra/launcher=submitit_slurm

    table=        files of configs/table, with commas between, or all; and
                  others, as ablations/flip_flop
    action=show   or run, list
    seeds=3       to run: so many, from the first of configs/plan.yaml on; what
                  is finished of others is shown too
    windows=300   of text, over which figure4 measures heads
    format=table  or markdown, csv, latex, json

All else are settings of train.py, for every run, and of Hydra's launcher. A
table is a sweep: a run that fails does not stop the others, and the same
command runs only what is not finished. The exit status is 0 if everything is
finished, 3 if something is left, 1 if the command was refused.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs and runs", has_settings_of_train=True)  # before anything slow is imported

import runpy
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hydra.plugins.launcher import Launcher

from cope.cli import run_command, split_settings
from cope.endings import LEFT_OVER
from cope.errors import UserError, check_at_least, check_between, check_choice
from cope.heads.measure_runs import MEASURED_TABLE, measure_heads
from cope.report.findings import Findings
from cope.report.plan_pictures import draw_plans
from cope.report.plan_sheets import show_tables
from cope.report.sheets import FORMATS
from cope.sweep.jobs import check_jobs, run_jobs, tell_end
from cope.sweep.listing import print_runs
from cope.sweep.plan import (
    Plan,
    PlannedRun,
    all_runs,
    composed,
    launcher_for,
    of_hydra_and_of_runs,
    planned_seeds,
    read_plan,
    read_plans,
    table_names,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class TableSettings:
    table: tuple[str, ...]
    action: str = "show"
    seeds: int = 3
    windows: int = 300
    format: str = "table"

    def __post_init__(self) -> None:
        check_choice("action", self.action, ["show", "run", "list"])
        check_choice("format", self.format, FORMATS)
        check_at_least("windows", self.windows, 1)
        if "all" in self.table and len(self.table) > 1:
            raise UserError("table=all stands for every table; allowed: all alone, or tables by name.")


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, TableSettings, f"allowed: all, {', '.join(table_names(CONFIGS))}.")
    _, overrides = of_hydra_and_of_runs(CONFIGS, others)
    seeds = planned_seeds(CONFIGS)
    check_between("seeds", settings.seeds, 1, len(seeds))
    plans = read(settings, overrides, seeds)
    findings = Findings(plans)  # refuses runs that cannot be compared, before more are made
    runs = [run for run in all_runs(plans) if run.seed in seeds[: settings.seeds]]
    waiting = [run for run in runs if run.result() is None]
    if settings.action == "list":
        print_runs(CONFIGS, runs, waiting)
        return
    left_over = {}
    if settings.action == "run":
        left_over = run_waiting(runs, waiting, others)
        findings = Findings(plans)
    show_tables(plans, findings, settings.format)
    not_measured = []
    if settings.action == "run":
        for picture in draw_plans(plans, findings, overrides):
            print(f"picture: {picture}", flush=True, file=sys.stdout if settings.format == "table" else sys.stderr)
        looked_at = [run for plan in plans if plan.name == MEASURED_TABLE for run in plan.runs]
        not_measured = measure_heads(looked_at, settings.windows)
        tell_end(runs, left_over)
    for run in not_measured:
        print(f"not measured: python scripts/position_alone.py run={run.folder.path}", file=sys.stderr)
    if left_over or not_measured:
        sys.exit(LEFT_OVER)


def read(settings: TableSettings, overrides: list[str], seeds: Sequence[int]) -> list[Plan]:
    """The plans that are asked for."""
    if len(settings.table) == 1 and settings.table != ("all",):
        return [read_plan(CONFIGS, settings.table[0], overrides, seeds)]
    plans, left_out = read_plans(CONFIGS, overrides, seeds, None if settings.table == ("all",) else settings.table)
    print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    return plans


def run_waiting(runs: list[PlannedRun], waiting: list[PlannedRun], overrides: list[str]) -> dict[Path, str]:
    """Run what is not finished; what is left over after that, and why."""
    configs = [composed(CONFIGS, own) for own in dict.fromkeys(run.settings for run in waiting)]
    with launcher_of(overrides) as launcher:
        check_jobs(configs, launcher)
        return run_jobs(launcher, runs)


def launcher_of(overrides: list[str]) -> AbstractContextManager[Launcher]:
    """Hydra's launcher of runs of ``train.py``; what it writes itself goes where they go."""
    own = [override for override in overrides if override.lstrip("+").startswith(("hydra.", "hydra/", "output_dir="))]
    train = runpy.run_path(str(ROOT / "train.py"))["train"].__wrapped__  # what Hydra's decorator would call
    return launcher_for(CONFIGS, own, train)


if __name__ == "__main__":
    run_command(main, __doc__)

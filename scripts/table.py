"""Tables of the README: which runs they need, what is there, and each table itself beside the paper's figures.

    python scripts/table.py table=table2                       # from finished runs; what has not been run is "missing"
    python scripts/table.py table=table2 action=run            # first runs what is not finished, one a core
    python scripts/table.py table=table2,table5 action=list    # the runs, which are finished, how long the others may take
    python scripts/table.py table=all action=run seeds=3       # all of them with seed 1 first, then seed 2, ...
    python scripts/table.py table=table2 action=run scale=smoke output_dir=/tmp/outputs hydra.launcher.jobs=2
    python scripts/table.py table=table2 action=run hydra/launcher=submitit_slurm

    table=        files of configs/table, with commas between, or all
    action=show   or run, list
    seeds=null    how many, from 1 on, instead of each table's own
    windows=300   of text, over which figure4 measures heads

All else are settings of train.py, for every run, and of Hydra's launcher. A table is a sweep: a run that fails does not stop
the others, and the same command runs only what is not finished. The exit status is 0 if everything is finished, 3 if something
is left, 1 if the command was refused.
"""

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from cope.cli import LEFT_OVER, run_command, split_settings
from cope.errors import UserError, check_at_least, check_choice
from cope.heads.measure_runs import MEASURED_TABLE, measure_heads
from cope.report.findings import Findings
from cope.report.markdown import plan_tables
from cope.report.paper_figures import draw_paper_figures
from cope.report.table_figures import draw_table_figures
from cope.run.configuration import NOT_PART_OF_THE_RUN
from cope.sweep.jobs import check_jobs, run_jobs, tell_left_over
from cope.sweep.plan import Plan, PlannedRun, all_runs, composed, launcher_for, read_plan, read_plans, table_names

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
LONGEST_NAME = 200  # of a folder, which file systems limit to 255 bytes


@dataclass(frozen=True)
class TableSettings:
    table: tuple[str, ...]
    action: str = "show"
    seeds: int | None = None
    windows: int = 300

    def __post_init__(self) -> None:
        check_choice("action", self.action, ["show", "run", "list"])
        check_at_least("windows", self.windows, 1)
        if "all" in self.table and len(self.table) > 1:
            raise UserError("table=all stands for every table; allowed: all alone, or tables by name.")


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, TableSettings, f"allowed: all, {', '.join(table_names(CONFIGS))}.")
    of_hydra = [override for override in others if override.startswith(("hydra.", "hydra/"))]
    overrides = [override for override in others if override not in of_hydra]
    plans = read(settings, overrides)
    findings = Findings(plans)  # refuses runs that cannot be compared, before more are made
    runs = all_runs(plans)
    waiting = [run for run in runs if run.result() is None]
    if settings.action == "list":
        list_runs(runs, waiting)
        return
    left_over = {}
    if settings.action == "run":
        left_over = run_waiting(runs, waiting, of_hydra)
        findings = Findings(plans)
    for plan in plans:
        print(f"\n# {plan.name}: {plan.title}\n\n{plan_tables(plan, findings)}", flush=True)
    not_measured = []
    if settings.action == "run":
        for picture in draw(plans, findings, overrides):
            print(f"picture: {picture}", flush=True)
        looked_at = [run for plan in plans if plan.name == MEASURED_TABLE for run in plan.runs]
        not_measured = measure_heads(looked_at, settings.windows)
    tell_left_over(left_over, len(runs))
    for run in not_measured:
        print(f"not measured: python scripts/position_alone.py run={run.folder.path}", file=sys.stderr)
    if left_over or not_measured:
        sys.exit(LEFT_OVER)


def read(settings: TableSettings, overrides: list[str]) -> list[Plan]:
    """The plans that are asked for."""
    if len(settings.table) == 1 and settings.table != ("all",):
        return [read_plan(CONFIGS, settings.table[0], overrides, settings.seeds)]
    plans, left_out = read_plans(CONFIGS, overrides, settings.seeds, None if settings.table == ("all",) else settings.table)
    print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    return plans


def run_waiting(runs: list[PlannedRun], waiting: list[PlannedRun], of_hydra: list[str]) -> dict[Path, str]:
    """Run what is not finished; what is left over after that, and why."""
    train = runpy.run_path(str(ROOT / "train.py"))["train"].__wrapped__  # what Hydra's decorator would call
    configs = [composed(CONFIGS, own) for own in dict.fromkeys(run.settings for run in waiting)]
    with launcher_for(CONFIGS, of_hydra, train) as launcher:
        check_jobs(configs, launcher)
        return run_jobs(launcher, runs)


def list_runs(runs: list[PlannedRun], waiting: list[PlannedRun]) -> None:
    """Print each with its state, and how long the others may take."""
    from cope.sweep.clock import Clock
    from cope.sweep.places import num_places

    for run in runs:
        print(f"{'finished' if run.result() else 'failed' if run.failed else 'to do':8}  {run.command}")
    at_once, why = num_places(composed(CONFIGS, own) for own in dict.fromkeys(run.settings for run in waiting))
    seconds = Clock(runs[0].folder.path.parents[3]).seconds([(run.task, run.scale) for run in waiting], at_once)
    guess = "no finished run to guess the time from" if seconds is None else f"about {seconds / 60:.0f} min"
    print(f"{len(waiting)} of {len(runs)} runs to do; {why}; {guess}")


def draw(plans: list[Plan], findings: Findings, overrides: list[str]) -> list[Path]:
    """Draw what the tables and figures have runs for, in ``figures/<scale>/`` beside the runs; with other settings than the
    scale's in a folder of theirs below that, so that no picture takes the place of one of other runs."""
    run = plans[0].runs[0]
    others = ",".join(sorted(text for text in overrides if text.partition("=")[0] not in ("scale", *NOT_PART_OF_THE_RUN)))
    folder = run.folder.path.parents[3] / "figures" / run.scale / re.sub(r"[^\w.,=+ -]", "_", others)[:LONGEST_NAME]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawings = draw_table_figures(plans, findings, folder) + draw_paper_figures(plans, findings, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    return [drawing.path for drawing in drawings]


if __name__ == "__main__":
    run_command(main, __doc__)

"""Tables of the README: which runs they need, what is there, and each table itself beside the paper's figures.

    python scripts/table.py table2                 # the table from finished runs; what has not been run is "missing"
    python scripts/table.py table2 --run           # first runs what is not finished, as many at once as there are cores
    python scripts/table.py table2 table5 --dry    # lists the runs, which are finished, and how long the others may take
    python scripts/table.py all --run --seeds 3    # every table and figure: all of them with seed 1 first, then seed 2, ...
    python scripts/table.py table2 --run scale=smoke output_dir=/tmp/outputs

Tables are described in configs/table/. Arguments with = are overrides of train.py, for every run. A run that fails does not
stop the others; the same command runs only what is not finished.
"""

import argparse
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cope.command_line import INTERRUPTED, check_overrides, message_of
from cope.errors import UserError, check_at_least
from cope.report.comparison import comparison_table, failures, provenance
from cope.report.findings import Findings
from cope.report.paper_figures import draw_paper_figures
from cope.report.plan import Plan, all_runs, read_plan, read_plans, table_names
from cope.report.run_all import Clock, check_settings, num_places, run_all
from cope.report.table_figures import draw_table_figures

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="files of configs/table, or all; settings of train.py (key=value)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="run what is not finished")
    action.add_argument("--dry", action="store_true", help="only list the runs")
    action.add_argument("--folders", action="store_true", help="only print the folders of finished runs")
    parser.add_argument("--jobs", type=int, default=None, help="runs at once; by default one a GPU, else one a core")
    parser.add_argument("--seeds", type=int, default=None, help="how many, from 1 on, instead of each table's own")
    options = parser.parse_intermixed_args()
    check_at_least("--jobs", 1 if options.jobs is None else options.jobs, 1)
    check_at_least("--seeds", 1 if options.seeds is None else options.seeds, 1)
    names = [argument for argument in options.tables if "=" not in argument]
    overrides = [argument for argument in options.tables if "=" in argument]
    if not names:
        raise UserError(f"no table is named; allowed: all, {', '.join(table_names(ROOT / 'configs'))}.")
    if "all" in names and len(names) > 1:
        raise UserError("all stands for every table; allowed: all alone, or tables by name.")
    check_overrides(overrides, str(ROOT / "configs"))
    if names == ["all"]:
        plans, left_out = read_plans(ROOT / "configs", overrides, options.seeds)
        print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    else:
        plans = [read_plan(ROOT / "configs", name, overrides, options.seeds) for name in names]
    Findings(plans)  # refuses runs that cannot be compared, before more are made
    runs = all_runs(plans)
    jobs = options.jobs or num_places()
    if options.dry or options.run:
        from cope.training.experiment import Experiment  # it imports PyTorch, for which a typing error need not wait

        check_settings(runs, ROOT / "configs", Experiment)
    if options.dry:
        for run in runs:
            print(f"{'finished' if run.result() else 'failed' if run.failed else 'to do':8}  {run.command}")
        seconds = Clock(ROOT).seconds(runs, jobs)
        guess = "no finished run to guess the time from" if seconds is None else f"about {seconds / 60:.0f} min"
        print(f"{sum(run.result() is None for run in runs)} of {len(runs)} runs to do, {jobs} at a time; {guess}")
        return
    if options.folders:
        for run in runs:
            if run.result() is not None:
                print(run.folder.path)
        return
    unfinished = run_all(runs, ROOT, jobs) if options.run else []
    for plan in plans:
        print_table(plan)
    for run in unfinished:
        print(f"{'failed' if run.failed else 'not finished'}: {run.command}; see {run.log}", file=sys.stderr)
    if options.run:
        for picture in draw(plans):
            print(f"picture: {picture}")
    sys.exit(1 if unfinished else 0)


def print_table(plan: Plan) -> None:
    """The table, section by section, and what it was made from."""
    print(f"\n# {plan.name}: {plan.title}\n")
    for section in plan.sections:
        failed = failures(plan.runs, section)
        print(comparison_table(section, plan.results(section), len(plan.seeds), plan.splits, failed) + "\n")
    finished = [result for run in plan.runs if (result := run.result()) is not None]
    if finished:
        print(provenance(finished))


def draw(plans: list[Plan]) -> list[Path]:
    """Draw what the tables and figures have runs for, in ``figures/<scale>/`` beside the runs."""
    run = plans[0].runs[0]
    folder = run.folder.path.parents[3] / "figures" / run.scale
    findings = Findings(plans)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawings = draw_table_figures(plans, findings, folder) + draw_paper_figures(plans, findings, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    return [drawing.path.with_suffix(".png") for drawing in drawings]


if __name__ == "__main__":
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {message_of(error)}")
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from there.", file=sys.stderr)
        sys.exit(INTERRUPTED)

"""Tables of the README: which runs they need, what is there, and each table itself beside the paper's figures.

    python scripts/table.py table2                 # the table from finished runs; what has not been run is "missing"
    python scripts/table.py table2 --run           # first runs what is not finished, as many at once as there are cores
    python scripts/table.py table2 table5 --dry    # lists the runs, which are finished, and how long the others may take
    python scripts/table.py all --run --seeds 3    # every table and figure: all of them with seed 1 first, then seed 2, ...
    python scripts/table.py table2 --run scale=smoke output_dir=/tmp/outputs

Tables are described in configs/table/. Arguments with = are overrides of train.py, for every run. A run that fails does not
stop the others; the same command runs only what is not finished. The exit status is 0 if everything is finished, 3 if something
is left, 1 if the command was refused.
"""

import argparse
import re
import signal
import sys
from pathlib import Path
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cope.cli import INTERRUPTED, LEFT_OVER, message_of
from cope.errors import UserError, check_at_least
from cope.heads.measure_runs import MEASURED_TABLE, measure_heads
from cope.report.comparison import plan_tables
from cope.report.findings import Findings
from cope.report.paper_figures import draw_paper_figures
from cope.report.table_figures import draw_table_figures
from cope.run.configuration import NOT_PART_OF_THE_RUN
from cope.sweep.places import num_places
from cope.sweep.plan import Plan, all_runs, read_plan, read_plans, table_names
from cope.sweep.queue import Clock, Terminated, check_settings, run_all

ROOT = Path(__file__).resolve().parent.parent
LONGEST_NAME = 200  # of a folder, which file systems limit to 255 bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="files of configs/table, or all; settings of train.py (key=value)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="run what is not finished")
    action.add_argument("--dry", action="store_true", help="only list the runs")
    parser.add_argument(
        "--jobs", type=int, default=None, help="runs at once; by default as many as GPUs have room for, else one a core"
    )
    parser.add_argument("--windows", type=int, default=300, help="of text, over which figure4 measures heads (300)")
    parser.add_argument("--seeds", type=int, default=None, help="how many, from 1 on, instead of each table's own")
    options = parser.parse_intermixed_args()
    check_at_least("--jobs", 1 if options.jobs is None else options.jobs, 1)
    check_at_least("--windows", options.windows, 1)
    check_at_least("--seeds", 1 if options.seeds is None else options.seeds, 1)
    names = [argument for argument in options.tables if "=" not in argument]
    overrides = [argument for argument in options.tables if "=" in argument]
    if not names:
        raise UserError(f"no table is named; allowed: all, {', '.join(table_names(ROOT / 'configs'))}.")
    if "all" in names and len(names) > 1:
        raise UserError("all stands for every table; allowed: all alone, or tables by name.")
    if len(names) == 1 and names != ["all"]:
        plans = [read_plan(ROOT / "configs", names[0], overrides, options.seeds)]
    else:
        plans, left_out = read_plans(ROOT / "configs", overrides, options.seeds, None if names == ["all"] else names)
        print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    findings = Findings(plans)  # refuses runs that cannot be compared, before more are made
    runs = all_runs(plans)
    if options.dry or options.run:
        from cope.run.experiment import Experiment  # it imports PyTorch, for which a typing error need not wait

        check_settings(runs, ROOT / "configs", Experiment)
        jobs = options.jobs
        if jobs is None:
            jobs, why = num_places(runs, ROOT / "configs")
            print(why, flush=True)
    if options.dry:
        for run in runs:
            print(f"{'finished' if run.result() else 'failed' if run.failed else 'to do':8}  {run.command}")
        seconds = Clock(ROOT).seconds(runs, jobs)
        guess = "no finished run to guess the time from" if seconds is None else f"about {seconds / 60:.0f} min"
        print(f"{sum(run.result() is None for run in runs)} of {len(runs)} runs to do, {jobs} at a time; {guess}")
        return
    unfinished = run_all(runs, ROOT, jobs) if options.run else []
    if options.run:
        findings = Findings(plans)
    for plan in plans:
        print(f"\n# {plan.name}: {plan.title}\n\n{plan_tables(plan, findings)}", flush=True)
    not_measured = []
    if options.run:
        for picture in draw(plans, findings, overrides):
            print(f"picture: {picture}", flush=True)
        looked_at = [run for plan in plans if plan.name == MEASURED_TABLE for run in plan.runs]
        not_measured = measure_heads(looked_at, ROOT, options.windows)
    for run in unfinished:
        print(f"{'failed' if run.failed else 'not finished'}: {run.command}; see {run.log}", file=sys.stderr)
    for run in not_measured:
        print(f"not measured: python scripts/position_alone.py run={run.folder.path}", file=sys.stderr)
    sys.exit(LEFT_OVER if unfinished or not_measured else 0)


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
    return [drawing.path.with_suffix(".png") for drawing in drawings]


def terminate(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C."""
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)  # which clusters send
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {message_of(error)}")
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from there.", file=sys.stderr)
        sys.exit(INTERRUPTED)

"""A table of the README: which runs it needs, what is there, and the table itself beside the paper's figures.

    python scripts/table.py table2                 # the table from finished runs; what has not been run is "missing"
    python scripts/table.py table2 --run           # first runs what is not finished, as many at once as there are cores
    python scripts/table.py table2 --dry           # lists the runs and which are finished
    python scripts/table.py table2 --run scale=smoke output_dir=/tmp/outputs

Tables are described in configs/table/. Further arguments are overrides of train.py, for every run. A run that fails does not
stop the others; the same command runs only what is not finished.
"""

import argparse
import sys
from pathlib import Path

from hydra.errors import HydraException

from cope.command_line import INTERRUPTED
from cope.errors import UserError, check_at_least
from cope.report.comparison import comparison_table, provenance
from cope.report.plan import minutes_to_do, num_places, read_plan, run_all

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="a file of configs/table, without .yaml")
    parser.add_argument("overrides", nargs="*", help="settings of train.py, for every run")
    parser.add_argument("--run", action="store_true", help="run what is not finished")
    parser.add_argument("--dry", action="store_true", help="only list the runs")
    parser.add_argument("--folders", action="store_true", help="only print the folders of finished runs")
    parser.add_argument("--jobs", type=int, default=num_places(), help="runs at once; by default one a GPU, else one a core")
    parser.add_argument("--seeds", type=int, default=None, help="how many, from 1 on, instead of the table's own")
    options = parser.parse_intermixed_args()
    check_at_least("--jobs", options.jobs, 1)
    plan = read_plan(ROOT / "configs", options.table, options.overrides, options.seeds)
    if options.dry:
        for run in plan.runs:
            print(f"{'finished' if run.result() else 'to do':8}  {run.command}")
        minutes = minutes_to_do(plan.runs, options.jobs)
        guess = "no finished run to guess the time from" if minutes is None else f"about {minutes:.0f} min"
        print(f"{sum(run.result() is None for run in plan.runs)} of {len(plan.runs)} runs to do; {guess}")
        return
    if options.folders:
        for run in plan.runs:
            if run.result() is not None:
                print(run.folder.path)
        return
    failed = run_all(plan.runs, ROOT, options.jobs) if options.run else []
    finished = [result for run in plan.runs if (result := run.result()) is not None]
    for section in plan.sections:
        print(comparison_table(section, plan.results(section), len(plan.seeds), plan.splits) + "\n")
    if finished:
        print(provenance(finished))
    for run in failed:
        print(f"failed: {run.command}; see {run.log}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except (UserError, HydraException) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from there.", file=sys.stderr)
        sys.exit(INTERRUPTED)

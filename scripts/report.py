"""The report of everything that is finished: verdicts on the paper's claims, tables, figures, and one page.

    python scripts/report.py                                     # writes outputs/report/
    python scripts/report.py --claims                            # prints the verdicts alone
    python scripts/report.py --to docs/results --with-runs       # writes elsewhere, with the runs behind it
    python scripts/report.py scale=smoke output_dir=/tmp/runs    # of other runs: settings of train.py say which

Nothing is run: `make tables figures` does that, `make reproduce` both.
"""

import argparse
import shlex
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cope.cli import message_of
from cope.errors import UserError, check_at_least
from cope.report.page import collect, verdict_table, write_report
from cope.sweep.plan import read_plans

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of train.py that the runs were made with, such as scale=smoke")
    parser.add_argument("--to", default="outputs/report", help="the folder to write")
    parser.add_argument("--with-runs", action="store_true", help="copy the runs' results beside it, without weights")
    parser.add_argument("--claims", action="store_true", help="print the verdicts and write nothing")
    parser.add_argument("--seeds", type=int, default=None, help="how many, from 1 on, instead of each table's own")
    options = parser.parse_intermixed_args()
    check_at_least("--seeds", 1 if options.seeds is None else options.seeds, 1)
    plans, left_out = read_plans(CONFIGS, options.overrides, options.seeds)
    print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    print("reading the runs, judging and drawing: a minute or so", file=sys.stderr)
    report = collect(plans)
    if options.claims:
        for verdict in report.verdicts:
            print(f"{verdict.number:2}. {verdict.outcome:15} {verdict.claim} ({verdict.source})")
            print(f"      {verdict.summary}")
            for finding in verdict.findings:
                print(f"      {finding.outcome}: {finding.text}")
        return
    page = write_report(report, Path(options.to), shlex.join(["python", "scripts/report.py", *sys.argv[1:]]), options.with_runs)
    print(verdict_table(report.verdicts))
    print(f"\nwritten: {page}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {message_of(error)}")

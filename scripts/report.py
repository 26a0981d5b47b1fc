"""The report of everything that is finished: verdicts on the paper's claims, tables, figures, and one page.

    python scripts/report.py to=outputs/report                     # writes it there
    python scripts/report.py claims=true                           # prints the verdicts alone
    python scripts/report.py to=docs/results with_runs=true        # writes elsewhere, with the runs behind it
    python scripts/report.py to=/tmp/report scale=smoke output_dir=/tmp/runs    # of other runs: settings of train.py say which

Nothing is run: `make tables figures` does that, `make reproduce` both.

    to=outputs/report    the folder to write
    with_runs=false      true: copy the runs' results beside it, without weights
    claims=false         true: print the verdicts and write nothing
    seeds=null           how many, from 1 on, instead of each table's own
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cope.cli import run_command, split_settings
from cope.report.page import collect, verdict_table, write_report
from cope.sweep.plan import read_plans

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class ReportSettings:
    to: Path = Path("outputs/report")
    with_runs: bool = False
    claims: bool = False
    seeds: int | None = None


def main(arguments: list[str]) -> None:
    settings, overrides = split_settings(arguments, ReportSettings, "python scripts/report.py to=outputs/report")
    plans, left_out = read_plans(CONFIGS, overrides, settings.seeds)
    print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    print("reading the runs, judging and drawing: a minute or so", file=sys.stderr)
    report = collect(plans)
    if settings.claims:
        for verdict in report.verdicts:
            print(f"{verdict.number:2}. {verdict.outcome:15} {verdict.claim} ({verdict.source})")
            print(f"      {verdict.summary}")
            for comparison in verdict.comparisons:
                print(f"      {comparison.outcome}: {comparison.text}")
        return
    command = shlex.join(["python", "scripts/report.py", *arguments])
    page = write_report(report, settings.to, command, settings.with_runs)
    print(verdict_table(report.verdicts))
    print(f"\nwritten: {page}")


if __name__ == "__main__":
    run_command(main, __doc__)

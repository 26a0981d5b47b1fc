"""The report of everything that is finished: verdicts on the paper's claims,
tables, figures, and one page.

    # writes it there
    python scripts/report.py to=outputs/report
    # prints a line for each claim
    python scripts/report.py claims=true
    # all there is to know of one
    python scripts/report.py claims=true why=9
    # writes elsewhere, with the runs behind it
    python scripts/report.py to=docs/results with_runs=true
    # of other runs: settings of train.py say which
    python scripts/report.py to=/tmp/report scale=smoke output_dir=/tmp/runs

Nothing is run: `make decide` and `make tables figures` do that, `make
reproduce` all of it.

    to=outputs/report    the folder to write
    with_runs=false      true: the runs' results beside it, without weights
    claims=false         true: print the verdicts and write nothing
    why=null             with claims=true: the claim to tell in full
    first_seed=null      of other runs than the plan's, such as results from
                         before there was a plan (1): these decide nothing
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs and runs", has_settings_of_train=True)  # before anything slow is imported

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cope.cli import run_command, split_settings
from cope.errors import UserError
from cope.report.claims import ClaimsPlan
from cope.report.page import collect, write_report
from cope.report.verdicts import claim_in_full, claim_lines, line_width
from cope.sweep.plan import of_hydra_and_of_runs, read_plans, tables_with

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class ReportSettings:
    to: Path = Path("outputs/report")
    with_runs: bool = False
    claims: bool = False
    why: int | None = None
    first_seed: int | None = None

    def __post_init__(self) -> None:
        if self.why is not None and not self.claims:
            raise UserError(f"why={self.why} has no effect without claims=true; allowed with it: the number of a claim.")


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, ReportSettings, "python scripts/report.py to=outputs/report")
    claims_plan = ClaimsPlan.read(CONFIGS, settings.first_seed)
    names = tables_with(CONFIGS, claims_plan.sections) if settings.claims else None
    # A launcher's are for the runs of `make reproduce`; here nothing is run.
    of_hydra, overrides = of_hydra_and_of_runs(CONFIGS, others)
    plans, left_out = read_plans(CONFIGS, overrides, claims_plan.seeds, names)
    print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    report = collect(plans, claims_plan)
    if settings.why is not None:
        print(claim_in_full(report.verdicts, claims_plan, settings.why, line_width()))
    elif settings.claims:
        print(claim_lines(report.verdicts, claims_plan, line_width()))
    else:
        own = [argument for argument in arguments if argument not in of_hydra]
        command = shlex.join(["python", "scripts/report.py", *own])
        print("writing tables and pictures ...", file=sys.stderr, flush=True)
        page = write_report(report, settings.to, command, settings.with_runs)
        print(f"{claim_lines(report.verdicts, claims_plan, line_width())}\n\nwritten: {page}")


if __name__ == "__main__":
    run_command(main, __doc__)

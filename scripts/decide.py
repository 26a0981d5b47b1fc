"""Run what claims of the paper still need until each is decided, or its seeds are
used up: configs/plan.yaml is the plan.

    # all claims, in the queue that the tables use, on every core
    python scripts/decide.py
    # some of them, with fewer seeds than the plan has
    python scripts/decide.py claims=1,2,17 seeds=12
    python scripts/decide.py scale=smoke output_dir=/tmp/o claims=9 seeds=2
    python scripts/decide.py hydra/launcher=submitit_slurm

After each batch it prints a line for each claim. The same command goes on from
there. The exit status is 0 when nothing more can be decided, 3 if runs or
measurements failed, 1 if the command was refused. Fewer than nine seeds decide
nothing.

    claims=         by number, with commas between; all without it
    seeds=null      at most so many, from the plan's first on
    windows=300     of text, over which heads are measured (claim 15)

All else are settings of train.py, for every run, and of Hydra's launcher.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs and runs", has_settings_of_train=True)  # before anything slow is imported

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hydra.plugins.launcher import Launcher
from table import CONFIGS, launcher_of

from cope.cli import run_command, split_settings
from cope.endings import LEFT_OVER
from cope.errors import check_at_least, check_between
from cope.heads.measure_runs import MEASURED_TABLE, is_unmeasured, measure_heads
from cope.report.agenda import Agenda, progress_line
from cope.report.claims import ClaimsPlan, Verdict, judge
from cope.report.comparisons import rows_of
from cope.report.findings import Findings
from cope.report.rule import e_value
from cope.sweep.clock import Clock
from cope.sweep.jobs import check_jobs, run_jobs, tell_end
from cope.sweep.plan import PlannedRun, composed, of_hydra_and_of_runs, read_plans, tables_with
from cope.threads import num_cores

RUNS_PER_CORE = 4  # of a batch, at least: a batch ends with its last run, for which other cores wait


@dataclass(frozen=True)
class DecideSettings:
    claims: tuple[int, ...] = ()
    seeds: int | None = None
    windows: int = 300

    def __post_init__(self) -> None:
        check_at_least("windows", self.windows, 1)


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, DecideSettings, "python scripts/decide.py [claims=1,2 ...]")
    _, overrides = of_hydra_and_of_runs(CONFIGS, others)
    plan = ClaimsPlan.read(CONFIGS)
    if settings.seeds is not None:
        check_between("seeds", settings.seeds, 1, len(plan.seeds))
        plan = plan.with_seeds(settings.seeds)
        fewest = next(wins for wins in count(1) if e_value(wins, 0) >= plan.margins.rule.needed)
        if settings.seeds < fewest:
            print(f"seeds={settings.seeds}: fewer than {fewest} decide nothing, so none is begun.", file=sys.stderr)
    claims = [plan.claim(number) for number in settings.claims] or plan.claims
    cells = {(relation["section"], row) for claim in claims for relation in claim["relations"] for row in rows_of(relation)}
    names = tables_with(CONFIGS, {section for section, _ in cells})
    tables, left_out = read_plans(CONFIGS, overrides, plan.seeds, names)
    print("".join(f"{line}\n" for line in left_out), end="", file=sys.stderr)
    runs = [run for table in tables for run in table.runs if (run.section, run.row) in cells]
    looked_at = [run for table in tables if table.name == MEASURED_TABLE for run in table.runs if run in runs]
    not_measured: list[PlannedRun] = []  # whose heads could not be: they are not tried again

    def judged() -> list[Verdict]:
        unmeasured = [run for run in looked_at if run not in not_measured and is_unmeasured(run)]
        not_measured.extend(measure_heads(unmeasured, settings.windows))
        findings = Findings(tables)
        return [judge(claim, plan, findings) for claim in claims]

    with launcher_of(others) as launcher:
        left_over = run_until_decided(judged, plan, runs, launcher)
    tell_end(runs, left_over)
    for run in not_measured:
        print(f"not measured: python scripts/position_alone.py run={run.folder.path}", file=sys.stderr)
    if left_over or not_measured:
        sys.exit(LEFT_OVER)


def run_until_decided(
    judged: Callable[[], list[Verdict]], plan: ClaimsPlan, runs: list[PlannedRun], launcher: Launcher
) -> dict[Path, str]:
    """Run what open claims need, batch by batch, with a line for each after each; what is left over, and why.

    Args:
        judged: the verdicts as the files have them now.
        runs: that claims may need, of every seed of ``plan``.
    """
    clock = Clock(runs[0].folder.outputs)
    left_over: dict[Path, str] = {}
    is_checked = False
    while True:
        verdicts = judged()
        agenda = Agenda(plan, runs, left_over)
        print("\n" + "\n".join(progress_line(verdict, agenda) for verdict in verdicts), flush=True)
        batch = agenda.next_runs(
            verdicts, RUNS_PER_CORE * num_cores(), lambda run: clock.seconds([(run.task, run.scale)], 1) or 1.0
        )
        if not batch:
            return left_over
        if not is_checked:  # what is wrong with any of the settings is told before the first run begins
            check_jobs([composed(CONFIGS, own) for own in dict.fromkeys(run.settings for run in runs)], launcher)
            is_checked = True
        left_over |= run_jobs(launcher, batch)


if __name__ == "__main__":
    run_command(main, __doc__)

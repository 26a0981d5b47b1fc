"""The field beside CoPE: encodings x tasks of configs/field.yaml, run, ranked and
drawn.

    # from finished runs; what has not been run is "missing"
    python scripts/field.py
    # first runs what is not finished, one a core
    python scripts/field.py action=run
    python scripts/field.py action=run tasks=mqar,a5 encodings=rope,cope
    # and then further seeds of CoPE, RoPE and the best other
    python scripts/field.py action=decide
    # the runs, and which are finished
    python scripts/field.py action=list scale=smoke

    action=show        or run, decide, list
    tasks=all          of configs/field.yaml, with commas between
    encodings=all      likewise
    seeds=3            so many, from the first of configs/plan.yaml on
    to=outputs/field   the folder to write
    with_runs=false    true: copy the runs' results beside it, without weights

All else are settings of train.py, for every run, and of Hydra's launcher. A run
that fails does not stop the others, and the same command runs only what is not
finished. The exit status is 0 if everything is finished, 3 if something is
left, 1 if the command was refused.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "reading configs and runs", has_settings_of_train=True)  # before anything slow is imported

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from decide import run_until_decided
from table import CONFIGS, launcher_of, run_waiting

from cope.cli import run_command, split_settings
from cope.endings import LEFT_OVER
from cope.errors import check_between, check_choice
from cope.report.claims import ClaimsPlan, Verdict, judge
from cope.report.field import field_cells, field_claims, ranking, write_field
from cope.report.findings import Findings
from cope.report.names import task_name
from cope.report.published import copy_runs
from cope.report.sheets import show
from cope.sweep.jobs import tell_end
from cope.sweep.listing import print_runs
from cope.sweep.plan import Plan, of_hydra_and_of_runs, plan_of, planned_seeds


@dataclass(frozen=True)
class FieldSettings:
    action: str = "show"
    tasks: tuple[str, ...] = ("all",)
    encodings: tuple[str, ...] = ("all",)
    seeds: int = 3
    to: Path = Path("outputs/field")
    with_runs: bool = False

    def __post_init__(self) -> None:
        check_choice("action", self.action, ["show", "run", "decide", "list"])
        check_between("seeds", self.seeds, 1, len(planned_seeds(CONFIGS)))


def main(arguments: list[str]) -> None:
    settings, others = split_settings(arguments, FieldSettings, "python scripts/field.py action=run")
    _, overrides = of_hydra_and_of_runs(CONFIGS, others)
    plan = read_field(settings, overrides)
    first_seeds = plan.seeds[: settings.seeds]
    runs = [run for run in plan.runs if run.seed in first_seeds]
    waiting = [run for run in runs if run.result() is None]
    if settings.action == "list":
        print_runs(CONFIGS, runs, waiting)
        return
    left_over = run_waiting(runs, waiting, others) if settings.action in ("run", "decide") else {}
    rule = ClaimsPlan.read(CONFIGS)
    claims = field_claims(plan, Findings([plan]), first_seeds)
    if settings.action == "decide" and claims:

        def judged() -> list[Verdict]:
            findings = Findings([plan])
            return [judge(claim, rule, findings) for claim in claims]

        with launcher_of(others) as launcher:
            left_over |= run_until_decided(judged, rule, list(plan.runs), launcher)
    findings = Findings([plan])
    cells = field_cells(plan, findings)
    begun = set(cells.loc[cells["seeds"] > 0, "task"])
    show([ranking(task, cells, findings, claims, rule.margins, in_full=False) for task in plan.sections if task in begun])
    if without := [task_name(task) for task in plan.sections if task not in begun]:
        print(f"Without a run: {', '.join(without)}")
    rankings = [ranking(task, cells, findings, claims, rule.margins, in_full=True) for task in plan.sections]
    page = write_field(plan, cells, findings, rankings, settings.to, shlex.join(["python", "scripts/field.py", *arguments]))
    if settings.with_runs:
        copy_runs(findings, settings.to / "runs")
    print(f"written: {page}, which has the figures behind each verdict")
    if settings.action != "show":
        tell_end(plan.runs if settings.action == "decide" else runs, left_over)
    if left_over:
        sys.exit(LEFT_OVER)


def read_field(settings: FieldSettings, overrides: Sequence[str]) -> Plan:
    """The plan of the chosen part of ``configs/field.yaml``."""
    content = yaml.safe_load((CONFIGS / "field.yaml").read_text())
    tasks = _chosen("tasks", settings.tasks, list(content["tasks"]))
    encodings = _chosen("encodings", settings.encodings, content["encodings"])
    sections = {task: {encoding: [*content["tasks"][task], f"pe={encoding}"] for encoding in encodings} for task in tasks}
    seeds = tuple(planned_seeds(CONFIGS))
    return plan_of(CONFIGS, "field", {"title": content["title"], "sections": sections}, overrides, seeds)


def _chosen(key: str, names: Sequence[str], there: list[str]) -> list[str]:
    if tuple(names) == ("all",):
        return there
    for name in names:
        check_choice(key, name, there)
    return list(names)


if __name__ == "__main__":
    run_command(main, __doc__)

"""What has been run: task, encoding, what differs, seed, state, errors, age and
folder of every run.

    # all of outputs/
    python scripts/runs.py
    # those that are asked for
    python scripts/runs.py task=counting pe=cope,rope seed=1
    # any setting filters
    python scripts/runs.py pe.init_std=0 sort=ood
    python scripts/runs.py runs=docs/results/runs format=csv

    runs=outputs     folders of runs, or any above them, with commas between
    sort=task        or pe, seed, state, error, ood, age
    format=table     or markdown, csv, latex, json
    KEY=VALUE,...    only runs with one of these values: task, pe, seed, scale,
                     state (finished, failed, begun), or any setting of train.py
                     by its whole name, such as optimizer.lr=1e-3

A column that all runs share is not shown but said above; csv and json have all.
`run=` of other commands takes the folder, or the beginning of its hash.
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command()  # before anything slow is imported

from dataclasses import dataclass

from cope.cli import run_command, split_settings
from cope.errors import check_choice
from cope.files import user_path
from cope.report.runs import SORTS, list_runs
from cope.report.sheets import FOR_PROGRAMS, FORMATS, show


@dataclass(frozen=True)
class RunsSettings:
    runs: tuple[str, ...] = ("outputs",)
    sort: str = "task"
    format: str = "table"

    def __post_init__(self) -> None:
        check_choice("sort", self.sort, SORTS)
        check_choice("format", self.format, FORMATS)


def main(arguments: list[str]) -> None:
    settings, filters = split_settings(arguments, RunsSettings, "python scripts/runs.py [task=counting ...]", None)
    folders = [user_path("runs", text) for text in settings.runs]
    show([list_runs(folders, filters, settings.sort, settings.format in FOR_PROGRAMS)], settings.format)


if __name__ == "__main__":
    run_command(main, __doc__)

"""Finished runs side by side: the settings in which they differ, their scores,
time and size.

# what there is: the list of scripts/runs.py
python scripts/compare.py
# every finished run below a folder
python scripts/compare.py runs=outputs/counting
# two of them, by the beginnings of their hashes
python scripts/compare.py runs=1a2b3c4d/seed=1,5e6f7a8b/seed=1
python scripts/compare.py runs=outputs pe=cope,rope split=test seed=1

runs=            folders of runs, or any above them, or beginnings of hashes,
                 with commas between
task=            only runs of these tasks, with commas between
pe=              only runs of these encodings
seed=            only runs of these seeds
scale=           only runs of these scales
split=           only these splits
format=table     or markdown, csv, latex, json
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

from dataclasses import dataclass

from cope.cli import read_settings, run_command
from cope.errors import UserError, check_choice
from cope.report.collect import read_results
from cope.report.run_sheets import comparison_sheets
from cope.report.runs import list_runs
from cope.report.sheets import FOR_PROGRAMS, FORMATS, show
from cope.run.lookup import OUTPUTS, run_path

FILTERS = {"task": "task", "pe": "encoding", "seed": "seed", "scale": "scale"}  # what is typed -> the key in result.json


@dataclass(frozen=True)
class ComparisonSettings:
    runs: tuple[str, ...] = ()
    task: tuple[str, ...] = ()  # of this and those below: () takes all
    pe: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    format: str = "table"

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, ComparisonSettings, "python scripts/compare.py runs=outputs [task=counting ...]")
    wanted = {key: values for key in FILTERS if (values := getattr(settings, key))}
    if not settings.runs:
        if settings.split:
            raise UserError("split= needs runs=: without them runs are listed, not compared.")
        filters = [f"{key}={','.join(values)}" for key, values in wanted.items()]
        show([list_runs([OUTPUTS], filters, whole=settings.format in FOR_PROGRAMS)], settings.format)
        return
    results = []
    for folder in (run_path(text, key="runs") for text in settings.runs):
        found = read_results(folder)
        if not found:
            raise UserError(f"{folder} holds no finished run; allowed: folders of runs, or any above them, such as outputs.")
        results += found
    for key, values in wanted.items():
        for value in values:
            check_choice(key, value, sorted({str(result[FILTERS[key]]) for result in results}))
    results = [result for result in results if all(str(result[FILTERS[key]]) in values for key, values in wanted.items())]
    if not results:
        raise UserError("no finished run has all of these filters' values; leave one out.")
    splits = list(dict.fromkeys(split for result in results for split in result["splits"]))
    for split in settings.split:
        check_choice("split", split, splits)
    show(comparison_sheets(results, settings.split), settings.format)


if __name__ == "__main__":
    run_command(main, __doc__)

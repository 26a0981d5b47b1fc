"""Take the runs behind docs/results for finished ones, so that only others are
run; they have no weights.

# into outputs/
python scripts/published_runs.py
# elsewhere
python scripts/published_runs.py report=docs/results to=/tmp/runs

report=docs/results    a report with its runs
to=outputs             the folder of runs; what is there already is left alone
"""

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__, "copying runs")  # before anything slow is imported

from dataclasses import dataclass
from pathlib import Path

from cope.cli import read_settings, run_command
from cope.errors import counted
from cope.heads.draw import draw_position_alone
from cope.report.published import ARRAYS, make_runs


@dataclass(frozen=True)
class PublishedSettings:
    report: Path = Path("docs/results")
    to: Path = Path("outputs")


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, PublishedSettings, "python scripts/published_runs.py")
    made, left_alone = make_runs(settings.report / "runs", settings.to)
    for arrays in (settings.report / "runs").rglob(ARRAYS):
        draw_position_alone(settings.to / arrays.parent.relative_to(settings.report / "runs"))
    print(f"{counted(made, 'run')} made in {settings.to}")
    if left_alone:
        print(f"{counted(len(left_alone), 'run')} left alone, there already, such as {left_alone[0]}")


if __name__ == "__main__":
    run_command(main, __doc__)

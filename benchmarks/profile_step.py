"""Where a training step's time goes, for several recipes: see ``profiling.py`` for
what is measured.

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py recipes="task=code pe=cope" repeats=5

Writes ``outputs/benchmark/profile.json``.

    recipes=     settings of train.py, recipes with commas between
    repeats=7    rounds
"""

from __future__ import annotations

if __name__ == "__main__":
    from cope.command_start import start_command

    start_command(__doc__)  # before anything slow is imported

from dataclasses import dataclass

from profiling import RECIPES, profiled
from timing import write_result

from cope.cli import read_settings, run_command
from cope.errors import check_at_least


@dataclass(frozen=True)
class ProfileSettings:
    recipes: tuple[str, ...] = tuple(RECIPES)
    repeats: int = 7

    def __post_init__(self) -> None:
        check_at_least("repeats", self.repeats, 1)


def main(arguments: list[str]) -> None:
    settings = read_settings(arguments, ProfileSettings, "python benchmarks/profile_step.py repeats=5")
    write_result("profile", profiled([recipe.strip() for recipe in settings.recipes], settings.repeats), settings.repeats)


if __name__ == "__main__":
    run_command(main, __doc__)

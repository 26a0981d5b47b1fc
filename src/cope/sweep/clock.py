"""How long runs take: as long as finished ones of the same task and scale."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cope
from cope.run.folder import RunFolder

PROJECT = Path(cope.__file__).resolve().parents[2]
RUNS = "*/*/*/seed=*/result.json"
PUBLISHED = f"docs/results*/runs/{RUNS}"  # the results that come with the project


class Clock:
    """Guesses from the runs of this machine, or from published ones until there are any.

    Args:
        outputs: the folder of all runs.
        project: with the published ones.
    """

    def __init__(self, outputs: Path, project: Path = PROJECT) -> None:
        self._own = _times(outputs.glob(RUNS))
        self._published = _times(project.glob(PUBLISHED))

    def add(self, result: dict[str, Any]) -> None:
        """Take in a run that was finished just now."""
        self._own.setdefault((result["task"], result["scale"]), []).append(result["time_s"])

    def seconds(self, kinds: Iterable[tuple[str, str]], at_once: int) -> float | None:
        """For runs of these tasks and scales, ``at_once`` at a time; None where nothing like them was run."""
        expected = [self._own.get(kind) or self._published.get(kind) for kind in kinds]
        if not all(expected):
            return None
        return sum(statistics.fmean(times) for times in expected if times) / at_once


def _times(paths: Iterable[Path]) -> dict[tuple[str, str], list[float]]:
    times: dict[tuple[str, str], list[float]] = {}
    for path in paths:
        result = RunFolder(path.parent).sound_result()
        if result is not None:
            times.setdefault((result["task"], result["scale"]), []).append(result["time_s"])
    return times


def duration(seconds: float) -> str:
    """``41 s``, ``3.5 min``, ``11 h``, ``139 days``: two digits, as most are guesses."""
    units = (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    unit, length = next((unit for unit in units if seconds >= 2 * unit[1]), units[-1])
    number = seconds / length
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"

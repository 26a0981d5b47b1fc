"""What the runs of all tables found, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cope.report.plan import Plan, PlannedRun
from cope.results.metrics import METRICS

LEVEL = 0.05  # of significance
DEFAULT_HEADLINE = "error"  # of a section that has no run yet


class Findings:
    """The finished runs of several tables. A section that several tables share is one.

    Args:
        plans: of the tables, all with the same overrides.
    """

    def __init__(self, plans: Iterable[Plan]) -> None:
        self._runs: dict[tuple[str, str, int], tuple[PlannedRun, dict[str, Any]]] = {}
        for plan in plans:
            for run in plan.runs:
                result = run.result()
                if result is not None:
                    self._runs[run.section, run.row, result["seed"]] = (run, result)

    def headline(self, section: str) -> str:
        """The metric that the section's runs are judged by."""
        found = (result["headline"] for (name, _, _), (_, result) in self._runs.items() if name == section)
        return next(found, DEFAULT_HEADLINE)

    def splits(self, section: str) -> tuple[str, ...]:
        """The test splits that its runs have."""
        found = (result["splits"] for (name, _, _), (_, result) in self._runs.items() if name == section)
        return tuple(dict.fromkeys(split for splits in found for split in splits if split != "validation"))

    def runs(self) -> list[tuple[PlannedRun, dict[str, Any]]]:
        """Every finished run with its result, by section, row and seed."""
        return list(self._runs.values())

    def values(self, section: str, row: str, split: str) -> dict[int, float]:
        """The headline metric by seed, as it is shown: errors in percent."""
        found = {}
        for seed, (_, result) in self._of(section, row).items():
            if split in result["splits"]:
                headline = result["headline"]
                found[seed] = METRICS[headline].factor * result["splits"][split][headline]
        return found

    def values_at(self, section: str, row: str, fraction: float) -> dict[int, float]:
        """The headline metric of the validation by seed, at the last one within ``fraction`` of the steps."""
        found = {}
        for seed, (_, result) in self._of(section, row).items():
            points = [(step, value) for step, value in self.curve(section, row)[seed] if step <= fraction * result["steps"]]
            if points:
                found[seed] = points[-1][1]
        return found

    def curve(self, section: str, row: str) -> dict[int, list[tuple[int, float]]]:
        """(step, headline metric of the validation) by seed."""
        curves = {}
        for seed, (run, result) in self._of(section, row).items():
            headline = result["headline"]
            key = f"eval/validation/{headline}"
            lines = run.folder.read_metrics()
            curves[seed] = [(line["step"], METRICS[headline].factor * line[key]) for line in lines if key in line]
        return curves

    def position_alone(self, section: str, row: str) -> dict[str, tuple[int, int, float]] | None:
        """For each kind of boundary: how many heads keep within them more than chance explains, of how many, and the largest
        share of attention by which one of them does; None if not measured.

        Of several measurements the one over most windows counts.
        """
        scores = [
            json.loads(path.read_text())
            for run, _ in self._of(section, row).values()
            for path in sorted(run.folder.figures.glob("position_alone/*/scores.json"))
        ]
        if not scores:
            return None
        kinds = max(scores, key=lambda found: found["num_windows"])["kinds"]
        return {
            kind: (
                found["num_significant"],
                len(found["heads"]),
                max(
                    (head["excess"] - head["shifted_excess"] for head in found["heads"] if head["p_corrected"] < LEVEL),
                    default=0.0,
                ),
            )
            for kind, found in kinds.items()
        }

    def _of(self, section: str, row: str) -> dict[int, tuple[PlannedRun, dict[str, Any]]]:
        return {seed: found for (name, label, seed), found in self._runs.items() if (name, label) == (section, row)}

"""What the runs of all tables found, cell by cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cope.errors import UserError
from cope.files import read_json, tell_left_out
from cope.metrics import METRICS
from cope.report.paper import headline_of, paper_values
from cope.sweep.plan import Plan, PlannedRun

Finished = tuple[PlannedRun, dict[str, Any]]  # with its result

# A seed failed to learn if, after training, it is wrong more often than this on the validation split, which is drawn as the
# training data are: what it does on other splits then says nothing of generalisation. Perplexities have no such mark.
LEARNED_PERCENT = 5.0

# What a table or a claim calls the validation during training, beside the names of the splits that are scored at its end.
DURING_TRAINING = re.compile(r"first validation after (\d+)% of the steps")


class Findings:
    """The finished runs of several tables, read once, and which failed. A section that several tables share is one.

    Args:
        plans: of the tables, all with the same overrides.

    Raises:
        UserError: results that cannot be compared. A damaged one is told, and counts as not finished.
    """

    def __init__(self, plans: Iterable[Plan]) -> None:
        self._cells: dict[tuple[str, str], dict[int, Finished]] = {}  # by section and row, then by seed
        self._failed: dict[tuple[str, str, int], PlannedRun] = {}
        self._curves: dict[Path, list[tuple[int, float]]] = {}
        first_of: dict[str, Finished] = {}  # of each section
        for plan in plans:
            for run in plan.runs:
                result = run.result()
                if result is not None:
                    _check_comparable((run, result), first_of.setdefault(run.section, (run, result)))
                    self._cells.setdefault((run.section, run.row), {})[run.seed] = run, result
                elif run.failed:
                    self._failed[run.section, run.row, run.seed] = run

    def headline(self, section: str) -> str:
        """The metric that the section's runs are judged by; without any run, that of the paper's figures."""
        return next((result["headline"] for _, result in self._of_section(section)), headline_of(section))

    def failed_runs(self) -> list[PlannedRun]:
        """Every run whose last try ended with an error."""
        return list(self._failed.values())

    def failures(self, section: str) -> Counter[str]:
        """How many runs of each row of a section ended with an error."""
        return Counter(row for name, row, _ in self._failed if name == section)

    def failed_seeds(self, section: str, row: str) -> set[int]:
        """The seeds of a row whose run ended with an error, as a diverged one does: they have no result to be compared."""
        return {seed for name, own, seed in self._failed if (name, own) == (section, row)}

    def results(self, section: str, row: str) -> list[dict[str, Any]]:
        """The finished runs of a row, by seed."""
        return [result for _, (_, result) in sorted(self._of(section, row).items())]

    def shown_splits(self, plan: Plan, section: str) -> Sequence[str]:
        """The splits that a table shows: its own, else those of its runs, else those that the paper has figures of."""
        paper = paper_values().get(section, {})
        return plan.splits or self.splits(section) or tuple(dict.fromkeys(split for row in paper.values() for split in row))

    def without_figures(self, plan: Plan, section: str) -> list[str]:
        """Rows of a table that neither a run nor the paper has a figure of."""
        paper, failed = paper_values().get(section, {}), self.failures(section)
        splits = self.shown_splits(plan, section)
        return [
            row
            for row in plan.rows(section)
            if not self.results(section, row) and not failed[row] and not any(split in paper.get(row, {}) for split in splits)
        ]

    def splits(self, section: str) -> tuple[str, ...]:
        """The test splits that its runs have."""
        found = (split for _, result in self._of_section(section) for split in result["splits"])
        return tuple(dict.fromkeys(split for split in found if split != "validation"))

    def runs(self) -> list[Finished]:
        """Every finished run with its result, row by row."""
        return [found for cell in self._cells.values() for found in cell.values()]

    def values(self, section: str, row: str, split: str) -> dict[int, float]:
        """The headline metric by seed, as it is shown: errors in percent. Of a split, or of ``DURING_TRAINING``."""
        during_training = DURING_TRAINING.fullmatch(split)
        if during_training:
            return self._values_during_training(section, row, int(during_training[1]) / 100)
        found = {}
        for seed, (_, result) in self._of(section, row).items():
            if split in result["splits"]:
                headline = result["headline"]
                found[seed] = METRICS[headline].factor * result["splits"][split][headline]
        return found

    def _values_during_training(self, section: str, row: str, fraction: float) -> dict[int, float]:
        """At the first validation after a share of the steps that a run may take; where it ended earlier, at its last."""
        found = {}
        for seed, points in self.curve(section, row).items():
            result = self._of(section, row)[seed][1]
            steps = result["config"].get("trainer", result)["steps"]
            later = [value for step, value in points if step >= fraction * steps]
            if later or (points and result["steps"] < steps):
                found[seed] = later[0] if later else points[-1][1]
        return found

    def learned(self, section: str, row: str) -> tuple[int, int] | None:
        """Seeds that learned what they were trained on (``LEARNED_PERCENT``), of how many; None where that has no meaning."""
        errors = self.values(section, row, "validation")
        if not errors or not METRICS[self.headline(section)].is_percentage:
            return None
        return sum(error <= LEARNED_PERCENT for error in errors.values()), len(errors)

    def still_improving(self, section: str, row: str) -> int | None:
        """How many seeds still improved when their steps were used up; None where no run was asked."""
        asked = [result["still_improving"] for result in self.results(section, row) if "still_improving" in result]
        return sum(asked) if asked else None

    def scales(self, section: str, rows: Iterable[str]) -> set[str]:
        """The scales that the rows' runs were made at."""
        return {result.get("scale", "") for row in rows for _, result in self._of(section, row).values()}

    def curve(self, section: str, row: str) -> dict[int, list[tuple[int, float]]]:
        """(step, headline metric of the validation) by seed."""
        return {seed: self.curve_of(*found) for seed, found in self._of(section, row).items()}

    def curve_of(self, run: PlannedRun, result: dict[str, Any]) -> list[tuple[int, float]]:
        """The same of one run; of a damaged one, which is told, there is none."""
        if run.folder.path not in self._curves:
            key, factor = f"eval/validation/{result['headline']}", METRICS[result["headline"]].factor
            try:
                lines = run.folder.read_metrics()
            except UserError as error:  # told, and left out
                tell_left_out(run.folder.metrics, error)
                lines = []
            self._curves[run.folder.path] = [(line["step"], factor * line[key]) for line in lines if key in line]
        return self._curves[run.folder.path]

    def at_equal_steps(self, section: str, rows: Iterable[str]) -> tuple[int | None, dict[str, dict[int, float]]]:
        """The last validation at a step that every run of ``rows`` came to, by row and seed; None if all took as many steps."""
        steps = {result["steps"] for row in rows for result in self.results(section, row)}
        if len(steps) < 2:
            return None, {}
        curves = {row: self.curve(section, row) for row in rows}
        found = {
            row: {
                seed: max(reached)[1]
                for seed, points in curve.items()
                if (reached := [p for p in points if p[0] <= min(steps)])
            }
            for row, curve in curves.items()
        }
        return min(steps), found

    def position_alone(self, section: str, row: str, kinds: Collection[str]) -> dict[int, dict[str, float]]:
        """By seed, for each of ``kinds`` of boundaries: the most by which a head keeps to them more than chance.

        0 where no head does so significantly, all heads and kinds being asked at once (Holm over heads, Bonferroni over
        kinds). See :func:`measurement` for which measurement of a run that is.
        """
        found = {}
        for seed, (run, result) in self._of(section, row).items():
            path = measurement(run, result)
            if path is not None:
                measured = read_json(path)
                if absent := [kind for kind in kinds if kind not in measured["kinds"]]:
                    raise UserError(
                        f"{run.folder.figures}/position_alone: nothing is measured for {', '.join(absent)}. Measure again: "
                        f"python scripts/position_alone.py run={run.folder.path}"
                    )
                level = measured["level"] / len(kinds)
                found[seed] = {kind: _most(measured["kinds"][kind]["heads"], level) for kind in kinds}
        return found

    def _of(self, section: str, row: str) -> dict[int, Finished]:
        return self._cells.get((section, row), {})

    def _of_section(self, section: str) -> Iterator[Finished]:
        return (found for (name, _), cell in self._cells.items() if name == section for found in cell.values())


def _check_comparable(found: Finished, first: Finished) -> None:
    """Raise UserError if two results of a section are of other texts, or judged by another metric."""
    headlines = {result["headline"] for _, result in (found, first)}
    # Results of generated tasks did not name their data at first, when every generator was of version 1.
    data = {result.get("data") or f"{result.get('task')} 1" for _, result in (found, first)}
    for values, what in ((data, "trained on different data"), (headlines, "judged by different metrics")):
        if len(values) > 1:
            raise UserError(
                f"{first[0].folder.path} and {found[0].folder.path} were {what}, so they cannot be compared. Run the older one "
                f"again: {first[0].command} force=true, or {found[0].command} force=true."
            )


def measurement(run: PlannedRun, result: dict[str, Any]) -> Path | None:
    """The file of what was measured of a run's attention by position alone, None if nothing was.

    Of several the one over most windows counts, and among those the one with most shifts; one made before the run was finished
    does not. A damaged one is told and left out.
    """
    found = [
        ((content["num_windows"], content["num_shifts"]), path)
        for path in sorted(run.folder.figures.glob("position_alone/*/scores.json"))
        if (content := _sound_measurement(path)) is not None and content["step"] == result["best_step"]
    ]
    return max(found)[1] if found else None


def _sound_measurement(path: Path) -> dict[str, Any] | None:
    """What was measured; None if the file is damaged, which is told, once."""
    try:
        content = read_json(path)
        for kind in content["kinds"].values():
            _most(kind["heads"], content["level"])
        if all(isinstance(content[key], int) for key in ("step", "num_windows", "num_shifts")):
            return dict(content)
        damage = "its sizes are no whole numbers"
    except (UserError, LookupError, TypeError, AttributeError) as error:
        damage = str(error) if isinstance(error, UserError) else f"it lacks {error}"
    tell_left_out(path, f"{path} is damaged: {damage}")
    return None


def _most(heads: list[dict[str, float]], level: float) -> float:
    return max((head["excess"] - head["shifted_excess"] for head in heads if head["p_corrected"] < level), default=0.0)

"""What to run next so that claims are decided: only what an open claim still needs, what is nearest to a verdict first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from cope.errors import counted
from cope.report.claims import ClaimsPlan, Verdict
from cope.report.comparisons import Comparison, Outcome
from cope.report.rule import e_value
from cope.sweep.plan import PlannedRun


class Agenda:
    """The runs of open claims.

    Args:
        runs: of every table, all seeds of the plan.
        tried: folders of runs that ended without a result and are not to be tried again.
    """

    def __init__(self, plan: ClaimsPlan, runs: Iterable[PlannedRun], tried: Collection[Path] = ()) -> None:
        self.plan = plan
        self.tried = tried
        self._runs: dict[tuple[str, str, int], PlannedRun] = {}
        for run in runs:
            self._runs.setdefault((run.section, run.row, run.seed), run)

    def next_runs(self, verdicts: Sequence[Verdict], at_least: int, seconds: Callable[[PlannedRun], float]) -> list[PlannedRun]:
        """The next seed of the claims that are cheapest to decide: of as many as it takes for ``at_least`` runs.

        If one seed of all of them is not enough, their further ones, as far as a verdict needs them in any case.

        Args:
            seconds: that a run takes.
        """
        waiting = []
        for verdict in verdicts:
            seeds = self.waiting(verdict)
            needed = self.seeds_needed(verdict)
            if seeds and needed is not None:
                cost = needed * sum(map(seconds, seeds[0]))
                waiting.append((cost, verdict.number, seeds[:needed]))
        waiting.sort(key=lambda claim: claim[:2])
        chosen: dict[Path, PlannedRun] = {}
        for depth in range(max((len(seeds) for _, _, seeds in waiting), default=0)):
            for _, _, seeds in waiting:
                if len(chosen) < at_least and depth < len(seeds):
                    chosen |= {run.folder.path: run for run in seeds[depth]}
        return list(chosen.values())

    def waiting(self, verdict: Verdict) -> list[list[PlannedRun]]:
        """The runs that an open claim waits for, seed by seed."""
        if verdict.outcome not in (Outcome.OPEN, Outcome.MISSING):
            return []
        parts = [part for part in verdict.comparisons if not part.is_settled] or list(verdict.comparisons)
        found = []
        for seed in self.plan.seeds:
            lacking = [part for part in parts if seed not in part.evidence.differences and not self.plan.is_seen(part, seed)]
            cells = {(part.section, row): None for part in lacking for row in part.rows}
            planned = [self._runs[section, row, seed] for section, row in cells if (section, row, seed) in self._runs]
            runs = [run for run in planned if run.result() is None]
            if runs and not any(run.folder.path in self.tried for run in runs):
                found.append(runs)
        return found

    def seeds_needed(self, verdict: Verdict) -> int | None:
        """The least further seeds that could decide an open claim, all of them saying the same; None if those left cannot."""
        left = len(self.waiting(verdict))
        return next((number for number in range(1, left + 1) if self._decides(verdict.comparisons, number)), None)

    def _decides(self, parts: Sequence[Comparison], number: int) -> bool:
        """Whether so many seeds more could give a verdict: as claimed, no difference, or one part's opposite."""
        needed = self.plan.margins.rule.needed
        now = [_values(part, 0) for part in parts]
        then = [_values(part, 0 if part.is_settled else number) for part in parts]
        claimed = all(part.outcome == Outcome.HOLDS or after[0] >= needed for part, after in zip(parts, then, strict=True))
        equal = all(part.is_settled or (after[0] + after[2]) / 2 >= needed for part, after in zip(parts, then, strict=True))
        others = sum(before[1] for before in now)
        opposite = any((others - before[1] + after[1]) / len(parts) >= needed for before, after in zip(now, then, strict=True))
        return claimed or equal or opposite


def _values(part: Comparison, further: int) -> tuple[float, float, float]:
    """E of a part as claimed, of its opposite and of no difference, after ``further`` seeds that all say so."""
    evidence, seeds = part.evidence, len(part.evidence.differences)
    equal = e_value(evidence.close + further, seeds - evidence.close) if evidence.equivalence is not None else 0.0
    return e_value(evidence.wins + further, evidence.losses), e_value(evidence.losses + further, evidence.wins), equal


def progress_line(verdict: Verdict, agenda: Agenda) -> str:
    """How far a claim is, by its least decided comparison: what it won and lost, E, and the seeds that are left."""
    parts = [part for part in verdict.comparisons if not part.is_settled] or list(verdict.comparisons)
    evidence = min(
        (part.evidence for part in parts), key=lambda found: (len(found.differences), abs(found.wins - found.losses))
    )
    state = f"{evidence.wins} won, {evidence.losses} lost, E {verdict.e_now:.3g}"
    if verdict.outcome in (Outcome.OPEN, Outcome.MISSING):
        waiting, needed = len(agenda.waiting(verdict)), agenda.seeds_needed(verdict)
        left = f"{counted(waiting, 'seed')} left"
        state += f"; needs {needed} of {left}" if needed else f"; {left} cannot decide" if waiting else "; no seed is left"
    return f"{verdict.number:2} {verdict.outcome:13} {verdict.topic:24} {state}"

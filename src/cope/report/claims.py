"""A verdict on each claim of the paper, from result files alone.

``claims.yaml`` says which cells a claim compares and how. Each comparison is made over seeds, paired where two encodings were
run with the same ones: if the 95% interval of the mean (Student's t) lies wholly where the claim says, it holds; if wholly on
the other side, it is contradicted; else, or with a single seed, it stays open. Where all seeds say the very same, t is not
defined, and the interval over their test examples decides (Wilson's). All must hold for *reproduced*; one contradicted is
*not reproduced*; runs that are missing make it *not run*; the rest is *undecided*.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from cope.errors import UserError
from cope.metrics import METRICS
from cope.report.findings import Findings
from cope.report.statistics import mean_interval, wilson_interval
from cope.report.tables import MISSING

MOST_SHOWN = 3  # comparisons in a summary


class Outcome(StrEnum):
    """What a claim, or one of its relations, turned out to be."""

    HOLDS = "reproduced"
    CONTRADICTED = "not reproduced"
    OPEN = "undecided"
    MISSING = "not run"


_WHY = {
    Outcome.CONTRADICTED: "did not come out as claimed",
    Outcome.MISSING: "could not be made, since runs are missing or failed",
    Outcome.OPEN: "decided nothing",
}


@dataclass(frozen=True)
class Comparison:
    """One relation, and what was found."""

    outcome: Outcome
    where: str
    claimed: str
    figures: dict[str, str]  # of each row, or split, that is compared
    detail: str = ""  # the interval that decides, or why there is none

    @property
    def text(self) -> str:
        """All of it in a sentence."""
        figures = ", ".join(f"{name} {figure}" for name, figure in self.figures.items())
        return f"{self.where}: {self.claimed}: {figures}" + (f"; {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Verdict:
    """One claim, judged."""

    number: int
    claim: str
    source: str  # where the paper makes it
    outcome: Outcome
    comparisons: tuple[Comparison, ...]
    scales: tuple[str, ...] = ()  # of the runs that were compared

    @property
    def summary(self) -> str:
        """Why the verdict is what it is."""
        decisive = [comparison for comparison in self.comparisons if comparison.outcome == self.outcome]
        single = len(self.comparisons) == 1
        if self.outcome == Outcome.HOLDS:
            return (
                "It comes out as the paper says." if single else f"All {len(decisive)} comparisons come out as the paper says."
            )
        several_places = len({comparison.where for comparison in self.comparisons}) > 1
        claimed = [
            (f"{comparison.where}: {comparison.claimed}" if several_places else comparison.claimed)
            + (f" ({comparison.detail})" if comparison.detail else "")
            for comparison in decisive
        ]
        more = [f"and {len(claimed) - MOST_SHOWN} more"] if len(claimed) > MOST_SHOWN else []
        counted = "The comparison" if single else f"{len(decisive)} of {len(self.comparisons)} comparisons"
        return f"{counted} {_WHY[self.outcome]}: {'; '.join([*claimed[:MOST_SHOWN], *more])}."

    @property
    def figures(self) -> str:
        """What was compared, place by place."""
        places: dict[str, dict[str, str]] = {}
        for comparison in self.comparisons:
            places.setdefault(comparison.where, {}).update(comparison.figures)
        return "; ".join(
            f"{where}: {', '.join(f'{name} {figure}' for name, figure in found.items())}" for where, found in places.items()
        )

    def as_json(self) -> dict[str, Any]:
        """What ``verdicts.json`` holds of it."""
        found = [{"outcome": comparison.outcome, "text": comparison.text} for comparison in self.comparisons]
        described = {"number": self.number, "claim": self.claim, "source": self.source, "outcome": self.outcome}
        return described | {"summary": self.summary, "figures": self.figures, "scales": list(self.scales), "findings": found}


def read_claims() -> list[dict[str, Any]]:
    """The entries of ``claims.yaml``."""
    content: list[dict[str, Any]] = yaml.safe_load(files("cope.report").joinpath("claims.yaml").read_text(encoding="utf-8"))
    return content


def judge(claim: dict[str, Any], findings: Findings) -> Verdict:
    """The verdict on one entry of ``claims.yaml``."""
    found = [comparison for relation in claim["relations"] for comparison in _examine(relation, findings)]
    outcomes = {comparison.outcome for comparison in found}
    worst = (Outcome.CONTRADICTED, Outcome.MISSING, Outcome.OPEN, Outcome.HOLDS)
    outcome = next(candidate for candidate in worst if candidate in outcomes)
    cells = ((relation["section"], rows_of(relation)) for relation in claim["relations"])
    scales = sorted({scale for section, rows in cells for scale in findings.scales(section, rows)})
    return Verdict(claim["number"], claim["claim"], claim["source"], outcome, tuple(found), tuple(scales))


def rows_of(relation: dict[str, Any]) -> list[str]:
    """The rows that a relation is about."""
    return list(relation["order"]) if "order" in relation else [relation[kind] for kind in KINDS if kind in relation]


def _examine(relation: dict[str, Any], findings: Findings) -> list[Comparison]:
    for kind, examine in KINDS.items():
        if kind in relation:
            return examine(relation, findings)
    raise UserError(f"claims.yaml: {relation} has no relation; allowed: {', '.join(KINDS)}.")


def _order(relation: dict[str, Any], findings: Findings) -> list[Comparison]:
    section, split, factor = relation["section"], relation["split"], relation.get("factor", 1.0)
    found = []
    for lower, higher in pairwise(relation["order"]):
        low, high = findings.values(section, lower, split), findings.values(section, higher, split)
        claimed = f"{lower} below {'' if factor == 1.0 else f'{factor:g} times '}{higher}"
        seeds = sorted(low.keys() & high.keys())
        shown = _means(findings, section, {lower: low, higher: high}, seeds)
        examples = _difference_over_examples(findings, section, split, (lower, higher), factor, seeds)
        comparison = _compare(f"{section}, {split}", claimed, [factor * high[s] - low[s] for s in seeds], shown, examples)
        found.append(_with_learning(comparison, findings, section, (lower, higher)))
    return found


def _solved(relation: dict[str, Any], findings: Findings) -> list[Comparison]:
    section, split = relation["section"], relation["split"]
    row, sign, word = (relation["solved"], 1, "at most") if "solved" in relation else (relation["unsolved"], -1, "above")
    values = findings.values(section, row, split)
    differences = [sign * (relation["by"] - value) for value in values.values()]
    shown = _means(findings, section, {row: values}, values)
    counts = findings.counts(section, row, split)
    ends = None if counts is None else sorted(sign * (relation["by"] - 100 * end) for end in wilson_interval(*counts))
    examples = None if ends is None else (ends[0], ends[1])
    comparison = _compare(f"{section}, {split}", f"{row} {word} {relation['by']}%", differences, shown, examples)
    return [_with_learning(comparison, findings, section, (row,))]


def _trend(relation: dict[str, Any], findings: Findings) -> list[Comparison]:
    section = relation["section"]
    row, sign, word = (relation["falls"], 1, "falls") if "falls" in relation else (relation["rises"], -1, "rises")
    found = []
    for first, second in pairwise(relation["splits"]):
        before, after = findings.values(section, row, first), findings.values(section, row, second)
        seeds = sorted(before.keys() & after.keys())
        shown = _means(findings, section, {first: before, second: after}, seeds)
        differences = [sign * (before[seed] - after[seed]) for seed in seeds]
        found.append(_compare(f"{section}, {row}", f"{word} from {first} to {second}", differences, shown))
    return found


def _attends(relation: dict[str, Any], findings: Findings) -> list[Comparison]:
    row, by, kinds = relation["attends"], relation["by"], relation["kinds"]
    measured = findings.position_alone(relation["section"], row, kinds)
    where = f"{relation['section']}, {row}"
    claimed = f"some head keeps {by:.0%} more of its attention by position alone within its segment than chance explains"
    if not measured:
        shown = dict.fromkeys(kinds, MISSING)
        return [Comparison(Outcome.MISSING, where, claimed, shown, "not measured (scripts/position_alone.py)")]
    shown = {kind: f"the best head {np.mean([found[kind] for found in measured.values()]):+.1%} on average" for kind in kinds}
    differences = [max(found.values()) - by for found in measured.values()]
    # Each seed's heads were tested by themselves: seeds that say the same, such as that none is significant, decide.
    return [_compare(where, claimed, differences, shown, (min(differences), max(differences)), "the heads of each seed")]


KINDS: dict[str, Callable[[dict[str, Any], Findings], list[Comparison]]] = {
    "order": _order, "solved": _solved, "unsolved": _solved, "falls": _trend, "rises": _trend, "attends": _attends,
}  # fmt: skip


def _with_learning(comparison: Comparison, findings: Findings, section: str, rows: Sequence[str]) -> Comparison:
    """``comparison``, with the seeds that never learned what they were trained on: theirs come from too little training."""
    failed = {row: findings.failed_to_learn(section, row) for row in rows}
    told = [f"{row} did not learn the training data with {number} of the seeds" for row, number in failed.items() if number]
    return replace(comparison, detail="; ".join([comparison.detail, *told])) if told and comparison.detail else comparison


def _compare(
    where: str,
    claimed: str,
    differences: Sequence[float],
    shown: dict[str, str],
    otherwise: tuple[float, float] | None = None,
    over: str = "the examples",
) -> Comparison:
    """Whether ``differences``, one a seed, are positive.

    Args:
        shown: the figures behind them.
        otherwise: the interval that decides if all seeds say the same.
        over: what that interval is over.
    """
    if not differences:
        return Comparison(Outcome.MISSING, where, claimed, shown)
    if len(differences) == 1:
        return Comparison(Outcome.OPEN, where, claimed, shown, "a single seed")
    number = f"{len(differences)} seeds"
    interval, basis = mean_interval(differences), number
    if interval is None:
        each = f"{differences[0]:.3g} in each of {number}"
        if otherwise is None:
            return Comparison(Outcome.OPEN, where, claimed, shown, f"difference {each}, of which there is no interval")
        interval, basis = otherwise, f"over {over}; {each}"
    low, high = interval
    outcome = Outcome.HOLDS if low > 0 else Outcome.CONTRADICTED if high < 0 else Outcome.OPEN
    return Comparison(outcome, where, claimed, shown, f"difference {low:.3g} to {high:.3g}, {basis}")


def _difference_over_examples(
    findings: Findings, section: str, split: str, rows: tuple[str, str], factor: float, seeds: Collection[int]
) -> tuple[float, float] | None:
    """``factor`` times the higher's less the lower's error, from the ends of their Wilson intervals, in percentage points."""
    counts = [findings.counts(section, row, split, seeds) for row in rows]
    intervals = [wilson_interval(*found) for found in counts if found is not None]
    if len(intervals) < len(rows):
        return None
    (lower_low, lower_high), (higher_low, higher_high) = intervals
    return 100 * (factor * higher_low - lower_high), 100 * (factor * higher_high - lower_low)


def _means(findings: Findings, section: str, values: dict[str, dict[int, float]], seeds: Collection[int]) -> dict[str, str]:
    """What is compared, over the seeds that are; over all that there are where none is common."""
    metric = METRICS[findings.headline(section)]
    unit = "%" if metric.is_percentage else ""
    compared = {label: [found[seed] for seed in seeds or found] for label, found in values.items()}
    return {
        label: metric.text(float(np.mean(found)) / metric.factor) + unit if found else MISSING
        for label, found in compared.items()
    }

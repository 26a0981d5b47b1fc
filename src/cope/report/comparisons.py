"""What a claim compares: two cells of a table seed by seed, or a cell with a limit; in numbers and in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cope.errors import UserError, counted
from cope.metrics import METRICS
from cope.report.findings import Findings
from cope.report.names import row_name, section_name, split_name
from cope.report.rule import Evidence, Rule
from cope.report.statistics import MISSING

WAYS = ("falls", "rises")
POINTS, PERCENT = " points", "%"  # of an error; of a perplexity


class Outcome(StrEnum):
    """What a claim, or one of its comparisons, turned out to be."""

    HOLDS = "reproduced"
    CONTRADICTED = "contradicted"
    EQUAL = "no difference"
    OPEN = "not decided"
    MISSING = "not run"


COLUMNS = {
    Outcome.CONTRADICTED: "opposite",
    Outcome.HOLDS: "claimed",
    Outcome.EQUAL: "equal",
}  # of the evidence; first come first


def first_reached(running: pd.DataFrame, needed: float) -> Outcome:
    """What E reached first; what comes later does not take it back."""
    reached = running[(running >= needed).any(axis=1)].head(1) >= needed
    return next((outcome for outcome, column in COLUMNS.items() if reached[column].any()), Outcome.OPEN)


class Sides(NamedTuple):
    """A comparison's possible outcomes in words; ``equal`` is empty where that means nothing."""

    claimed: str
    opposite: str
    equal: str = ""


@dataclass(frozen=True)
class Comparison:
    """One relation of two cells, or of a cell and a limit, and what was found."""

    section: str
    split: str
    rows: tuple[str, ...]
    sides: Sides
    unit: str
    figures: dict[str, str]  # of each row, or split, that is compared
    evidence: Evidence
    rule: Rule
    limit: str = ""  # in words, where a cell is compared with one
    hint: str = ""  # what to do where nothing was measured
    lost: frozenset[int] = frozenset()  # seeds that are not compared, since a run of theirs ended with an error
    num_seen: int = 0  # how many are not, since their results were known when a recipe was tuned

    @property
    def where(self) -> str:
        """Section and split as people write them; once where they are the same."""
        section, split = section_name(self.section), split_name(self.split)
        return section if section.lower() == split.lower() else f"{section}, {split}"

    @cached_property
    def outcome(self) -> Outcome:
        """By the first of the three that was ever reached."""
        if not self.evidence.differences:
            return Outcome.MISSING
        return first_reached(self.evidence.running(), self.rule.needed)

    @cached_property
    def is_settled(self) -> bool:
        """Whether it is as claimed, or so close that a claim which it is a part of can be of no difference."""
        running = self.evidence.running()
        return self.outcome == Outcome.HOLDS or bool((running[["claimed", "equal"]].mean(axis=1) >= self.rule.needed).any())

    @property
    def _side(self) -> tuple[str, int, int]:
        """What is found, or looks likeliest: in words, the seeds that say so, and which way differences count for it."""
        evidence = self.evidence
        sides = {
            Outcome.HOLDS: (self.sides.claimed, evidence.wins, 1),
            Outcome.CONTRADICTED: (self.sides.opposite, evidence.losses, -1),
            Outcome.EQUAL: (self.sides.equal, evidence.close, 1),
        }
        return sides.get(self.outcome) or max(sides.values(), key=lambda side: side[1])

    @property
    def finding(self) -> str:
        """In half a sentence."""
        if not self.evidence.differences:
            seen = f" ({counted(self.num_seen, 'seed')} tuning had seen)" if self.num_seen else ""
            return f"{self.sides.claimed}: no seed yet{lost_text(self.lost)}{seen}"
        side, seeds, _ = self._side
        return f"{side} with {of_seeds(seeds, len(self.evidence.differences))}{lost_text(self.lost)}"

    @property
    def effect(self) -> str:
        """The median difference with its interval, the way that the finding names; of no difference the way that it is."""
        side, _, way = self._side
        values = [way * difference for difference in self.evidence.differences.values()]
        if not values:
            return ""
        which = ""
        if side == self.sides.equal:
            is_lower = np.median(values) >= 0
            values = values if is_lower else [-value for value in values]
            which = f"{next(iter(self.figures))} {'lower' if is_lower else 'higher'} "
        interval = self.rule.interval(values)
        low, high = (_way(value) for value in interval or (min(values), max(values)))
        known = "whenever one looks" if interval else "from seed to seed; too few for an interval"
        median = f"{np.median(values):.3g}"
        amount = f"{median}{self.unit.removesuffix('s') if median == '1' else self.unit}"
        amount = f"{amount} from {self.limit}" if self.limit else f"by {amount}"
        return f"{which}{amount} in the median ({low} to {high}, {known})"

    @property
    def text(self) -> str:
        """All of it."""
        figures = ", ".join(f"{name} {figure}" for name, figure in self.figures.items())
        parts = [f"{self.where}: {self.finding}", self.effect, figures]
        if self.evidence.differences:
            last = self.evidence.running().iloc[-1]
            said = [f"as claimed {last['claimed']:.3g}", f"opposite {last['opposite']:.3g}"]
            said += [f"no difference {last['equal']:.3g}"] if self.evidence.equivalence is not None else []
            parts.append(f"E, which decides at {self.rule.needed:g}: {', '.join(said)}")
        return "; ".join(part for part in [*parts, self.hint] if part)


@dataclass(frozen=True)
class Margins:
    """In percentage points of an error, in percent of a perplexity: by ``error`` and ``perplexity``."""

    tie: dict[str, float]
    equivalence: dict[str, float]
    rule: Rule


def rows_of(relation: dict[str, Any]) -> list[str]:
    """The rows that a relation of the plan is about."""
    return list(relation["order"]) if "order" in relation else [relation[kind] for kind in KINDS if kind in relation]


def compare(relation: dict[str, Any], margins: Margins, findings: Findings) -> list[Comparison]:
    """The comparisons that a relation of the plan stands for."""
    for kind, comparisons in KINDS.items():
        if kind in relation:
            return list(comparisons(relation, margins, findings))
    raise UserError(f"plan.yaml: {relation} has no relation; allowed: {', '.join(KINDS)}.")


def _order(relation: dict[str, Any], margins: Margins, findings: Findings) -> Iterable[Comparison]:
    section, split, factor = relation["section"], relation["split"], relation.get("factor", 1.0)
    for lower, higher in pairwise(relation["order"]):
        values = {row_name(row): findings.values(section, row, split) for row in (lower, higher)}
        a, b = values
        sides = Sides(f"{a} below {b}", f"{b} below {a}", f"{a} and {b} within")
        if factor < 1:
            share = f"{'half' if factor == 0.5 else factor} of {b}"
            sides = Sides(f"{a} at most {share}", f"{a} above {share}", f"{a} and {share} within")
        elif factor > 1:
            above = f"{100 * (factor - 1):.3g}% above {b}"
            sides = Sides(f"{a} at most {above}", f"{a} more than {above}", f"{a} and {above} within")
        yield _below(margins, findings, section, split, (lower, higher), values, sides, factor)


def _trend(relation: dict[str, Any], margins: Margins, findings: Findings) -> Iterable[Comparison]:
    section, falls = relation["section"], "falls" in relation
    row = relation["falls" if falls else "rises"]
    name = row_name(row)
    for first, second in pairwise(relation["splits"]):
        shorter, longer = ("the trained context" if split == "test" else split_name(split) for split in (first, second))
        values = {shorter: findings.values(section, row, first), longer: findings.values(section, row, second)}
        if falls:
            values = dict(reversed(values.items()))  # the second below the first
        claimed, opposite = (f"{name} {way} from {shorter} to {longer}" for way in WAYS[:: 1 if falls else -1])
        sides = Sides(claimed, opposite, f"{name} in {shorter} and {longer} within")
        yield _below(margins, findings, section, second, (row,), values, sides)


def _solved(relation: dict[str, Any], margins: Margins, findings: Findings) -> Iterable[Comparison]:
    section, split, by, solves = relation["section"], relation["split"], relation["by"], "solved" in relation
    row = relation["solved" if solves else "unsolved"]
    values = findings.values(section, row, split)
    ways = [f"{row_name(row)} {way} {by}% error" for way in ("at most", "above")]
    differences = {seed: by - value if solves else value - by for seed, value in values.items()}
    sides = Sides(*(ways if solves else ways[::-1]))
    yield Comparison(
        section, split, (row,), sides, POINTS, _means(findings, section, {row_name(row): values}),
        Evidence(differences, margins.tie["error"], None), margins.rule, limit=f"the limit of {by}%",
        lost=_lost(findings, section, (row,)),
    )  # fmt: skip


def _attends(relation: dict[str, Any], margins: Margins, findings: Findings) -> Iterable[Comparison]:
    section, row, by, kinds = relation["section"], relation["attends"], relation["by"], relation["kinds"]
    measured = findings.position_alone(section, row, kinds)
    best = {kind: 100 * float(np.mean([found[kind] for found in measured.values()])) if measured else None for kind in kinds}
    figures = {kind: MISSING if most is None else f"best head {most:+.2f}{POINTS}" for kind, most in best.items()}
    differences = {seed: 100 * max(found.values()) - by for seed, found in measured.items()}
    yield Comparison(
        section, "position alone", (row,), Sides(f"a head {by} points above chance", f"no head {by} points above chance"),
        POINTS, figures, Evidence(differences, margins.tie["error"], None), margins.rule,
        limit=f"the limit of {by}", hint="" if measured else "not measured (make figure4)",
        lost=_lost(findings, section, (row,)),
    )  # fmt: skip


KINDS: dict[str, Callable[[dict[str, Any], Margins, Findings], Iterable[Comparison]]] = {
    "order": _order, "solved": _solved, "unsolved": _solved, "falls": _trend, "rises": _trend, "attends": _attends,
}  # fmt: skip


def _below(
    margins: Margins, findings: Findings, section: str, split: str, rows: tuple[str, ...],
    values: dict[str, dict[int, float]], sides: Sides, factor: float = 1.0,
) -> Comparison:  # fmt: skip
    """Whether the first of two ``values`` is below ``factor`` times the second, seed by seed."""
    low, high = values.values()
    evidence = below(margins, findings, section, low, high, factor)
    unit = POINTS if METRICS[findings.headline(section)].is_percentage else PERCENT
    shown = {name: {seed: found[seed] for seed in evidence.differences or found} for name, found in values.items()}
    return Comparison(
        section, split, rows, sides._replace(equal=f"{sides.equal} {evidence.equivalence:g}{unit}"), unit,
        _means(findings, section, shown), evidence, margins.rule, lost=_lost(findings, section, rows),
    )  # fmt: skip


def below(
    margins: Margins, findings: Findings, section: str, low: dict[int, float], high: dict[int, float], factor: float = 1.0
) -> Evidence:
    """How far ``low`` is below ``factor`` times ``high``, seed by seed: of a perplexity in percent of it."""
    seeds = sorted(low.keys() & high.keys())
    if METRICS[findings.headline(section)].is_percentage:
        found, kind = {seed: factor * high[seed] - low[seed] for seed in seeds}, "error"
    else:
        found, kind = {seed: 100 * (1 - low[seed] / (factor * high[seed])) for seed in seeds}, "perplexity"
    return Evidence(found, margins.tie[kind], margins.equivalence[kind])


def _way(value: float) -> str:
    """A bound of a difference, its sign in words."""
    return f"{value:.3g}" if value >= 0 else f"{-value:.3g} the other way"


def lost_text(lost: Collection[int]) -> str:
    """`` (2 seeds failed)``: a side that loses what it would have lost by looks better than it is."""
    return f" ({counted(len(lost), 'seed')} failed)" if lost else ""


def of_seeds(some: int, number: int) -> str:
    """``some`` of so many seeds, in words."""
    return f"{some} of {counted(number, 'seed')}"


def _lost(findings: Findings, section: str, rows: tuple[str, ...]) -> frozenset[int]:
    return frozenset(seed for row in rows for seed in findings.failed_seeds(section, row))


def notes_on_training(parts: Iterable[Comparison], findings: Findings) -> tuple[str, ...]:
    """Which of the compared runs did not learn what they were trained on, still improved when they ended, or failed."""
    cells = list(dict.fromkeys((part.section, row) for part in parts for row in part.rows))
    is_one_section = len({section for section, _ in cells}) == 1
    unlearned, improving, failed = [], [], []
    for section, row in cells:
        name = row_name(row) if is_one_section else f"{row_name(row)} ({section_name(section)})"
        learned = findings.learned(section, row)
        if learned is not None and learned[0] < learned[1]:
            unlearned.append(f"{name} with {of_seeds(*learned)}")
        if still := findings.still_improving(section, row):
            improving.append(f"{name} with {of_seeds(still, len(findings.results(section, row)))}")
        if lost := sorted(findings.failed_seeds(section, row)):
            failed.append(f"{name} with seed {', '.join(map(str, lost))}")
    notes = {
        "Learned the training data": unlearned,
        "May still improve, steps used up before patience": improving,
        "Ended with an error, and is not compared": failed,
    }
    return tuple(f"{what}: {', '.join(found)}." for what, found in notes.items() if found)


def _means(findings: Findings, section: str, values: dict[str, dict[int, float]]) -> dict[str, str]:
    """What is compared, over the seeds that are."""
    metric = METRICS[findings.headline(section)]
    unit = "%" if metric.is_percentage else ""
    return {
        label: metric.text_of_shown(float(np.mean(list(found.values())))) + unit if found else MISSING
        for label, found in values.items()
    }

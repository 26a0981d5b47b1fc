"""A verdict on each claim of the paper, from result files alone.

``claims.yaml`` says which cells a claim compares and how. Each comparison is made over seeds, paired where two encodings were
run with the same ones: if the 95% interval of the mean (Student's t) lies wholly where the claim says, it holds; if wholly on
the other side, it is contradicted; else, or with a single seed, it stays open. All must hold for *reproduced*; one contradicted
is *not reproduced*; runs that are missing make it *not run*; the rest is *undecided*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from cope.errors import UserError
from cope.report.findings import Findings
from cope.results.metrics import METRICS
from cope.results.statistics import mean_interval


class Outcome(StrEnum):
    """What a claim, or one of its relations, turned out to be."""

    HOLDS = "reproduced"
    CONTRADICTED = "not reproduced"
    OPEN = "undecided"
    MISSING = "not run"


@dataclass(frozen=True)
class Finding:
    """One relation, and the sentence that tells what was found."""

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Verdict:
    """One claim, judged."""

    number: int
    claim: str
    source: str  # where the paper makes it
    outcome: Outcome
    findings: tuple[Finding, ...]


def read_claims() -> list[dict[str, Any]]:
    """The entries of ``claims.yaml``."""
    content: list[dict[str, Any]] = yaml.safe_load(files("cope.report").joinpath("claims.yaml").read_text(encoding="utf-8"))
    return content


def judge(claim: dict[str, Any], findings: Findings) -> Verdict:
    """The verdict on one entry of ``claims.yaml``."""
    found = [finding for relation in claim["relations"] for finding in _examine(relation, findings)]
    outcomes = {finding.outcome for finding in found}
    worst = (Outcome.CONTRADICTED, Outcome.MISSING, Outcome.OPEN, Outcome.HOLDS)
    outcome = next(candidate for candidate in worst if candidate in outcomes)
    return Verdict(claim["number"], claim["claim"], claim["source"], outcome, tuple(found))


def _examine(relation: dict[str, Any], findings: Findings) -> list[Finding]:
    for kind, examine in KINDS.items():
        if kind in relation:
            return examine(relation, findings)
    raise UserError(f"claims.yaml: {relation} has no relation; allowed: {', '.join(KINDS)}.")


def _order(relation: dict[str, Any], findings: Findings) -> list[Finding]:
    section, split, factor = relation["section"], relation["split"], relation.get("factor", 1.0)
    fraction = relation.get("at_fraction")
    found = []
    for lower, higher in pairwise(relation["order"]):
        where = f"{section}, {split}"
        if fraction is None:
            low, high = findings.values(section, lower, split), findings.values(section, higher, split)
        else:
            (low, steps), (high, others) = (findings.values_at(section, row, fraction) for row in (lower, higher))
            where += f" after {fraction:.0%} of the steps (step {', '.join(map(str, sorted(steps | others))) or 'missing'})"
        margin = "" if factor == 1.0 else f", {factor:g} times"
        claimed = f"{where}: {lower} below {higher}{margin}"
        seeds = sorted(low.keys() & high.keys())
        found.append(
            _compare(claimed, [factor * high[s] - low[s] for s in seeds], _means(findings, section, {lower: low, higher: high}))
        )
    return found


def _solved(relation: dict[str, Any], findings: Findings) -> list[Finding]:
    section, split = relation["section"], relation["split"]
    row, sign, word = (relation["solved"], 1, "at most") if "solved" in relation else (relation["unsolved"], -1, "above")
    values = findings.values(section, row, split)
    claimed = f"{section}, {split}: {row} {word} {relation['by']}%"
    return [_compare(claimed, [sign * (relation["by"] - v) for v in values.values()], _means(findings, section, {row: values}))]


def _trend(relation: dict[str, Any], findings: Findings) -> list[Finding]:
    section = relation["section"]
    row, sign, word = (relation["falls"], 1, "falls") if "falls" in relation else (relation["rises"], -1, "rises")
    found = []
    for first, second in pairwise(relation["splits"]):
        before, after = findings.values(section, row, first), findings.values(section, row, second)
        seeds = sorted(before.keys() & after.keys())
        shown = _means(findings, section, {first: before, second: after})
        found.append(
            _compare(f"{section}: {row} {word} from {first} to {second}", [sign * (before[s] - after[s]) for s in seeds], shown)
        )
    return found


def _attends(relation: dict[str, Any], findings: Findings) -> list[Finding]:
    row, by = relation["attends"], relation["by"]
    measured = findings.position_alone(relation["section"], row)
    claimed = f"{row}: some head keeps {by:.0%} more of its attention by position alone within its segment than chance explains"
    if not measured:
        return [Finding(Outcome.MISSING, f"{claimed}: not measured (scripts/position_alone.py)")]
    kinds = relation["kinds"]
    shown = ", ".join(f"{kind} {np.mean([found[kind] for found in measured.values()]):+.1%}" for kind in kinds)
    return [_compare(claimed, [max(found[kind] for kind in kinds) - by for found in measured.values()], f"at most {shown}")]


KINDS: dict[str, Callable[[dict[str, Any], Findings], list[Finding]]] = {
    "order": _order, "solved": _solved, "unsolved": _solved, "falls": _trend, "rises": _trend, "attends": _attends,
}  # fmt: skip


def _compare(claimed: str, differences: Sequence[float], shown: str) -> Finding:
    """Whether ``differences``, one a seed, are positive; ``shown`` are the figures behind them."""
    if not differences:
        return Finding(Outcome.MISSING, f"{claimed}: {shown}")
    interval = mean_interval(differences)
    if interval is None:
        return Finding(Outcome.OPEN, f"{claimed}: {shown}; a single seed")
    low, high = interval
    outcome = Outcome.HOLDS if low > 0 else Outcome.CONTRADICTED if high < 0 else Outcome.OPEN
    return Finding(outcome, f"{claimed}: {shown}; difference {low:.3g} to {high:.3g} ({len(differences)} seeds)")


def _means(findings: Findings, section: str, values: dict[str, dict[int, float]]) -> str:
    metric = METRICS[findings.headline(section)]
    parts = []
    for label, found in values.items():
        mean = metric.text(float(np.mean(list(found.values()))) / metric.factor) if found else "missing"
        parts.append(f"{label} {mean}")
    return ", ".join(parts)

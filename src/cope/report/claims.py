"""A verdict on each claim of the paper, from result files alone, by the plan in ``configs/plan.yaml``.

A claim is one or more relations between cells of tables; each is made of comparisons, seed by seed. :mod:`cope.report.rule`
says when they have decided something. A claim is *reproduced* if every comparison came out as claimed, *contradicted* if one
came out the other way, and there is *no difference* if each came out as claimed or closer than the equivalence margin.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cope.errors import UserError
from cope.report.comparisons import (
    COLUMNS,
    Comparison,
    Margins,
    Outcome,
    compare,
    first_reached,
    lost_text,
    notes_on_training,
    of_seeds,
)
from cope.report.findings import Findings
from cope.report.rule import VERDICTS, Rule, claim_evidence, e_benjamini_hochberg


@dataclass(frozen=True)
class ClaimsPlan:
    """``configs/plan.yaml``."""

    margins: Margins
    seeds: range
    last_seed_seen: int
    seen: frozenset[tuple[str, str, int]]  # section, row, seed: results that were known when a recipe was tuned anew
    claims: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, configs: Path, first_seed: int | None = None) -> ClaimsPlan:
        """The plan; with another first seed, of other seeds, such as those of results from before there was a plan."""
        content = yaml.safe_load((configs / "plan.yaml").read_text(encoding="utf-8"))
        first = content["seeds"]["first"] if first_seed is None else first_seed
        seeds = range(first, first + content["seeds"]["most"])
        tuned = yaml.safe_load((configs / "tuning.yaml").read_text(encoding="utf-8"))["seeds"]
        if used := sorted(set(seeds) & set(tuned)):
            raise UserError(f"seed {used[0]} chose settings, so that no verdict comes from it; allowed: another first_seed.")
        rule = Rule(content["alpha"], content["family_level"])
        margins = Margins(content["margin"], content["equivalence"], rule)
        seen = {
            (section, row, seed) for section, rows in content["seen"].items() for row, found in rows.items() for seed in found
        }
        return cls(margins, seeds, content["last_seed_seen"], frozenset(seen), tuple(content["claims"]))

    @property
    def is_fresh(self) -> bool:
        """Whether nobody had seen results of its seeds."""
        return min(self.seeds) > self.last_seed_seen

    @property
    def sections(self) -> set[str]:
        """Those of the tables that claims are about."""
        return {relation["section"] for claim in self.claims for relation in claim["relations"]}

    def is_seen(self, part: Comparison, seed: int) -> bool:
        """Whether a result that ``part`` would compare was known when a recipe was tuned anew."""
        return any((part.section, row, seed) in self.seen for row in part.rows)

    def with_seeds(self, number: int) -> ClaimsPlan:
        """The plan with its first seeds only."""
        return replace(self, seeds=self.seeds[:number])

    def claim(self, number: int) -> dict[str, Any]:
        """One of them."""
        found = {claim["number"]: claim for claim in self.claims}
        if number not in found:
            raise UserError(f"claim {number} is not known; allowed: {min(found)} to {max(found)}.")
        return found[number]


@dataclass(frozen=True)
class Verdict:
    """One claim, judged."""

    number: int
    topic: str  # a few words
    claim: str
    source: str  # where the paper makes it
    comparisons: tuple[Comparison, ...]
    rule: Rule
    scales: tuple[str, ...] = ()  # of the runs that were compared
    notes: tuple[str, ...] = ()  # what to know of their training
    stands_by: tuple[str, ...] = ()  # the corrections for the number of claims that it survives

    @cached_property
    def evidence(self) -> pd.DataFrame:
        """E after each seed, as :func:`claim_evidence`."""
        return claim_evidence([part.evidence for part in self.comparisons])

    @cached_property
    def outcome(self) -> Outcome:
        """The verdict."""
        missing = any(part.outcome == Outcome.MISSING for part in self.comparisons)
        if self.evidence.empty:
            return Outcome.MISSING
        ever = claim_evidence([part.evidence for part in self.comparisons], ever=True)
        outcome = first_reached(ever, self.rule.needed)
        return Outcome.MISSING if missing and outcome != Outcome.CONTRADICTED else outcome

    @property
    def e_now(self) -> float:
        """Of the verdict, or of the nearest one, with every seed that there is."""
        if self.evidence.empty:
            return 1.0
        last = self.evidence.iloc[-1]
        return float(last[COLUMNS[self.outcome]] if self.outcome in COLUMNS else last.max())

    @property
    def seeds(self) -> int:
        """How many the comparison with fewest has."""
        return min(len(part.evidence.differences) for part in self.comparisons)

    @property
    def label(self) -> str:
        """The verdict in words, with its margin or number of seeds."""
        if self.outcome == Outcome.EQUAL:
            margins = {f"{part.evidence.equivalence:g}{part.unit}" for part in self._telling()}
            return f"no difference over {', '.join(sorted(margins))}"
        if self.outcome == Outcome.OPEN:
            most = max(len(part.evidence.differences) for part in self._telling())
            return f"not decided after {most} seed{'s' * (most != 1)}"
        return str(self.outcome)

    @property
    def finding(self) -> str:
        """In half a sentence."""
        first, *others = self._telling()
        if self.outcome == Outcome.HOLDS and others:
            shares = [(part.evidence.wins, len(part.evidence.differences)) for part in self.comparisons]
            won, number = min(shares, key=lambda share: share[0] / share[1])
            parts = "both" if len(self.comparisons) == 2 else f"all {len(self.comparisons)}"
            lost = frozenset[int]().union(*(part.lost for part in self.comparisons))
            return f"{parts} parts with {of_seeds(won, number)}{' or more' if won < number else ''}{lost_text(lost)}"
        return first.finding

    @property
    def summary(self) -> str:
        """What decided, or what is open, part by part."""
        return "; ".join(part.finding for part in self._telling()) + "."

    def line(self, width: int) -> str:
        """All of it; what a line of ``width`` characters has no room for goes on below."""
        head = f"{self.number:2} {self.outcome:13} {self.topic:24} "
        return textwrap.fill(self.finding, max(width, len(head) + 20), initial_indent=head, subsequent_indent=" " * len(head))

    def _telling(self) -> list[Comparison]:
        """The comparisons that made it so, else all of them; the furthest from what is claimed first."""
        found = [part for part in self.comparisons if part.outcome == self.outcome] or list(self.comparisons)
        return sorted(found, key=lambda part: part.evidence.running()["claimed"].tail(1).sum())

    def as_json(self) -> dict[str, Any]:
        """What ``verdicts.json`` holds of it."""
        described = {key: getattr(self, key) for key in ("number", "topic", "claim", "source", "outcome", "label", "finding")}
        described |= {"seeds": self.seeds, "e_value": float(f"{self.e_now:.4g}"), "stands_by": list(self.stands_by)}
        found = [{"outcome": part.outcome, "text": part.text} for part in self.comparisons]
        return described | {
            "summary": self.summary, "scales": list(self.scales), "findings": found, "notes": list(self.notes)
        }  # fmt: skip


def judge_all(plan: ClaimsPlan, findings: Findings) -> list[Verdict]:
    """The verdict on every claim, in the paper's order, and which stand together."""
    verdicts = [judge(claim, plan, findings) for claim in plan.claims]
    values = [float(value) for verdict in verdicts if not verdict.evidence.empty for value in verdict.evidence.iloc[-1]]
    hypotheses, level = VERDICTS * len(verdicts), plan.margins.rule.family_level
    needed = {"e-BH": e_benjamini_hochberg(values, hypotheses, level), "Bonferroni": hypotheses / level}
    return [
        replace(verdict, stands_by=tuple(name for name, least in needed.items() if verdict.e_now >= least))
        if verdict.outcome in COLUMNS else verdict
        for verdict in verdicts
    ]  # fmt: skip


def judge(claim: dict[str, Any], plan: ClaimsPlan, findings: Findings) -> Verdict:
    """The verdict on one claim, by itself."""
    parts = [_unseen(part, plan) for relation in claim["relations"] for part in compare(relation, plan.margins, findings)]
    used = {seed for part in parts for seed in part.evidence.differences}
    if others := sorted(used - set(plan.seeds)):
        raise UserError(
            f"seed {others[0]} is none of the plan's ({plan.seeds[0]} to {plan.seeds[-1]}): no verdict comes from it."
        )
    scales = sorted({scale for part in parts for scale in findings.scales(part.section, part.rows)})
    return Verdict(
        claim["number"], claim["topic"], claim["claim"], claim["source"], tuple(parts), plan.margins.rule, tuple(scales),
        notes_on_training(parts, findings),
    )  # fmt: skip


def _unseen(part: Comparison, plan: ClaimsPlan) -> Comparison:
    """``part`` without the seeds whose results were known when a recipe was tuned anew."""
    found = {seed: value for seed, value in part.evidence.differences.items() if not plan.is_seen(part, seed)}
    lost = frozenset(seed for seed in part.lost if not plan.is_seen(part, seed))
    num_seen = len(part.evidence.differences) - len(found)
    return replace(part, evidence=replace(part.evidence, differences=found), lost=lost, num_seen=num_seen)

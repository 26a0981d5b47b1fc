"""The verdicts as they are printed and written: a line each, one in full, and Markdown."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Sequence

from cope.lines import WIDTH, width_of
from cope.report.claims import ClaimsPlan, Verdict
from cope.report.comparisons import COLUMNS

OLD_SEEDS = "These seeds were seen before the plan was made: what follows shows how the rule works, and decides nothing."


LONGEST_LINE = 100


def line_width() -> int:
    """Of what is printed: the terminal's, but no more than is read with ease."""
    return min(LONGEST_LINE, width_of(sys.stdout))


def claim_lines(verdicts: Sequence[Verdict], plan: ClaimsPlan, width: int = WIDTH) -> str:
    """A line for each claim, folded at ``width``, and how many there are of each verdict."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    decided = [verdict for verdict in verdicts if verdict.outcome in COLUMNS]
    together = {name: sum(name in verdict.stands_by for verdict in decided) for name in ("e-BH", "Bonferroni")}
    total = f"{', '.join(f'{number} {outcome}' for outcome, number in counts.items())}."
    if decided:
        total += (
            f"\nEach verdict stands by itself. With all claims together {together['e-BH']} of {len(decided)} would stand by "
            f"e-BH, {together['Bonferroni']} by Bonferroni."
        )
    return "\n".join([*_heading(plan), *(verdict.line(width) for verdict in verdicts), "", total])


def claim_in_full(verdicts: Sequence[Verdict], plan: ClaimsPlan, number: int, width: int = WIDTH) -> str:
    """All there is to know of one claim, folded at ``width``."""
    plan.claim(number)
    verdict = next(verdict for verdict in verdicts if verdict.number == number)
    signs = f"E is the evidence for an outcome; {verdict.rule.needed:g} decides. Intervals hold whenever one looks."
    lines = [*_heading(plan), *_in_full(verdict), "", f"{signs} More: docs/reproducing.md."]
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  " * line.startswith("- ")) for line in lines)


def _heading(plan: ClaimsPlan) -> list[str]:
    return [] if plan.is_fresh else [OLD_SEEDS, ""]


def _in_full(verdict: Verdict) -> list[str]:
    lines = [f"{verdict.number}. {verdict.claim} ({verdict.source}): {verdict.label}", ""]
    lines += [f"- {part.outcome}: {part.text}" for part in verdict.comparisons]
    lines += ["", *verdict.notes] if verdict.notes else []
    if verdict.outcome in COLUMNS:
        others = [name for name in ("e-BH", "Bonferroni") if name not in verdict.stands_by]
        holds = f"holds by {' and '.join(verdict.stands_by)}" if verdict.stands_by else "does not hold"
        lines += ["", f"With all claims together it {holds}" + (f", not by {' or '.join(others)}." if others else ".")]
    return lines


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    lines = ["| claim | where | found | verdict |", "|---|---|---|---|"]
    lines += [f"| {v.number}. {v.claim} | {v.source} | {v.finding} | **{v.label}** |" for v in verdicts]
    return "\n".join(lines)


def verdict_reasons(verdicts: Sequence[Verdict]) -> str:
    """Each verdict with its comparisons and their numbers, in Markdown."""
    told = [_in_full(verdict) for verdict in verdicts]
    return "\n\n".join("\n".join([f"## {first}", *rest]) for first, *rest in told)

"""Every cell of every table as one row of numbers: what CSV, LaTeX, pictures and the page are made from.

Errors are in percent. What has not been run is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from cope.metrics import METRICS
from cope.report.comparisons import Margins, below
from cope.report.findings import Findings
from cope.report.paper import paper_values
from cope.report.plan_sheets import no_figure
from cope.report.rule import e_value
from cope.report.statistics import interquartile_mean, mean_and_spread, probability_lower, wilson_interval
from cope.sweep.plan import Plan

BASELINE = "cope"


def cells(plans: Iterable[Plan], findings: Findings) -> pd.DataFrame:
    """One row for each table, section, row and split: statistics over seeds, and the paper's figure.

    state: finished, or without any finished run failed (one ended with an error) or missing
    values: of each seed, with spaces between
    iqm, iqm_low, iqm_high: the interquartile mean and its 95% bootstrap interval over seeds
    learned, learned_low, learned_high: the share of seeds with at most 5% error on the validation split, which is drawn as the
        training data are, and Wilson's interval of it; NaN for perplexities
    still_improving: seeds that still improved when their steps were used up; NaN where that was not recorded
    difference: our mean less the paper's; NaN for perplexities unless the scale is the paper's, since those of other texts and
        vocabularies cannot be compared
    """
    rows = []
    for plan, identity in _places(plans, findings):
        section, row, split = (identity[key] for key in ("section", "row", "split"))
        values = list(findings.values(section, row, split).values())
        figure, spread = [*paper_values().get(section, {}).get(row, {}).get(split, []), np.nan, np.nan][:2]
        metric = METRICS[findings.headline(section)]
        failed = findings.failures(section)[row]
        summary = _summary(values)
        learned = findings.learned(section, row)
        improving = findings.still_improving(section, row)
        comparable = metric.is_percentage or identity["scale"] == "paper"
        rows.append(
            {"table": plan.name}
            | identity
            | {"state": "finished" if values else no_figure(failed), "seeds": len(values), "failed": failed}
            | summary
            | _learned(learned)
            | {"still_improving": np.nan if improving is None else improving, "values": " ".join(f"{v:.6g}" for v in values)}
            | {"paper": figure, "paper_std": spread, "difference": summary["mean"] - figure if comparable else np.nan}
        )
    return pd.DataFrame(rows)


def differences(plans: Iterable[Plan], findings: Findings, margins: Margins) -> pd.DataFrame:
    """One row for each row beside ``cope``, section and split: how far CoPE is below it, seed by seed.

    difference, low, high: the mean; the interval of the median by the rule. In percentage points of an error, in percent of
        the row's perplexity: above 0, CoPE is better
    cope_lower, cope_higher, ties: seeds; e_lower, e_higher: what they say, see ``rule.py``
    probability: that a run of CoPE is below a run of the other, whatever their seeds
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}  # a section that several tables share is one
    for plan, identity in _places(plans, findings):
        section, row, split = (identity[key] for key in ("section", "row", "split"))
        if row == BASELINE or BASELINE not in plan.rows(section):
            continue
        ours, others = (findings.values(section, name, split) for name in (BASELINE, row))
        evidence = below(margins, findings, section, ours, others)
        found, wins, losses = list(evidence.differences.values()), evidence.wins, evidence.losses
        low, high = margins.rule.interval(found) or (np.nan, np.nan)
        rows[section, row, split] = identity | {
            "seeds": len(found), "difference": float(np.mean(found)) if found else np.nan, "low": low, "high": high,
            "cope_lower": wins, "cope_higher": losses, "ties": len(found) - wins - losses,
            "e_lower": e_value(wins, losses), "e_higher": e_value(losses, wins),
            "probability": probability_lower([*ours.values()], [*others.values()]) if ours and others else np.nan,
        }  # fmt: skip
    return pd.DataFrame(list(rows.values()))


def _places(plans: Iterable[Plan], findings: Findings) -> Iterator[tuple[Plan, dict[str, Any]]]:
    """Every cell, and what it is of."""
    for plan in plans:
        for section in plan.sections:
            for row, run in plan.rows(section).items():
                for split in findings.shown_splits(plan, section):
                    yield plan, {
                        "section": section, "row": row, "task": run.folder.task, "encoding": run.folder.encoding,
                        "scale": run.scale, "split": split, "metric": METRICS[findings.headline(section)].label,
                    }  # fmt: skip


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("mean", "std", "median", "iqm", "iqm_low", "iqm_high"), np.nan)
    mean, deviation = mean_and_spread(values)
    iqm, low, high = interquartile_mean(values)
    spread = np.nan if deviation is None else deviation
    return {"mean": mean, "std": spread, "median": float(np.median(values)), "iqm": iqm, "iqm_low": low, "iqm_high": high}


def _learned(found: tuple[int, int] | None) -> dict[str, float]:
    if found is None:
        return dict.fromkeys(("learned", "learned_low", "learned_high"), np.nan)
    low, high = wilson_interval(*found)
    return {"learned": found[0] / found[1], "learned_low": low, "learned_high": high}

"""How far each encoding is from CoPE: paired differences over seeds, and differences of proportions over examples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cope.metrics import METRICS
from cope.report.findings import Findings, task_and_encoding
from cope.report.statistics import mean_interval, newcombe_interval, paired_p_value
from cope.sweep.plan import Plan

BASELINE = "cope"


def differences(plans: Iterable[Plan], findings: Findings) -> pd.DataFrame:
    """One row for each row beside ``cope``, section and split: how much more error or perplexity it has than ``cope``.

    Errors are in percentage points. Only seeds that both were run with count. What has not been run is NaN.

    low, high, p_value: of the mean paired difference over seeds (Student's t); p-values are not corrected for their number
    examples_low, examples_high: Newcombe's 95% interval of the difference of two proportions, from the answers of those
    seeds together, as if each were independent of the others
    """
    rows: dict[tuple[str, str, str], dict[str, object]] = {}  # a section that several tables share is one
    for plan in plans:
        for section in plan.sections:
            runs = {run.row: run for run in plan.runs if run.section == section}
            if BASELINE not in runs:
                continue
            for label in [label for label in runs if label != BASELINE]:
                for split in findings.shown_splits(plan, section):
                    own, baseline = (findings.values(section, row, split) for row in (label, BASELINE))
                    common = own.keys() & baseline.keys()
                    task, encoding = task_and_encoding(runs[label])
                    rows[section, label, split] = {
                        "section": section,
                        "row": label,
                        "task": task,
                        "encoding": encoding,
                        "split": split,
                        "metric": METRICS[findings.headline(section)].label,
                        **_over_seeds(own, baseline),
                        **_over_examples(*(findings.counts(section, row, split, common) for row in (label, BASELINE))),
                    }
    return pd.DataFrame(list(rows.values()))


def _over_seeds(others: dict[int, float], baseline: dict[int, float]) -> dict[str, float]:
    seeds = sorted(others.keys() & baseline.keys())
    if not seeds:
        return {**dict.fromkeys(("difference", "low", "high", "p_value"), np.nan), "seeds": 0}
    first, second = [others[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    found = [one - other for one, other in zip(first, second, strict=True)]
    low, high = mean_interval(found) or (np.nan, np.nan)
    p_value = paired_p_value(first, second)
    return {
        "difference": float(np.mean(found)),
        "low": low,
        "high": high,
        "p_value": np.nan if p_value is None else p_value,
        "seeds": len(seeds),
    }


def _over_examples(others: tuple[int, int] | None, baseline: tuple[int, int] | None) -> dict[str, float]:
    if others is None or baseline is None:
        return {"examples_low": np.nan, "examples_high": np.nan}
    low, high = newcombe_interval(others, baseline)
    return {"examples_low": 100 * low, "examples_high": 100 * high}

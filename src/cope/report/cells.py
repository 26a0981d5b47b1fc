"""Every cell of every table as one row of numbers: what CSV, LaTeX and the page are made from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cope.metrics import METRICS
from cope.report.findings import Findings, task_and_encoding
from cope.report.markdown import no_figure
from cope.report.paper import paper_values
from cope.report.statistics import mean_and_spread, mean_interval, wilson_interval
from cope.sweep.plan import Plan


def cells(plans: Iterable[Plan], findings: Findings) -> pd.DataFrame:
    """One row for each table, section, row and split: statistics over seeds, and the paper's figure.

    Errors are in percent. What has not been run is NaN.

    state: complete, partial, or without any finished run failed (every run ended with an error) or missing
    low, high: the 95% interval of the mean over seeds (Student's t), of an error cut at 0 and 100, which no mean can pass
    seeds, planned, failed: runs that are finished, that the table asks for, and that ended with an error
    failed_to_learn: finished seeds with more than 5% error on the validation split, which is drawn as the training data are;
        NaN for perplexities
    examples_low, examples_high: Wilson's 95% interval of an error from the answers of all seeds together, as if each were
        independent of the others: it tells how well the test set measures, not how much seeds differ
    difference: our mean less the paper's; NaN for perplexities unless the scale is the paper's, since those of other texts and
        vocabularies cannot be compared
    """
    published = paper_values()
    rows = []
    for plan in plans:
        for section in plan.sections:
            runs = {run.row: run for run in plan.runs if run.section == section}
            failed = findings.failures(section)
            paper = published.get(section, {})
            for label in runs:
                for split in findings.shown_splits(plan, section):
                    values = list(findings.values(section, label, split).values())
                    figure, spread = [*paper.get(label, {}).get(split, []), np.nan, np.nan][:2]
                    task, encoding = task_and_encoding(runs[label])
                    metric = METRICS[findings.headline(section)]
                    learned = findings.failed_to_learn(section, label)
                    comparable = metric.is_percentage or runs[label].scale == "paper"
                    examples_low, examples_high = _interval_over_examples(findings.counts(section, label, split))
                    rows.append(
                        {
                            "table": plan.name,
                            "section": section,
                            "row": label,
                            "task": task,
                            "encoding": encoding,
                            "split": split,
                            "metric": metric.label,
                            "state": _state(len(values), failed[label], len(plan.seeds)),
                            **_statistics(values, 100.0 if metric.is_percentage else np.inf),
                            "planned": len(plan.seeds),
                            "failed": failed[label],
                            "failed_to_learn": np.nan if learned is None else learned,
                            "examples_low": examples_low,
                            "examples_high": examples_high,
                            "paper": figure,
                            "paper_std": spread,
                            "difference": float(np.mean(values)) - figure if values and comparable else np.nan,
                        }
                    )
    return pd.DataFrame(rows)


def _state(num_finished: int, num_failed: int, num_seeds: int) -> str:
    if num_finished:
        return "complete" if num_finished == num_seeds else "partial"
    return no_figure(num_failed, num_seeds)


def _statistics(values: list[float], largest: float) -> dict[str, float]:
    """Of the seeds, the mean's interval within 0 to ``largest``; NaN where there are too few values."""
    if not values:
        return {**dict.fromkeys(("mean", "std", "low", "high", "median"), np.nan), "seeds": 0}
    low, high = np.clip(mean_interval(values) or (np.nan, np.nan), 0.0, largest)
    mean, deviation = mean_and_spread(values)
    spread = np.nan if deviation is None else deviation
    median = float(np.median(values))
    return {"mean": mean, "std": spread, "low": float(low), "high": float(high), "median": median, "seeds": len(values)}


def _interval_over_examples(counts: tuple[int, int] | None) -> tuple[float, float]:
    """In percent."""
    if counts is None:
        return np.nan, np.nan
    low, high = wilson_interval(*counts)
    return 100 * low, 100 * high

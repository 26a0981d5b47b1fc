"""Every cell of every table as one row of numbers: what CSV, LaTeX and the page are made from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cope.report.comparison import paper_figures
from cope.report.findings import Findings
from cope.report.plan import Plan
from cope.results.metrics import METRICS
from cope.results.statistics import mean_interval

COLUMNS = ["table", "section", "row", "split", "metric", "mean", "std", "low", "high", "median", "seeds", "planned"]
COLUMNS += ["paper", "paper_std"]


def cells(plans: Iterable[Plan], findings: Findings) -> pd.DataFrame:
    """One row for each table, section, row and split: statistics over seeds, and the paper's figure.

    Errors are in percent. ``low`` and ``high`` are the 95% interval of the mean (Student's t); what has not been run is NaN.
    """
    published = paper_figures()
    rows = []
    for plan in plans:
        for section in plan.sections:
            labels = dict.fromkeys(run.row for run in plan.runs if run.section == section)
            paper = published.get(section, {})
            splits = plan.splits or findings.splits(section) or tuple(dict.fromkeys(s for row in paper.values() for s in row))
            for label in labels:
                for split in splits:
                    values = list(findings.values(section, label, split).values())
                    metric = METRICS[findings.headline(section)].label
                    figures = [*paper.get(label, {}).get(split, []), np.nan, np.nan][:2]
                    rows.append((plan.name, section, label, split, metric, *_statistics(values), len(plan.seeds), *figures))
    return pd.DataFrame(rows, columns=COLUMNS)


def _statistics(values: list[float]) -> tuple[float, float, float, float, float, int]:
    """Mean, standard deviation, the mean's interval, median and number; NaN where there are too few values."""
    if not values:
        return (np.nan,) * 5 + (0,)
    low, high = mean_interval(values) or (np.nan, np.nan)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return float(np.mean(values)), deviation, low, high, float(np.median(values)), len(values)

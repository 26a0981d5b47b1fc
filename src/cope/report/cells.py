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

COLUMNS = [
    "table", "section", "row", "split", "metric", "mean", "std", "low", "high", "median", "seeds", "planned", "paper", "paper_std",
]  # fmt: skip


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
                    interval = mean_interval(values) if len(values) > 1 else None
                    figures = paper.get(label, {}).get(split, [])
                    rows.append(
                        (
                            *(plan.name, section, label, split, METRICS[findings.headline(section)].label),
                            *((np.mean(values), np.std(values, ddof=1)) if len(values) > 1 else (*values, *[np.nan] * (2 - len(values)))),
                            *(interval or (np.nan, np.nan)),
                            *(np.median(values) if values else np.nan, len(values), len(plan.seeds)),
                            *(figures + [np.nan, np.nan])[:2],
                        )
                    )
    return pd.DataFrame(rows, columns=COLUMNS)

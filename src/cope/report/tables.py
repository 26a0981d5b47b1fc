"""How a mean over seeds is written in tables."""

from __future__ import annotations

from cope.metrics import Metric
from cope.report.statistics import mean_and_spread

MISSING = "missing"


def spread(values: list[float], metric: Metric) -> str:
    """``1.23 (0.45)``: mean and standard deviation; no bracket for a single value."""
    if not values:
        return MISSING
    mean, deviation = mean_and_spread(values)
    return metric.text(mean) if deviation is None else f"{metric.text(mean)} ({metric.text(deviation, mean)})"

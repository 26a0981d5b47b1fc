"""Intervals and spreads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, sem, t


def wilson_interval(errors: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), as fractions.

    It treats the trials as independent; answers of one sequence are not quite, so for token errors it is somewhat too narrow.
    """
    interval = binomtest(errors, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None for the latter where there is a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of independent values; None for a single one, of which nothing can be said."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(sem(values))
    reach = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean - reach, mean + reach

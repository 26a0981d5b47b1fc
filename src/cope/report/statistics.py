"""Intervals, spreads and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, sem, t, ttest_rel


def wilson_interval(errors: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), as fractions.

    It treats the trials as independent; answers of one sequence are not quite, so for token errors it is somewhat too narrow.
    """
    interval = binomtest(errors, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; the latter None for a single value, 0 if they differ by rounding only."""
    if len(values) == 1:
        return float(values[0]), None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if _vary(values) else 0.0


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of independent values; None for a single one, or without any spread: t is not defined."""
    if not _vary(values):
        return None
    mean, error = float(np.mean(values)), float(sem(values))
    reach = float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def paired_p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's paired test of equal means; None with one pair, or if all differences are the same."""
    return float(ttest_rel(first, second).pvalue) if _vary(np.subtract(first, second)) else None


def _vary(values: Sequence[float] | np.ndarray) -> bool:
    """Whether values differ by more than rounding: errors in percent are quotients times 100."""
    return len(values) > 1 and float(np.ptp(values)) > 1e-9 * max(1.0, float(np.max(np.abs(values))))


def newcombe_interval(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference, first minus second, of two independent proportions, each given as (errors, count).

    It joins their Wilson intervals (Newcombe 1998, "Interval estimation for the difference between independent proportions",
    method 10).
    """
    p, q = (errors / count for errors, count in (first, second))
    p_low, p_high = wilson_interval(*first, confidence)
    q_low, q_high = wilson_interval(*second, confidence)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)

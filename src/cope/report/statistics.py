"""What a handful of seeds is summed up by.

Each run needs the first few of these; ``scipy.stats``, which takes a second to import, is imported by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

from cope.metrics import Metric

RESAMPLES = 2000
MISSING = "missing"  # what stands where there is no value


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), as fractions; of examples it treats each as independent."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrunk = successes / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrunk
    half = z / shrunk * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - half if successes else 0.0), (middle + half if successes < count else 1.0)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; the latter None for a single value, 0 if they differ by rounding only."""
    if len(values) == 1:
        return float(values[0]), None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if _vary(values) else 0.0


def spread(values: list[float], metric: Metric) -> str:
    """``1.23 (0.45)``: mean and standard deviation, as tables have them; no bracket for a single value."""
    if not values:
        return MISSING
    mean, deviation = mean_and_spread(values)
    return metric.text(mean) if deviation is None else f"{metric.text(mean)} ({metric.text(deviation, mean)})"


def interquartile_mean(*strata: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the middle half of all values, and its 95% interval, for which each stratum is resampled by itself.

    Agarwal et al. 2021, arXiv 2108.13264: strata are tasks, or splits; of one cell there is one. NaN for less than two values.
    """
    from scipy.stats import bootstrap, trim_mean

    def middle(*resampled: np.ndarray, axis: int) -> np.ndarray:
        found: np.ndarray = trim_mean(np.concatenate(resampled, axis=axis), 0.25, axis=axis)
        return found

    mean = float(middle(*map(np.asarray, strata), axis=0))
    if min(map(len, strata)) < 2:
        return mean, np.nan, np.nan
    if not any(map(_vary, strata)):
        return mean, mean, mean
    found = bootstrap(
        strata, middle, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return mean, float(found.low), float(found.high)


def probability_lower(first: Sequence[float], second: Sequence[float]) -> float:
    """That a seed of ``first`` is below one of ``second``, an equal one counting half: Mann and Whitney's U over the pairs."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(second, first).statistic) / (len(first) * len(second))


def _vary(values: Sequence[float]) -> bool:
    """Whether values differ by more than rounding: errors in percent are quotients times 100."""
    return len(values) > 1 and float(np.ptp(values)) > 1e-9 * max(1.0, float(np.max(np.abs(values))))

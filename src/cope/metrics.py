"""The metrics that runs are judged by: what each is called, and how it is printed. Less is better in all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How one metric is shown."""

    label: str
    is_percentage: bool = False
    counts: tuple[str, str] | None = None  # of a split: the two whose quotient it is, where it is a proportion

    @property
    def factor(self) -> float:
        """From the number in ``result.json`` to the one shown."""
        return 100.0 if self.is_percentage else 1.0

    def text(self, value: float, size: float | None = None) -> str:
        """``value`` as it is printed, with more digits where a small percentage would look like none.

        Args:
            size: of the number that it belongs to, such as a mean of which it is the standard deviation: it has its digits.
        """
        if self.is_percentage:
            return percent(value)
        size = value if size is None else size
        if size >= 1e5:
            return f"{value:.3g}"
        return f"{value:.2f}" if size < 1000 else f"{value:,.0f}"

    def text_of_shown(self, value: float, size: float | None = None) -> str:
        """The same of a value as it is shown: of an error in percent."""
        return self.text(value / self.factor, size)


METRICS = {
    "error": Metric("sequence error %", is_percentage=True, counts=("errors", "count")),
    "token_error": Metric("token error %", is_percentage=True, counts=("token_errors", "token_count")),
    "perplexity": Metric("perplexity"),
    "word_perplexity": Metric("perplexity per word"),
    "bits_per_byte": Metric("bits per byte"),
}

LABELLED = {metric.label: metric for metric in METRICS.values()}


def percent(fraction: float) -> str:
    """As the paper prints it: 0.0123 -> ``1.2``, with more digits where a small number would look like none."""
    value = 100 * fraction
    digits = 1 if value == 0 or value >= 0.1 else -math.floor(math.log10(value))
    return f"{value:.{digits}f}"


def is_out_of_distribution(split: str) -> bool:
    """What the name of a split says of it."""
    return split.startswith(("ood_", "longer_"))


def test_and_worst(scores: dict[str, float]) -> tuple[float, float | None]:
    """Of one metric by split: that of ``test``, and the worst of the splits out of distribution, if there are any."""
    test = scores["test"] if "test" in scores else next(iter(scores.values()))
    return test, max((score for split, score in scores.items() if is_out_of_distribution(split)), default=None)


def shown(metrics: dict[str, float]) -> dict[str, float]:
    """Those of ``metrics`` that are metrics, not counts."""
    return {name: value for name, value in metrics.items() if name in METRICS}

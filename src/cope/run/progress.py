"""One line on a terminal for a run that trains: its loss, scores and speed, and the time left. Log lines appear above it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cope.metrics import Metric


class ProgressLine:
    """What is told between two steps.

    Args:
        metric: the task's headline.
        is_shown: whether there is a terminal to draw on.
    """

    def __init__(self, metric: Metric, is_shown: bool) -> None:
        self.metric = metric
        self.is_shown = is_shown
        self.loss = 0.0  # since the last line of train/loss
        self.tokens_per_s = 0.0
        self.scores: dict[str, float] = {}  # the headline of the last validation, by what it is of
        self._bar: tqdm[Any]

    @contextmanager
    def drawn(self, step: int, last_step: int) -> Iterator[None]:
        """Inside, the line is there."""
        with (
            tqdm(
                total=last_step, initial=step, disable=not self.is_shown, dynamic_ncols=True, leave=False,
                file=sys.stderr, bar_format="{n_fmt}/{total_fmt} |{bar}| {desc}  {remaining} left",
            ) as self._bar,
            logging_redirect_tqdm() if self.is_shown else nullcontext(),
        ):  # fmt: skip
            yield

    def one_step(self) -> None:
        """Another step is done."""
        self._bar.update()

    def tell(self, last_step: int) -> None:
        """Draw it with what is known now; a run may have found out that it ends earlier."""
        unit = "%" * self.metric.is_percentage
        rate = self.tokens_per_s
        parts = [
            f"loss {self.loss:#.3g}".rstrip("."),  # as wide at each step
            *(f"{name} {self.metric.text(value)}{unit}" for name, value in self.scores.items()),
            f"{rate:,.0f} tokens/s" if rate < 1000 else f"{rate / 1000:,.0f}k tokens/s",
        ]
        self._bar.total = last_step
        self._bar.set_description_str("  ".join(parts))

"""What a model scored on a set of examples, as counts: a task turns them into its metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

LARGEST_EXPONENT = 700.0  # e to this is still a number; so bad a model needs no more digits


@dataclass(frozen=True)
class Score:
    """Counts of one split. A sequence is wrong if any of its answer tokens is; every token is predicted from the true past."""

    count: int  # sequences
    errors: int  # sequences with a wrong answer
    token_count: int  # answer tokens
    token_errors: int
    loss: float  # mean cross-entropy of the answer tokens, nats
    num_cut: int  # sequences shortened or left out because they did not fit the context

    def as_stored(self) -> Score:
        """With the largest loss that is stored in place of one that is no number: files of results hold none."""
        return self if math.isfinite(self.loss) else replace(self, loss=LARGEST_EXPONENT)

    @property
    def error(self) -> float:
        """Fraction of sequences that are wrong."""
        return self.errors / self.count

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; of one so large that there is no such number, the largest that is stored."""
        return math.exp(min(self.loss, LARGEST_EXPONENT))

    @property
    def token_error(self) -> float:
        """Fraction of answer tokens that are wrong."""
        return self.token_errors / self.token_count

"""When seeds have decided something: a rule that holds whenever one looks.

Two encodings are compared seed by seed. A difference of less than the margin is a tie; of the others some are won and some
lost. If the other side is as likely to win, or likelier, then

    E(w, l) = 2^(w+l+1) B(w+1, l+1) (1 - I_1/2(w+1, l+1))

is at most 1 on average after every seed: it is the likelihood of w wins and l losses under a chance of winning above 1/2 (every
one alike), over that under 1/2. So it ever reaches c with a probability of at most 1/c (Ville's inequality), however often one
looks and whenever one stops. A verdict is one of three, so each needs ``3 / alpha``: a false one has a probability of at most
alpha. With alpha = 0.05 that is 60: nine seeds of nine, 12 of 13, 14 of 16, 17 of 20.

The same E, of "closer than the equivalence margin" for a win, shows that there is no difference worth the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log

import numpy as np
import pandas as pd
from scipy.special import betaincc, betaln

VERDICTS = 3  # as claimed, the opposite, no difference


@cache
def e_value(wins: int, losses: int) -> float:
    """See above."""
    return exp((wins + losses + 1) * log(2) + betaln(wins + 1, losses + 1) + log(betaincc(wins + 1, losses + 1, 0.5)))


@dataclass(frozen=True)
class Rule:
    """What decides.

    Args:
        alpha: the probability of a false verdict on a claim.
        family_level: the share of false verdicts among all that are given (e-BH), or the probability of any (Bonferroni).
    """

    alpha: float
    family_level: float

    @property
    def needed(self) -> float:
        """The E at which a verdict is given."""
        return VERDICTS / self.alpha

    def interval(self, values: Sequence[float]) -> tuple[float, float] | None:
        """Of the median of what seeds are drawn from, whenever one looks: what the rule does not exclude on either side.

        None while there are too few seeds to exclude anything.
        """
        ordered, number = sorted(values), len(values)
        excluded = [below for below in range(number) if e_value(number - below, below) >= self.needed]
        if not excluded:
            return None
        return ordered[max(excluded)], ordered[number - 1 - max(excluded)]


@dataclass(frozen=True)
class Evidence:
    """What the seeds say of one comparison.

    Args:
        differences: by seed, in the order of the plan; above 0 if it is as claimed.
        margin: what is less is a tie.
        equivalence: what is less is no difference worth the name; None where that means nothing.
    """

    differences: Mapping[int, float]
    margin: float
    equivalence: float | None

    @property
    def wins(self) -> int:
        """Seeds that are as claimed."""
        return sum(d >= self.margin for d in self.differences.values())

    @property
    def losses(self) -> int:
        """Seeds that are the opposite."""
        return sum(-d >= self.margin for d in self.differences.values())

    @property
    def close(self) -> int:
        """Seeds within the equivalence margin."""
        return sum(abs(d) < (self.equivalence or 0) for d in self.differences.values())

    def running(self) -> pd.DataFrame:
        """E after each seed, as ``claimed``, ``opposite`` and ``equal``."""
        rows, won, lost, close = [], 0, 0, 0
        for number, difference in enumerate(self.differences.values(), 1):
            won += difference >= self.margin
            lost += -difference >= self.margin
            close += abs(difference) < (self.equivalence or 0)
            equal = 0.0 if self.equivalence is None else e_value(close, number - close)
            rows.append((e_value(won, lost), e_value(lost, won), equal))
        return pd.DataFrame(rows, index=pd.Index(self.differences, name="seed"), columns=["claimed", "opposite", "equal"])


def claim_evidence(parts: Sequence[Evidence], ever: bool = False) -> pd.DataFrame:
    """E of a claim of several parts after each seed, as :meth:`Evidence.running`.

    It is as claimed if every part is, so the least E counts. It is contradicted if one part is: the mean of their E is at
    most 1 on average while none is. There is no difference where every part is as claimed or equal, which two E ask together.

    Args:
        ever: each part by the most that it ever came to, since parts need not be decided by the same seed; what E is now is
            no longer in it.
    """
    running = pd.concat({index: part.running() for index, part in enumerate(parts)}, axis=1)
    running = running.sort_index().ffill().fillna(1.0)
    claimed, opposite, equal = (running.xs(name, axis=1, level=1) for name in ("claimed", "opposite", "equal"))
    either = (claimed + equal) / 2
    if ever:
        claimed, either = claimed.cummax(), either.cummax()
    return pd.DataFrame({"claimed": claimed.min(axis=1), "opposite": opposite.mean(axis=1), "equal": either.min(axis=1)})


def e_benjamini_hochberg(values: Sequence[float], num_hypotheses: int, level: float) -> float:
    """The E from which on verdicts stand together: at most ``level`` of them are false on average, however they depend on one
    another (Wang and Ramdas 2022). Infinite if none does.

    Args:
        values: of some hypotheses, the largest among them.
        num_hypotheses: all that there are.
    """
    needed = np.inf
    for rank, value in enumerate(sorted(values, reverse=True), 1):
        if value >= num_hypotheses / (level * rank):
            needed = value
    return float(needed)

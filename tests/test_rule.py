"""The rule: how often it errs, whatever the seeds do and whenever one looks, and what it needs to see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import CONFIGS

from cope.errors import UserError
from cope.report.claims import ClaimsPlan
from cope.report.rule import Evidence, Rule, claim_evidence, e_benjamini_hochberg, e_value
from cope.report.statistics import interquartile_mean, probability_lower

PLAN = ClaimsPlan.read(CONFIGS)
RULE = PLAN.margins.rule
REPEATS = 300


def chance_of_a_verdict(win: float, loss: float) -> float:
    """That E of wins ever reaches what is needed within the plan's seeds: exactly, not by simulation."""
    going_on, reached = {(0, 0): 1.0}, 0.0
    for _ in PLAN.seeds:
        following: dict[tuple[int, int], float] = defaultdict(float)
        for (wins, losses), chance in going_on.items():
            for state, share in (((wins + 1, losses), win), ((wins, losses + 1), loss), ((wins, losses), 1 - win - loss)):
                if e_value(*state) >= RULE.needed:
                    reached += chance * share
                else:
                    following[state] += chance * share
        going_on = following
    return reached


@pytest.mark.parametrize("win", [0.5, 0.4, 0.2, 0.05])
def test_each_false_verdict_has_at_most_its_share_of_alpha(win: float) -> None:
    for loss in (win, 1 - win):
        assert 0 <= chance_of_a_verdict(win, loss) <= RULE.alpha / 3
    assert chance_of_a_verdict(0.5, 0.5) > 0.005  # it is not so by never giving one


@pytest.mark.parametrize(("win", "loss", "found"), [(1, 0, 1), (0.95, 0.05, 0.996), (0.9, 0.1, 0.94), (0.8, 0.2, 0.55)])
def test_what_is_there_is_found(win: float, loss: float, found: float) -> None:
    assert chance_of_a_verdict(win, loss) >= found


def errors(rng: np.random.Generator, learns: float) -> np.ndarray:
    """Of seeds that learn, 0 to 2% of answers are wrong, of others 20 to 60%."""
    shape = (REPEATS, len(PLAN.seeds))
    return np.where(rng.random(shape) < learns, rng.uniform(0, 2, shape), rng.uniform(20, 60, shape))


def verdicts(differences: np.ndarray) -> pd.Series:
    """The share of rows in which each verdict is ever given, looking after every seed."""
    margins = (PLAN.margins.tie["error"], PLAN.margins.equivalence["error"])
    given = [(Evidence(dict(enumerate(row)), *margins).running() >= RULE.needed).any() for row in differences]
    return pd.DataFrame(given).mean()


def test_outcomes_with_two_modes() -> None:
    rng = np.random.default_rng(1)
    same = verdicts(errors(rng, 0.7) - errors(rng, 0.7))
    assert same.sum() <= RULE.alpha, same
    other = verdicts(errors(rng, 0.05) - errors(rng, 0.95))
    assert other["claimed"] >= 0.98 and other[["opposite", "equal"]].sum() == 0, other
    equal = verdicts(rng.normal(0, 0.15, (REPEATS, len(PLAN.seeds))))
    assert equal["equal"] > 0.98 and equal[["claimed", "opposite"]].sum() <= RULE.alpha, equal


def test_a_claim_of_several_parts_errs_no_more_than_one() -> None:
    rng = np.random.default_rng(4)
    needed, seeds = RULE.needed, len(PLAN.seeds)

    def share(columns: Sequence[str], *parts: Callable[[], np.ndarray]) -> float:
        def claim() -> pd.DataFrame:
            return claim_evidence([Evidence(dict(enumerate(part())), 0.05, 0.5) for part in parts], ever=True)

        return float(np.mean([(claim()[list(columns)] >= needed).any().any() for _ in range(100)]))

    sure, coin = (lambda: np.full(seeds, 9.0)), (lambda: rng.choice([-5.0, 5.0], seeds))
    assert share(["claimed", "opposite", "equal"], coin, coin, coin) <= RULE.alpha
    assert share(["claimed", "equal"], sure, coin) <= RULE.alpha  # as claimed only if every part is
    assert share(["opposite"], sure, lambda: -sure()) == 1.0  # one part is enough
    assert share(["claimed"], sure, sure) == 1.0 == share(["equal"], sure, lambda: np.full(seeds, 0.01))


def test_the_evidence_of_a_claim_by_hand() -> None:
    """Two parts: one as claimed with each of three seeds, one that is close, and so far has two of them."""
    above = Evidence({101: 9.0, 102: 9.0, 103: 9.0}, margin=0.05, equivalence=0.5)
    close = Evidence({102: 0.01, 103: -0.02}, margin=0.05, equivalence=0.5)
    assert (above.wins, above.losses, above.close) == (3, 0, 0)
    assert (close.wins, close.losses, close.close) == (0, 0, 2)
    found = claim_evidence([above, close])
    assert list(found.index) == [101, 102, 103]
    for wins, (_, evidence) in enumerate(found.iterrows(), start=1):
        of_close = wins - 1  # seeds that it has
        assert evidence["claimed"] == 1.0  # the least of both: nothing is known of the second
        assert evidence["opposite"] == pytest.approx((e_value(0, wins) + 1.0) / 2)
        of_above, of_second = (e_value(wins, 0) + e_value(0, wins)) / 2, (1.0 + e_value(of_close, 0)) / 2
        assert evidence["equal"] == pytest.approx(min(of_above, of_second))
    without = claim_evidence([Evidence({101: 9.0}, margin=0.05, equivalence=None)])
    assert without.loc[101, "equal"] == pytest.approx(e_value(1, 0) / 2)  # where no difference is too small to matter


def test_evidence_that_was_enough_once_counts_though_later_seeds_went_the_other_way() -> None:
    part = Evidence({seed: 9.0 if seed < 109 else -9.0 for seed in range(100, 120)}, margin=0.05, equivalence=0.5)
    assert claim_evidence([part]).loc[119, "claimed"] < 1
    assert claim_evidence([part], ever=True).loc[119, "claimed"] == pytest.approx(e_value(9, 0))


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [(0, 0, 1.0), (1, 0, 1.5), (0, 1, 0.5), (7, 0, 255 / 8), (8, 0, 511 / 9), (9, 0, 1023 / 10)],
)
def test_e_by_hand(wins: int, losses: int, expected: float) -> None:
    # Of wins alone the integral of (2p)^w over 1/2 to 1, times 2, is (2^(w+1) - 1) / (w + 1).
    assert e_value(wins, losses) == pytest.approx(expected)


def test_e_is_one_on_average_whatever_comes_next() -> None:
    for wins in range(12):
        for losses in range(12):
            assert (e_value(wins + 1, losses) + e_value(wins, losses + 1)) / 2 == pytest.approx(e_value(wins, losses))


def test_an_interval_holds_what_the_rule_cannot_exclude() -> None:
    assert RULE.interval([1.0] * 8) is None
    assert RULE.interval([3.0, 1.0, 2.0, *[5.0] * 6]) == (1.0, 5.0)  # nine: all of them
    values = list(range(24))
    low, high = RULE.interval(values) or (0, 0)
    assert e_value(24 - low, low) >= RULE.needed > e_value(24 - low - 1, low + 1) and high == 23 - low
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(100):  # while seeds come in, the median is outside at some time in at most alpha of all cases
        drawn = rng.exponential(size=24)
        found = [interval for number in range(1, 25) if (interval := RULE.interval(drawn[:number].tolist()))]
        missed += any(not low <= np.log(2) <= high for low, high in found)
    assert missed <= 100 * RULE.alpha


def test_verdicts_that_stand_together() -> None:
    # 10 hypotheses at level 0.1: the k largest must be at least 100 / k.
    assert e_benjamini_hochberg([100.0], 10, 0.1) == 100.0
    assert e_benjamini_hochberg([60.0, 51.0, 3.0], 10, 0.1) == 51.0
    assert e_benjamini_hochberg([60.0, 49.0], 10, 0.1) == np.inf == e_benjamini_hochberg([], 10, 0.1)


# ---- the plan --------------------------------------------------------------------------------------------------------------


def test_reported_seeds_are_none_that_were_seen_or_tuned_on() -> None:
    tuned = yaml.safe_load((CONFIGS / "tuning.yaml").read_text())["seeds"]
    assert tuned and not set(PLAN.seeds) & set(tuned) and min(PLAN.seeds) > 31
    assert PLAN.is_fresh and not ClaimsPlan.read(CONFIGS, first_seed=1).is_fresh
    with pytest.raises(UserError, match=r"seed 901 chose settings, so that no verdict comes from it"):
        ClaimsPlan.read(CONFIGS, first_seed=900)


def test_the_rule_follows_from_the_plan() -> None:
    assert Rule(alpha=0.05, family_level=0.05) == RULE and RULE.needed == pytest.approx(60)
    assert [claim["number"] for claim in PLAN.claims] == list(range(1, 18))
    with pytest.raises(UserError, match=r"claim 18 is not known; allowed: 1 to 17"):
        PLAN.claim(18)


# ---- what stands beside a verdict --------------------------------------------------------------------------------------------


def test_the_interquartile_mean_and_its_interval() -> None:
    assert interquartile_mean([0.0, 1.0, 2.0, 100.0]) == (
        1.5,
        0.0,
        100.0,
    )  # of four values the middle half of a draw may be any of them
    mean, low, high = interquartile_mean(np.random.default_rng(1).normal(size=400).tolist())
    assert low < mean < high and high - low == pytest.approx(4 * 1.09 / 20, rel=0.15)  # 1.19 / 400 is its variance
    assert interquartile_mean([2.0] * 5) == (2.0, 2.0, 2.0)
    assert np.isnan(interquartile_mean([2.0])[1:]).all()
    # Strata that differ do not widen it: each is drawn from by itself.
    _, low, high = interquartile_mean([0.0, 0.1] * 4, [10.0, 10.1] * 4)
    assert high - low < 0.2


def test_the_probability_of_improvement() -> None:
    assert probability_lower([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert probability_lower([1.0, 3.0], [2.0]) == 0.5 == probability_lower([1.0], [1.0])

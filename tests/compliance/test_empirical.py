"""What guesses prove: against the theorem by other means, and against mechanisms whose epsilon is known."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, norm

from compliance.empirical import (
    MOST_EPSILON,
    Guesses,
    area,
    epsilon_lower_bound,
    most_true,
    p_value,
    roc,
)

AUDITS = 400  # of one mechanism: 5 % of them is 20, give or take 13 (three standard deviations)
TOO_MANY = 0.05 + 3 * math.sqrt(0.05 * 0.95 / AUDITS)
bound = cache(epsilon_lower_bound)


# --- the theorem -------------------------------------------------------------------------------------
def by_the_theorem(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Theorem 5.2 read off the page: a binomial tail, and delta times the steepest way down from it."""
    guessing = binom(guesses.made, 1 / (1 + math.exp(-epsilon)))
    v = guesses.right
    steepest = max(((guessing.cdf(v - 1) - guessing.cdf(v - i - 1)) / i for i in range(1, v + 1)), default=0.0)
    return float(min(1.0, guessing.sf(v - 1) + 2 * guesses.canaries * delta * steepest))


CASES = [  # right, made, canaries
    (0, 0, 0), (0, 0, 5), (0, 1, 1), (1, 1, 1), (0, 40, 40), (40, 40, 40), (33, 40, 40), (33, 40, 1000),
    (600, 1000, 1000), (700, 1000, 4000), (999, 1000, 1000),
]  # fmt: skip
EPSILONS, DELTAS = (0.0, 0.3, 2.0, 8.0), (0.0, 1e-9, 1e-5, 0.01)


@pytest.mark.parametrize(("counts", "epsilon", "delta"), [*product(CASES, EPSILONS, DELTAS)])
def test_the_chance_of_doing_as_well_is_the_theorems(
    counts: tuple[int, int, int], epsilon: float, delta: float
) -> None:
    guesses = Guesses(*counts)
    assert p_value(guesses, epsilon, delta) == pytest.approx(by_the_theorem(guesses, epsilon, delta), rel=1e-8)


def test_small_cases_by_hand() -> None:
    assert p_value(Guesses(2, 2, 2), 0.0, 0.0) == pytest.approx(1 / 4)
    assert p_value(Guesses(2, 2, 2), math.log(3), 0.0) == pytest.approx(9 / 16)
    assert p_value(Guesses(1, 2, 2), 0.0, 0.0) == pytest.approx(3 / 4)
    assert p_value(Guesses(0, 2, 2), 0.0, 0.0) == pytest.approx(1)
    assert p_value(Guesses(2, 2, 2), 0.0, 0.01) == pytest.approx(1 / 4 + 2 * 2 * 0.01 * 1 / 2)  # i = 1: P[B = 1]


@pytest.mark.parametrize("epsilon", [40.0, 700.0, 1e6])
def test_against_next_to_no_privacy_any_number_of_right_guesses_is_likely(epsilon: float) -> None:
    assert p_value(Guesses(900, 900, 900), epsilon, 1e-5) == pytest.approx(1)


NONSENSE = {
    "more right than made": (3, 2, 2),
    "more made than canaries": (1, 3, 2),
    "fewer than none right": (-1, 2, 2),
}


@pytest.mark.parametrize("counts", NONSENSE.values(), ids=NONSENSE)
def test_guesses_that_do_not_add_up_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{counts[0]} right of {counts[1]} guesses on {counts[2]} canaries"):
        Guesses(*counts)


# --- the bound ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("made", "delta"), [(30, 0.0), (80, 1e-5), (80, 1e-3)])
def test_more_right_guesses_never_prove_less(made: int, delta: float) -> None:
    """All that makes the search for the bound sound: who does better refutes every epsilon that others refute."""
    bounds = [bound(Guesses(right, made, 2 * made), delta) for right in range(made + 1)]
    assert all(more >= less for less, more in pairwise(bounds))
    assert bounds[made // 2] == 0.0
    assert bounds[-1] > 2


def test_guessing_at_half_proves_nothing() -> None:
    for made in (0, 1, 2, 50, 3000):
        assert bound(Guesses(made // 2, made, made), 0.0) == 0.0


def test_a_handful_of_right_guesses_proves_nothing() -> None:
    assert bound(Guesses(4, 4, 4), 0.0) == 0.0  # one in 16
    assert 0 < bound(Guesses(5, 5, 5), 0.0) < 0.25  # one in 32


def test_the_bound_is_the_last_epsilon_that_is_refuted() -> None:
    for guesses, delta in ((Guesses(150, 200, 400), 1e-5), (Guesses(200, 200, 200), 0.0)):
        for confidence in (0.9, 0.95, 0.999):
            found = epsilon_lower_bound(guesses, delta, confidence=confidence)
            assert by_the_theorem(guesses, found, delta) <= 1 - confidence
            assert by_the_theorem(guesses, found + 2e-3, delta) > 1 - confidence


def test_who_wants_more_confidence_is_shown_less() -> None:
    bounds = [epsilon_lower_bound(Guesses(150, 200, 200), 0.0, confidence=sure) for sure in (0.5, 0.9, 0.95, 0.999)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 4


def test_all_right_proves_as_much_as_there_are_guesses() -> None:
    """With chance q each, all n are right with q^n: 0.05^(1/n) is refuted, whose odds are about n / 3."""
    for made in (50, 500):
        chance = 0.05 ** (1 / made)
        expected = math.log(chance / (1 - chance))
        assert bound(Guesses(made, made, made), 0.0) == pytest.approx(expected, abs=2e-3)
        assert expected < MOST_EPSILON


def test_a_larger_delta_explains_more_right_guesses_away() -> None:
    bounds = [bound(Guesses(180, 200, 400), delta) for delta in (0.0, 1e-5, 1e-4, 1e-3, 1e-1)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[2] > bounds[-1] == 0.0


def test_coins_nobody_guessed_count_where_delta_may_give_them_away() -> None:
    assert bound(Guesses(90, 100, 10_000), 1e-4) < bound(Guesses(90, 100, 100), 1e-4)
    assert bound(Guesses(90, 100, 10_000), 0.0) == bound(Guesses(90, 100, 100), 0.0)


# --- mechanisms whose epsilon is known ---------------------------------------------------------------
def of_randomised_response(epsilon: float, coins: int, audits: int = AUDITS) -> list[float]:
    """Each coin is told right with odds e^epsilon: exactly epsilon-private, and nothing to do better than repeat it."""
    chance = 1 / (1 + math.exp(-epsilon))
    right = np.random.default_rng(int(100 * epsilon) + coins).binomial(coins, chance, audits)
    return [bound(Guesses(int(one), coins, coins), 0.0) for one in right]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("coins", [40, 300])
def test_the_truth_is_refuted_in_no_more_than_five_audits_of_a_hundred(epsilon: float, coins: int) -> None:
    found = of_randomised_response(epsilon, coins)
    assert statistics.mean(one > epsilon for one in found) <= TOO_MANY


def test_five_of_a_hundred_are_not_given_away_either() -> None:
    """A bound that is never above the truth is as wrong about its 95 % as one that often is."""
    assert statistics.mean(one > 1.0 for one in of_randomised_response(1.0, 300)) >= 0.015


@pytest.mark.parametrize("coins", [40, 300, 1000])
def test_the_first_count_that_refutes_the_truth_is_the_first_that_is_rare_enough(coins: int) -> None:
    """The same without chance: the law of the right guesses is known."""
    truth = binom(coins, 1 / (1 + math.exp(-1.0)))
    first = bisect_left(range(coins + 1), True, key=lambda right: bound(Guesses(right, coins, coins), 0.0) > 1.0)
    assert truth.sf(first - 1) <= 0.05 < truth.sf(first - 2)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_with_many_guesses_the_bound_comes_close_to_the_truth(epsilon: float) -> None:
    found = of_randomised_response(epsilon, 3000, audits=6)
    assert 0.8 * epsilon < statistics.mean(found) < epsilon


def giving_some_away(epsilon: float, delta: float, coins: int, guessed: int, audits: int) -> list[Guesses]:
    """(epsilon, delta)-private at its worst: a coin is told with probability delta, else by randomised response.

    The attacker knows which were told and commits himself on `guessed` coins, those first.
    """
    rng = np.random.default_rng(11)
    told = np.minimum(guessed, rng.binomial(coins, delta, audits))
    right = told + rng.binomial(guessed - told, 1 / (1 + math.exp(-epsilon)))
    return [Guesses(int(one), guessed, coins) for one in right]


def test_what_delta_gives_away_does_not_refute_epsilon() -> None:
    found = giving_some_away(0.5, 0.02, coins=2000, guessed=60, audits=AUDITS)
    assert statistics.mean(bound(one, 0.02) > 0.5 for one in found) <= TOO_MANY
    assert statistics.mean(bound(one, 0.0) > 0.5 for one in found) > 0.95, "the attack is one that delta must explain"


# --- the attacker's curve ----------------------------------------------------------------------------
def pairs_in_order(scores: Sequence[float], members: Sequence[bool]) -> float:
    """The area by its meaning: how often a member scores above a stranger, a tie being half."""
    inside = [score for score, is_in in zip(scores, members, strict=True) if is_in]
    outside = [score for score, is_in in zip(scores, members, strict=True) if not is_in]
    pairs = [0.5 * (one == other) + (one > other) for one, other in product(inside, outside)]
    return statistics.mean(pairs)


MARKED = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 1e9]) | st.floats(-10, 10), st.booleans()),
                  min_size=2, max_size=40).filter(lambda rows: len({is_in for _, is_in in rows}) == 2)  # fmt: skip


@given(MARKED)
@settings(deadline=None)
def test_the_area_is_how_often_a_member_scores_above_a_stranger(rows: list[tuple[float, bool]]) -> None:
    scores, members = [score for score, _ in rows], [is_in for _, is_in in rows]
    curve = roc(scores, members)
    assert area(curve) == pytest.approx(pairs_in_order(scores, members), abs=1e-12)
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert all(left[0] <= right[0] and left[1] <= right[1] for left, right in pairwise(curve))
    assert len(curve) == 1 + len(set(scores))


def test_the_curve_by_hand() -> None:
    assert roc([3, 2, 1], [True, False, True]) == [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0)]


def test_equal_scores_are_one_point_in_whatever_order_they_come() -> None:
    assert roc([1, 1, 1, 1], [True, False, False, True]) == [(0.0, 0.0), (1.0, 1.0)]
    assert roc([2, 1, 1, 0], [True, True, False, False]) == roc([2, 1, 1, 0], [True, False, True, False])


def test_knowing_has_area_one_and_knowing_the_wrong_way_round_none() -> None:
    assert area(roc([2, 1], [True, False])) == 1.0
    assert area(roc([1, 2], [True, False])) == 0.0
    assert area(roc([1, 1], [True, False])) == 0.5


@pytest.mark.parametrize("members", [[True, True], [False, False], []])
def test_without_both_kinds_there_is_no_curve(members: list[bool]) -> None:
    with pytest.raises(ValueError, match="in and canaries that were not"):
        roc([1.0] * len(members), members)


def test_scores_without_a_verdict_each_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        roc([1.0], [True, False])


# --- the most that an attack can find -----------------------------------------------------------------
def best_test(inside: NDArray[np.float64], outside: NDArray[np.float64], false: float) -> float:
    """The best attack on two distributions over a few outcomes (Neyman and Pearson): the likeliest outcomes first."""
    found = 0.0
    ratio = np.divide(inside, outside, out=np.full_like(inside, np.inf), where=outside > 0)
    for place in np.argsort(-ratio):
        share = min(1.0, false / outside[place]) if outside[place] > 0 else 1.0
        found, false = found + share * inside[place], max(0.0, false - share * outside[place])
    return float(found)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.1])
def test_the_worst_mechanism_there_is_gives_away_exactly_the_most(epsilon: float, delta: float) -> None:
    """Kairouz, Oh and Viswanath: told outright with delta, else randomised response; nothing leaks more."""
    grown = math.exp(epsilon)
    inside = np.array([delta, (1 - delta) * grown / (1 + grown), (1 - delta) / (1 + grown), 0.0])
    for false in np.linspace(0, 1, 101):
        assert most_true(epsilon, delta, false) == pytest.approx(best_test(inside, inside[::-1], false), abs=1e-12)


def test_an_attack_on_gaussian_noise_stays_below_the_most() -> None:
    """Sensitivity 1, deviation 1.5, at the exact delta of each epsilon (Balle and Wang 2018, theorem 8)."""
    deviation, false = 1.5, np.geomspace(1e-6, 1, 200)
    attack = norm.sf(norm.isf(false) - 1 / deviation)
    slack = []
    for epsilon in (0.1, 0.5, 1.0, 2.0):
        half = 1 / (2 * deviation)
        delta = norm.cdf(half - epsilon * deviation) - math.exp(epsilon) * norm.cdf(-half - epsilon * deviation)
        most = np.array([most_true(epsilon, float(delta), one) for one in false])
        assert (attack <= most + 1e-12).all()
        slack.append((most - attack).min())
    assert min(slack) < 1e-3, "the bound touches the attack somewhere, so it is not just large"


def test_nothing_private_lets_everybody_be_found_and_perfect_privacy_nobody_beyond_chance() -> None:
    for false in (0.0, 0.25, 1.0):
        assert most_true(0.0, 0.0, false) == pytest.approx(false)
    assert most_true(0.0, 1.0, 0.0) == 1.0
    assert most_true(1e9, 0.0, 1e-9) == pytest.approx(1.0)
    assert most_true(1e9, 0.0, 0.0) == 0.0

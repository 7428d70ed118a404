"""The accountant against integrals, against Google's, and against the laws that any accountant obeys."""

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant as google
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from boundary.names import Frozen
from compliance.accountant import (
    MOST_ROUNDS,
    NOISE_PRECISION,
    ORDERS,
    epsilon,
    noise_multiplier_for,
    rdp,
    steps_left,
)
from compliance.errors import NotAccountable, OutOfReach, UnknownPrivacyEvent
from compliance.privacy import LARGEST_NOISE_MULTIPLIER, SMALLEST_NOISE_MULTIPLIER, Budget, PoissonGaussian

DELTA = 1e-5
GRID = [  # sampling rate, noise multiplier
    (0.01, 1.0), (0.05, 1.5), (0.2, 3.0), (0.5, 6.0), (1.0, 10.0), (0.01, 0.6), (0.3, 0.6), (0.9, 2.0), (1.0, 1.0),
    (0.001, 20.0), (1e-6, 1.0), (1 - 1e-9, 4.0), (0.3, 100.0),
]  # fmt: skip


def release(rate: float, noise: float, steps: int = 1) -> PoissonGaussian:
    return PoissonGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)


RELEASES = st.builds(release, st.floats(1e-4, 1), st.floats(0.5, 50), st.integers(1, 2000))
DELTAS = st.sampled_from((1e-3, 1e-5, 1e-8))


# --- Renyi divergence --------------------------------------------------------------------------------
def divergence(order: int, rate: float, noise: float, *, removed: bool) -> float:
    """The Renyi divergence by its definition: an integral, here on a grid that leaves only the rounding of doubles."""
    reach = 14 * noise + order
    x = np.linspace(-reach, reach, 200_001)
    without = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(math.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + (2 * x - 1) / (2 * noise**2))
    integrand = without + ratio * (order if removed else 1 - order)
    top = integrand.max()
    return float(top + np.log(np.exp(integrand - top).sum() * (x[1] - x[0]))) / (order - 1)


@pytest.mark.parametrize(("rate", "noise"), GRID)
def test_one_step_costs_its_renyi_divergence_in_the_worse_direction(rate: float, noise: float) -> None:
    ours = dict(zip(ORDERS, rdp(release(rate, noise)), strict=True))
    for order in (2, 3, 8, 33, 128):
        exact = divergence(order, rate, noise, removed=True)
        assert ours[order] == pytest.approx(exact, rel=1e-8, abs=2e-11)
        assert ours[order] >= divergence(order, rate, noise, removed=False) * (1 - 1e-9) - 2e-11


def test_everybody_in_every_step_is_the_plain_gaussian() -> None:
    assert rdp(release(1.0, 4.0, 3)) == pytest.approx([3 * order / (2 * 4.0**2) for order in ORDERS], rel=1e-8)
    assert rdp(release(1 - 1e-14, 4.0, 3)) == pytest.approx(rdp(release(1.0, 4.0, 3)), rel=1e-8)


@pytest.mark.parametrize(("rate", "noise"), [*GRID, (1e-9, 1e3), (0.5, 0.01), (1e-300, 1.0)])
def test_it_never_errs_downwards(rate: float, noise: float) -> None:
    """Also where an integral would only give rounding errors: the series is positive, so its first term is below it."""
    ours = rdp(release(rate, noise))
    for order, cost in zip(ORDERS, ours, strict=True):
        first = order * (order - 1) / 2 * rate**2 * (1 - rate) ** (order - 2) * math.expm1(min(1 / noise**2, 700))
        assert cost * (order - 1) >= math.log1p(first)
    assert all(later >= sooner for sooner, later in pairwise(ours))


# --- epsilon -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(("rate", "noise"), GRID)
def test_epsilon_is_what_googles_accountant_finds_at_the_same_orders(rate: float, noise: float, delta: float) -> None:
    event = release(rate, noise, 200)
    theirs, _ = google.compute_epsilon(np.array(ORDERS, float), np.array(rdp(event)), delta)
    found = epsilon([event], delta)
    assert found >= theirs * (1 - 1e-12)
    assert found == pytest.approx(theirs, rel=1e-9) or theirs == 0  # it has a special rule for hardly anything
    assert found <= epsilon([event], delta / 2)


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0.0


def test_a_delta_that_pays_for_everything_leaves_no_epsilon() -> None:
    assert epsilon([release(0.001, 100.0)], 0.5) == 0.0


ROUNDING = 1e-12  # relative: of events that differ by less than a float can tell in epsilon


@given(st.lists(RELEASES, min_size=2, max_size=5), st.randoms(use_true_random=False), DELTAS)
@settings(deadline=None, max_examples=25)
def test_the_order_of_releases_does_not_matter(events: list[PoissonGaussian], chance: Any, delta: float) -> None:
    shuffled = list(events)
    chance.shuffle(shuffled)
    assert epsilon(shuffled, delta) == epsilon(events, delta)


@given(RELEASES, st.integers(1, 2000), DELTAS)
@settings(deadline=None, max_examples=40)
def test_one_release_in_two_parts_costs_the_same(event: PoissonGaussian, more: int, delta: float) -> None:
    parts = [event, event.model_copy(update={"steps": more})]
    assert epsilon(parts, delta) == epsilon([event.model_copy(update={"steps": event.steps + more})], delta)


@given(RELEASES, RELEASES, DELTAS, st.floats(1.01, 3))
@settings(deadline=None, max_examples=30)
def test_more_steps_more_patients_or_less_noise_cost_more(
    event: PoissonGaussian, other: PoissonGaussian, delta: float, factor: float
) -> None:
    cost = epsilon([event], delta)
    worse: dict[str, Any] = {
        "steps": math.ceil(event.steps * factor),
        "sampling_rate": min(1.0, event.sampling_rate * factor),
        "noise_multiplier": event.noise_multiplier / factor,
    }
    for field, value in worse.items():
        assert epsilon([event.model_copy(update={field: value})], delta) >= cost * (1 - ROUNDING)
    assert (
        cost * (1 - ROUNDING)
        <= epsilon([event, other], delta)
        <= cost + epsilon([other], delta / 1e3) + epsilon([event], delta / 1e3)
    )


# --- what is refused ---------------------------------------------------------------------------------
class Laplace(Frozen):
    mechanism: str = "laplace"
    unit: str = "patient"
    noise_multiplier: float = 1.0
    sampling_rate: float = 0.1
    steps: int = 1


FOREIGN: dict[str, Any] = {
    "another mechanism": Laplace(),
    "no event at all": None,
    "the numbers without their mechanism": (1.0, 0.1, 1),
    "per image": release(0.1, 1.0).model_copy(update={"unit": "image"}),
}


@pytest.mark.parametrize("event", FOREIGN.values(), ids=FOREIGN)
def test_what_it_does_not_know_is_refused_not_ignored(event: Any) -> None:
    with pytest.raises(UnknownPrivacyEvent):
        rdp(event)
    with pytest.raises(UnknownPrivacyEvent):
        epsilon([release(0.1, 1.0), event], DELTA)
    with pytest.raises(UnknownPrivacyEvent):
        noise_multiplier_for(Budget(epsilon=1, delta=DELTA), 0.1, 1, [event])
    with pytest.raises(UnknownPrivacyEvent):
        steps_left(Budget(epsilon=1, delta=DELTA), event, [])


@pytest.mark.parametrize("field", ["noise_multiplier", "sampling_rate", "steps"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, 1e300])
def test_an_event_that_was_copied_past_its_checks_is_refused(field: str, value: float) -> None:
    with pytest.raises(NotAccountable):
        epsilon([release(0.1, 1.0).model_copy(update={field: value})], DELTA)


@pytest.mark.parametrize("delta", [math.nan, math.inf, 0.0, 1.0, -1e-5, 2.0])
def test_a_delta_out_of_range_is_refused_even_for_nothing(delta: float) -> None:
    with pytest.raises(NotAccountable):
        epsilon([], delta)


# --- the other way round -----------------------------------------------------------------------------
BUDGETS = st.builds(Budget, epsilon=st.floats(0.1, 20), delta=DELTAS)


@given(BUDGETS, st.floats(1e-3, 1), st.integers(1, 5000))
@settings(deadline=None, max_examples=12)
def test_the_noise_for_a_budget_meets_it_and_a_thousandth_less_does_not(
    target: Budget, rate: float, steps: int
) -> None:
    noise = noise_multiplier_for(target, rate, steps)
    assert epsilon([release(rate, noise, steps)], target.delta) <= target.epsilon
    assert epsilon([release(rate, noise / (1 + 2 * NOISE_PRECISION), steps)], target.delta) > target.epsilon


@given(st.floats(1e-3, 1), st.floats(0.6, 20), st.integers(1, 2000))
@settings(deadline=None, max_examples=12)
def test_the_budget_of_some_noise_gives_that_noise(rate: float, noise: float, steps: int) -> None:
    cost = epsilon([release(rate, noise, steps)], DELTA)
    found = noise_multiplier_for(Budget(epsilon=cost, delta=DELTA), rate, steps)
    assert found == pytest.approx(noise, rel=2 * NOISE_PRECISION)
    assert found >= noise * (1 - 1e-9)


def test_what_was_spent_before_asks_for_more_noise() -> None:
    target, before = Budget(epsilon=2, delta=DELTA), [release(0.02, 1.5, 200), release(1.0, 10.0, 5)]
    noise = noise_multiplier_for(target, 0.02, 500, before)
    assert noise > noise_multiplier_for(target, 0.02, 500)
    assert epsilon([*before, release(0.02, noise, 500)], DELTA) <= 2
    assert epsilon([*before, release(0.02, noise / 1.002, 500)], DELTA) > 2


def test_a_budget_that_no_noise_meets_is_refused_with_the_reason() -> None:
    spent = [release(0.5, 1.0, 50)]
    with pytest.raises(OutOfReach, match=r"epsilon 1 at delta 1e-05 .*: 28 is spent before the first of 9 steps"):
        noise_multiplier_for(Budget(epsilon=1, delta=DELTA), 0.1, 9, spent)
    with pytest.raises(OutOfReach, match="0 is spent"):  # below what the largest order can vouch for
        noise_multiplier_for(Budget(epsilon=1e-4, delta=1e-9), 1.0, 1)
    assert noise_multiplier_for(Budget(epsilon=0.02, delta=DELTA), 1.0, 10**6) < LARGEST_NOISE_MULTIPLIER


def test_a_budget_that_any_noise_meets_gets_the_least_there_is() -> None:
    assert noise_multiplier_for(Budget(epsilon=1e6, delta=DELTA), 0.1, 1) == SMALLEST_NOISE_MULTIPLIER


@given(BUDGETS, st.lists(RELEASES, max_size=2))
@settings(deadline=None, max_examples=30)
def test_as_many_rounds_fit_as_it_says_and_not_one_more(budget: Budget, already: list[PoissonGaussian]) -> None:
    a_round = release(0.02, 1.1, 20)
    rounds = steps_left(budget, a_round, already)
    assume(rounds < MOST_ROUNDS)
    assert epsilon([*already, *[a_round] * (rounds + 1)], budget.delta) > budget.epsilon
    assert rounds == 0 or epsilon([*already, *[a_round] * rounds], budget.delta) <= budget.epsilon


def test_rounds_that_cost_nearly_nothing_end_at_the_highest_round() -> None:
    assert steps_left(Budget(epsilon=50, delta=DELTA), release(1e-6, 100.0), []) == MOST_ROUNDS


def test_all_rounds_of_a_plan_fit_its_own_noise() -> None:
    """What a hospital works out from the plan's epsilon must carry it through the last round."""
    budget = Budget(epsilon=4, delta=1e-6)
    noise = noise_multiplier_for(budget, 0.03, 40 * 25)
    assert steps_left(budget, release(0.03, noise, 25), []) == 40


# --- where it runs -----------------------------------------------------------------------------------
LIGHT = """
import sys
from compliance import accountant, errors, ledger, privacy, trail
print(sorted({"numpy", "scipy", "torch", "opacus", "dp_accounting", "httpx", "prefect"} & set(sys.modules)))
"""


def test_the_daemon_can_import_it_without_numpy_or_torch() -> None:
    child = subprocess.run([sys.executable, "-c", LIGHT], check=True, capture_output=True, text=True)
    assert child.stdout == "[]\n"

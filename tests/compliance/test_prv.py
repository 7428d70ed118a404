"""Three accountants side by side: the one enforced, the one shown, and Google's, which shares no code with either."""

import math
from typing import Any

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from opacus.accountants.analysis import rdp as opacus_rdp

from compliance.accountant import epsilon
from compliance.errors import NotAccountable, UnknownPrivacyEvent
from compliance.privacy import PoissonGaussian
from compliance.prv import LARGEST_LOSS, PrvEpsilon, epsilon_prv

Release = tuple[float, float, int]  # sampling rate, noise multiplier, steps

RELEASES: dict[str, tuple[list[Release], float]] = {
    "many small steps": ([(0.01, 1.0, 1000)], 1e-5),
    "a pilot": ([(0.05, 1.5, 400)], 1e-5),
    "a small hospital": ([(0.2, 3.0, 100)], 1e-5),
    "half of the patients": ([(0.5, 6.0, 60)], 1e-5),
    "all of the patients": ([(1.0, 10.0, 20)], 1e-5),
    "nearly all": ([(0.999, 5.0, 10)], 1e-5),
    "little noise": ([(0.01, 0.6, 1000)], 1e-5),
    "far too little noise": ([(0.1, 0.6, 100)], 1e-5),
    "one step": ([(1.0, 1.0, 1)], 1e-5),
    "a small delta": ([(0.01, 1.0, 1000)], 1e-9),
    "a large delta": ([(0.02, 1.2, 300)], 1e-3),
    "much noise": ([(0.3, 100.0, 50)], 1e-6),
    "two studies": ([(0.01, 1.0, 1000), (0.02, 1.5, 300)], 1e-5),
    "three studies, one without sampling": ([(1.0, 10.0, 20), (0.1, 2.0, 50), (0.01, 0.8, 100)], 1e-6),
    "four kinds of step": ([(0.01, 0.8, 100), (0.01, 1.2, 100), (1.0, 5.0, 1), (0.5, 5.0, 3)], 1e-5),
    "the same in two parts": ([(0.05, 1.5, 150), (0.05, 1.5, 250)], 1e-5),
}


def events(releases: list[Release]) -> list[PoissonGaussian]:
    return [PoissonGaussian(noise_multiplier=noise, sampling_rate=q, steps=steps) for q, noise, steps in releases]


def google(releases: list[Release], delta: float, *, interval: float) -> float:
    """An upper end, for neighbours in both directions; `interval` is the grid of losses."""
    one_by_one = [
        pld.from_gaussian_mechanism(noise, sampling_prob=q, value_discretization_interval=interval).self_compose(steps)
        for q, noise, steps in releases
    ]
    together = one_by_one[0]
    for another in one_by_one[1:]:
        together = together.compose(another)
    return float(together.get_epsilon_for_delta(delta))


@pytest.mark.parametrize(("releases", "delta"), RELEASES.values(), ids=RELEASES)
def test_what_is_enforced_is_above_what_is_shown_and_that_agrees_with_google(
    releases: list[Release], delta: float
) -> None:
    enforced = epsilon(events(releases), delta)
    shown = epsilon_prv(events(releases), delta)
    independent = google(releases, delta, interval=1e-3 if enforced > 1 else 1e-4)
    assert 0 < shown.lower < shown.estimate < shown.upper
    assert shown.estimate == pytest.approx(independent, rel=0.01)
    assert shown.lower <= independent
    assert shown.upper <= shown.lower + 0.03
    assert enforced >= max(independent, shown.upper)
    assert enforced <= 1.5 * independent  # an accountant that only says no would pass the line above


OPACUS_ORDERS = [1 + tenth / 10 for tenth in range(1, 100)] + list(range(12, 64))


@pytest.mark.parametrize("name", ["many small steps", "a pilot", "a small hospital", "half of the patients",
                                  "all of the patients", "one step", "little noise"])  # fmt: skip
def test_it_is_little_above_opacus_own_renyi_accountant(name: str) -> None:
    """Which also takes orders in between; at epsilon 9 (little noise) the best of them is 2.7."""
    [(q, noise, steps)], delta = RELEASES[name]
    costs = opacus_rdp.compute_rdp(q=q, noise_multiplier=noise, steps=steps, orders=OPACUS_ORDERS)
    theirs, order = opacus_rdp.get_privacy_spent(orders=OPACUS_ORDERS, rdp=costs, delta=delta)
    enforced = epsilon(events([(q, noise, steps)]), delta)
    assert theirs * (1 - 1e-9) <= enforced <= theirs * (1.06 if order < 3 else 1.01)
    if float(order).is_integer():
        assert enforced == pytest.approx(theirs, rel=1e-6)


def test_a_small_epsilon_is_shown_with_a_small_error() -> None:
    """Where Opacus' own orders end at 63, its accountant warns, and its error of 0.01 would be larger than epsilon."""
    shown = epsilon_prv(events([(0.001, 10.0, 100)]), 1e-6)
    assert shown.estimate == pytest.approx(google([(0.001, 10.0, 100)], 1e-6, interval=1e-5), rel=0.05)
    assert shown.upper - shown.lower < 1e-3


def test_what_costs_nothing_at_this_delta_is_shown_as_nothing() -> None:
    assert epsilon_prv([], 1e-5) == PrvEpsilon(0.0, 0.0, 0.0)
    shown = epsilon_prv(events([(1.0, 1e5, 1)]), 1e-5)
    assert (shown.lower, shown.estimate) == (0.0, 0.0)
    assert shown.upper < 1e-4


def test_millions_of_steps_are_shown_with_wider_ends() -> None:
    """A grid as fine as usual would take gigabytes. So many tiny losses are one normal one (central limit)."""
    shown = epsilon_prv(events([(1e-4, 2.0, 10**7)]), 1e-6)
    mu = 1e-4 * math.sqrt(10**7 * math.expm1(1 / 2.0**2))
    [plain] = events([(1.0, 1 / mu, 1)])
    assert shown.estimate == pytest.approx(epsilon_prv([plain], 1e-6).estimate, rel=0.01)
    assert shown.lower > 0.5 * shown.estimate
    assert shown.upper < 1.5 * shown.estimate


REFUSED: dict[str, tuple[Any, float]] = {
    "a delta of which only rounding errors are left": (events([(0.1, 1.0, 10)]), 1e-11),
    "more steps than rounding allows at this delta": (events([(1e-5, 2.0, 10**9)] * 2), 1e-6),
    "losses too small for the grid": (events([(1e-5, 2.0, 4 * 10**7)]), 1e-6),
    "a delta of 0": (events([(0.1, 1.0, 10)]), 0.0),
    "NaN": (events([(0.1, 1.0, 10)]), float("nan")),
    "no privacy at all": (events([(0.5, 0.1, 1000)]), 1e-5),
}


@pytest.mark.parametrize(("together", "delta"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_compute_it_does_not_show(together: Any, delta: float) -> None:
    with pytest.raises(NotAccountable):
        epsilon_prv(together, delta)


def test_the_largest_loss_is_within_what_exp_can_do() -> None:
    shown = epsilon_prv(events([(1.0, 0.11, 3)]), 1e-5)
    assert LARGEST_LOSS / 2 < shown.estimate < LARGEST_LOSS


def test_a_kind_of_release_it_does_not_know_is_refused() -> None:
    with pytest.raises(UnknownPrivacyEvent):
        epsilon_prv([events([(0.1, 1.0, 10)])[0].model_copy(update={"unit": "image"})], 1e-5)

"""What events cost together: Renyi differential privacy in, (epsilon, delta) out. This is what is enforced.

Renyi DP of the Poisson-sampled Gaussian mechanism: Mironov, Talwar and Zhang, "Renyi differential privacy of the
sampled Gaussian mechanism", arXiv:1908.10530, section 3.3, for neighbours by adding or removing one patient (their
corollary 7: the one direction bounds the other). Composition adds (Mironov, arXiv:1702.07476, proposition 1).
Conversion: Canonne, Kamath and Steinke, arXiv:2004.00010, proposition 12, which is theorem 21 of Balle et al.,
arXiv:1905.09982. All of it bounds from above, and rounding errs upwards. Losses are in nats.

Orders are whole: there the series is finite and every term of it positive. What that costs against all real orders
is 1 % of epsilon up to 5 and 5 % at 10.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from operator import add

from compliance.errors import NotAccountable, OutOfReach, UnknownPrivacyEvent
from compliance.privacy import (
    LARGEST_NOISE_MULTIPLIER,
    MOST_STEPS,
    SMALLEST_NOISE_MULTIPLIER,
    Budget,
    PoissonGaussian,
    PrivacyEvent,
)

# Denser than needed where epsilon is between 1 and 20 (best orders 2 to 30); the largest serve epsilons of 0.01.
ORDERS: tuple[int, ...] = (
    *range(2, 65), *range(72, 129, 8), *range(144, 257, 16), *range(320, 513, 64), *range(640, 1025, 128),
    *range(1280, 2049, 256),
)  # fmt: skip
MOST_ROUNDS = 10_000  # boundary.names.RoundNumber
NOISE_PRECISION = 1e-3  # relative; a thousandth more noise than necessary costs nothing

_ROUNDING = 1 + 1e-9  # above the error of the sums below: lgamma(2049) is 1.4e4, good to 2e-12; 2048 terms of e-40
_NEGLIGIBLE = 40.0  # nats below the largest term

Mechanism = tuple[float, float]  # noise multiplier, sampling rate
Steps = Counter[Mechanism]


def rdp(event: PrivacyEvent) -> tuple[float, ...]:
    """The Renyi divergence, in nats, that all steps of `event` amount to at most, at each of `ORDERS`."""
    return tuple(_totals(steps_of([event])))


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """The smallest epsilon we can vouch for, for all events together in any order; 0 for none.

    Raises `UnknownPrivacyEvent` for a kind it cannot account for and `NotAccountable` for numbers out of range.
    """
    return _epsilon(steps_of(events), delta)


def noise_multiplier_for(
    target: Budget, sampling_rate: float, steps: int, already: Sequence[PrivacyEvent] = ()
) -> float:
    """The least noise with which `steps` more steps after `already` stay within `target`.

    At most `NOISE_PRECISION` above the least there is, never below it. Raises `OutOfReach` if no noise is enough.
    """
    spent = steps_of(already)

    def is_enough(noise_multiplier: float) -> bool:
        more = PoissonGaussian(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
        return _epsilon(spent + steps_of([more]), target.delta) <= target.epsilon

    low, high = SMALLEST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER
    if not is_enough(high):
        raise OutOfReach(
            f"epsilon {target.epsilon:g} at delta {target.delta:g} cannot be met by any noise: "
            f"{_epsilon(spent, target.delta):.4g} is spent before the first of {steps} steps"
        )
    if is_enough(low):
        return low
    while high > low * (1 + NOISE_PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def steps_left(budget: Budget, event_per_round: PrivacyEvent, already: Sequence[PrivacyEvent]) -> int:
    """How many more rounds, each with one such event, fit under `budget` after `already`; `MOST_ROUNDS` at most."""
    spent, once = steps_of(already), steps_of([event_per_round])

    def is_too_much(rounds: int) -> bool:
        more = Counter({mechanism: rounds * steps for mechanism, steps in once.items()})
        return _epsilon(spent + more, budget.delta) > budget.epsilon

    return bisect_left(range(1, MOST_ROUNDS + 1), True, key=is_too_much)


def steps_of(events: Iterable[PrivacyEvent]) -> Steps:
    """How many steps of each mechanism: all that composition depends on."""
    steps: Steps = Counter()
    for event in events:
        match event:
            case PoissonGaussian(unit="patient", noise_multiplier=noise, sampling_rate=rate, steps=count):
                is_sane = SMALLEST_NOISE_MULTIPLIER <= noise <= LARGEST_NOISE_MULTIPLIER and 0 < rate <= 1
                if not (is_sane and 1 <= count <= MOST_STEPS):  # nor is NaN, which a copy of an event may carry
                    raise NotAccountable(f"{count} steps with noise multiplier {noise} and sampling rate {rate}")
                steps[noise, rate] += count
            case _:
                raise UnknownPrivacyEvent(f"not accounted for: {event!r:.200}")
    return steps


def _totals(steps: Steps) -> list[float]:
    """At each order; summed without rounding in between, so the order of the events does not matter."""
    costs = [[count * one for one in _one_step(*mechanism)] for mechanism, count in steps.items()]
    if len(costs) == 1:
        return costs[0]
    return [math.fsum(at_order) for at_order in zip(*costs, strict=True)]


def _epsilon(steps: Steps, delta: float) -> float:
    if not 0 < delta < 1:
        raise NotAccountable(f"a delta of {delta}")
    if not steps:
        return 0.0
    found = min([total + more - less for total, (more, less) in zip(_totals(steps), _conversion(delta), strict=True)])
    return max(0.0, found)  # what is (-1, delta)-private is (0, delta)-private


@lru_cache(maxsize=64)
def _conversion(delta: float) -> tuple[tuple[float, float], ...]:
    """What is added to the divergence at each of `ORDERS`, and what is taken off."""
    return tuple((math.log1p(-1 / order), math.log(delta * order) / (order - 1)) for order in ORDERS)


@lru_cache(maxsize=256)
def _one_step(noise_multiplier: float, sampling_rate: float) -> tuple[float, ...]:
    """The divergence of one step at each of `ORDERS`."""
    if sampling_rate == 1:
        return tuple(_ROUNDING * order / (2 * noise_multiplier**2) for order in ORDERS)
    odds = math.log(sampling_rate) - math.log1p(-sampling_rate)
    rises = [k * odds + _log_expm1(k * (k - 1) / (2 * noise_multiplier**2)) for k in range(2, ORDERS[-1] + 1)]
    return tuple(_ROUNDING * _log_moment(order, rises, sampling_rate) / (order - 1) for order in ORDERS)


def _log_moment(order: int, rises: list[float], q: float) -> float:
    """The logarithm of A, the mean of the likelihood ratio to the power of `order` (section 3.3).

    A is the sum over k of binomial(order, k) (1-q)^(order-k) q^k exp(k(k-1) / 2 sigma^2). The binomial weights sum
    to 1, so A - 1 is the same sum with exp(...) - 1: it starts at k = 2 and loses no digits where A is nearly 1.
    """
    terms = list(map(add, _log_binomials(order), rises))
    largest = max(terms)
    some = math.fsum([math.exp(term - largest) for term in terms if term > largest - _NEGLIGIBLE])
    return _log1p_exp(largest + math.log(some) + order * math.log1p(-q))


@cache
def _log_binomials(order: int) -> list[float]:
    """Of `order` over k, for k from 2; all orders together take half a megabyte."""
    top = math.lgamma(order + 1)
    return [top - math.lgamma(k + 1) - math.lgamma(order - k + 1) for k in range(2, order + 1)]


def _log_expm1(x: float) -> float:
    return x + math.log1p(-math.exp(-x)) if x > 1 else math.log(math.expm1(x))


def _log1p_exp(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))

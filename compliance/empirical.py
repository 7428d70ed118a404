"""What an attack has shown: a lower bound of epsilon that holds whatever the accountant says.

Auditing by guesses (Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run"): canaries, each in
the training data or not by the toss of a coin, and an attacker who says which were in, as often as he likes to. Under
(epsilon, delta)-differential privacy the number of right guesses is hardly above a binomial one with probability
e^epsilon / (1 + e^epsilon). An epsilon under which the attack would have been a miracle is refuted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MOST_EPSILON = 20.0  # nothing that is guessed a few thousand times can show more
_PRECISION = 1e-3


@dataclass(frozen=True, slots=True)
class Guesses:
    """`right` of `made` guesses, on `canaries` coins in all, a coin of every run being one."""

    right: int
    made: int
    canaries: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ValueError(f"{self.right} right of {self.made} guesses on {self.canaries} canaries")


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """How likely it is at most to do as well against an (epsilon, delta)-private training (theorem 5.2)."""
    pmf = [_pmf(k, guesses.made, epsilon) for k in range(guesses.made + 1)]
    as_good = math.fsum(pmf[guesses.right :])
    worst, below = 0.0, 0.0
    for i in range(1, guesses.right + 1):
        below += pmf[guesses.right - i]
        worst = max(worst, below / i)
    return min(1.0, as_good + 2 * guesses.canaries * delta * worst)


def epsilon_lower_bound(guesses: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """The largest epsilon that the guesses refute with `confidence`; 0 if they refute none."""
    low, high = 0.0, MOST_EPSILON
    if p_value(guesses, low, delta) > 1 - confidence:
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if p_value(guesses, middle, delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def roc(scores: Sequence[float], members: Sequence[bool]) -> list[tuple[float, float]]:
    """The attack's curve: (false, true positive rate) as the threshold falls, from (0, 0) to (1, 1).

    Equal scores are one point. Raises `ValueError` without both kinds.
    """
    positives, negatives = sum(members), len(members) - sum(members)
    if not positives or not negatives:
        raise ValueError("a curve needs canaries that were in and canaries that were not")
    points, true, false = [(0.0, 0.0)], 0, 0
    ordered = sorted(zip(scores, members, strict=True), key=lambda pair: -pair[0])
    for place, (score, is_in) in enumerate(ordered):
        true, false = true + is_in, false + (not is_in)
        if place + 1 == len(ordered) or ordered[place + 1][0] != score:
            points.append((false / negatives, true / positives))
    return points


def area(points: Sequence[tuple[float, float]]) -> float:
    """Under the curve: 0.5 is guessing, 1 is knowing."""
    pairs = pairwise(points)
    return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairs)


def most_true(epsilon: float, delta: float, false: float) -> float:
    """The most that an attack on an (epsilon, delta)-private training can find, at a false positive rate.

    Kairouz, Oh and Viswanath 2015, "The composition theorem for differential privacy", theorem 2.1.
    """
    grown = math.exp(min(epsilon, 700.0))
    return max(0.0, min(1.0, grown * false + delta, 1 - (1 - delta - false) / grown))


def _pmf(right: int, made: int, epsilon: float) -> float:
    """Binomial, with the chance of each guess as a logarithm: a large epsilon leaves no digit of a wrong one's."""
    choices = math.lgamma(made + 1) - math.lgamma(right + 1) - math.lgamma(made - right + 1)
    return math.exp(choices - (made - right) * epsilon - made * math.log1p(math.exp(-epsilon)))

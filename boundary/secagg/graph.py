"""Who holds whose shares, and how many of them it takes.

Up to 64 hospitals everybody is everybody's neighbour. Above, each hospital picks k of the others *itself*, uniformly
and only after the cohort is fixed, so nobody else can steer who holds its shares (Bell, Bonawitz, Gascon, Lepoint and
Raykova 2020, "Secure single-server aggregation with (poly)logarithmic overhead", section 4). k and the threshold come
from exact hypergeometric tails.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from boundary.aggregation import SMALLEST_COHORT
from boundary.errors import CallerFault

COMPLETE_UP_TO = 64
CORRUPT_SHARE, LOST_SHARE = 5, 10  # one in five may collude with the coordinator, one in ten may drop out
SECURITY_BITS, RELIABILITY_BITS = 40, 20


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`neighbours` others hold a hospital's shares, with itself; `shares` of them open a secret.

    `agreeing` hospitals must have seen the same survivors: above two thirds, so that two different sets of survivors
    cannot both be agreed on while fewer than a third collude.
    """

    neighbours: int
    shares: int
    agreeing: int
    is_complete: bool


def thresholds(members: int) -> Thresholds:
    """Give the numbers for a cohort; every hospital computes them for itself. Raises `CallerFault` below three."""
    if members < SMALLEST_COHORT:
        raise CallerFault("a sum over fewer than three hospitals shows them to each other")
    agreeing = 2 * members // 3 + 1
    if members <= COMPLETE_UP_TO:
        return Thresholds(members - 1, agreeing, agreeing, is_complete=True)
    neighbours, shares = _sparse(members)
    return Thresholds(neighbours, shares, agreeing, is_complete=False)


@lru_cache(maxsize=256)
def _sparse(members: int) -> tuple[int, int]:
    """Give the smallest k with a threshold t such that both hold for all `members` hospitals together.

    Up to 2^-40: some hospital has 2t - k or more colluding neighbours, who with the honest half could open both of its
    secrets. Up to 2^-20: some hospital has more than k - t lost neighbours, and the attempt fails.
    """
    others, corrupt, lost = members - 1, members // CORRUPT_SHARE, members // LOST_SHARE
    for k in range(2, members):
        for t in range(k // 2 + 1, k + 1):
            if _is_rare(others, corrupt, k, 2 * t - k, members, SECURITY_BITS):
                if _is_rare(others, lost, k, k - t + 1, members, RELIABILITY_BITS):
                    return k, t
                break  # a higher threshold only makes it less reliable
    raise CallerFault(f"no thresholds for {members} hospitals")


def _is_rare(others: int, marked: int, drawn: int, least: int, times: int, bits: int) -> bool:
    """Whether `least` or more of the `marked` are among the `drawn`, in one of `times` draws, up to 2^-bits."""
    ways = sum(comb(marked, hit) * comb(others - marked, drawn - hit) for hit in range(least, min(marked, drawn) + 1))
    return ways * times << bits <= comb(others, drawn)


def neighbours(silo: str, members: Sequence[str], entropy: Callable[[int], bytes]) -> tuple[str, ...]:
    """Who gets this hospital's shares, itself left out; sorted. `entropy(n)` is a CSPRNG and this hospital's own."""
    others = sorted(set(members) - {silo})
    wanted = thresholds(len(members)).neighbours
    for place in range(wanted):  # Fisher and Yates, as far as it is needed
        if wanted == len(others):
            break
        other = place + _below(len(others) - place, entropy)
        others[place], others[other] = others[other], others[place]
    return tuple(sorted(others[:wanted]))


def _below(limit: int, entropy: Callable[[int], bytes]) -> int:
    return int.from_bytes(entropy(24), "big") % limit  # within 2^-180 of uniform


def chooses_mask(silo: str, other: str, *, is_complete: bool) -> bool:
    """Whether `silo` chooses the secret of a mask with its neighbour `other`.

    In a complete graph each pair has one mask, chosen by the first by name. In a sparse one every choice of a
    neighbour has its own: two that chose each other have two.
    """
    return silo < other if is_complete else True

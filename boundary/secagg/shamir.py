"""Shamir's secret sharing of 32-byte secrets over the prime field p = 2^256 + 297.

Shamir 1979, "How to share a secret". A share is the value of a random polynomial of degree threshold - 1 at a public
place from 1 on; fewer than `threshold` shares say nothing about the secret.
"""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

from boundary.errors import CallerFault
from boundary.secagg.errors import BadShares

PRIME = 2**256 + 297  # the smallest prime above 2^256, so that every 32-byte secret is a field element
SECRET_BYTES = 32
SHARE_BYTES = 33
_SAMPLE_BYTES = 48  # reduced modulo p: within 2^-127 of uniform


def split(secret: bytes, places: Collection[int], threshold: int, entropy: Callable[[int], bytes]) -> dict[int, bytes]:
    """Give one share of 33 bytes for each place (distinct, from 1). `entropy(n)` is a CSPRNG. Raises `CallerFault`."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(set(places)) or min(places) < 1:
        raise CallerFault(f"sharing {len(secret)} bytes among {len(places)} with threshold {threshold}")
    coefficients = [int.from_bytes(entropy(_SAMPLE_BYTES), "big") % PRIME for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "big")
    return {place: _value(constant, coefficients, place).to_bytes(SHARE_BYTES, "big") for place in places}


def _value(constant: int, coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value + coefficient) * place % PRIME
    return (value + constant) % PRIME


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Give the secret from at least `threshold` shares by place; the first `threshold` places are used.

    Raises `BadShares` if there are too few, one is no field element, or the outcome is no 32-byte secret. A wrong
    share of the right form gives a wrong secret: compare it with its commitment.
    """
    places = tuple(sorted(shares))[:threshold]
    if len(places) < threshold:
        raise BadShares(f"{len(places)} shares, {threshold} are needed")
    secret = 0
    for place, coefficient in zip(places, _at_zero(places), strict=True):
        value = int.from_bytes(shares[place], "big")
        if len(shares[place]) != SHARE_BYTES or value >= PRIME:
            raise BadShares(f"the share of place {place} is no field element")
        secret += coefficient * value
    secret %= PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise BadShares("the shares give no 32-byte secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange coefficients at zero; all secrets with the same survivors share them."""
    coefficients = []
    for mine in places:
        above, below = 1, 1
        for other in places:
            if other != mine:
                above = above * other % PRIME
                below = below * (other - mine) % PRIME
        coefficients.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(coefficients)

"""What costs most in a sum, done once where many tests do the same."""

from collections.abc import Iterator
from functools import lru_cache

import pytest

from boundary.canonical import canonical_bytes
from boundary.sealing import SealingKey, UnsealingKey


@pytest.fixture(scope="module")
def sealed_once() -> Iterator[None]:
    """Sums begin alike: keys of one seed are made once, and what is sealed alike is sealed and opened once.

    Which key opens what, and what does not open, is decided by the real HPKE each time it comes up for the first time.
    The canonical form of what is bound is looked up the same way.
    """
    bound: dict[str, bytes] = {}

    def canonical(value: object) -> bytes:
        known = repr(value)
        if known not in bound:
            bound[known] = canonical_bytes(value)
        return bound[known]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boundary.secagg.context.canonical_bytes", canonical)
        for kind, name in ((UnsealingKey, "from_raw"), (SealingKey, "seal"), (UnsealingKey, "unseal")):
            patch.setattr(kind, name, lru_cache(maxsize=100_000)(getattr(kind, name)))
        yield

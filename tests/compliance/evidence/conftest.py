"""Most entries of two made-up studies are the same bytes: parse them once."""

from collections.abc import Iterator
from functools import lru_cache

import pytest

from compliance.evidence import reading
from compliance.trail import read_leaf


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "read_leaf", lru_cache(maxsize=4096)(read_leaf))
        yield

"""N and N-1: which version two parties speak, if any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.version import OLDEST_PROTOCOL, PROTOCOL, ProtocolRange

ranges = (
    st.tuples(st.integers(1, 9), st.integers(1, 9)).map(sorted).map(lambda p: ProtocolRange(oldest=p[0], newest=p[1]))
)


@given(ranges, ranges)
def test_the_newest_version_both_speak(ours: ProtocolRange, theirs: ProtocolRange) -> None:
    both = set(range(ours.oldest, ours.newest + 1)) & set(range(theirs.oldest, theirs.newest + 1))
    assert ours.shared_with(theirs) == theirs.shared_with(ours) == (max(both) if both else None)


def test_this_build_speaks_its_own_range() -> None:
    assert ProtocolRange() == ProtocolRange(oldest=OLDEST_PROTOCOL, newest=PROTOCOL)
    assert 0 <= PROTOCOL - OLDEST_PROTOCOL <= 1


RANGES = {"backwards": (2, 1), "a negative version": (-1, 1)}


@pytest.mark.parametrize(("oldest", "newest"), RANGES.values(), ids=RANGES)
def test_a_range_that_is_none_is_refused(oldest: int, newest: int) -> None:
    with pytest.raises(ValidationError):
        ProtocolRange(oldest=oldest, newest=newest)

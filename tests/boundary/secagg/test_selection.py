"""Random-k: every hospital sends the same weights, nobody can steer which, and on average nothing is lost."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import CallerFault
from boundary.messages import Collection
from boundary.secagg.context import selection_key
from boundary.secagg.selection import selected, spread

KEY = bytes(range(32))
MODEL, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
COLLECTION = Collection(study="ct-00000001", round=2, phase="train")


@given(parameters=st.integers(1, 3000), share=st.floats(0, 1), key=st.binary(min_size=32, max_size=32))
def test_one_of_each_run_of_nearly_equal_length(parameters: int, share: float, key: bytes) -> None:
    count = max(1, round(share * parameters))
    found = selected(key, parameters, count)
    assert len(found) == count
    assert found[0] >= 0
    assert found[-1] < parameters
    assert (np.diff(found) > 0).all()
    runs = np.arange(count + 1) * parameters // count
    assert ((runs[:-1] <= found) & (found < runs[1:])).all()
    assert set(np.diff(runs)) <= {parameters // count, parameters // count + 1}


def test_every_weight_is_as_likely_as_the_others_of_its_run() -> None:
    drawn = np.zeros(10)
    for number in range(4000):
        drawn[selected(number.to_bytes(32, "big"), 10, 3)] += 1
    expected = np.array([1 / 3] * 3 + [1 / 3] * 3 + [1 / 4] * 4) * 4000
    np.testing.assert_allclose(drawn, expected, rtol=0.15)


def test_on_average_nothing_is_lost() -> None:
    values = np.linspace(-1, 1, 10, dtype=np.float32)
    total = np.zeros(10)
    for number in range(4000):
        key = number.to_bytes(32, "big")
        total += spread(values[selected(key, 10, 3)], key, 10, unbiased=True)
    np.testing.assert_allclose(total / 4000, values, atol=0.12)


def test_with_error_feedback_a_weight_stands_for_itself_only() -> None:
    values = np.arange(1, 11, dtype=np.float32)
    chosen = selected(KEY, 10, 4)
    whole = spread(values[chosen], KEY, 10, unbiased=False)
    assert whole[chosen].tolist() == values[chosen].tolist()
    assert np.count_nonzero(whole) == 4


OTHER_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "another study": ({"study": "ct-00000002"}, MODEL),
    "another round": ({"round": 3}, MODEL),
    "another model": ({}, OTHER),
}


@pytest.mark.parametrize(("change", "model"), OTHER_KEYS.values(), ids=OTHER_KEYS)
def test_another_sum_draws_anew(change: dict[str, Any], model: str) -> None:
    assert selection_key(COLLECTION.model_copy(update=change), model) != selection_key(COLLECTION, MODEL)


def test_another_attempt_asks_for_the_same_weights() -> None:
    again = COLLECTION.model_copy(update={"attempt": 7})
    assert selection_key(again, MODEL) == selection_key(COLLECTION, MODEL)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_more_than_there_are_or_none_is_our_own_fault(count: int) -> None:
    with pytest.raises(CallerFault):
        selected(KEY, 10, count)

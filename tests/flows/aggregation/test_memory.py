"""Laws of all strategies, and of the file that a strategy's memory is between two rounds."""

import io
import math
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from boundary.canonical import digest
from boundary.errors import BadTensors
from boundary.learning import Server
from boundary.messages import BlobRef
from boundary.strategies import StrategyName
from boundary.tensors import pack
from flows.aggregation import STRATEGIES, Mean, ServerState
from flows.aggregation.memory import MemoryUnusable, memory_manifest, packed, recalled

FLOATS = st.floats(-1e3, 1e3, width=32)
VECTORS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[arrays(np.float32, n, elements=FLOATS) for _ in range(3)])
)  # fmt: skip
SERVERS = st.builds(
    Server,
    momentum=st.floats(0, 0.999),
    second_moment=st.floats(0, 0.999),
    adaptivity=st.floats(1e-6, 1),
)
NAMES = st.sampled_from(sorted(STRATEGIES))
ANY_FLOAT32 = arrays(np.uint32, st.integers(1, 40)).map(lambda bits: bits.view(np.float32)).filter(
    lambda vector: bool(np.isfinite(vector).all())
)  # fmt: skip


def frozen(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    vector.flags.writeable = False
    return vector


def shelf(data: bytes) -> tuple[BlobRef, Callable[[str], BinaryIO]]:
    blob = BlobRef(digest=digest(data), size=len(data))

    def opened(wanted: str) -> BinaryIO:
        if wanted != blob.digest:
            raise FileNotFoundError(wanted)
        return io.BytesIO(data)

    return blob, opened


@given(NAMES, VECTORS, SERVERS)
def test_a_strategy_gives_new_float32_values_and_leaves_what_it_was_given(
    name: StrategyName, vectors: tuple[NDArray[np.float32], ...], server: Server
) -> None:
    weights, *deltas = (frozen(vector) for vector in vectors)
    before = [vector.tobytes() for vector in vectors]
    strategy = STRATEGIES[name](0.5, server)
    state = strategy.init(weights)
    for number, delta in enumerate(deltas, start=1):
        for vector in state.memory.values():
            frozen(vector)
        remembered = {key: vector.tobytes() for key, vector in state.memory.items()}
        after, again = (strategy.apply(state, Mean(delta, 3.0, 0.75, 0.1)) for _ in range(2))
        assert {key: vector.tobytes() for key, vector in state.memory.items()} == remembered
        assert after.round == number
        assert after.weights.tobytes() == again.weights.tobytes(), "the same values give the same state"
        assert {vector.dtype for vector in (after.weights, *after.memory.values())} == {np.dtype(np.float32)}
        assert {vector.shape for vector in (after.weights, *after.memory.values())} == {weights.shape}
        assert not any(np.shares_memory(vector, delta) for vector in (after.weights, *after.memory.values()))
        assert set(after.memory) == set(strategy.init(weights).memory)
        state = after
    assert [vector.tobytes() for vector in vectors] == before


@given(ANY_FLOAT32)
def test_memory_comes_back_bit_for_bit(vector: NDArray[np.float32]) -> None:
    memory = {"momentum": vector, "second_moment": vector[::-1]}
    data = packed(memory)
    blob, opened = shelf(data)
    back = recalled(blob, {name: np.zeros_like(vector) for name in memory}, 3, opened)
    assert {name: one.tobytes() for name, one in back.items()} == {name: one.tobytes() for name, one in memory.items()}
    assert packed(back) == data


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_rounds_from_what_was_kept_are_the_rounds_that_were_never_stopped(name: StrategyName) -> None:
    rng, strategy = np.random.default_rng(5), STRATEGIES[name](0.1, Server())
    state = kept = strategy.init(rng.standard_normal(30).astype(np.float32))
    for number in range(6):
        mean = Mean(rng.standard_normal(30).astype(np.float32))
        blob, opened = shelf(packed(kept.memory))
        resumed = ServerState(number, kept.weights, recalled(blob, strategy.init(kept.weights).memory, number, opened))
        state, kept = strategy.apply(state, mean), strategy.apply(resumed, mean)
    assert kept.weights.tobytes() == state.weights.tobytes()


LIKE = {"momentum": np.zeros(4, np.float32), "second_moment": np.ones(4, np.float32)}
UNFIT = {
    "of another strategy": {"momentum": LIKE["momentum"]},
    "with one more vector": LIKE | {"third": LIKE["momentum"]},
    "of another model": {name: np.zeros(5, np.float32) for name in LIKE},
    "of another shape": {name: np.zeros((2, 2), np.float32) for name in LIKE},
}


@pytest.mark.parametrize("memory", UNFIT.values(), ids=UNFIT)
def test_memory_that_does_not_fit_stops_the_round(memory: dict[str, NDArray[np.float32]]) -> None:
    manifest = memory_manifest(memory)
    blob, opened = shelf(pack(np.concatenate([memory[name].reshape(-1) for name in sorted(memory)]), manifest))
    with pytest.raises(MemoryUnusable, match="round 6 does not fit the plan's strategy and model") as raised:
        recalled(blob, LIKE, 6, opened)
    assert raised.value.number == 6


def test_memory_that_is_missing_or_damaged_stops_the_round() -> None:
    data = packed(LIKE)
    blob, _ = shelf(data)
    with pytest.raises(MemoryUnusable, match=r"round 2 is not among the blobs .*it is not begun anew"):
        recalled(blob, LIKE, 2, shelf(b"something else")[1])
    one_bit = data[:-1] + bytes([data[-1] ^ 1])  # still whole safetensors: only the digest tells
    for damaged in (one_bit, data[:-4], b""):
        with pytest.raises(MemoryUnusable, match="is damaged"):
            recalled(blob, LIKE, 2, lambda _, damaged=damaged: io.BytesIO(damaged))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_never_remembered(value: float) -> None:
    with pytest.raises(BadTensors, match="NaN or infinity"):
        packed(LIKE | {"momentum": np.array([0, value, 0, 0], np.float32)})


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_a_change_whose_square_is_too_large_is_not_remembered(name: StrategyName) -> None:
    strategy = STRATEGIES[name](0.1, Server())
    state = strategy.apply(strategy.init(np.zeros(2, np.float32)), Mean(np.array([1e30, 1], np.float32)))
    assert np.isfinite(state.weights).all()
    with pytest.raises(BadTensors, match="NaN or infinity"):
        packed(state.memory)

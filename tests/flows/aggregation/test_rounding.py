"""A model that comes down in bfloat16: the coordinator's own weights lose no step, and what is sent is near them."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from boundary.bfloat16 import RELATIVE_ERROR, rounded
from boundary.learning import Server
from boundary.strategies import Strategy
from flows.aggregation import STRATEGIES, Mean, ServerState, ServerStrategy
from flows.aggregation.rounding import MASTER, with_master

TARGET = np.array([1.0, -3.0, 0.02, 100.0], np.float32)  # of f(x) = |x - TARGET|^2 / 2 in all hospitals together
START = np.array([2.0, 5.0, -0.5, 90.0], np.float32)
STEP = 0.002  # a round's change is this share of the way: below half a unit of bfloat16's last place soon


def changes(state: ServerState) -> Mean:
    """Hospitals start from what they are sent."""
    return Mean((STEP * (TARGET - state.weights.astype(np.float64))).astype(np.float32))


def after(strategy: ServerStrategy, rounds: int) -> ServerState:
    state = strategy.init(START)
    for _ in range(rounds):
        state = strategy.apply(state, changes(state))
    return state


def rounded_only(strategy: ServerStrategy) -> ServerStrategy:
    """What is not done: to go on from the rounded weights."""

    def apply(state: ServerState, mean: Mean) -> ServerState:
        found = strategy.apply(state, mean)
        return ServerState(found.round, rounded(found.weights), found.memory)

    return ServerStrategy(strategy.init, apply)


def away(weights: NDArray[np.float32]) -> Any:
    return np.abs(weights - TARGET) / np.abs(TARGET)


def test_training_converges_where_rounded_weights_alone_stand_still() -> None:
    """To within one place of bfloat16, though no round's change was as large as half of one."""
    fedavg = STRATEGIES["fedavg"](1.0, Server())
    found, stuck = after(with_master(fedavg), 6000), after(rounded_only(fedavg), 6000)
    assert (away(found.weights) <= 2 * RELATIVE_ERROR).all()
    assert (away(found.memory[MASTER]) <= 2 * RELATIVE_ERROR).all()
    assert away(stuck.weights).max() > 0.05


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fednova"])
def test_every_strategy_takes_its_own_steps_on_the_weights_that_are_kept(name: Strategy) -> None:
    """The same numbers as the plain strategy from the same changes, to the bit; what is sent is these, rounded."""
    plain = STRATEGIES[name](0.3, Server(momentum=0.5))
    ours = with_master(plain)
    rng = np.random.default_rng(2)
    kept, sent = plain.init(rounded(START)), ours.init(START)
    assert_array_equal(sent.weights, rounded(START))
    for _ in range(5):
        mean = Mean(rng.normal(0, 0.1, 4).astype(np.float32), 3.0 if name == "fednova" else None)
        kept, sent = plain.apply(kept, mean), ours.apply(sent, mean)
        assert_array_equal(sent.memory[MASTER], kept.weights)
        assert_array_equal(sent.weights, rounded(kept.weights))
        assert sent.round == kept.round
        assert sent.memory.keys() == {*kept.memory, MASTER}
        for remembered, vector in kept.memory.items():
            assert_array_equal(sent.memory[remembered], vector)


def test_what_is_given_is_not_changed() -> None:
    strategy = with_master(STRATEGIES["fedavgm"](1.0, Server()))
    state = strategy.init(START)
    before = {name: vector.copy() for name, vector in state.memory.items()}
    strategy.apply(state, changes(state))
    assert all(np.array_equal(state.memory[name], vector) for name, vector in before.items())

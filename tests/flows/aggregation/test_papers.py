"""Each strategy beside its paper, number by number in float64, and beside one round worked out by hand."""

from collections.abc import Callable
from math import sqrt
from typing import get_args

import numpy as np
import pytest

from boundary.errors import CallerFault
from boundary.learning import Server
from boundary.strategies import StrategyName
from flows.aggregation import STRATEGIES, Mean, ServerState
from flows.aggregation.scaffold import begins_anew

ROUNDS, N = 20, 60
RATE = 0.05
SERVER = Server(momentum=0.8, second_moment=0.95, adaptivity=0.01)
B1, B2, TAU = SERVER.momentum, SERVER.second_moment, SERVER.adaptivity

Second = Callable[[float, float], float]


def means(seed: int) -> list[Mean]:
    """Changes over six orders of magnitude; some of the weights never change, one turns round in each round."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-5, 1, N) * (rng.random(N) > 0.1)
    found = []
    for number in range(ROUNDS):
        delta = (scales * rng.standard_normal(N)).astype(np.float32)
        delta[0] = 0.5 * (-1) ** number
        found.append(Mean(delta, float(rng.uniform(1, 40)), share=0.6, local_rate=0.25))
    return found


# --- the papers, one weight at a time -------------------------------------------------------------------
def averaging(start: float, deltas: list[float], _: list[float]) -> float:
    """McMahan et al. 2017, Algorithm 1, with the server learning rate of Reddi et al. 2021."""
    x = start
    for delta in deltas:
        x = x + RATE * delta
    return x


def averaging_with_momentum(start: float, deltas: list[float], _: list[float]) -> float:
    """Hsu et al. 2019: v <- beta v + (w - mean of w_k), w <- w - v."""
    x, v = start, 0.0
    for delta in deltas:
        v = B1 * v + -delta
        x = x - RATE * v
    return x


def normalised_averaging(start: float, deltas: list[float], steps: list[float]) -> float:
    """Wang et al. 2020: x <- x - tau_eff * sum of p_i eta d_i, where eta d_i is minus the change over tau_i."""
    x = start
    for delta, tau_eff in zip(deltas, steps, strict=True):
        x = x - RATE * tau_eff * -delta
    return x


def algorithm_2(next_second: Second) -> Callable[[float, list[float], list[float]], float]:
    """Reddi et al. 2021, Algorithm 2."""

    def train(start: float, deltas: list[float], _: list[float]) -> float:
        x, m, v = start, 0.0, TAU * TAU
        for delta in deltas:
            m = B1 * m + (1 - B1) * delta
            v = next_second(v, delta)
            x = x + RATE * m / (sqrt(v) + TAU)
        return x

    return train


def yogi(v: float, delta: float) -> float:
    sign = (v > delta**2) - (v < delta**2)
    return v - (1 - B2) * delta**2 * sign


PAPERS = {
    "fedavg": averaging,
    "fedavgm": averaging_with_momentum,
    "fedadagrad": algorithm_2(lambda v, delta: v + delta**2),
    "fedadam": algorithm_2(lambda v, delta: B2 * v + (1 - B2) * delta**2),
    "fedyogi": algorithm_2(yogi),
    "fednova": normalised_averaging,
    "scaffold": normalised_averaging,  # its weights; its control variate is below
    "rfa": averaging,  # of a mean that hospitals weighed; test_rfa.py
}


def test_every_strategy_a_plan_may_name_is_there_and_has_its_paper_here() -> None:
    assert set(STRATEGIES) == set(get_args(StrategyName)) == set(PAPERS)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", PAPERS)
def test_twenty_rounds_are_those_of_the_paper(name: StrategyName, seed: int) -> None:
    strategy, rounds = STRATEGIES[name](RATE, SERVER), means(seed)
    start = np.random.default_rng(seed + 100).standard_normal(N).astype(np.float32)
    state = strategy.init(start)
    for mean in rounds:
        state = strategy.apply(state, mean)
    steps = [mean.steps or 0.0 for mean in rounds]
    expected = [PAPERS[name](float(start[i]), [float(mean.delta[i]) for mean in rounds], steps) for i in range(N)]
    assert state.round == ROUNDS
    assert state.weights.dtype == np.float32
    assert max(abs(expected[i] - float(start[i])) for i in range(N)) > 0.1, "something moved"
    largest = np.abs(expected).max()
    np.testing.assert_allclose(state.weights, expected, rtol=2e-6, atol=2e-6 * largest)


# --- one round by hand: x = 1, delta = 0.2, rate 0.1, beta 0.9, beta 2 0.99, tau 0.1 ----------------------
BY_HAND = {  # v is 0.01 before; delta squared is 0.04
    "fedavg": 1.02,
    "fedavgm": 1.02,
    "fedadagrad": 1 + 0.1 * 0.02 / (sqrt(0.05) + 0.1),
    "fedadam": 1 + 0.1 * 0.02 / (sqrt(0.0103) + 0.1),
    "fedyogi": 1 + 0.1 * 0.02 / (sqrt(0.0104) + 0.1),
    "fednova": 1.14,  # 7 steps
    "scaffold": 1.14,
    "rfa": 1.02,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_first_round_by_hand(name: StrategyName) -> None:
    strategy = STRATEGIES[name](0.1, Server(momentum=0.9, second_moment=0.99, adaptivity=0.1))
    mean = Mean(np.array([0.2], np.float32), 7.0, local_rate=0.5)
    state = strategy.apply(strategy.init(np.array([1], np.float32)), mean)
    assert state.weights == pytest.approx([BY_HAND[name]], rel=2e-7)


def test_with_the_same_steps_everywhere_fednova_is_fedavg() -> None:
    delta = np.array([0.5, -2, 3], np.float32)
    nova, plain = STRATEGIES["fednova"](1.0, Server()), STRATEGIES["fedavg"](1.0, Server())
    start = nova.init(np.ones(3, np.float32))
    assert np.array_equal(nova.apply(start, Mean(delta / 4, 4.0)).weights, plain.apply(start, Mean(delta)).weights)


def test_fednova_refuses_a_mean_that_does_not_know_the_steps() -> None:
    strategy = STRATEGIES["fednova"](1.0, Server())
    with pytest.raises(CallerFault, match="steps"):
        strategy.apply(ServerState(0, np.ones(3, np.float32)), Mean(np.ones(3, np.float32)))


def test_scaffolds_control_variate_takes_up_the_share_of_the_hospitals_that_took_part() -> None:
    """Karimireddy et al. 2020, Algorithm 1, line 17; the mean change of the c_i is -c - (change / steps) / rate."""
    strategy, rounds = STRATEGIES["scaffold"](RATE, SERVER), means(4)
    state, expected = strategy.init(np.ones(N, np.float32)), np.zeros(N)
    assert not state.memory["control"].any()
    for mean in rounds:
        state = strategy.apply(state, mean)
        expected = expected + 0.6 * (-expected - mean.delta.astype(np.float64) / 0.25)
    np.testing.assert_allclose(state.memory["control"], expected, rtol=1e-4, atol=1e-5)


def test_scaffold_begins_anew_in_the_first_round_and_every_tenth_after_it() -> None:
    assert [number for number in range(1, 32) if begins_anew(number)] == [1, 11, 21, 31]


@pytest.mark.parametrize("mean", [Mean(np.ones(3, np.float32), 2.0), Mean(np.ones(3, np.float32), local_rate=0.1)])
def test_scaffold_refuses_a_mean_without_steps_or_rate(mean: Mean) -> None:
    strategy = STRATEGIES["scaffold"](1.0, Server())
    with pytest.raises(CallerFault, match="steps, and their learning rate"):
        strategy.apply(strategy.init(np.ones(3, np.float32)), mean)

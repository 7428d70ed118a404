"""Where rounds end up, on a problem whose answer is known: hospital i has f_i(x) = a_i / 2 * |x - b_i|^2.

K steps of gradient descent at rate g leave b + (1 - g a)^K (x - b), so a hospital's change is s (b - x) with
s = 1 - (1 - g a)^K. FedAvg stands still where the mean of p_i s_i (b_i - x) is 0, FedNova where that of
p_i s_i / K_i (b_i - x) is. As g goes to 0, s_i / K_i becomes g a_i and FedNova's place the true optimum, the mean of
b_i weighted with p_i a_i; FedAvg's stays where hospitals with more steps pull it (Wang et al. 2020, Theorem 1).
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.learning import Server
from boundary.strategies import StrategyName
from flows.aggregation import STRATEGIES, Mean
from flows.aggregation.scaffold import begins_anew

P = np.array([0.5, 0.3, 0.2])
A = np.array([1.0, 2.0, 0.5])
B = np.array([[1.0, -2.0], [0.0, 3.0], [-4.0, 0.5]])
STEPS = np.array([1, 4, 20])
OPTIMUM = (P * A) @ B / (P @ A)


@dataclass(frozen=True)
class Hospitals:
    rate: float
    steps: NDArray[np.int64]

    @property
    def pull(self) -> NDArray[np.float64]:
        """s_i, by the closed form."""
        return 1 - (1 - self.rate * A) ** self.steps

    def train(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Every hospital's change [3, 2], step by step."""
        changes = []
        for a, b, steps in zip(A, B, self.steps, strict=True):
            local = x.copy()
            for _ in range(steps):
                local -= self.rate * a * (local - b)
            changes.append(local - x)
        return np.array(changes)

    def mean(self, x: NDArray[np.float64], *, normalised: bool) -> Mean:
        changes = self.train(x)
        if normalised:
            return Mean((P @ (changes / self.steps[:, None])).astype(np.float32), float(P @ self.steps))
        return Mean((P @ changes).astype(np.float32))

    def fixed_point(self, *, normalised: bool) -> NDArray[np.float64]:
        pull = P * self.pull / (self.steps if normalised else 1)
        found: NDArray[np.float64] = pull @ B / pull.sum()
        return found


def end(
    name: StrategyName, hospitals: Hospitals, rounds: int, rate: float = 1.0, **server: float
) -> NDArray[np.float64]:
    strategy = STRATEGIES[name](rate, Server(**server))
    state = strategy.init(np.array([5.0, -5.0], np.float32))
    for _ in range(rounds):
        state = strategy.apply(state, hospitals.mean(state.weights.astype(np.float64), normalised=name == "fednova"))
    return state.weights.astype(np.float64)


def test_local_steps_have_the_closed_form() -> None:
    hospitals, x = Hospitals(0.05, STEPS), np.array([5.0, -5.0])
    np.testing.assert_allclose(hospitals.train(x), hospitals.pull[:, None] * (B - x), rtol=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.02])
@pytest.mark.parametrize("name", ["fedavg", "fednova"])
def test_rounds_end_where_the_closed_form_says(name: StrategyName, rate: float) -> None:
    hospitals = Hospitals(rate, STEPS)
    expected = hospitals.fixed_point(normalised=name == "fednova")
    np.testing.assert_allclose(end(name, hospitals, rounds=600), expected, atol=2e-5)


def test_fedavg_with_unequal_steps_ends_beside_the_optimum_and_fednova_at_it() -> None:
    hospitals = Hospitals(5e-4, STEPS)
    plain, normalised = end("fedavg", hospitals, 800, rate=20), end("fednova", hospitals, 800, rate=20)
    biased = (P * A * STEPS) @ B / (P @ (A * STEPS))
    assert np.abs(biased - OPTIMUM).max() > 1, "the hospitals differ"
    np.testing.assert_allclose(plain, biased, atol=0.02)
    np.testing.assert_allclose(normalised, OPTIMUM, atol=0.02)


def test_what_is_left_of_fednovas_gap_goes_away_with_the_rate_and_fedavgs_does_not() -> None:
    rates = (0.01, 0.005, 0.0025)
    gaps = {
        normalised: [np.linalg.norm(Hospitals(r, STEPS).fixed_point(normalised=normalised) - OPTIMUM) for r in rates]
        for normalised in (True, False)
    }
    for wider, narrower in zip(gaps[True], gaps[True][1:], strict=False):
        assert wider / narrower == pytest.approx(2, rel=0.1)
    assert min(gaps[False]) > 0.9 * max(gaps[False]) > 1


@dataclass
class Corrected:
    """Hospitals of SCAFFOLD, written from Algorithm 1 with option II; all weigh the same. `own` are their c_i."""

    rate: float
    steps: NDArray[np.int64]
    own: NDArray[np.float64]
    x: NDArray[np.float32] = field(default_factory=lambda: np.array([5.0, -5.0], np.float32))

    def train(self, x: NDArray[np.float64], c: NDArray[np.float64], here: list[int]) -> NDArray[np.float64]:
        """The changes [3, 2] of those that are `here`, and 0 of the others."""
        changes = np.zeros_like(self.own)
        for i in here:
            local = x.copy()
            for _ in range(self.steps[i]):
                local -= self.rate * (A[i] * (local - B[i]) - self.own[i] + c)
            changes[i] = local - x
            self.own[i] = self.own[i] - c - changes[i] / (self.steps[i] * self.rate)
        return changes


def corrected(rate: float, steps: NDArray[np.int64], rounds: int, *, absent: float = 0.0, lost: int = 0) -> Corrected:
    """Play rounds as `round_work` does. `absent`: how often one hospital is away; in round `lost` one loses its c_i."""
    rng, strategy = np.random.default_rng(1), STRATEGIES["scaffold"](1.0, Server())
    hospitals = Corrected(rate, steps, np.zeros((3, 2)))
    state = strategy.init(hospitals.x)
    for number in range(1, rounds + 1):
        if begins_anew(number):
            hospitals.own[:] = 0
            state = replace(state, memory=strategy.init(state.weights).memory)
        if number == lost:
            hospitals.own[1] = 0
        here = [0, 1, 2]
        if rng.random() < absent:
            del here[rng.integers(3)]
        x, c = state.weights.astype(np.float64), state.memory["control"].astype(np.float64)
        changes = hospitals.train(x, c, here)
        delta = (changes[here] / steps[here, None]).mean(axis=0).astype(np.float32)
        state = strategy.apply(state, Mean(delta, float(steps[here].mean()), len(here) / 3, rate))
    hospitals.x = state.weights
    return hospitals


EQUAL_OPTIMUM = A @ B / A.sum()


@pytest.mark.parametrize("steps", [[5, 5, 5], [1, 4, 20]])
@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_scaffold_ends_at_the_optimum_where_others_are_off_by_the_rate(rate: float, steps: list[int]) -> None:
    off = np.linalg.norm(corrected(rate, np.array(steps), 2000).x - EQUAL_OPTIMUM)
    pull = 1 - (1 - rate * A) ** np.array(steps)
    assert off < 0.1 * np.linalg.norm(pull @ B / pull.sum() - EQUAL_OPTIMUM), "FedAvg's"
    assert off < 0.005


def test_scaffold_stands_partial_participation() -> None:
    found = corrected(0.05, np.array([1, 4, 20]), 2000, absent=0.5)
    assert np.linalg.norm(found.x - EQUAL_OPTIMUM) < 0.05


def test_a_control_variate_that_was_lost_does_no_lasting_harm() -> None:
    """Without a new beginning c stays beside the mean of the c_i for good (found by review)."""
    steps = np.array([5, 5, 5])
    hurt, healed, whole = (
        corrected(0.05, steps, end, lost=lost).x for end, lost in ((1500, 1495), (1509, 1495), (1509, 0))
    )
    assert np.linalg.norm(hurt - EQUAL_OPTIMUM) > 0.5
    np.testing.assert_allclose(healed, whole, atol=0.1)


@pytest.mark.parametrize(
    ("name", "rate", "server"),
    [
        ("fedavgm", 0.3, {"momentum": 0.7}),
        ("fedadagrad", 1.0, {"adaptivity": 0.1}),
        ("fedadam", 0.05, {"adaptivity": 0.1}),
        ("fedyogi", 0.05, {"adaptivity": 0.1}),
    ],
)
def test_what_the_server_remembers_changes_the_way_and_not_where_it_ends(
    name: StrategyName, rate: float, server: dict[str, float]
) -> None:
    hospitals = Hospitals(0.05, STEPS)
    expected = hospitals.fixed_point(normalised=False)
    np.testing.assert_allclose(end(name, hospitals, 1500, rate, **server), expected, atol=1e-3)
    early, plain = end(name, hospitals, 3, rate, **server), end("fedavg", hospitals, 3, rate)
    assert np.abs(early - plain).max() > 0.01

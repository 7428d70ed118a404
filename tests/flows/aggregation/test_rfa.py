"""RFA beside plain Weiszfeld, through the real sum; what it does to a spoilt change; and why it takes one step only."""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.learning import Server
from boundary.messages import Collection
from boundary.plan import StudyPlan
from compliance.records import RoundRecord
from flows.aggregation import STRATEGIES, Mean
from flows.driver import StudyDriver
from infra.driving import run, train_only, weights
from infra.federation import Work, make_federation
from models.weiszfeld import weight_beside

Points = NDArray[np.float64]


def weiszfeld(points: Points, alphas: Points, nu: float, steps: int, v: Points | None = None) -> Points:
    """Pillutla et al. 2022, the smoothed algorithm, from v, or from 0."""
    v = np.zeros(points.shape[1]) if v is None else v
    for _ in range(steps):
        beta = alphas / np.maximum(nu, np.linalg.norm(points - v, axis=1))
        v = beta @ points / beta.sum()
    return v


def rounds(places: Points, alphas: Points, number: int, pull: float | Points = 1.0, nu: float = 1e-6) -> Points:
    """Where the model ends if every hospital's training moves it by `pull` of the way to its own place."""
    strategy = STRATEGIES["rfa"](1.0, Server())
    state = strategy.init(np.full(places.shape[1], 0.3, np.float32))
    for _ in range(number):
        changes = (np.broadcast_to(pull, len(places))[:, None]) * (places - state.weights)
        state = strategy.apply(state, Mean(weiszfeld(changes, alphas, nu, 1).astype(np.float32)))
    return state.weights.astype(np.float64)


# --- rounds are the steps ---------------------------------------------------------------------------------
def test_rounds_of_one_step_are_weiszfelds_steps() -> None:
    rng = np.random.default_rng(1)
    places, alphas = rng.normal(size=(6, 40)), rng.uniform(1, 5, 6)
    expected = weiszfeld(places, alphas, 1e-6, 12, np.full(40, np.float32(0.3), np.float64))
    np.testing.assert_allclose(rounds(places, alphas, 12), expected, rtol=1e-5, atol=1e-6)


def test_rounds_end_at_the_geometric_median_of_what_hospitals_want() -> None:
    """The point of Fermat: of an isosceles triangle with apex (0, 3) and base from (-1, 0) to (1, 0) it is known."""
    triangle = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    found = rounds(triangle, np.ones(3), 200)
    np.testing.assert_allclose(found, [0, 1 / sqrt(3)], atol=1e-4)
    assert abs(triangle.mean(axis=0)[1] - found[1]) > 0.4, "the mean is elsewhere"


def test_hospitals_that_step_less_pull_no_less() -> None:
    """A unit vector is one whatever its length was: unlike FedAvg's, the end does not depend on local steps."""
    triangle = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    found = rounds(triangle, np.ones(3), 600, pull=np.array([0.9, 0.05, 0.3]))
    np.testing.assert_allclose(found, [0, 1 / sqrt(3)], atol=1e-3)


def test_on_a_line_rounds_end_at_the_weighted_median() -> None:
    places = np.array([[-2.0], [0.0], [1.0], [5.0], [1e6]])
    assert rounds(places, np.array([1.0, 1, 2, 1, 1]), 400, nu=1e-3)[0] == pytest.approx(1, abs=0.01)


def test_a_smoothing_longer_than_all_changes_gives_the_mean() -> None:
    points, alphas = np.random.default_rng(2).normal(size=(5, 30)), np.array([1.0, 2, 3, 4, 5])
    np.testing.assert_allclose(weiszfeld(points, alphas, 1000, 1), alphas @ points / 15, rtol=1e-12)


def test_rounds_through_real_masks_are_the_steps_within_the_encodings_bound(tmp_path: Path) -> None:
    """One of five hospitals wants to go the other way, a hundred times as far."""
    alphas, nu, rng = np.array([3.0, 1, 4, 2, 3]), 0.05, np.random.default_rng(5)
    places = rng.normal(1, 0.5, (5, 12)) * np.array([1, 1, 1, 1, -100])[:, None]
    model = [np.zeros(12), weiszfeld(places, alphas, nu, 1)]
    plan: list[StudyPlan] = []

    def work_of(hospital: int) -> Work:
        def work(collection: Collection) -> tuple[Points, NDArray[np.float32]]:
            change = (places[hospital] - model[collection.round - 1]).astype(np.float32)
            weight = weight_beside(plan[0], alphas[hospital], change)
            return np.array([1.0, 1.0, weight, 0.0]), np.float32(weight) * change

        return work

    training = {"rounds": 2, "weighting": "images", "strategy": "rfa"}
    changes = {"training": training, "server": {"smoothing": nu}}
    works = {f"h{hospital}": work_of(hospital) for hospital in range(5)}
    federation = make_federation(tmp_path, works, parameters=12, changes=changes, max_weight=10)
    plan.append(federation.plan)

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        return [await train_only(driver, number) for number in (1, 2)]

    records = run(federation, story)
    assert [(record.clipped, len(record.contributing)) for record in records] == [(0, 5)] * 2
    expected = weiszfeld(places, alphas, nu, 2)
    np.testing.assert_allclose(weights(federation, records[1]), expected, atol=2e-6)
    assert np.abs(alphas @ places / alphas.sum()).max() > 10 * np.abs(expected).max(), "FedAvg would be gone"
    federation.close()


# --- one hospital is spoilt -------------------------------------------------------------------------------
def test_one_of_five_times_minus_100_moves_the_mean_by_no_more_than_its_weight_allows() -> None:
    """With the others' sums A of b_k d_k and B of b_k, v = A / B goes to (A + a) / (B + b), where |a| is alpha_5.

    So it moves by (alpha_5 + b |v|) / (B + b) at most, which is alpha_5 / B, or |v|, however long the change is: about
    alpha_5 over the others' alphas, times the harmonic mean of their lengths. FedAvg's mean goes away.
    """
    rng = np.random.default_rng(3)
    points, alphas = rng.normal(1, 1, (5, 500)), np.array([2.0, 1, 1, 3, 2])
    clean, honest = weiszfeld(points[:4], alphas[:4], 0.01, 1), np.linalg.norm(points[:4], axis=1)
    spoilt = points * np.array([1, 1, 1, 1, -100])[:, None]
    others, its = (alphas[:4] / honest).sum(), alphas[4] / np.linalg.norm(spoilt[4])
    moved = np.linalg.norm(weiszfeld(spoilt, alphas, 0.01, 1) - clean)
    assert moved <= (alphas[4] + its * np.linalg.norm(clean)) / (others + its)
    assert moved < 0.6 * honest.mean()
    assert np.linalg.norm(alphas @ spoilt / alphas.sum() - clean) > 20 * honest.mean()
    cosine = weiszfeld(spoilt, alphas, 0.01, 1) @ clean / np.linalg.norm(clean)
    assert cosine > 0.3 * np.linalg.norm(clean), "it still moves where the four want"


# --- why there is no second step on the same changes ------------------------------------------------------
def two_sums(points: Points) -> tuple[Points, Points, float, float]:
    """What repeated masked sums of the paper's algorithm show to the coordinator, sums and weights, and no more."""
    lengths = np.linalg.norm(points, axis=1)
    first, last = 1 / lengths, 1 / np.linalg.norm(points - points.T @ (1 / lengths) / (1 / lengths).sum(), axis=1)
    return first @ points, last @ points, float(first.sum()), float(last.sum())


def left(sums: tuple[Points, Points, float, float], ratio: float) -> Points:
    """The one change that is left, if all others cancel at this ratio of their weights."""
    first, last, weight, weight_last = sums
    return (last - ratio * first) / (weight_last - ratio * weight)


def consistent(sums: tuple[Points, Points, float, float], ratio: float) -> float:
    """0 where what is left is as long as its weights say."""
    first, _, weight, weight_last = sums
    found = left(sums, ratio)
    says = 1 / np.linalg.norm(found - first / weight) - ratio / np.linalg.norm(found)
    return float(weight_last - ratio * weight - says)


@pytest.mark.parametrize("hospitals", [5, 20])
def test_two_steps_on_the_same_changes_give_away_the_hospital_that_differs(hospitals: int) -> None:
    """So there is no second one, whatever the quorum: one number is unknown, the ratio, and one equation solves it."""
    rng = np.random.default_rng(4)
    points = 1 + 0.5 * rng.normal(size=(hospitals, 20_000))
    points[0] = 1 + 1.5 * (points[0] - 1)  # one differs by half as much again
    sums = two_sums(points)
    low, high = 1.0005 * sums[3] / sums[2], 1.5 * sums[3] / sums[2]
    side = consistent(sums, high) > 0
    assert (consistent(sums, low) > 0) is not side
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if (consistent(sums, middle) > 0) is side else (middle, high)
    off = [np.linalg.norm(left(sums, low) - point) / np.linalg.norm(point) for point in points]
    assert off[0] < 0.06
    assert min(off[1:]) > 0.4, "it is that hospital's, and nobody else's"

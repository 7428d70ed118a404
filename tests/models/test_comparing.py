"""Whether one network does better than another on a hospital's own patients: against direct computations."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from boundary.layout import COMPARED, OUTCOMES
from models.comparing import DRAWS, FEWEST_PATIENTS, Areas, Estimate, Overlaps, compare, figure_of
from models.dice import DiceLayout
from models.errors import TrainingCancelled
from models.measuring import measure, read
from models.metrics import MetricLayout
from models.training import LocalData

Floats = NDArray[np.float64]
RNG = np.random.default_rng(7)


def pairwise(logits: Floats, labels: NDArray[np.int64], k: int) -> float:
    """P(score of an image of class k > that of another), ties one half, by looking at every pair."""
    others = np.delete(logits, k, axis=1)
    scores = logits[:, k] - np.logaddexp.reduce(others, axis=1)
    pairs = [*product(scores[labels == k], scores[labels != k])]
    return float(np.mean([1.0 if up > down else 0.5 if up == down else 0.0 for up, down in pairs]))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_area_is_the_share_of_pairs_in_the_right_order(classes: int) -> None:
    logits = np.round(8 * RNG.normal(0, 1, (60, classes))) / 8  # some are tied
    labels = RNG.integers(classes, size=60)
    scored = MetricLayout(classes).scored
    expected = np.mean([pairwise(logits, labels, k) for k in scored])
    assert Areas(logits, labels, scored)(np.ones(60)) == pytest.approx(expected, abs=1e-12)


def test_an_image_of_weight_two_counts_as_two() -> None:
    logits, labels, weights = RNG.normal(0, 1, (30, 2)), RNG.integers(2, size=30), RNG.integers(4, size=30)
    repeated = Areas(np.repeat(logits, weights, axis=0), np.repeat(labels, weights), (1,))
    assert Areas(logits, labels, (1,))(weights * 1.0) == pytest.approx(repeated(np.ones(weights.sum())), abs=1e-12)


def test_without_one_of_the_classes_there_is_no_area() -> None:
    assert np.isnan(Areas(RNG.normal(0, 1, (5, 2)), np.ones(5, np.int64), (1,))(np.ones(5)))
    assert np.isnan(Areas(np.empty((0, 2)), np.empty(0, np.int64), (1,))(np.empty(0)))


class Linear(nn.Module):
    """Logits (0, bias + the mean of the image times `slope`)."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = self.slope * images.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def held_back(patients: int = 24, each: int = 2) -> LocalData:
    """Brighter images are of class 1, mostly; images of one patient have one label."""
    truth = np.arange(patients) % 2
    images = RNG.normal(0.7 * truth.repeat(each), 0.5).astype(np.float32)
    numbers = 1000 + np.arange(patients).repeat(each)
    return LocalData(np.broadcast_to(images[:, None, None, None], (len(images), 1, 4, 4)).copy(), truth.repeat(each),
                     numbers)  # fmt: skip


def test_intervals_are_those_of_a_bootstrap_over_patients_written_out() -> None:
    data, layout, seed = held_back(), MetricLayout(2), 5
    modules = {"federated": Linear(1.0), "local": Linear(-1.0), "personal": Linear(0.0)}
    figures = {
        name: figure_of(module, data, layout, should_stop=lambda: False, device="cpu")
        for name, module in modules.items()
    }
    found = compare(figures, data.patients, seed)

    generator, known = np.random.default_rng(seed), np.unique(data.patients)
    scores = data.images.mean(axis=(1, 2, 3)).astype(np.float64)
    areas: list[tuple[float, float]] = []
    for _ in range(DRAWS):
        drawn = known[generator.integers(len(known), size=len(known))]
        rows = np.concatenate([np.flatnonzero(data.patients == who) for who in drawn])
        up, labels = scores[rows], data.labels[rows]
        better = (up[labels == 1][:, None] > up[labels == 0][None]).mean()
        ties = (up[labels == 1][:, None] == up[labels == 0][None]).mean()
        areas.append((better + ties / 2, 1 - better - ties / 2))
    federated, local = np.array(areas).T
    for name, drawn in (("federated", federated), ("local", local)):
        estimate = found.figures[name]
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=1e-6)
    difference = found.differences["federated", "local"]
    ends = np.percentile(federated - local, [2.5, 97.5])
    assert (difference.low, difference.high) == pytest.approx(tuple(ends), abs=1e-6)
    assert difference.value == pytest.approx(found.figures["federated"].value - found.figures["local"].value)
    assert found.figures["personal"] == Estimate(0.5, 0.5, 0.5)


def test_what_goes_into_the_sum_is_one_outcome_for_each_pair_and_the_difference() -> None:
    data = held_back(40)
    figures = {
        name: figure_of(Linear(slope), data, MetricLayout(2), should_stop=lambda: False, device="cpu")
        for name, slope in (("federated", 1.0), ("local", -1.0), ("personal", 1.0))
    }
    told = dict(zip(COMPARED, compare(figures, data.patients, 1).outcomes().reshape(-1, len(OUTCOMES)), strict=True))
    assert {tuple(one[:3]) for one in told.values()} == {(1, 0, 0), (0, 1, 0)}
    assert tuple(told["federated", "local"][:3]) == tuple(told["personal", "local"][:3]) == (1, 0, 0)
    assert tuple(told["personal", "federated"]) == (0, 1, 0, 0)
    assert told["federated", "local"][3] > 0.3


@pytest.mark.parametrize("patients", [0, 1, FEWEST_PATIENTS - 1])
def test_of_few_patients_nobody_can_tell_and_nothing_goes_into_the_sum(patients: int) -> None:
    data = held_back(patients)
    figures = {
        name: figure_of(Linear(slope), data, MetricLayout(2), should_stop=lambda: False, device="cpu")
        for name, slope in (("federated", 1.0), ("local", -1.0), ("personal", 1.0))
    }
    found = compare(figures, data.patients, 1)
    assert found.patients == patients
    assert not found.outcomes().any()
    assert all(one.low is one.verdict is None for one in (*found.figures.values(), *found.differences.values()))


def test_a_class_that_few_patients_have_leaves_too_few_draws_for_an_interval() -> None:
    data = held_back()
    labels = np.where(data.patients == 1001, 1, 0).astype(np.int64)
    figure = figure_of(
        Linear(1.0), LocalData(data.images, labels, data.patients), MetricLayout(2),
        should_stop=lambda: False, device="cpu",
    )  # fmt: skip
    found = compare({"federated": figure, "local": figure}, data.patients, 3)
    assert np.isfinite(found.figures["federated"].value)
    assert found.differences["federated", "local"].verdict is None


def test_one_class_alone_is_left_out_of_everything() -> None:
    data = held_back()
    figure = figure_of(
        Linear(1.0), LocalData(data.images, np.zeros_like(data.labels), data.patients), MetricLayout(2),
        should_stop=lambda: False, device="cpu",
    )  # fmt: skip
    found = compare({"federated": figure, "local": figure}, data.patients, 3)
    assert (found.figures, found.differences) == ({}, {})
    assert not found.outcomes().any()


def test_of_masks_it_is_the_mean_dice_as_it_is_measured_everywhere() -> None:
    masks = RNG.integers(3, size=(12, 8, 8)).astype(np.uint8)
    masks[:4][masks[:4] == 2] = 0  # a class that not every image shows
    images = (masks + RNG.normal(0, 0.8, masks.shape)).astype(np.float32)[:, None]

    class Nearest(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.stack([-((batch[:, 0] - k) ** 2) for k in range(3)], dim=1)

    layout, data = DiceLayout(3), LocalData(images, masks, np.arange(12))
    figure = figure_of(Nearest(), data, layout, should_stop=lambda: False, device="cpu")
    logits = Nearest()(torch.from_numpy(images)).numpy()
    assert figure(np.ones(12)) == pytest.approx(read(measure(logits, masks, layout), layout).dice, abs=1e-9)
    twice = np.repeat(np.arange(12), 2)[:15]
    weights = np.bincount(twice, minlength=12).astype(np.float64)
    expected = read(measure(logits[twice], masks[twice], layout), layout).dice
    assert figure(weights) == pytest.approx(expected, abs=1e-9)


def test_the_dice_of_a_draw_without_a_class_is_none() -> None:
    """It would be the mean of the other classes: easier ones, say, and an interval of two different figures."""
    shown = np.zeros((12, 3, 2))
    shown[:, 0] = 1.0, 0.9
    shown[:2, 1] = 1.0, 0.1  # the third class nobody has
    figure = Overlaps(shown)
    assert figure(np.ones(12)) == pytest.approx(0.5)
    assert np.isnan(figure(np.arange(12) >= 2))
    found = compare({"federated": figure, "local": figure}, np.arange(12), seed=1)
    assert found.figures["federated"].low is None, "in 11 % of the draws it is absent"
    assert np.isnan(Overlaps(np.zeros((12, 3, 2)))(np.ones(12)))


def test_looking_can_be_stopped() -> None:
    with pytest.raises(TrainingCancelled):
        figure_of(Linear(1.0), held_back(), MetricLayout(2), should_stop=lambda: True, device="cpu")

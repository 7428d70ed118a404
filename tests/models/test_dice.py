"""Dice that adds up: against a count by hand, for any parts, in a masked sum of the largest cohorts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from boundary.aggregation import MAX_HOSPITALS
from boundary.images import MOST_VOXELS
from boundary.secagg.encoding import decode_numbers, encode_numbers
from infra import golden
from models.dice import ClassDice, DiceLayout, SegmentationMetrics, measure, read
from models.errors import NoImages, NonFiniteLogits
from models.losses import image_losses
from models.measuring import layout_of
from models.metrics import LARGEST_LOSS, MetricLayout, Vector

LAYOUT = DiceLayout(3)
VOXEL = 2.0**-24
Case = tuple[NDArray[np.float32], NDArray[np.uint8]]


def drawn(count: int, classes: int, sides: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Case:
    random = np.random.default_rng(seed)
    masks = random.integers(0, classes, (count, *sides), dtype=np.uint8)
    return (random.normal(size=(count, classes, *sides)) * scale).astype(np.float32), masks


def answers(found: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """Logits of a network that is sure of `found`."""
    return np.moveaxis(9.0 * np.eye(classes, dtype=np.float32)[found], -1, 1)


def dice_of(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_a_layout_names_every_coordinate_once(classes: int) -> None:
    layout = DiceLayout(classes)
    assert len(layout.names) == len(set(layout.names)) == layout.size == 2 + 5 * (classes - 1)
    assert layout.names[:7] == (
        "loss_sum", "count", "intersection_1", "predicted_1", "true_1", "shown_1", "dice_1",
    )  # fmt: skip
    with pytest.raises(ValueError, match="2 or more"):
        DiceLayout(1)


def test_the_plan_s_task_decides_the_layout() -> None:
    assert layout_of(golden.plan()) == MetricLayout(2)
    assert layout_of(golden.segmentation_plan()) == DiceLayout(3)


def test_a_small_case_by_hand() -> None:
    """Two images of four pixels. Class 1: half of it found in the first, not there in the second. No class 2."""
    masks = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], np.uint8)
    found = np.array([[[1, 0], [0, 0]], [[1, 1], [0, 0]]], np.uint8)
    vector = measure(answers(found, 3), masks, LAYOUT)
    assert (vector[2:] / VOXEL)[[0, 1, 2]].tolist() == [1, 3, 2]
    metrics = read(vector, LAYOUT)
    assert metrics.classes == (
        ClassDice(images=1, mean=pytest.approx(2 / 3, abs=1e-7), pooled=pytest.approx(2 / 5)),
        ClassDice(images=0, mean=None, pooled=None),
    )
    assert metrics.dice == metrics.classes[0].mean
    assert metrics.pooled_dice == metrics.classes[0].pooled
    assert metrics.count == 2


@given(
    count=st.integers(1, 6),
    classes=st.integers(2, 4),
    sides=st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_dice_is_that_of_a_direct_computation(count: int, classes: int, sides: tuple[int, ...], seed: int) -> None:
    logits, masks = drawn(count, classes, sides, seed)
    masks[::2][masks[::2] == 1] = 0  # a class that some images do not show
    layout, found = DiceLayout(classes), logits.argmax(axis=1)
    metrics = read(measure(logits, masks, layout), layout)
    for k, told in enumerate(metrics.classes, start=1):
        there = [i for i in range(count) if (masks[i] == k).any()]
        assert told.images == len(there)
        if there:
            assert told.mean == pytest.approx(np.mean([dice_of(found[i] == k, masks[i] == k) for i in there]), abs=1e-7)
            assert told.pooled == pytest.approx(dice_of(found == k, masks == k))
        else:
            assert (told.mean, told.pooled) == (None, None)
    means = [told.mean for told in metrics.classes if told.mean is not None]
    assert metrics.dice == (pytest.approx(np.mean(means)) if means else None)


@given(
    cuts=st.lists(st.integers(0, 12), max_size=4),
    classes=st.integers(2, 5),
    scale=st.sampled_from([0.01, 1.0, 1e3, 1e30]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_the_parts_add_up_to_the_whole(cuts: list[int], classes: int, scale: float, seed: int) -> None:
    layout = DiceLayout(classes)
    logits, masks = drawn(12, classes, (3, 4, 5), seed, scale)
    whole = measure(logits, masks, layout)
    edges = [0, *sorted(cuts), 12]
    parts = [measure(logits[a:b], masks[a:b], layout) for a, b in pairwise(edges)]
    assert (sum(parts)[1:] == whole[1:]).all()
    assert sum(parts)[0] == pytest.approx(whole[0], rel=1e-12)
    assert whole.shape == (layout.size,)
    assert 0 <= whole[0] <= LARGEST_LOSS * 12
    assert 0 <= whole[1:].min() <= whole[1:].max() <= 12


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("sides", [(9, 7), (4, 6, 5)])
def test_its_loss_is_the_one_that_training_makes_small(classes: int, sides: tuple[int, ...]) -> None:
    logits, masks = drawn(5, classes, sides, scale=3)
    wanted = image_losses(torch.from_numpy(logits).double(), torch.from_numpy(masks)).mean()
    layout = DiceLayout(classes)
    assert read(measure(logits, masks, layout), layout).loss == pytest.approx(float(wanted), rel=1e-5)


def test_the_loss_of_a_network_that_is_wrong_and_sure_is_bounded() -> None:
    masks = np.zeros((1, 4, 4), np.uint8)
    wrong = 1e30 * answers(np.ones((1, 4, 4), np.uint8), 3)
    assert measure(wrong, masks, LAYOUT)[0] <= LARGEST_LOSS


def test_voxels_of_very_many_volumes_are_summed_to_the_last_one() -> None:
    """A hospital with 10,000 of the largest volumes, all of one class but a voxel of each, among the most hospitals."""
    volumes = 10_000
    vector = np.array([volumes * 0.5, volumes, *(volumes * (MOST_VOXELS - i) * VOXEL for i in (2, 1, 0)), volumes, 9.5])
    words = encode_numbers(vector, MAX_HOSPITALS)
    total = np.add.reduce([words] * MAX_HOSPITALS, dtype=np.uint64)
    assert (decode_numbers(total) == MAX_HOSPITALS * vector).all()
    read(decode_numbers(total), DiceLayout(2))


def test_no_image_measures_as_zeros_and_reads_as_an_error() -> None:
    vector = measure(np.zeros((0, 3, 4, 4), np.float32), np.zeros((0, 4, 4), np.uint8), LAYOUT)
    assert (vector == np.zeros(LAYOUT.size)).all()
    with pytest.raises(NoImages):
        read(vector, LAYOUT)


@pytest.mark.parametrize(
    "vector",
    [np.zeros(LAYOUT.size - 1), np.full(LAYOUT.size, -VOXEL), np.full(LAYOUT.size, np.nan)],
    ids=["too short", "less than no voxel", "nan"],
)
def test_what_is_no_metric_vector_is_refused(vector: Vector) -> None:
    with pytest.raises(ValueError, match="not a metric vector"):
        read(vector, LAYOUT)


@pytest.mark.parametrize(
    ("logits", "masks"),
    [
        (np.zeros((2, 3)), np.zeros(2)),
        (np.zeros((2, 2, 4, 4)), np.zeros((2, 4, 4))),
        (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 5))),
        (np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 3)),
    ],
    ids=["class labels", "two classes", "another side", "label too large"],
)
def test_logits_and_masks_must_fit_the_layout(logits: NDArray[np.float32], masks: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="labels"):
        measure(logits.astype(np.float32), masks.astype(np.uint8), LAYOUT)


def test_a_diverged_model_cannot_be_measured() -> None:
    logits, masks = drawn(1, 3, (4, 4))
    logits[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteLogits):
        measure(logits, masks, LAYOUT)


def test_metrics_without_any_class_have_no_mean() -> None:
    nothing = SegmentationMetrics(3, 0.1, (ClassDice(0, None, None),))
    assert (nothing.dice, nothing.pooled_dice) == (None, None)

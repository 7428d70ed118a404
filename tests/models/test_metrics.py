from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import NoImages, NonFiniteLogits
from models.metrics import LARGEST_LOSS, MetricLayout, Vector, measure, read

BINARY = MetricLayout(classes=2)


def rank_auroc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Exact: the share of (positive, negative) pairs in the right order, ties counting half."""
    difference = scores[positive][:, None] - scores[~positive][None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def scored(margins: NDArray[np.float32]) -> NDArray[np.float32]:
    """Binary logits whose log-odds are the margins."""
    return np.stack([np.zeros_like(margins), margins], axis=1).astype(np.float32)


def cohort(
    size: int, spread: float, offset: float = 0.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, size)
    return scored(offset + spread * (random.normal(size=size) + 1.5 * labels - 0.75)), labels


@pytest.mark.parametrize("layout", [BINARY, MetricLayout(2, 128), MetricLayout(3, 8), MetricLayout(100, 2)])
def test_a_layout_names_every_coordinate_once(layout: MetricLayout) -> None:
    assert len(layout.names) == len(set(layout.names)) == layout.size
    assert layout.names[:3] == ("loss_sum", "count", "confusion_0_0")


def test_the_binary_layout_scores_only_the_positive_class() -> None:
    assert BINARY.size == 2 + 4 + 2 * 64
    assert BINARY.names[6] == "score_1_positive_00"
    assert BINARY.names[-1] == "score_1_negative_63"


@pytest.mark.parametrize(("classes", "bins"), [(1, 64), (2, 1), (2, 129)])
def test_impossible_layouts_are_refused(classes: int, bins: int) -> None:
    with pytest.raises(ValueError, match="classes"):
        MetricLayout(classes, bins)


def test_a_small_case_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], np.float32))
    found = read(measure(logits, np.array([0, 0, 1, 1]), BINARY), BINARY)
    assert found.count == 4
    assert found.loss == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.3]).mean())
    assert found.accuracy == 0.5
    assert found.balanced_accuracy == 0.5
    assert found.confusion == ((1, 1), (1, 1))
    assert found.auroc == pytest.approx(0.75)


def test_an_absent_class_leaves_auroc_and_balanced_accuracy_open() -> None:
    logits, _ = cohort(20, 1.0)
    found = read(measure(logits, np.zeros(20, np.int64), BINARY), BINARY)
    assert (found.auroc, found.auroc_resolution, found.balanced_accuracy) == (None, None, None)
    assert found.count == 20


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0, 8.0, 30.0])
@pytest.mark.parametrize("bins", [64, 128])
def test_auroc_is_accurate_from_unsure_to_extreme_scores(spread: float, bins: int) -> None:
    layout = MetricLayout(2, bins)
    logits, labels = cohort(600, spread)
    found = read(measure(logits, labels, layout), layout)
    assert found.auroc == pytest.approx(rank_auroc(logits[:, 1], labels == 1), abs=0.01)


@given(
    margins=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=60),
    seed=st.integers(0, 99),
    bins=st.integers(2, 128),
)
@settings(max_examples=80, deadline=None)
def test_the_exact_auroc_lies_within_the_stated_resolution(margins: list[float], seed: int, bins: int) -> None:
    layout = MetricLayout(2, bins)
    labels = np.random.default_rng(seed).integers(0, 2, len(margins))
    labels[:2] = [0, 1]
    logits = scored(np.array(margins, np.float32))
    found = read(measure(logits, labels, layout), layout)
    exact = rank_auroc(logits[:, 1], labels == 1)
    assert abs(found.auroc - exact) <= found.auroc_resolution + 1e-12


def test_multiclass_auroc_is_the_mean_of_one_against_the_rest() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 3, 400)
    logits = (random.normal(size=(400, 3)) + 1.5 * np.eye(3)[labels]).astype(np.float32)
    layout = MetricLayout(3, 128)
    found = read(measure(logits, labels, layout), layout)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.auroc == pytest.approx(np.mean([rank_auroc(shares[:, k], labels == k) for k in range(3)]), abs=5e-3)
    assert found.accuracy == pytest.approx((logits.argmax(axis=1) == labels).mean())
    recalls = [(logits[labels == k].argmax(axis=1) == k).mean() for k in range(3)]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))


@given(
    cuts=st.lists(st.integers(0, 50), max_size=4),
    classes=st.integers(2, 5),
    scale=st.sampled_from([0.01, 1.0, 1e3, 1e30]),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_the_parts_add_up_to_the_whole(cuts: list[int], classes: int, scale: float, seed: int) -> None:
    layout, random = MetricLayout(classes, 16), np.random.default_rng(seed)
    logits = (random.normal(size=(50, classes)) * scale).astype(np.float32)
    labels = random.integers(0, classes, 50)
    whole = measure(logits, labels, layout)
    edges = [0, *sorted(cuts), 50]
    parts = [measure(logits[a:b], labels[a:b], layout) for a, b in pairwise(edges)]
    assert (sum(parts)[1:] == whole[1:]).all()
    assert sum(parts)[0] == pytest.approx(whole[0], rel=1e-12)
    assert whole.dtype == np.float64
    assert whole.shape == (layout.size,)
    assert 0 <= whole[0] <= LARGEST_LOSS * 50
    assert 0 <= whole[1:].min() <= whole[1:].max() <= 50


def test_no_image_measures_as_zeros_and_reads_as_an_error() -> None:
    vector = measure(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), BINARY)
    assert (vector == np.zeros(BINARY.size)).all()
    with pytest.raises(NoImages):
        read(vector, BINARY)


def test_rounding_of_a_fixed_point_sum_is_forgiven() -> None:
    logits, labels = cohort(30, 1.0)
    vector = measure(logits, labels, BINARY)
    blurred = vector + np.random.default_rng(0).uniform(-1e-3, 1e-3, vector.shape)
    assert read(blurred, BINARY).confusion == read(vector, BINARY).confusion
    assert read(blurred, BINARY).auroc == read(vector, BINARY).auroc


@pytest.mark.parametrize(
    "vector",
    [np.zeros(BINARY.size - 1), np.full(BINARY.size, -1.0), np.full(BINARY.size, np.nan)],
    ids=["too short", "negative counts", "nan"],
)
def test_what_is_no_metric_vector_is_refused(vector: Vector) -> None:
    with pytest.raises(ValueError, match="not a metric vector"):
        read(vector, BINARY)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((3, 3)), np.array([0, 1, 0])),
        (np.zeros((3, 2)), np.array([0, 1])),
        (np.zeros((2, 2)), np.array([0, 2])),
        (np.zeros((2, 2)), np.array([-1, 0])),
    ],
    ids=["three columns", "too few labels", "label too large", "label negative"],
)
def test_logits_and_labels_must_fit_the_layout(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="labels"):
        measure(logits.astype(np.float32), labels, BINARY)


def test_a_diverged_model_cannot_be_measured() -> None:
    with pytest.raises(NonFiniteLogits):
        measure(np.array([[0, np.nan]], np.float32), np.array([0]), BINARY)

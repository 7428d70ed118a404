"""Volumes, their masks and their slices on the plan's grid: image and mask stay together, whatever the geometry."""

import math
import tracemalloc
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from boundary.images import Preprocessing
from models.preprocessing import volume_inputs
from models.resampling import canonical_slices, canonical_volume, resampled, resampled_mask, turned

VOLUMES = Preprocessing(size=(16, 24, 32), spacing=(3.0, 2.0, 1.5), intensity="window", low=0.0, high=100.0)
SLICES = Preprocessing(size=(24, 32), intensity="window", low=0.0, high=100.0)
SPACED = Preprocessing(size=(24, 32), spacing=(2.0, 1.5), intensity="window", low=0.0, high=100.0)


def axial(gap: float = 1.0, rows: float = 1.0, columns: float = 1.0) -> NDArray[np.float64]:
    """(slice, row, column, 1) to RAS mm of a standard axial volume: head, back and left are where indices grow."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = gap, -rows, -columns, 1
    return affine


def ball(
    shape: tuple[int, ...], centre: NDArray[np.float64], radius: float, spacing: tuple[float, ...]
) -> NDArray[np.bool_]:
    """`centre` and `radius` in mm from the middle of the array."""
    axes = [
        (np.arange(side) - (side - 1) / 2) * step - middle
        for side, step, middle in zip(shape, spacing, centre, strict=True)
    ]
    inside: NDArray[np.bool_] = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) <= radius**2
    return inside


def middle_of(weights: NDArray[np.generic], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Centre of mass, mm from the middle of the array."""
    mass = weights.astype(np.float64)
    axes = [(np.arange(side) - (side - 1) / 2) * step for side, step in zip(mass.shape, spacing, strict=True)]
    return np.array([(mass * axis).sum() / mass.sum() for axis in np.meshgrid(*axes, indexing="ij")])


# --- the grid --------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(st.integers(20, 41), st.integers(20, 41)),
    new=st.tuples(st.integers(20, 41), st.integers(20, 41)),
    own=st.tuples(st.floats(0.6, 2.5), st.floats(0.6, 2.5)),
    to=st.tuples(st.floats(0.8, 2.5), st.floats(0.8, 2.5)),
    aside=st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
)
def test_a_disc_and_its_mask_stay_where_they_are_and_together(
    sides: tuple[int, int],
    new: tuple[int, int],
    own: tuple[float, float],
    to: tuple[float, float],
    aside: tuple[float, float],
) -> None:
    radius = 0.3 * min(side * step for side, step in zip((*sides, *new), (*own, *to), strict=True)) - 1.5
    coarser = np.maximum(own, to)
    disc = ball(sides, np.array(aside), radius, own)
    image = resampled(disc.astype(np.float32), own, to, new)
    mask = resampled_mask(disc.astype(np.uint8), own, to, new)
    assert (np.abs(middle_of(image, to) - middle_of(mask, to)) < 0.5 * coarser).all()
    assert (np.abs(middle_of(image, to) - middle_of(disc, own)) < 0.6 * coarser).all()


def test_the_same_grid_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.random((5, 6, 7)).astype(np.float32), rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    assert_array_equal(resampled(image, (3, 2, 1), (3, 2, 1), (5, 6, 7)), image)
    assert_array_equal(resampled_mask(mask, (3, 2, 1), (3, 2, 1), (5, 6, 7)), mask)


def test_cutting_and_padding_are_around_the_centre() -> None:
    image = np.arange(1, 7, dtype=np.float32)
    for size, expected in ((4, image[1:-1]), (10, np.pad(image, 2)), (9, np.pad(image, (1, 2))), (3, image[2:-1])):
        assert_array_equal(resampled(image, (1,), (1,), (size,)), expected)
        assert_array_equal(resampled_mask(image.astype(np.uint8), (1,), (1,), (size,)), expected)


def test_a_ramp_is_a_ramp_on_every_grid() -> None:
    ramp = np.linspace(0, 1, 41, dtype=np.float32)
    found = resampled(ramp, (1.0,), (0.7,), (40,))  # 59 voxels of 0.7 mm have the middle of 41 of 1 mm
    assert_allclose(found, ((np.arange(40) + 10 - 29) * 0.7 + 20) / 40, atol=1e-6)


def test_shrinking_averages_instead_of_skipping_voxels() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), 64)
    assert_allclose(resampled(stripes, (1.0,), (8.0,), (16,)), 0.5, atol=0.02)


def test_halfway_between_two_classes_the_later_one_is_taken_everywhere() -> None:
    mask = np.arange(12, dtype=np.uint8)
    assert resampled_mask(mask, (0.7,), (1.4,), (6,)).tolist() == [1, 3, 5, 7, 9, 11]
    assert resampled_mask(mask, (0.1,), (0.2,), (6,)).tolist() == [1, 3, 5, 7, 9, 11]


# --- the axes --------------------------------------------------------------------------------------------
def test_a_volume_is_the_same_however_it_was_stored() -> None:
    rng = np.random.default_rng(1)
    volume = (100 * rng.random((9, 11, 13))).astype(np.float32)
    mask = rng.integers(0, 3, volume.shape).astype(np.uint8)
    affine = axial(3.0, 2.0, 1.5) + np.array([[0, 0, 0, 7.0], [0] * 4, [0] * 4, [0] * 4])
    ((image, classes),) = volume_inputs(volume, mask, affine, VOLUMES)
    assert_allclose(image[0, 3:12, 6:17, 9:22], volume / 100, atol=1e-6)
    assert_array_equal(classes[3:12, 6:17, 9:22], mask)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        axes = tuple(sign * (axis + 1) for axis, sign in zip(order, signs, strict=True))
        stored = np.column_stack([affine[:, abs(axis) - 1] * np.sign(axis) for axis in axes] + [affine[:, 3]])
        ((again, also),) = volume_inputs(turned(volume, axes), turned(mask, axes), stored, VOLUMES)
        assert_array_equal(again, image)
        assert_array_equal(also, classes)


def test_an_oblique_volume_keeps_its_angle() -> None:
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    assert canonical_volume(tilt @ axial(5.0)) == canonical_volume(axial(5.0)) == (1, 2, 3)


def test_slices_are_turned_as_they_are_displayed_and_never_exchanged() -> None:
    coronal = np.zeros((4, 4))  # slices to the back, rows to the feet, columns to the left
    coronal[[1, 2, 0, 3], [0, 1, 2, 3]] = -1, -1, -1, 1
    sagittal = np.zeros((4, 4))  # slices to the left, rows to the feet, columns to the back
    sagittal[[0, 2, 1, 3], [0, 1, 2, 3]] = -1, -1, -1, 1
    for affine in (axial(), coronal, sagittal):
        assert canonical_slices(affine) == (1, 2, 3)
        assert canonical_slices(affine @ np.diag([-1.0, -1, 1, 1])) == (1, -2, 3)
        assert canonical_slices(affine[:, [0, 2, 1, 3]]) == (1, 3, 2)


# --- a plan's inputs -------------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", [SLICES, SPACED], ids=["fitted", "spaced"])
@pytest.mark.parametrize("shape", [(40, 52), (30, 20), (11, 64), (24, 32), (100, 90)])
def test_a_disc_in_a_slice_and_its_mask_agree_to_half_a_pixel(plan: Preprocessing, shape: tuple[int, int]) -> None:
    disc = ball(shape, np.array((1.2, -0.7)), 0.3 * min(shape), (1, 1))
    volume = np.stack([disc * np.float32(100)] * 2).astype(np.float32)
    pairs = list(volume_inputs(volume, (volume > 0).astype(np.uint8), axial(), plan))
    assert len(pairs) == 2
    for image, mask in pairs:
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((1, 24, 32), np.float32, (24, 32), np.uint8)
        apart = middle_of(image[0], (1, 1)) - middle_of(mask, (1, 1))
        assert np.abs(apart).max() < 0.5
        assert (mask != (image[0] > 0.5)).mean() < 0.04


def test_intensities_are_those_of_the_whole_volume() -> None:
    plan = SLICES.model_copy(update={"intensity": "percentiles", "low": 0.0, "high": 100.0})
    volume = np.stack([np.full((24, 32), value, np.float32) for value in (-50, 0, 150)])
    found = [float(image.max()) for image, _ in volume_inputs(volume, np.zeros(volume.shape, np.uint8), axial(), plan)]
    assert_allclose(found, [0, 0.25, 1], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30)),
    spacing=st.tuples(st.floats(0.05, 50), st.floats(0.05, 50), st.floats(0.05, 50)),
    plan=st.sampled_from([VOLUMES, SPACED]),
    seed=st.integers(0, 99),
)
def test_any_volume_becomes_inputs(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], plan: Preprocessing, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    volume, mask = rng.normal(50, 100, shape).astype(np.float32), rng.integers(0, 4, shape).astype(np.uint8)
    pairs = list(volume_inputs(volume, mask, axial(*spacing), plan))
    assert len(pairs) == (1 if len(plan.size) == 3 else shape[0])
    for image, classes in pairs:
        assert (image.shape, classes.shape) == ((1, *plan.size), plan.size)
        assert image.flags.c_contiguous
        assert 0 <= image.min() <= image.max() <= 1
        assert set(np.unique(classes)) <= {0, *np.unique(mask)}


@pytest.mark.parametrize(
    ("volume", "mask"),
    [
        (np.full((2, 3, 4), np.nan, np.float32), np.zeros((2, 3, 4), np.uint8)),
        (np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 5), np.uint8)),
        (np.zeros((3, 4), np.float32), np.zeros((3, 4), np.uint8)),
        (np.zeros((0, 3, 4), np.float32), np.zeros((0, 3, 4), np.uint8)),
    ],
    ids=["not a number", "another mask", "a slice", "nothing"],
)
def test_what_is_no_volume_is_refused(volume: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="image"):
        list(volume_inputs(volume, mask, axial(), VOLUMES))


@pytest.mark.parametrize("shape", [(400, 40, 40), (40, 400, 40), (40, 40, 400), (40, 40, 40)])
def test_nothing_on_the_way_is_much_larger_than_what_goes_in_or_comes_out(shape: tuple[int, ...]) -> None:
    image, size = np.ones(shape, np.float32), (16, 160, 160)
    tracemalloc.start()
    try:
        resampled(image, (1, 1, 1), (1, 0.25, 0.25), size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * max(image.nbytes, 4 * math.prod(size))

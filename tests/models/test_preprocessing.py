from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from boundary.images import Preprocessing
from models.preprocessing import normalised, to_input

WINDOW = Preprocessing(size=(16, 16), intensity="window", low=-100.0, high=300.0)
PERCENTILES = Preprocessing(size=(16, 16), intensity="percentiles", low=0.0, high=100.0)

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_a_window_maps_its_ends_to_0_and_1_and_clips() -> None:
    image = np.full((16, 16), 100, np.float32)
    image[0, :4] = [-100, 300, -2000, 5000]
    found = to_input(image, WINDOW)
    assert found.shape == (1, 16, 16)
    assert found.dtype == np.float32
    assert found[0, 0, :5].tolist() == [0, 1, 0, 1, 0.5]


def test_percentiles_are_those_of_the_image_itself() -> None:
    image = np.arange(256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_allclose(to_input(image * 40 - 7, PERCENTILES)[0], image / 255, atol=1e-6)
    middle = PERCENTILES.model_copy(update={"low": 25.0, "high": 75.0})
    found = to_input(image, middle)[0].ravel()
    assert (found[:64] == 0).all()
    assert (found[192:] == 1).all()
    assert (np.diff(found[64:192]) > 0).all()


@given(arrays(np.float32, (16, 16), elements=FINITE), st.sampled_from([WINDOW, PERCENTILES]))
def test_it_is_the_exact_scale_up_to_rounding(image: NDArray[np.float32], plan: Preprocessing) -> None:
    """Whatever float32 can hold; the middle of the scale is a line, so what rounding does is in proportion."""
    low, high = plan.low, plan.high
    if plan is PERCENTILES:
        low, high = float(image.min()), float(image.max())
    found = to_input(image, plan)[0]
    assert ((found >= 0) & (found <= 1)).all()
    if high > low:
        exact = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
        room = 2.0**-22 * max(1.0, max(abs(low), abs(high)) / (high - low))
        np.testing.assert_allclose(found, exact, atol=min(room, 1.0))


@pytest.mark.parametrize("plan", [WINDOW, PERCENTILES], ids=["window", "percentiles"])
def test_an_image_without_contrast_gives_one_value(plan: Preprocessing) -> None:
    found = to_input(np.full((50, 40), 3000, np.float32), plan.model_copy(update={"size": (20, 16)}))
    np.testing.assert_allclose(found, 1 if plan is WINDOW else 0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((32, 64), np.s_[4:12, :]), ((64, 32), np.s_[:, 4:12]), ((8, 16), np.s_[4:12, :]), ((5, 5), np.s_[:, :])],
)
def test_the_aspect_ratio_is_kept_and_the_rest_is_zero(shape: tuple[int, int], inner: Any) -> None:
    expected = np.zeros((16, 16), np.float32)
    expected[inner] = 1
    np.testing.assert_allclose(to_input(np.full(shape, 300, np.float32), WINDOW)[0], expected, atol=1e-6)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.tile(np.array([-100, 300], np.float32), (128, 64))
    found = to_input(stripes, WINDOW)[0]
    np.testing.assert_allclose(found[:, 1:-1], 0.5, atol=0.02)


def test_a_very_long_image_costs_no_more_memory_than_the_target() -> None:
    found = to_input(np.full((1, 200_000), 300, np.float32), WINDOW)[0]
    assert found.sum() == pytest.approx(16)  # one row


def test_the_image_is_left_as_it_was() -> None:
    image = np.arange(900, dtype=np.float32).reshape(30, 30)
    image.flags.writeable = False
    to_input(image, WINDOW)


@pytest.mark.parametrize(
    "image",
    [np.full((4, 4), np.nan), np.full((4, 4), -np.inf), np.zeros((3, 4, 4)), np.zeros((0, 4))],
    ids=["nan", "infinity", "three dimensions", "empty"],
)
def test_what_is_no_image_is_refused(image: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="image"):
        to_input(image.astype(np.float32), WINDOW)


@settings(max_examples=40, deadline=None)
@given(
    image=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=FINITE),
    plan=st.sampled_from([WINDOW, PERCENTILES]),
    size=st.tuples(st.integers(16, 40), st.integers(16, 40)),
)
def test_any_finite_image_becomes_an_input(
    image: NDArray[np.float32], plan: Preprocessing, size: tuple[int, int]
) -> None:
    found = to_input(image, plan.model_copy(update={"size": size}))
    assert found.shape == (1, *size)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert 0 <= found.min() <= found.max() <= 1


def test_normalised_by_their_own_mean_and_deviation_images_have_0_and_1() -> None:
    images = np.random.default_rng(0).uniform(0, 1, (4, 1, 20, 30)).astype(np.float32)
    found = normalised(images, float(images.mean()), float(images.std()))
    assert found.dtype == np.float32
    assert (found.mean(), found.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, rel=1e-6))

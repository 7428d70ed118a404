"""Masked vectors to one sum: exact, in any order, every wrong length refused."""

import io
import os
from typing import Any, BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.errors import BadTensors, CallerFault
from boundary.guarantee import EPSILON_BANDS
from boundary.layout import VectorLayout, layout_for
from boundary.secagg.encoding import Quantiser, encode_numbers
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.ring import Encoding
from boundary.secagg.secrets import MaskKey
from flows.summing import Total, masked_total, openers, read_train_sum, unmasked

PARAMETERS = 1_300_001  # more than one piece, and not a whole number of blocks
LAYOUT = layout_for("train", parameters=PARAMETERS, metrics=0)
NUMBERS = np.array([12.5, 30.0, 20.0, 0.0])


def encoded(
    weights: NDArray[np.float32],
    encoding: Encoding,
    numbers: NDArray[np.float64] = NUMBERS,
    layout: VectorLayout = LAYOUT,
) -> NDArray[np.uint8]:
    vector = np.empty(layout.masked_bytes(encoding.ring), np.uint8)
    vector[: layout.numbers_bytes] = encode_numbers(numbers, encoding.most).view(np.uint8)
    Quantiser(encoding, os.urandom(32)).encode(weights, vector[layout.numbers_bytes :].view(f"<u{encoding.ring // 8}"))
    return vector


def opener(data: bytes) -> Any:
    def opened() -> BinaryIO:
        return io.BytesIO(data)

    return opened


@pytest.mark.parametrize("ring", [32, 16])
def test_the_sum_is_exact_and_the_masks_come_off(ring: Any) -> None:
    encoding = Encoding(ring=ring, exponent=ring - 6, most=3)
    rng = np.random.default_rng(1)
    plain = [rng.uniform(-1, 1, PARAMETERS).astype(np.float32) for _ in range(3)]
    vectors, keys = [encoded(weights, encoding) for weights in plain], [os.urandom(32) for _ in range(3)]
    reference = sum(vector[LAYOUT.numbers_bytes :].view(f"<i{ring // 8}").astype(np.int64) for vector in vectors)
    for vector, key in zip(vectors, keys, strict=True):
        masks = Masking([MaskKey(key, 1)], numbers_bytes=LAYOUT.numbers_bytes, ring=ring)
        apply_everywhere(vector, masks)
    data = [opener(vector.tobytes()) for vector in vectors]
    there, back = masked_total(data, LAYOUT, ring), masked_total(data[::-1], LAYOUT, ring)
    assert np.array_equal(there, back)
    total = unmasked(there, [MaskKey(key, -1) for key in keys], LAYOUT, encoding)
    assert np.array_equal(total.words.view(f"<i{ring // 8}"), reference)
    assert total.numbers.tolist() == (3 * NUMBERS).tolist()
    summed = read_train_sum(total, hospitals=4)
    expected = sum(weights.astype(np.float64) for weights in plain) / 60
    np.testing.assert_allclose(summed.mean_delta, expected, rtol=1e-7, atol=3 * 2.0**-encoding.exponent / 60)
    assert (summed.mean_loss, summed.weight, summed.clipped) == (37.5 / 90, 60, 0)
    assert summed.largest == pytest.approx(float(np.abs(reference).max()) * 2.0**-encoding.exponent)


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4), lambda _: b""],
                         ids=["short", "long", "empty"])  # fmt: skip
def test_a_vector_of_another_length_is_refused(change: Any) -> None:
    good = bytes(LAYOUT.masked_bytes(32))
    with pytest.raises(BadTensors, match="than the plan's layout"):
        masked_total([opener(good), opener(change(good))], LAYOUT, 32)


def test_vectors_are_read_in_the_order_of_the_hospitals_names() -> None:
    read: list[str] = []

    def opened(digest: str) -> BinaryIO:
        read.append(digest)
        return io.BytesIO(b"")

    for open_one in openers({"ucl": "3", "charite": "1", "st-olavs": "2"}, opened):
        open_one()
    assert read == ["1", "2", "3"]


@pytest.mark.parametrize(("images", "weight"), [(0.0, 1.0), (1.0, 0.0), (1.0, -2.0)])
def test_weights_that_do_not_add_up_are_refused(images: float, weight: float) -> None:
    layout = layout_for("train", parameters=1, metrics=0)
    numbers = np.array([1.0, images, weight, 0.0])
    with pytest.raises(BadTensors):
        read_train_sum(Total(layout, Encoding(exponent=20, most=3), numbers, np.zeros(1, np.uint32)), hospitals=3)


# --- with a guarantee per patient ---------------------------------------------------------------------
PRIVATE = layout_for("train", parameters=5, metrics=0, bands=len(EPSILON_BANDS))
SPENT = (0.5, 1.5, 3.0, 9.0)  # epsilon, by hospital


def test_a_private_sum_counts_the_hospitals_below_each_band_and_knows_no_loss() -> None:
    encoding = Encoding(ring=32, exponent=20, most=4)
    keys = [os.urandom(32) for _ in SPENT]
    vectors = []
    for weight, (spent, key) in enumerate(zip(SPENT, keys, strict=True), start=1):
        numbers = np.array([weight, 1.0, *(spent < band for band in EPSILON_BANDS)], np.float64)
        vector = encoded(np.full(5, 0.5 * weight, np.float32), encoding, numbers, PRIVATE)
        apply_everywhere(vector, Masking([MaskKey(key, 1)], numbers_bytes=PRIVATE.numbers_bytes, ring=32))
        vectors.append(opener(vector.tobytes()))
    total = unmasked(masked_total(vectors, PRIVATE, 32), [MaskKey(key, -1) for key in keys], PRIVATE, encoding)
    summed = read_train_sum(total, hospitals=4)
    assert summed.bands == (1, 2, 3, 3)
    assert summed.mean_loss is None
    assert (summed.weight, summed.clipped) == (10, 4)
    assert summed.mean_delta == pytest.approx(np.full(5, 0.5), rel=1e-4)
    for name in ("loss_sum", "images"):
        with pytest.raises(CallerFault, match=name):
            total.number(name)


def private_sum(weight: float, *bands: float) -> Total:
    numbers = np.array([weight, 0.0, *bands])
    return Total(PRIVATE, Encoding(exponent=20, most=3), numbers, np.zeros(5, np.uint32))


def test_band_counts_are_whole_and_never_below_none() -> None:
    assert read_train_sum(private_sum(1.0, -0.4, 0.6, 2.9999999, 3.0000001), hospitals=3).bands == (0, 1, 3, 3)
    assert read_train_sum(private_sum(1.0, -3.0, 0.0, 0.0, 0.0), hospitals=3).bands == (0, 0, 0, 0)


def test_a_hospital_that_counts_itself_a_thousand_times_is_no_more_than_all() -> None:
    assert read_train_sum(private_sum(1.0, 1.0, 1000.0, 3.0, 1e15), hospitals=3).bands == (1, 3, 3, 3)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_private_sum_whose_weight_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(BadTensors, match="weight is not positive"):
        read_train_sum(private_sum(weight, 1, 1, 1, 1), hospitals=3)


def test_a_sum_without_a_guarantee_counts_no_bands() -> None:
    layout = layout_for("train", parameters=1, metrics=0)
    numbers = np.array([6.0, 3.0, 1.0, 0.0])
    summed = read_train_sum(Total(layout, Encoding(exponent=20, most=3), numbers, np.zeros(1, np.uint32)), hospitals=3)
    assert (summed.bands, summed.mean_loss) == ((), 2.0)


# --- with the hospitals' steps ------------------------------------------------------------------------
COUNTED = layout_for("train", parameters=1, metrics=0, steps=True)


def counted(weight: float, steps: float) -> Total:
    numbers = np.array([6.0, 3.0, weight, 0.0, steps])
    return Total(COUNTED, Encoding(exponent=20, most=3), numbers, np.zeros(1, np.uint32))


def test_mean_steps_are_weighted_as_the_delta_is() -> None:
    hospitals = ((1, 10), (2, 4), (5, 0.5))  # (weight, steps)
    total = counted(8.0, sum(weight * steps for weight, steps in hospitals))
    assert read_train_sum(total, hospitals=3).mean_steps == pytest.approx(20.5 / 8)
    assert read_train_sum(counted(8.0, 0.0), hospitals=3).mean_steps == 0


@pytest.mark.parametrize("steps", [-1.0, -(2.0**-24), float("inf"), float("nan")])
def test_steps_that_nobody_can_have_taken_are_refused(steps: float) -> None:
    with pytest.raises(BadTensors, match="steps"):
        read_train_sum(counted(8.0, steps), hospitals=3)


def test_a_sum_without_steps_has_no_mean_of_them() -> None:
    layout = layout_for("train", parameters=1, metrics=0)
    total = Total(layout, Encoding(exponent=20, most=3), np.array([6.0, 3.0, 1.0, 0.0]), np.zeros(1, np.uint32))
    assert read_train_sum(total, hospitals=3).mean_steps is None

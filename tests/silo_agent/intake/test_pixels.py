"""Stored values become values in the modality's unit: the short ways give what the long ones give, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from silo_agent.intake.header import parse_header
from silo_agent.intake.pixels import content_digest, in_modality_units, unused_bits_cleared

SIDES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=5)
STORED = st.sampled_from([np.int16, np.uint16, np.int8, np.uint8]).flatmap(lambda kind: arrays.arrays(kind, SIDES))


def rescaled(slope: float, intercept: float) -> Dataset:
    ds = Dataset()
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.Modality, ds.PhotometricInterpretation = "CT", "MONOCHROME2"
    return ds


@given(
    STORED, st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.5, 1.1]), st.sampled_from([0.0, -1024.0, 4e6, -4.2e6, 5e6, 0.3, 1e9])
)
def test_values_are_pydicom_s(stored: Any, slope: float, intercept: float) -> None:
    ds = rescaled(slope, intercept)
    found = in_modality_units(stored, parse_header(ds, "", ""), ds)
    expected = apply_modality_lut(stored, ds).astype(np.float32)
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


@given(STORED)
def test_the_digest_is_of_the_values_and_not_of_their_type(stored: Any) -> None:
    digest = content_digest(stored)
    assert content_digest(stored.astype(np.int32)) == digest
    assert content_digest(np.asfortranarray(stored)) == digest
    other = stored.astype(np.int32)
    other[0, 0] += 1
    assert content_digest(other) != digest


@pytest.mark.parametrize(("one", "other"), [([[1, 2]], [[1], [2]]), ([[-1]], [[65535]]), ([[0]], [[0, 0]])])
def test_images_that_could_be_taken_for_each_other_are_not(one: Any, other: Any) -> None:
    assert content_digest(np.array(one, np.int32)) != content_digest(np.array(other, np.int32))


@given(
    st.sampled_from([np.int16, np.uint16]).flatmap(lambda kind: arrays.arrays(kind, SIDES)),
    st.integers(2, 16),
    st.booleans(),
)
def test_unused_bits_do_not_matter(stored: Any, bits: int, signed: bool) -> None:
    kept = unused_bits_cleared(stored, bits, signed=signed)
    words = stored.view(np.uint16).astype(np.int64) & ((1 << bits) - 1)
    expected = np.where(signed & (words >> (bits - 1) == 1), words - (1 << bits), words)
    assert np.array_equal(kept.astype(np.int64), expected)

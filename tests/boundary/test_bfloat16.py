"""bfloat16 as torch rounds it, and as a model's file on the way down."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from boundary import bfloat16
from boundary.errors import BadTensors
from boundary.stored import Dtype, stored_bits
from boundary.tensors import (
    TensorManifest,
    TensorSpec,
    pack,
    packed_size,
    unflatten,
    unpack,
    unpack_file,
)

MANIFEST = TensorManifest(tensors=(TensorSpec(name="a.b", shape=(3, 5)), TensorSpec(name="c", shape=(1,))))
VECTOR = np.random.default_rng(3).normal(0, 0.02, 16).astype(np.float32)


def by_torch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()


def test_every_upper_half_rounds_as_torch_does() -> None:
    """Below, at and above each tie, with either sign, subnormal, huge and not a number."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        assert_array_equal(bfloat16.rounded(values), by_torch(values))  # NaN where torch has it


@given(st.lists(st.floats(2.0**-126, 2.0**120), min_size=1, max_size=20))
def test_the_error_is_within_the_bound_that_is_stated(values: list[float]) -> None:
    exact = np.array(values, np.float32)
    error = np.abs(bfloat16.rounded(exact).astype(np.float64) - exact)
    assert (error <= bfloat16.RELATIVE_ERROR * exact).all()


def test_its_mean_is_nothing_and_its_largest_is_the_bound() -> None:
    exact = np.random.default_rng(0).uniform(1, 2, 2_000_000).astype(np.float32)
    error = bfloat16.rounded(exact).astype(np.float64) - exact
    half = 2.0**-8  # half the distance between two neighbours from 1 to 2
    assert np.abs(error).max() == pytest.approx(half, rel=1e-3)
    assert abs(error.mean()) < 5 * half / np.sqrt(3 * len(exact))


def test_what_is_rounded_stays_as_it_is() -> None:
    once = bfloat16.rounded(VECTOR)
    assert_array_equal(bfloat16.rounded(once), once)
    assert not np.array_equal(once, VECTOR)


def test_a_file_has_half_the_bytes_and_others_read_it() -> None:
    data = pack(VECTOR, MANIFEST, "bfloat16")
    assert_array_equal(unpack(data, MANIFEST, "bfloat16"), bfloat16.rounded(VECTOR))
    assert len(data) <= packed_size(MANIFEST, "bfloat16") == packed_size(MANIFEST) - 2 * MANIFEST.size
    assert (stored_bits("float32"), stored_bits("bfloat16")) == (32, 16)
    read = safetensors.torch.load(data)
    for name, view in unflatten(VECTOR, MANIFEST).items():
        assert torch.equal(read[name], torch.from_numpy(view.copy()).to(torch.bfloat16))
    theirs = safetensors.torch.save(read)
    assert_array_equal(unpack(theirs, MANIFEST, "bfloat16"), bfloat16.rounded(VECTOR))


@pytest.mark.parametrize(("written", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_only_what_the_plan_says_is_let_in(written: Dtype, wanted: Dtype, tmp_path: Path) -> None:
    data = pack(VECTOR, MANIFEST, written)
    with pytest.raises(BadTensors, match=f"a.b: not {wanted}"):
        unpack(data, MANIFEST, wanted)
    (tmp_path / "model").write_bytes(pack(VECTOR, MANIFEST) + b" " * 1500)
    with pytest.raises(BadTensors, match="at most"):
        unpack_file(tmp_path / "model", MANIFEST, "bfloat16")


def test_a_vector_of_another_size_is_not_packed() -> None:
    with pytest.raises(BadTensors, match="not \\(16,\\)"):
        pack(VECTOR[1:], MANIFEST, "bfloat16")


def test_the_bytes_on_the_wire_are_the_golden_ones() -> None:
    golden = json.loads((Path(__file__).parents[1] / "vectors" / "tensors.json").read_text())
    vector = np.frombuffer(base64.b64decode(golden["vector"]), "<f4")
    manifest = TensorManifest.model_validate(golden["manifest"])
    assert base64.b64encode(pack(vector, manifest, "bfloat16")).decode() == golden["bfloat16"]

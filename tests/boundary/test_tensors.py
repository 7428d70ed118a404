"""Weights are read by our own strict parser: exactly the manifest's tensors, or nothing."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal
from pydantic import ValidationError

from boundary.errors import BadTensors
from boundary.tensors import (
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    TensorManifest,
    TensorSpec,
    Vector,
    check_values,
    flatten,
    manifest_of,
    pack,
    packed_size,
    unflatten,
    unpack,
    unpack_file,
)

MANIFEST = TensorManifest(tensors=(TensorSpec(name="a", shape=(2, 3)), TensorSpec(name="b", shape=(4,))))
VECTOR = np.arange(10, dtype=np.float32)


def header() -> dict[str, Any]:
    return {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
    }


def file_of(head: Any, body: bytes = VECTOR.tobytes(), *, length: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(name: str = "a", **changes: Any) -> bytes:
    head = header()
    head[name] = head[name] | changes
    return file_of(head)


def test_our_own_header_is_read() -> None:
    assert_array_equal(unpack(file_of(header()), MANIFEST), VECTOR)
    swapped = header() | {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [16, 40]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    }
    assert_array_equal(unpack(file_of(swapped), MANIFEST), np.roll(VECTOR, 6))


REFUSED: dict[str, bytes] = {
    "empty": b"",
    "shorter than the length of a header": b"\0" * 7,
    "a header of no bytes": file_of(b"", b""),
    "a header longer than the file": file_of(header(), length=10_000),
    "a header as long as the address space": file_of(header(), length=2**64 - 1),
    "a header over the limit": file_of(b" " * (MAX_HEADER_BYTES + 1)),
    "a header that is cut": file_of(header(), length=10),
    "a header that swallows the data": file_of(header(), length=len(json.dumps(header())) + 4),
    "a header that is no JSON": file_of(b"\x80\x04pickle"),
    "a header that is a list": file_of([]),
    "a header that is null": file_of(None),
    "nested until the parser gives up": file_of(b"[" * 100_000),
    "duplicate key": file_of(json.dumps(header())[:-1].encode() + b',"a":{}}'),
    "NaN": file_of(json.dumps(header()).replace("24]", "NaN]").encode()),
    "extra tensor": file_of(header() | {"c": {"dtype": "F32", "shape": [0], "data_offsets": [40, 40]}}),
    "__metadata__": file_of(header() | {"__metadata__": {"format": "pt"}}),
    "a tensor is missing": file_of({"a": header()["a"]}, VECTOR.tobytes()[:24]),
    "another name": file_of({"a": header()["a"], "B": header()["b"]}),
    "overlap": entry("b", data_offsets=[20, 36]),
    "both at the start": entry("b", data_offsets=[0, 16]),
    "gap": file_of(header() | {"b": header()["b"] | {"data_offsets": [28, 44]}}, bytes(44)),
    "gap at the start": file_of(
        {"a": header()["a"] | {"data_offsets": [4, 28]}, "b": header()["b"] | {"data_offsets": [28, 44]}}, bytes(44)
    ),
    "tail": file_of(header(), VECTOR.tobytes() + b"\0"),
    "cut short": file_of(header(), VECTOR.tobytes()[:-1]),
    "no data": file_of(header(), b""),
    "too long an offset": entry("b", data_offsets=[24, 2**53 - 1]),
    "an offset beyond 2^53": entry("b", data_offsets=[24, 2**63]),
    "1e999 for an offset": file_of(json.dumps(header()).replace("40", "1e999").encode()),
    "negative offsets": file_of(
        {"a": header()["a"] | {"data_offsets": [-24, 0]}, "b": header()["b"] | {"data_offsets": [0, 16]}}, bytes(16)
    ),
    "offsets upside down": entry("a", data_offsets=[24, 0]),
    "one offset": entry("a", data_offsets=[24]),
    "three offsets": entry("a", data_offsets=[0, 24, 24]),
    "offsets that are no list": entry("a", data_offsets=24),
    "float where int is due in the offsets": entry("a", data_offsets=[0.0, 24]),
    "bool where int is due in the offsets": entry("a", data_offsets=[False, 24]),
    "words in the offsets": entry("a", data_offsets=["0", "24"]),
    "wrong dtype": entry("a", dtype="F64"),
    "half precision": entry("a", dtype="F16"),
    "integers of the same size": entry("a", dtype="I32"),
    "a dtype in small letters": entry("a", dtype="f32"),
    "no dtype": file_of(header() | {"a": {"shape": [2, 3], "data_offsets": [0, 24]}}),
    "another shape of the same size": entry("a", shape=[3, 2]),
    "a flat shape": entry("a", shape=[6]),
    "a shape with a one more": entry("a", shape=[2, 3, 1]),
    "a smaller shape": entry("a", shape=[2, 2]),
    "huge shapes": entry("a", shape=[2**31, 2**31]),
    "a shape beyond 2^53": entry("a", shape=[2**60, 3]),
    "negative shapes": entry("a", shape=[-2, -3]),
    "float where int is due in the shape": entry("a", shape=[2.0, 3]),
    "bool where int is due in the shape": file_of(
        header() | {"b": {"dtype": "F32", "shape": [True, 4], "data_offsets": [24, 40]}}
    ),
    "a shape that is no list": entry("a", shape="2,3"),
    "extra key": entry("a", code="import os"),
    "a tensor that is no object": file_of(header() | {"a": [0, 24]}),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_the_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BadTensors):
        unpack(data, MANIFEST)


def test_a_shape_of_one_is_not_true() -> None:
    one = TensorManifest(tensors=(TensorSpec(name="a", shape=(1,)),))
    with pytest.raises(BadTensors):
        unpack(file_of({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)), one)


@st.composite
def weights(draw: st.DrawFn) -> dict[str, Vector]:
    names = draw(st.lists(st.text("abc._0", min_size=1, max_size=6), max_size=4, unique=True))
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)
    values = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return {name: draw(arrays.arrays(np.float32, shapes, elements=values)) for name in names}


@given(weights())
def test_what_is_packed_is_unpacked(named: dict[str, Vector]) -> None:
    manifest = manifest_of(named)
    vector = flatten(named, manifest)
    packed = pack(vector, manifest)
    assert len(packed) <= packed_size(manifest)
    again = unpack(packed, manifest)
    assert again.tobytes() == vector.tobytes()
    assert pack(again, manifest) == packed
    for name, tensor in unflatten(again, manifest).items():
        assert_array_equal(tensor, named[name], strict=True)
    for name, tensor in safetensors.numpy.load(packed).items():
        assert_array_equal(tensor, named[name], strict=True)
    assert TensorManifest.model_validate(manifest.model_dump(mode="json")) == manifest


@given(st.data())
def test_a_changed_header_is_refused_or_means_the_same(fed: ModuleType, data: st.DataObject) -> None:
    vector, manifest = fed.weights()
    packed = pack(vector, manifest)
    (size,) = struct.unpack("<Q", packed[:8])
    at = data.draw(st.integers(0, 7 + size))
    change = data.draw(st.sampled_from(("flip", "drop", "double", "replace")))
    match change:
        case "flip":
            changed = packed[:at] + bytes([packed[at] ^ 1 << data.draw(st.integers(0, 7))]) + packed[at + 1 :]
        case "drop":
            changed = packed[:at] + packed[at + 1 :]
        case "double":
            changed = packed[: at + 1] + packed[at:]
        case _:
            changed = packed[:at] + data.draw(st.binary(max_size=9)) + packed[at + data.draw(st.integers(0, 9)) :]
    try:
        read = unpack(changed, manifest)
    except BadTensors:
        return
    assert read.tobytes() == vector.tobytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadTensors):
        unpack(data, MANIFEST)


def test_a_strided_vector_is_packed_as_what_it_says() -> None:
    """safetensors takes an address and a length: the bytes between the strides would leave with it."""
    secret = np.full(20, 666, dtype=np.float32)
    secret[::2] = VECTOR
    assert pack(secret[::2], MANIFEST) == pack(VECTOR, MANIFEST)
    assert pack(VECTOR[::-1].copy()[::-1], MANIFEST) == pack(VECTOR, MANIFEST)
    assert pack(np.broadcast_to(np.float32(1), (10,)), MANIFEST) == pack(np.ones(10, np.float32), MANIFEST)


def test_tensors_are_flattened_in_the_order_of_their_indices() -> None:
    tensor = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    parts = {"b": np.arange(8, dtype=np.float32)[::2], "a": tensor}
    assert_array_equal(flatten(parts, MANIFEST), [0, 1, 2, 3, 4, 5, 0, 2, 4, 6])


def test_unflattened_tensors_are_views() -> None:
    vector = VECTOR.copy()
    unflatten(vector, MANIFEST)["b"][0] = 99
    assert vector[6] == 99


def test_a_view_of_any_item_size_is_read() -> None:
    packed = pack(VECTOR, MANIFEST)
    assert len(packed) % 4 == 0
    for item in ("B", "I"):
        assert_array_equal(unpack(memoryview(packed).cast("B").cast(item), MANIFEST), VECTOR)


NOT_A_VECTOR: dict[str, Any] = {
    "double precision": VECTOR.astype(np.float64),
    "integers": VECTOR.astype(np.int32),
    "the other byte order": VECTOR.astype(">f4"),
    "one element too few": VECTOR[:-1],
    "one element too many": np.append(VECTOR, np.float32(0)),
    "two dimensions": VECTOR.reshape(2, 5),
}


@pytest.mark.parametrize("vector", NOT_A_VECTOR.values(), ids=NOT_A_VECTOR)
def test_what_is_not_the_vector_is_not_packed(vector: Any) -> None:
    with pytest.raises(BadTensors):
        unflatten(vector, MANIFEST)
    with pytest.raises(BadTensors):
        pack(vector, MANIFEST)


NOT_THE_TENSORS: dict[str, dict[str, Any]] = {
    "one is missing": {"b": np.zeros(4, np.float32)},
    "one too many": {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32), "c": np.zeros(1, np.float32)},
    "another shape": {"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)},
    "double precision": {"a": np.zeros((2, 3)), "b": np.zeros(4, np.float32)},
}


@pytest.mark.parametrize("tensors", NOT_THE_TENSORS.values(), ids=NOT_THE_TENSORS)
def test_what_is_not_the_manifest_is_not_flattened(tensors: dict[str, Any]) -> None:
    with pytest.raises(BadTensors):
        flatten(tensors, MANIFEST)


MANIFESTS: dict[str, list[dict[str, Any]]] = {
    "one name twice": [{"name": "a", "shape": [1]}, {"name": "a", "shape": [2]}],
    "names out of their order": [{"name": "b", "shape": [1]}, {"name": "a", "shape": [1]}],
    "an empty name": [{"name": "", "shape": [1]}],
    "a name with a slash": [{"name": "../a", "shape": [1]}],
    "the name of safetensors' own entry with spaces": [{"name": "__ metadata__", "shape": [1]}],
    "a name with a line end": [{"name": "a\n", "shape": [1]}],
    "an empty tensor": [{"name": "a", "shape": [0]}],
    "a negative side": [{"name": "a", "shape": [-1]}],
    "half a side": [{"name": "a", "shape": [1.0]}],
    "bool for a side": [{"name": "a", "shape": [True]}],
    "another dtype": [{"name": "a", "shape": [1], "dtype": "F64"}],
}


@pytest.mark.parametrize("tensors", MANIFESTS.values(), ids=MANIFESTS)
def test_what_is_no_manifest_is_refused(tensors: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        TensorManifest.model_validate({"tensors": tensors})


def test_a_model_beyond_all_memory_is_refused_before_any_is_taken() -> None:
    huge = TensorManifest(tensors=(TensorSpec(name="a", shape=(MAX_ELEMENTS, 2**20)),))
    with pytest.raises(BadTensors, match="more than"):
        unpack(b"", huge)


def test_a_file_is_measured_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(VECTOR, MANIFEST))
    assert_array_equal(unpack_file(path, MANIFEST), VECTOR)
    with path.open("r+b") as file:
        file.truncate(10 * 2**30)  # sparse
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(BadTensors, match="at most"):
        unpack_file(path, MANIFEST)


POISON: dict[str, float] = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}


@pytest.mark.parametrize("value", POISON.values(), ids=POISON)
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    vector = VECTOR.copy()
    vector[7] = value
    assert np.array_equal(unpack(pack(vector, MANIFEST), MANIFEST), vector, equal_nan=True)
    with pytest.raises(BadTensors, match="NaN or infinity"):
        check_values(vector, 1e9)


def test_weights_beyond_the_plans_norm_are_refused() -> None:
    vector = np.array([3, 4], dtype=np.float32)
    assert check_values(vector, 5) == 5
    with pytest.raises(BadTensors, match=r"norm 5, the plan allows 4\.9"):
        check_values(vector, 4.9)


def test_the_norm_of_the_largest_floats_does_not_overflow() -> None:
    largest = np.full(4, np.finfo(np.float32).max, dtype=np.float32)
    assert check_values(largest, 1e39) == pytest.approx(2 * float(np.finfo(np.float32).max))
    with pytest.raises(BadTensors):
        check_values(largest, 1e12)


SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark before the header": lambda head: b"\xef\xbb\xbf" + head,
    "a NUL after the header": lambda head: head + b"\0",
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_a_header_is_json_and_nothing_else(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadTensors, match="does not parse"):
        unpack(file_of(spoil(json.dumps(header()).encode())), MANIFEST)


def test_spaces_after_the_header_are_the_formats_own_padding() -> None:
    assert_array_equal(unpack(file_of(json.dumps(header()).encode() + b"   "), MANIFEST), VECTOR)

"""Model weights on the wire: named float32 tensors in a safetensors file, nothing else.

On the way down they may be bfloat16, where the plan says so; then that and nothing else is let in.

safetensors carries no code. The header is still a peer's data, so it is read by our own strict parser before
any allocation: the names, shapes and offsets must be exactly those of the manifest the plan's model gives.
Format: https://github.com/huggingface/safetensors#format (u64 little-endian header length, JSON, data).
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from boundary import bfloat16
from boundary.canonical import parse_json
from boundary.errors import BadTensors, BoundaryError
from boundary.names import Frozen, list_in
from boundary.stored import STORED, Dtype

Vector = NDArray[np.float32]

MAX_HEADER_BYTES = 1024 * 1024
MAX_ELEMENTS = 2**29  # 2 GiB of float32; the largest catalogue network has 7 M
_PIECE = 2**20  # elements


class TensorSpec(Frozen):
    """One tensor: its name in the network and its shape. The dtype is always float32."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(list_in)]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _Entry(Frozen):
    """What a safetensors header says of one tensor; strict, so that `true` is no 1 and 2.0 is no 2."""

    dtype: Literal["F32", "BF16"]
    shape: Annotated[tuple[int, ...], BeforeValidator(list_in)]
    data_offsets: Annotated[tuple[Annotated[int, Field(ge=0)], int], BeforeValidator(list_in)]


class TensorManifest(Frozen):
    """The tensors of a network, sorted by name: the order in which they lie in a flat vector."""

    tensors: Annotated[tuple[TensorSpec, ...], BeforeValidator(list_in)]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        names = [spec.name for spec in self.tensors]
        if names != sorted(set(names)):
            raise ValueError("tensors: distinct names in their order")
        return self

    @property
    def size(self) -> int:
        """Elements in all tensors together."""
        return sum(spec.size for spec in self.tensors)


def manifest_of(tensors: Mapping[str, NDArray[np.float32]]) -> TensorManifest:
    return TensorManifest(tensors=tuple(TensorSpec(name=name, shape=tensors[name].shape) for name in sorted(tensors)))


def flatten(tensors: Mapping[str, NDArray[np.float32]], manifest: TensorManifest) -> Vector:
    """Concatenate in manifest order to a float32 vector of shape [size]; raises `BadTensors`."""
    if set(tensors) != {spec.name for spec in manifest.tensors}:
        raise BadTensors("the tensors are not those of the manifest")
    vector = np.empty(manifest.size, dtype=np.float32)
    start = 0
    for spec in manifest.tensors:
        tensor = tensors[spec.name]
        if tensor.shape != spec.shape or tensor.dtype != np.float32:
            raise BadTensors(f"{spec.name}: {tensor.dtype}{tensor.shape}, not float32{spec.shape}")
        vector[start : start + spec.size] = tensor.reshape(-1)
        start += spec.size
    return vector


def unflatten(vector: Vector, manifest: TensorManifest) -> dict[str, Vector]:
    """Views into `vector` (float32, shape [size]) by name; raises `BadTensors`."""
    if vector.shape != (manifest.size,) or vector.dtype != np.float32:
        raise BadTensors(f"{vector.dtype}{vector.shape}, not float32({manifest.size},)")
    views, start = {}, 0
    for spec in manifest.tensors:
        views[spec.name] = vector[start : start + spec.size].reshape(spec.shape)
        start += spec.size
    return views


def pack(vector: Vector, manifest: TensorManifest, dtype: Dtype = "float32") -> bytes:
    """The safetensors bytes of a flat vector, rounded to `dtype`. The same values give the same bytes."""
    if dtype == "bfloat16":
        return _packed_words(bfloat16.to_words(vector), manifest)
    # safetensors reads as many bytes as a tensor has from its address on, whatever its strides say
    return safetensors.numpy.save(unflatten(np.ascontiguousarray(vector), manifest))


def _packed_words(words: NDArray[np.uint16], manifest: TensorManifest) -> bytes:
    """The library knows bfloat16 only with another one; the header is padded to 8 bytes as its own is."""
    if words.shape != (manifest.size,):
        raise BadTensors(f"{words.shape}, not ({manifest.size},)")
    header, at = {}, 0
    for spec in manifest.tensors:
        end = at + bfloat16.BYTES * spec.size
        header[spec.name] = {"dtype": "BF16", "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + words.astype("<u2").tobytes()


def packed_size(manifest: TensorManifest, dtype: Dtype = "float32") -> int:
    """An upper bound in bytes for what `pack` makes, known before anything arrives."""
    names = sum(len(spec.name) + 20 * len(spec.shape) + 120 for spec in manifest.tensors)
    return 8 + 1024 + names + STORED[dtype][1] * manifest.size


def unpack(data: bytes | memoryview, manifest: TensorManifest, dtype: Dtype = "float32") -> Vector:
    """Read safetensors into one flat vector, float32 [size]; raises `BadTensors` unless it is exactly the manifest."""
    view = memoryview(data).cast("B")
    starts, body = _layout(view, manifest, dtype)
    item = STORED[dtype][1]
    vector = np.empty(manifest.size, dtype=np.float32)
    at = 0
    for spec in manifest.tensors:
        begin = body + starts[spec.name]
        held = view[begin : begin + item * spec.size]
        vector[at : at + spec.size] = (
            np.frombuffer(held, "<f4") if dtype == "float32" else bfloat16.from_words(np.frombuffer(held, "<u2"))
        )
        at += spec.size
    return vector


def unpack_file(path: Path, manifest: TensorManifest, dtype: Dtype = "float32") -> Vector:
    """As `unpack`, of a file; its size is checked before it is read."""
    size, most = path.stat().st_size, packed_size(manifest, dtype)
    if size > most:
        raise BadTensors(f"the file has {size} bytes, this model needs at most {most}")
    return unpack(path.read_bytes(), manifest, dtype)


def check_values(vector: Vector, max_norm: float) -> float:
    """Refuse NaN, infinity and a Euclidean norm above `max_norm`; returns the norm. Raises `BadTensors`."""
    if not np.isfinite(vector).all():
        raise BadTensors("the weights hold NaN or infinity")
    squared = 0.0
    for start in range(0, len(vector), _PIECE):  # in float64, without a float64 copy of the model
        wide = vector[start : start + _PIECE].astype(np.float64)
        squared += float(np.dot(wide, wide))
    norm = math.sqrt(squared)
    if norm > max_norm:
        raise BadTensors(f"the weights have norm {norm:.4g}, the plan allows {max_norm:.4g}")
    return norm


def read_header(view: memoryview) -> tuple[dict[str, Any], int]:
    """A safetensors header's entries as they stand, unchecked, and the offset at which the data begin.

    Raises `BadTensors` for what is longer than the view or `MAX_HEADER_BYTES`, is not strict JSON or is no table.
    """
    if len(view) < 8:
        raise BadTensors("shorter than a safetensors header")
    (size,) = struct.unpack("<Q", view[:8])
    if size > min(MAX_HEADER_BYTES, len(view) - 8):
        raise BadTensors("the header is longer than the file or the limit: this is not safetensors")
    try:
        header = parse_json(bytes(view[8 : 8 + size]))
    except BoundaryError as why:
        raise BadTensors(f"the header does not parse: {why}") from why
    if not isinstance(header, dict):
        raise BadTensors("the header is no table of tensors")
    return header, 8 + size


def _layout(view: memoryview, manifest: TensorManifest, dtype: Dtype) -> tuple[dict[str, int], int]:
    """Start of each tensor in the data section, and the section's own offset."""
    if manifest.size > MAX_ELEMENTS:
        raise BadTensors(f"more than {MAX_ELEMENTS} elements")
    header, body = read_header(view)
    if set(header) != {spec.name for spec in manifest.tensors}:
        raise BadTensors("the names are not those of the plan's model")
    spans = {spec.name: _span(header[spec.name], spec, dtype) for spec in manifest.tensors}
    end = 0
    for begin, stop in sorted(spans.values()):
        if begin != end:
            raise BadTensors("tensors overlap or leave a gap")
        end = stop
    if body + end != len(view):
        raise BadTensors("the file is cut short or has a tail")
    return {name: begin for name, (begin, _) in spans.items()}, body


def _span(raw: object, spec: TensorSpec, dtype: Dtype) -> tuple[int, int]:
    stored, item = STORED[dtype]
    try:
        entry = _Entry.model_validate(raw)
    except ValidationError as why:
        raise BadTensors(f"{spec.name}: not the header of a {dtype} tensor") from why
    begin, end = entry.data_offsets
    if entry.dtype != stored or entry.shape != spec.shape or end - begin != item * spec.size:
        raise BadTensors(f"{spec.name}: not {dtype}{spec.shape}")
    return begin, end

"""Model weights on the wire: named float32 tensors in a safetensors file, nothing else.

safetensors carries no code. The header is still a peer's data, so it is read by our own strict parser before
any allocation: the names, shapes and offsets must be exactly those of the manifest the plan's model gives.
Format: https://github.com/huggingface/safetensors#format (u64 little-endian header length, JSON, data).
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from boundary.canonical import parse_json
from boundary.errors import BadTensors, BoundaryError
from boundary.names import Frozen, list_in

Vector = NDArray[np.float32]

MAX_HEADER_BYTES = 1024 * 1024
MAX_ELEMENTS = 2**29  # 2 GiB of float32; the largest catalogue network has 7 M
_PIECE = 2**20  # elements
_ITEM = 4  # bytes in a float32


class TensorSpec(Frozen):
    """One tensor: its name in the network and its shape. The dtype is always float32."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(list_in)]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _Entry(Frozen):
    """What a safetensors header says of one tensor; strict, so that `true` is no 1 and 2.0 is no 2."""

    dtype: Literal["F32"]
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


def pack(vector: Vector, manifest: TensorManifest) -> bytes:
    """The safetensors bytes of a flat vector. The same values give the same bytes."""
    # safetensors reads as many bytes as a tensor has from its address on, whatever its strides say
    return safetensors.numpy.save(unflatten(np.ascontiguousarray(vector), manifest))


def packed_size(manifest: TensorManifest) -> int:
    """An upper bound in bytes for what `pack` makes, known before anything arrives."""
    names = sum(len(spec.name) + 20 * len(spec.shape) + 120 for spec in manifest.tensors)
    return 8 + 1024 + names + _ITEM * manifest.size


def unpack(data: bytes | memoryview, manifest: TensorManifest) -> Vector:
    """Read safetensors into one flat vector; raises `BadTensors` unless it is exactly the manifest."""
    view = memoryview(data).cast("B")
    starts, body = _layout(view, manifest)
    vector = np.empty(manifest.size, dtype=np.float32)
    at = 0
    for spec in manifest.tensors:
        begin = body + starts[spec.name]
        vector[at : at + spec.size] = np.frombuffer(view[begin : begin + _ITEM * spec.size], dtype="<f4")
        at += spec.size
    return vector


def unpack_file(path: Path, manifest: TensorManifest) -> Vector:
    """As `unpack`, of a file; its size is checked before it is read."""
    size, most = path.stat().st_size, packed_size(manifest)
    if size > most:
        raise BadTensors(f"the file has {size} bytes, this model needs at most {most}")
    return unpack(path.read_bytes(), manifest)


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


def _layout(view: memoryview, manifest: TensorManifest) -> tuple[dict[str, int], int]:
    """Start of each tensor in the data section, and the section's own offset."""
    if manifest.size > MAX_ELEMENTS:
        raise BadTensors(f"more than {MAX_ELEMENTS} elements")
    if len(view) < 8:
        raise BadTensors("shorter than a safetensors header")
    (header_size,) = struct.unpack("<Q", view[:8])
    if header_size > min(MAX_HEADER_BYTES, len(view) - 8):
        raise BadTensors("the header is longer than the file or the limit")
    try:
        header = parse_json(bytes(view[8 : 8 + header_size]))
    except BoundaryError as why:
        raise BadTensors(f"the header does not parse: {why}") from why
    body = 8 + header_size
    if not isinstance(header, dict) or set(header) != {spec.name for spec in manifest.tensors}:
        raise BadTensors("the names are not those of the plan's model")
    spans = {spec.name: _span(header[spec.name], spec) for spec in manifest.tensors}
    end = 0
    for begin, stop in sorted(spans.values()):
        if begin != end:
            raise BadTensors("tensors overlap or leave a gap")
        end = stop
    if body + end != len(view):
        raise BadTensors("the file is cut short or has a tail")
    return {name: begin for name, (begin, _) in spans.items()}, body


def _span(raw: object, spec: TensorSpec) -> tuple[int, int]:
    try:
        entry = _Entry.model_validate(raw)
    except ValidationError as why:
        raise BadTensors(f"{spec.name}: not the header of a float32 tensor") from why
    begin, end = entry.data_offsets
    if entry.shape != spec.shape or end - begin != _ITEM * spec.size:
        raise BadTensors(f"{spec.name}: not float32{spec.shape}")
    return begin, end

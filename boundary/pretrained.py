"""A file of pretrained weights that a plan pins by its hash: how the plan names it, and what is read of it.

The file is safetensors and nothing else: no pickle, no code. Every party has it from somewhere else than the
coordinator, so what a study begins with is what its people chose. Its header is still a stranger's data: it is parsed
strictly, and of its tensors only those are looked at that the network needs, which must be float32 of the very shape.
Format: https://github.com/huggingface/safetensors#format
"""

import struct
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError

from boundary.canonical import parse_json
from boundary.errors import BadTensors, BoundaryError
from boundary.low_rank import Patterns, fits, is_adapter
from boundary.names import Frozen, list_in
from boundary.tensors import MAX_HEADER_BYTES, TensorManifest, TensorSpec, Vector

MAX_PRETRAINED_BYTES = 2**31
_ITEM = 4  # bytes in a float32


class Pretrained(Frozen):
    """`file` is a name in each party's own folder of weights, `sha256` the digest of its bytes, as `sha256sum` has it.

    A parameter of the network is the file's tensor `strip` + its name. Those that fit `leave_out`, a head for other
    classes say, and adapters begin as the plan's seed gives; every other one has to be in the file.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    strip: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_./-]*$")] = ""
    leave_out: Patterns = ()

    def takes(self, parameter: str) -> bool:
        """Whether this parameter begins with the file's."""
        return not is_adapter(parameter) and not fits(parameter, self.leave_out)


class _Listed(Frozen):
    """What a header says of any tensor."""

    dtype: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,12}$")]
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(list_in)]
    data_offsets: Annotated[tuple[int, int], BeforeValidator(list_in)]


class _Entry(Frozen):
    """What a header says of a tensor that is taken; strict, so that `true` is no 1 and 2.0 is no 2."""

    dtype: Literal["F32"]
    shape: Annotated[tuple[int, ...], BeforeValidator(list_in)]
    data_offsets: Annotated[tuple[Annotated[int, Field(ge=0)], int], BeforeValidator(list_in)]


def read_pretrained(data: bytes | memoryview, whole: TensorManifest, how: Pretrained) -> dict[str, Vector]:
    """The file's part of a network, float32 arrays by the network's names: views into `data`.

    Raises `BadTensors` for a file that is not safetensors, that lacks a tensor or has it in another shape or dtype,
    and for patterns that fit nothing or leave nothing.
    """
    _check_patterns((spec.name for spec in whole.tensors), how)
    view = memoryview(data).cast("B")
    header, body = _header(view)
    return {spec.name: _tensor(view[body:], header, spec, how) for spec in whole.tensors if how.takes(spec.name)}


def listed_tensors(data: bytes | memoryview) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """(name, dtype, shape) of every tensor in a file, for people. Raises `BadTensors` for what is not safetensors."""
    header, _ = _header(memoryview(data).cast("B"))
    try:
        entries = {name: _Listed.model_validate(entry) for name, entry in header.items() if name != "__metadata__"}
    except ValidationError as why:
        raise BadTensors("the header is no table of tensors") from why
    return tuple((name, entries[name].dtype, entries[name].shape) for name in sorted(entries))


def _check_patterns(names: Iterable[str], how: Pretrained) -> None:
    names = list(names)
    for pattern in how.leave_out:
        if not any(fits(name, (pattern,)) for name in names):
            raise BadTensors(f"model.pretrained.leave_out: {pattern!r} fits no parameter of the network")
    if not any(how.takes(name) for name in names):
        raise BadTensors("model.pretrained.leave_out: nothing would be taken from the file")


def _header(view: memoryview) -> tuple[dict[str, Any], int]:
    """The header's entries, and where the data begin."""
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


def _tensor(body: memoryview, header: dict[str, Any], spec: TensorSpec, how: Pretrained) -> Vector:
    name = how.strip + spec.name
    if name not in header:
        there = ", ".join(sorted(header)[:4])
        raise BadTensors(f"{name} is not in the file, which has {there} ...: set strip, or leave {spec.name} out")
    try:
        entry = _Entry.model_validate(header[name])
    except ValidationError as why:
        raise BadTensors(f"{name}: not the header of a float32 tensor") from why
    begin, end = entry.data_offsets
    if entry.shape != spec.shape:
        raise BadTensors(f"{name} has shape {list(entry.shape)}, the network {list(spec.shape)}: leave it out")
    if end - begin != _ITEM * spec.size or end > len(body):
        raise BadTensors(f"{name}: the file is cut short, or says two things of its size")
    return np.frombuffer(body[begin:end], dtype="<f4").reshape(spec.shape)

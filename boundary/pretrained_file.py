"""What is read of a file of pretrained weights, which a plan pins by its hash (`boundary.pretrained`).

The file is safetensors and nothing else: no pickle, no code. Every party has it from somewhere else than the
coordinator, so what a study begins with is what its people chose. Its header is still a stranger's data: it is parsed
strictly, and of its tensors only those are looked at that the network needs, which must be float32 of the very shape.
Format: https://github.com/huggingface/safetensors#format
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError

from boundary.errors import BadTensors
from boundary.low_rank import fits
from boundary.names import Frozen, list_in
from boundary.pretrained import Pretrained
from boundary.tensors import TensorManifest, TensorSpec, Vector, read_header

_ITEM = 4  # bytes in a float32


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
    header, body = read_header(view)
    return {spec.name: _tensor(view[body:], header, spec, how) for spec in whole.tensors if how.takes(spec.name)}


def listed_tensors(data: bytes | memoryview) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """(name, dtype, shape) of every tensor in a file, for people. Raises `BadTensors` for what is not safetensors."""
    header, _ = read_header(memoryview(data).cast("B"))
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

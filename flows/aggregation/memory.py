"""A strategy's memory between two rounds, as a file: the safetensors of its vectors, by name, and nothing else.

It belongs to exactly one model. Momentum that began anew after a restart would be another training than the plan's,
and nobody would see it; so what is missing, damaged or of another model is an error that stops the round.
"""

import math
from collections.abc import Callable, Mapping
from typing import BinaryIO

from boundary.canonical import digest
from boundary.errors import BadTensors
from boundary.messages import BlobRef
from boundary.tensors import TensorManifest, TensorSpec, Vector, check_values, flatten, pack, unflatten, unpack


class MemoryUnusable(RuntimeError):
    """What the server strategy remembers of the round before is not there, or not what was kept."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(
            f"what the server remembers of round {number} {why}: restore the coordinator's store and blobs from one "
            "backup, then run the study again; it is not begun anew"
        )
        self.number = number


def memory_manifest(memory: Mapping[str, Vector]) -> TensorManifest:
    """Of float32 [n] vectors by name."""
    return TensorManifest(tensors=tuple(TensorSpec(name=name, shape=memory[name].shape) for name in sorted(memory)))


def packed(memory: Mapping[str, Vector]) -> bytes:
    """The same values give the same bytes. Raises `BadTensors` for NaN or infinity, which would never go away again."""
    for vector in memory.values():
        check_values(vector, math.inf)
    manifest = memory_manifest(memory)
    return pack(flatten(memory, manifest), manifest)


def recalled(
    blob: BlobRef, like: Mapping[str, Vector], number: int, opened: Callable[[str], BinaryIO]
) -> dict[str, Vector]:
    """The memory kept after round `number`, with the names and sizes of `like`. Raises `MemoryUnusable`."""
    try:
        with opened(blob.digest) as source:
            data = source.read()
    except FileNotFoundError as why:
        raise MemoryUnusable(number, f"is not among the blobs ({blob.digest})") from why
    if digest(data) != blob.digest:
        raise MemoryUnusable(number, f"is damaged ({blob.digest})")
    manifest = memory_manifest(like)
    try:
        return unflatten(unpack(data, manifest), manifest)
    except BadTensors as why:
        raise MemoryUnusable(number, f"does not fit the plan's strategy and model ({why})") from why

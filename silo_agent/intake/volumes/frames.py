"""From one open file to the values of its frames, one frame in memory at a time.

Each frame is decoded as a single-frame image would be, by the same function and with the same checks. Source:
PS3.5 A.4 (encapsulated pixel data: Basic Offset Table, then fragments, then a delimiter).
"""

import struct
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from pydicom.valuerep import DSfloat

from silo_agent.intake import encoding
from silo_agent.intake.image import UNDEFINED_LENGTH, NotUsable, decode, native_bytes
from silo_agent.intake.pixels import in_modality_units, unused_bits_cleared
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import Slice
from silo_agent.intake.volumes.reading import Instance

_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD

Extent = tuple[int, int]  # (offset in the file, length), bytes


def frame_values(
    stream: BinaryIO, instance: Instance, wanted: Collection[int]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (frame number, float32 [H,W] in the modality's unit) of the wanted frames, in the order of the file.

    Rescale and MONOCHROME1 are applied frame by frame (see `pixels.in_modality_units`). To be called within
    `image.guarded`, which turns what damaged pixels provoke into a code.
    """
    frames = Frames(stream, instance)
    yield from ((one.frame, frames.values(one.frame)) for one in instance.slices if one.frame in wanted)


class Frames:
    """The frames of an open file, one at a time; where they lie is found once."""

    def __init__(self, stream: BinaryIO, instance: Instance) -> None:
        self._stream, self._instance = stream, instance
        self._extents = _extents(stream, instance)

    def values(self, frame: int) -> NDArray[np.float32]:
        """float32 [H,W] in the modality's unit; raises as `frame_values`."""
        data = _read(self._stream, self._extents[frame], native_bytes(self._instance.header))
        return _values(self._instance, self._instance.slices[frame], data)


def _values(instance: Instance, one: Slice, data: bytes) -> NDArray[np.float32]:
    header = replace(instance.header, rescale=one.rescale is not None)
    ds = _single_frame(instance, one, data)
    stored = unused_bits_cleared(decode(ds, header), header.bits_stored or 0, signed=header.signed)
    return in_modality_units(stored, header, ds)


def _single_frame(instance: Instance, one: Slice, data: bytes) -> Dataset:
    ds = Dataset(instance.ds)  # a shallow copy: the next frame gets pixel data of its own
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(instance.header.transfer_syntax)
    native = instance.header.transfer_syntax in encoding.NATIVE
    ds.NumberOfFrames = 1
    ds.add_new("PixelData", instance.vr if native else "OB", data if native else encapsulate([data], has_bot=False))
    if one.rescale:
        ds.RescaleSlope, ds.RescaleIntercept = (DSfloat(value, auto_format=True) for value in one.rescale)
    return ds


def _extents(stream: BinaryIO, instance: Instance) -> list[list[Extent]]:
    """Where the bytes of each frame lie."""
    if instance.header.transfer_syntax in encoding.NATIVE:
        length = native_bytes(instance.header)
        return [[(instance.offset + number * length, length)] for number in range(len(instance.slices))]
    frames = len(instance.slices)
    most = encoding.most_fragments(native_bytes(instance.header)) * frames
    starts, fragments = _fragments(stream, instance.offset, most)
    return share_out(starts, fragments, frames)


def share_out(starts: tuple[int, ...], fragments: list[Extent], frames: int) -> list[list[Extent]]:
    """Give each frame its fragments. `starts` is the Basic Offset Table, in bytes from the first fragment's item.

    Without a table one fragment each, or all of them for one frame; anything else would be a guess.
    """
    if not starts:
        if frames == 1:
            return [fragments]
        if len(fragments) != frames:
            raise NotUsable(Refusal.UNREADABLE)
        return [[fragment] for fragment in fragments]
    numbers = {offset - fragments[0][0]: number for number, (offset, _) in enumerate(fragments)}
    firsts = [numbers.get(start, -1) for start in starts]
    if len(starts) != frames or firsts[0] != 0 or any(b <= a for a, b in pairwise(firsts)):
        raise NotUsable(Refusal.UNREADABLE)
    ends = [*firsts[1:], len(fragments)]
    return [fragments[first:end] for first, end in zip(firsts, ends, strict=True)]


def _fragments(stream: BinaryIO, offset: int, most: int) -> tuple[tuple[int, ...], list[Extent]]:
    """Return the Basic Offset Table and where each fragment lies; the fragments themselves are skipped."""
    stream.seek(offset)
    table = stream.read(_item_length(stream, _ITEM, limit=4 * most) or 0)
    found: list[Extent] = []
    while (length := _item_length(stream, _ITEM)) is not None:
        found.append((stream.tell(), length))
        if len(found) > most:
            raise NotUsable(Refusal.TOO_LARGE)
        stream.seek(length, 1)
    if not found or len(table) % 4:
        raise NotUsable(Refusal.UNREADABLE)
    return struct.unpack(f"<{len(table) // 4}I", table), found


def _item_length(stream: BinaryIO, tag: int, limit: int = UNDEFINED_LENGTH - 1) -> int | None:
    """Return the length of the item that begins here, `None` at the delimiter."""
    head = stream.read(8)
    if len(head) < 8:
        raise NotUsable(Refusal.TRUNCATED)
    group, element, length = struct.unpack("<HHI", head)
    if (group << 16 | element) == _DELIMITER:
        return None
    if (group << 16 | element) != tag or length > limit:
        raise NotUsable(Refusal.UNREADABLE)
    return int(length)


def _read(stream: BinaryIO, extents: list[Extent], native: int) -> bytes:
    total = sum(length for _, length in extents)
    if refusal := encoding.judge_encoded(total, native):
        raise NotUsable(refusal)
    parts = []
    for offset, length in extents:
        stream.seek(offset)
        parts.append(stream.read(length))
    if sum(map(len, parts)) != total:
        raise NotUsable(Refusal.TRUNCATED)
    return b"".join(parts)

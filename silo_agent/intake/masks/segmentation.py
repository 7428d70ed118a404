"""What a DICOM Segmentation says: whose it is, which segments it has, where each of its frames lies, one bit a voxel.

Only BINARY is read: what a fraction or an occupancy means is each maker's own. Sources: PS3.3 A.51 (Segmentation IOD),
C.8.20.2 (Segmentation Image: Segmentation Type, Segment Sequence), C.8.20.3.1 (Segment Identification), C.7.6.16.2
(planes and pixel measures of the frames), C.12.2.1 (Referenced Series); PS3.5 8.1.1 and 8.2 (bits of successive frames
without a gap, the first one in the least significant place).
"""

from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from silo_agent.intake import encoding
from silo_agent.intake.header import Header, Identifiers
from silo_agent.intake.image import PIXEL_DATA, UNDEFINED_LENGTH, NotUsable, PixelElement
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import Groups, Plane, items, numbers
from silo_agent.intake.volumes.reading import Parsed, VolumeLimits

_STORAGE = "1.2.840.10008.5.1.4.1.1.66."
SEGMENTATIONS = frozenset({_STORAGE + "4", _STORAGE + "7"})  # the second is a label map: one value for each voxel
_ONE_BIT = (1, 1, 0, 1)  # bits allocated, bits stored, high bit, samples per pixel
_LITTLE = frozenset({encoding.IMPLICIT_LITTLE, encoding.EXPLICIT_LITTLE})
_LONGEST_LABEL = 64  # characters, PS3.5 6.2 (LO)


@dataclass(frozen=True, slots=True)
class Segment:
    """One of the things that are outlined."""

    number: int
    label: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MaskFrame:
    """One plane of one segment."""

    segment: int  # its number
    plane: Plane


@dataclass(frozen=True, slots=True)
class Segmentation:
    """One file. With a `code` no voxel of it may be read, and whose it is and what it outlines is known all the same.

    `series` are the Series Instance UIDs it refers to. `rows` and `columns` are those of every frame.
    """

    series: tuple[str, ...] = field(repr=False)
    segments: tuple[Segment, ...]
    rows: int
    columns: int
    frames: tuple[MaskFrame, ...]
    code: Refusal | None


def parse_segmentation(parsed: Parsed, limits: VolumeLimits) -> Segmentation:
    """Take a segmentation out of a header with the tags of `headers.SLICE_TAGS`, within `reading.few_items`.

    Raises `NotUsable` where it does not say whose it is or which segments it has.
    """
    ds, header = parsed.ds, parsed.header
    series = tuple(sorted({_text(item, "SeriesInstanceUID") for item in items(ds, "ReferencedSeriesSequence")} - {""}))
    segments = tuple(_segment(item) for item in items(ds, "SegmentSequence"))
    if not header.identifiers.patient_id:
        raise NotUsable(Refusal.PATIENT_ID_MISSING)
    if not _is_named(header.identifiers) or len({one.number for one in segments}) < len(segments):
        raise NotUsable(Refusal.UNREADABLE)
    code = _judge_kind(ds, header, limits) or _judge_extent(header, parsed.pixels, parsed.size, limits)
    found: tuple[MaskFrame, ...] | Refusal = code or _frames(ds, header, {one.number for one in segments})
    code, frames = (found, ()) if isinstance(found, Refusal) else (None, found)
    return Segmentation(series, segments, header.rows or 0, header.columns or 0, frames, code)


def read_frame(stream: BinaryIO, offset: int, of: Segmentation, number: int) -> NDArray[np.uint8]:
    """Bits of one frame: uint8 [rows, columns] of 0 and 1. `offset` is that of the pixel data, bytes."""
    count = of.rows * of.columns
    start, skipped = divmod(number * count, 8)
    stream.seek(offset + start)
    data = stream.read(-(-(skipped + count) // 8))
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[skipped : skipped + count]
    if len(bits) < count:
        raise NotUsable(Refusal.TRUNCATED)
    return bits.reshape(of.rows, of.columns)


def _segment(item: Dataset) -> Segment:
    (number,) = numbers(item, "SegmentNumber", 1) or (0.0,)
    label = _text(item, "SegmentLabel")
    if number < 0 or not number.is_integer() or len(label) > _LONGEST_LABEL:
        raise NotUsable(Refusal.UNREADABLE)
    return Segment(int(number), label)


def _judge_kind(ds: Dataset, header: Header, limits: VolumeLimits) -> Refusal | None:
    if _text(ds, "SegmentationType") != "BINARY":
        return Refusal.MASK_TYPE
    if header.transfer_syntax not in _LITTLE:  # of one bit: encapsulated is not defined, big endian is retired
        return Refusal.TRANSFER_SYNTAX
    bits = (header.bits_allocated, header.bits_stored, header.high_bit, header.samples)
    frames, sides = header.frames or 0, (header.rows or 0, header.columns or 0)
    if bits != _ONE_BIT or header.photometric != "MONOCHROME2" or min(*sides, frames) < 1:
        return Refusal.UNREADABLE
    too_many = frames > limits.max_mask_frames or max(sides) > limits.file.max_side
    return Refusal.TOO_LARGE if too_many or sides[0] * sides[1] > limits.file.max_pixel_bytes else None


def _judge_extent(header: Header, pixels: PixelElement, size: int, limits: VolumeLimits) -> Refusal | None:
    """Compare the length of the pixel data with what the frames need and the file has."""
    if pixels.tag != PIXEL_DATA or pixels.length == 0:
        return Refusal.TRUNCATED if pixels.beyond_end else Refusal.NO_PIXELS
    frame = (header.rows or 0) * (header.columns or 0)
    needed = -(-frame * (header.frames or 0) // 8)
    if size > limits.file.max_file_bytes:
        return Refusal.TOO_LARGE
    if pixels.length == UNDEFINED_LENGTH:
        return Refusal.UNREADABLE
    if pixels.length < needed or pixels.offset + needed > size:
        return Refusal.TRUNCATED
    # Some writers begin each frame with a byte of its own, against PS3.5 8.1.1: read as it should be, all but the first
    # frame would be shifted, and nobody could see it.
    by_bytes, padded = -(-frame // 8) * (header.frames or 0), needed + needed % 2
    is_too_long = 8 * (pixels.length - padded) >= max(frame, 8) or pixels.length >= by_bytes > padded
    return Refusal.UNREADABLE if is_too_long else None


def _frames(ds: Dataset, header: Header, segments: set[int]) -> tuple[MaskFrame, ...] | Refusal:
    per_frame, shared = items(ds, "PerFrameFunctionalGroupsSequence"), items(ds, "SharedFunctionalGroupsSequence")
    if len(per_frame) != header.frames:
        return Refusal.UNREADABLE
    found = []
    for own in per_frame:
        groups = Groups(own, shared[0] if shared else Dataset())
        (number,) = numbers(groups.macro("SegmentIdentificationSequence"), "ReferencedSegmentNumber", 1) or (-1.0,)
        plane = groups.plane(ds)
        if number not in segments:
            return Refusal.UNREADABLE
        if plane is None:
            return Refusal.GEOMETRY_MISSING
        found.append(MaskFrame(int(number), plane))
    return tuple(found)


def _is_named(who: Identifiers) -> bool:
    return bool(who.sop_uid) and not any("\\" in one for one in (who.patient_id, who.sop_uid))


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return value.strip(" \0") if isinstance(value, str) else ""

"""One file in, its slices or one refusal out: the header alone, held to limits before anything is expanded.

An Enhanced CT or MR is judged as the single-frame object that it would be exported as, by the rules of
`header.judge_header`, so there is one list of what is refused and no second one to forget.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import FileDataset

from silo_agent.intake import encoding
from silo_agent.intake.bounded import few_items
from silo_agent.intake.encoding import Limits
from silo_agent.intake.header import SINGLE_FRAME, Header, Identifiers, judge_header, parse_header
from silo_agent.intake.image import (
    PIXEL_DATA,
    UNDEFINED_LENGTH,
    NotUsable,
    PixelElement,
    Refused,
    guarded,
    judged_whole,
    looks_like_dicom,
    native_bytes,
    parse_until_pixels,
    refuse_deflated,
    transfer_syntax_of,
)
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import SLICE_TAGS, Slice, parse_slices

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CT, _MR = _STORAGE + "2", _STORAGE + "4"
SINGLE_FRAME_OF = {
    _STORAGE + "2.1": _CT,  # Enhanced CT
    _STORAGE + "2.2": _CT,  # Legacy Converted Enhanced CT
    _STORAGE + "4.1": _MR,  # Enhanced MR
    _STORAGE + "4.4": _MR,  # Legacy Converted Enhanced MR
}


@dataclass(frozen=True, slots=True)
class VolumeLimits:
    """What a volume and the files it comes from may cost."""

    file: Limits = field(default_factory=lambda: Limits(max_file_bytes=1024**3))
    max_header_bytes: int = 16 * 1024 * 1024  # an Enhanced object says about 2 kB per frame
    max_items: int = 200_000  # of sequences, in one header: each becomes an object of about 1 kB
    max_frames: int = 4096
    max_mask_frames: int = 16_384  # of a segmentation: one for each slice and segment
    max_voxels: int = 2**28  # 1 GiB as float32: 1024 slices of 512 x 512
    max_source_bytes: int = 2 * 1024**3  # all files of one volume


@dataclass(frozen=True, slots=True)
class Parsed:
    """The header of a file of `size` bytes, not judged yet."""

    header: Header
    ds: FileDataset = field(repr=False)
    pixels: PixelElement
    size: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One file whose pixels may be read. `offset` and `length` are of its pixel data, bytes."""

    header: Header  # as of the single-frame object
    slices: tuple[Slice, ...]
    ds: FileDataset = field(repr=False)
    offset: int
    length: int
    vr: str


def read_slices(
    path: Path,
    file: int,
    *,
    modalities: Collection[str],
    limits: VolumeLimits | None = None,
    take_secondary: bool = False,
) -> tuple[Slice, ...] | Refused:
    """Read what the slices of one file say, or why it is not used. Raises nothing that depends on the file.

    `file` is the number of the file in the scan. `take_secondary` accepts ImageType value 2 SECONDARY, as archives
    for research carry it after defacing; screen captures stay refused.
    """

    def read() -> tuple[Slice, ...]:
        with path.open("rb") as stream:
            how = Acceptance(frozenset(modalities), take_secondary=take_secondary)
            return read_instance(stream, file, how, limits or VolumeLimits()).slices

    return guarded(read)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the plan takes. With `take_masks` segmentations are not refused as no images."""

    modalities: frozenset[str]
    take_secondary: bool = False
    take_masks: bool = False


def read_instance(stream: BinaryIO, file: int, how: Acceptance, limits: VolumeLimits) -> Instance:
    """Read and judge the header of an open file; to be called within `guarded`."""
    with few_items(limits.max_items):
        return judged(parsed(stream, limits), file, how, limits)


def parsed(stream: BinaryIO, limits: VolumeLimits, told: Callable[[Identifiers], object] = lambda _who: None) -> Parsed:
    """Parse the header of an open file; to be called within `guarded` and `few_items`.

    `told` is told what a header says of its identity that is refused because it is not all there.
    """
    has_preamble = looks_like_dicom(stream)
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    start = stream.read(min(size, limits.max_header_bytes))
    refuse_deflated(start, has_preamble=has_preamble)
    ds, found = parse_until_pixels(start, size, SLICE_TAGS)
    try:
        if found.tag == 0:
            _refuse_cut(size, start)
        header = judged_whole(ds, found, has_preamble=has_preamble, cut=False)
    except NotUsable:
        told(parse_header(ds, transfer_syntax_of(ds), "").identifiers)
        raise
    return Parsed(header, ds, found, size)


def _refuse_cut(size: int, start: bytes) -> None:
    """Raise `NotUsable` where the limit came before the pixels."""
    if size > len(start):
        raise NotUsable(Refusal.TOO_LARGE)


def judged(parsed: Parsed, file: int, how: Acceptance, limits: VolumeLimits) -> Instance:
    """Judge it as that of an image; within the same `few_items`, since sequences are parsed when they are asked for."""
    header, ds, found = parsed.header, parsed.ds, parsed.pixels
    if (header.frames or 0) > limits.max_frames and header.sop_class in SINGLE_FRAME_OF:
        raise NotUsable(Refusal.TOO_LARGE)
    slices = parse_slices(ds, header, file) if _stackable(header) else ()
    single = _as_single_frame(header, slices, how)
    if refusal := judge_header(single, how.modalities, limits.file):
        raise NotUsable(refusal)
    if not (slices and header.identifiers.study_uid and header.identifiers.series_uid):
        raise NotUsable(Refusal.UNREADABLE)
    _check_extent(single, found, parsed.size, (len(slices), limits))
    return Instance(single, slices, ds, found.offset, found.length, found.vr)


def _stackable(header: Header) -> bool:
    return header.sop_class in SINGLE_FRAME_OF or (header.frames == 1 and header.sop_class in SINGLE_FRAME)


def _as_single_frame(header: Header, slices: tuple[Slice, ...], how: Acceptance) -> Header:
    kinds = header.image_type
    if how.take_secondary and kinds[1:2] == ("SECONDARY",):
        header = replace(header, image_type=(kinds[0], "PRIMARY", *kinds[2:]))
    if header.sop_class not in SINGLE_FRAME_OF:
        return header
    every = bool(slices) and all(one.rescale for one in slices)
    return replace(header, sop_class=SINGLE_FRAME_OF[header.sop_class], frames=1, rescale=every)


def _check_extent(header: Header, pixels: PixelElement, size: int, frames: tuple[int, VolumeLimits]) -> None:
    """Compare the length of the pixel data with what the frames need and the file has, before reading it."""
    count, limits = frames
    if pixels.tag != PIXEL_DATA:
        raise NotUsable(Refusal.TRUNCATED if pixels.beyond_end else Refusal.NO_PIXELS)
    if pixels.length == 0:
        raise NotUsable(Refusal.NO_PIXELS)
    if size > limits.file.max_file_bytes:
        raise NotUsable(Refusal.TOO_LARGE)
    native = header.transfer_syntax in encoding.NATIVE
    if native is (pixels.length == UNDEFINED_LENGTH):
        raise NotUsable(Refusal.UNREADABLE)  # PS3.5 A.4: encapsulated is undefined, native is not
    needed = native_bytes(header) * count
    if native and (pixels.length < needed or pixels.offset + needed > size):
        raise NotUsable(Refusal.TRUNCATED)
    if native and pixels.length >= needed + needed % 2 + native_bytes(header):
        raise NotUsable(Refusal.UNREADABLE)  # room for a frame more than the header says

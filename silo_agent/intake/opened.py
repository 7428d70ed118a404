"""A file that stands open: first what its header says, then its pixels, if somebody asks for them.

The rules, their order and the functions that keep them are `image.read_image`'s, cut in two so that pixels are read of
those images only that may be used. What the header costs is small where `skim` can walk it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from pydicom.dataset import Dataset, FileDataset

from silo_agent.intake.bounded import few_items
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import NAMES, HeaderFacts, PixelRefusal, Pixels
from silo_agent.intake.header import HEADER_TAGS, Header, judge_header, parse_header
from silo_agent.intake.image import (
    NotUsable,
    PixelElement,
    add_pixels,
    check_extent,
    decode,
    judged_whole,
    looks_like_dicom,
    parse_until_pixels,
    refusal_of,
    refuse_deflated,
)
from silo_agent.intake.pixels import content_digest, in_modality_units, unused_bits_cleared
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.skim import skim

_TAGS = frozenset(HEADER_TAGS)
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class _Parsed:
    header: Header
    pixels: PixelElement
    dataset: Callable[[], Dataset] = field(repr=False)
    is_small: bool


class OpenFile:
    """One file. Its methods raise nothing that depends on it; pydicom must be kept quiet by the caller."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._file: BinaryIO | None = None
        self._parsed: _Parsed | None = None
        self._told: HeaderFacts | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def header(self) -> HeaderFacts:
        found = _guarded(self._header)
        if isinstance(found, PixelRefusal):
            found = HeaderFacts.none(found.code, lasting=found.lasting)
        self._told = found
        return found

    def rest(self) -> None:
        """Let go of what takes memory or a handle for nothing, while other files are read."""
        if self._parsed is None or not self._parsed.is_small:
            self.close()
            self._file = self._parsed = None

    def pixels(self) -> Pixels | PixelRefusal:
        """To be called after `header`, where that refuses nothing. A file read again has to say what it said."""
        if self._parsed is None and self._told != self.header():
            return PixelRefusal(Refusal.UNREADABLE, lasting=False)
        return _guarded(self._pixels)

    def _header(self) -> HeaderFacts:
        self._file = self._path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        self._parsed = parsed = _parse(self._file, size, self._limits)
        header = parsed.header
        unwanted = judge_header(header, (), self._limits)
        wanted = judge_header(header, (header.modality,), self._limits)
        if wanted is None:
            try:
                check_extent(header, parsed.pixels, size, self._limits)
            except NotUsable as why:
                wanted = why.code
        who = header.identifiers
        is_told = all(_is_text(getattr(who, name)) for name in NAMES)
        return HeaderFacts(header.modality, wanted, unwanted, who if is_told else None)

    def _pixels(self) -> Pixels:
        if self._file is None or self._parsed is None:
            raise NotUsable(Refusal.UNREADABLE)
        header, ds = self._parsed.header, self._parsed.dataset()
        add_pixels(self._file, cast("FileDataset", ds), header, self._parsed.pixels)
        stored = unused_bits_cleared(decode(ds, header), header.bits_stored or 0, signed=header.signed)
        return Pixels(in_modality_units(stored, header, ds), content_digest(stored))


def _parse(file: BinaryIO, size: int, limits: Limits) -> _Parsed:
    has_preamble = looks_like_dicom(file)
    skimmed = skim(file, _TAGS, limits) if has_preamble else None
    if skimmed is not None:
        header = parse_header(cast("Dataset", skimmed), skimmed.syntax, skimmed.media_class)
        return _Parsed(header, skimmed.pixels, skimmed.dataset, is_small=True)
    file.seek(0)
    start = file.read(min(size, limits.max_header_bytes))
    with few_items(limits.max_items):
        refuse_deflated(start, has_preamble=has_preamble)
        ds, pixels = parse_until_pixels(start, size, HEADER_TAGS)
        header = judged_whole(ds, pixels, has_preamble=has_preamble, cut=size > len(start))
    return _Parsed(header, pixels, lambda: ds, is_small=False)


def _is_text(value: str) -> bool:
    """Whether it can leave this process: what cannot be written is refused already, and names nobody."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _guarded(read: Callable[[], _Read]) -> _Read | PixelRefusal:
    """As `image.guarded`, and whether it lasts."""
    try:
        return read()
    except Exception as why:  # noqa: BLE001 - as there
        code, lasting = refusal_of(why)
        return PixelRefusal(code, lasting=lasting)

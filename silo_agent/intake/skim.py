"""The header of an ordinary file in one short walk; of any other file, nothing.

pydicom reads whatever was once called DICOM, and pays for it at every element. Nearly all images of an archive are
plain: a preamble, little endian, tags in order, every value where its length says. Such a file is walked here, and
its values are still pydicom's to convert. All else, however harmless, is left to pydicom as a whole, so that a file
means the same whichever way it is read. Source: PS3.5 section 7 (elements and sequences), PS3.10 section 7.1.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from struct import error as RanOut  # noqa: N812 - what it means here
from typing import Any, BinaryIO, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from silo_agent.intake import encoding
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import ANY_PIXELS, PIXEL_DATA, UNDEFINED_LENGTH, PixelElement

_EXPLICIT, _IMPLICIT, _LENGTH = Struct("<HH2sH").unpack_from, Struct("<HHL").unpack_from, Struct("<L").unpack_from
_LONG_VRS = {vr.value.encode(): vr.value for vr in EXPLICIT_VR_LENGTH_32}
_SHORT_VRS = {vr.value.encode(): vr.value for vr in VR if len(vr) == 2 and vr not in EXPLICIT_VR_LENGTH_32}
_META_START, _LAST_OF_META = 132, 0x0002FFFF
_GROUP_LENGTH, _CLASS_UID, _SYNTAX_UID, _CHARACTER_SET = 0x00020000, 0x00020002, 0x00020010, 0x00080005
_META_UIDS = frozenset({_CLASS_UID, _SYNTAX_UID})
_ITEM, _ITEM_END, _SEQUENCE_END, _ITEM_BYTES = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, b"\xfe\xff\x00\xe0"
_SYNTAXES = (encoding.READABLE | encoding.LOSSY) - {encoding.EXPLICIT_BIG}
_PLAIN_UID = re.compile(rb"([0-9.]{1,64})\x00?")
_FIRST_READ, _MOST_READ = 16 * 1024, 1024 * 1024  # bytes; ordinary headers have 2 to 10 kB
_DEEPEST, _MOST_ITEMS, _MOST_ELEMENTS, _LONGEST_VALUE = 8, 1000, 10_000, 1024
_Encodings = str | tuple[str, ...]  # one text stands for "not named", as pydicom has it
_REMEMBERED_BYTES = 64


@dataclass(frozen=True, slots=True)
class Skimmed:
    """The values of an ordinary header that were asked for, and where its pixel data is."""

    syntax: str
    media_class: str
    pixels: PixelElement
    _raw: dict[int, RawDataElement] = field(repr=False)
    _encodings: _Encodings

    def get(self, keyword: str) -> Any:
        """As `Dataset.get`: the value, None where there is none. Raises what pydicom raises on a malformed value."""
        raw = self._raw.get(tag_for_keyword(keyword) or 0)
        if raw is None:
            return None
        if raw.length > _REMEMBERED_BYTES:
            return _converted(raw, self._encodings)
        return _remembered(raw.tag, raw.VR, raw.length, raw.value, self._encodings)

    def dataset(self) -> Dataset:
        """The same as a data set, with a file meta to be filled in."""
        ds = Dataset({BaseTag(tag): raw for tag, raw in self._raw.items()})
        ds.set_original_encoding(self.syntax == encoding.IMPLICIT_LITTLE, True, _as_read(self._encodings))
        ds.file_meta = FileMetaDataset()
        return ds


def skim(file: BinaryIO, tags: Collection[int], limits: Limits) -> Skimmed | None:
    """Walk to the pixel data, within the limits for headers; None for whatever is out of the ordinary."""
    for most in (_FIRST_READ, _MOST_READ):
        file.seek(0)
        data = file.read(min(most, limits.max_header_bytes))
        if data.count(_ITEM_BYTES) > min(_MOST_ITEMS, limits.max_items):
            return None
        try:
            return _walked(data, tags)
        except RanOut:
            if len(data) < most:
                return None
    return None


def _walked(data: bytes, tags: Collection[int]) -> Skimmed | None:
    """Raises `RanOut` where the bytes end too early."""
    meta = _meta(data)
    if meta is None or meta[0] not in _SYNTAXES:
        return None
    syntax, media_class, at = meta
    found = _until_pixels(data, at, tags, is_implicit=syntax == encoding.IMPLICIT_LITTLE)
    if found is None:
        return None
    raw, pixels = found
    named = raw.get(_CHARACTER_SET)
    encodings = default_encoding if named is None else _encodings(named.VR, named.length, named.value)
    return Skimmed(syntax, media_class, pixels, raw, encodings)


def _meta(data: bytes) -> tuple[str, str, int] | None:
    """The transfer syntax, the SOP class and where the data set starts; explicit little endian (PS3.10 7.1)."""
    at, last, found = _META_START, 0, dict[int, bytes]()
    while True:
        tag, vr, length, start = _element(data, at, is_implicit=False)
        if tag > _LAST_OF_META:
            break
        is_first = last == 0
        if vr is None or tag <= last or length == UNDEFINED_LENGTH or is_first is not (tag == _GROUP_LENGTH):
            return None
        if (is_first and (vr, length) != ("UL", 4)) or (tag in _META_UIDS and vr != "UI"):
            return None
        at, last = start + length, tag
        found[tag] = _value(data, start, length)
    syntax, media_class = (_PLAIN_UID.fullmatch(found.get(tag, b"")) for tag in (_SYNTAX_UID, _CLASS_UID))
    if syntax is None or media_class is None:
        return None
    return syntax[1].decode(), media_class[1].decode(), at


def _until_pixels(
    data: bytes, at: int, tags: Collection[int], *, is_implicit: bool
) -> tuple[dict[int, RawDataElement], PixelElement] | None:
    if is_implicit and data[at + 4 : at + 6].isalpha():
        return None  # pydicom would look whether it is explicit after all
    last, raw = _LAST_OF_META, dict[int, RawDataElement]()
    for _ in range(_MOST_ELEMENTS):
        tag, vr, length, start = _element(data, at, is_implicit=is_implicit)
        if tag <= last or tag > PIXEL_DATA or (vr is None and not is_implicit):
            return None
        if tag in ANY_PIXELS:
            return raw, PixelElement(tag, length, start, vr or "OW")
        if length == UNDEFINED_LENGTH:
            end = _after_items(data, start, _DEEPEST) if vr == "SQ" and tag not in tags else None
            if end is None:
                return None
            at, last = end, tag
            continue
        if tag in tags:
            if vr == "SQ" or length > _LONGEST_VALUE:
                return None
            value = _value(data, start, length) if length else cast("bytes | None", empty_value_for_VR(vr, raw=True))
            raw[tag] = RawDataElement(BaseTag(tag), vr, length, value, start, is_implicit, True)
        at, last = start + length, tag
    return None


def _element(data: bytes, at: int, *, is_implicit: bool) -> tuple[int, str | None, int, int]:
    """Tag, VR (None where it is implicit or unknown), length and where the value starts."""
    if is_implicit:
        group, element, length = _IMPLICIT(data, at)
        return group << 16 | element, None, length, at + 8
    group, element, vr, length = _EXPLICIT(data, at)
    tag = group << 16 | element
    if (short := _SHORT_VRS.get(vr)) is not None:
        return tag, short, length, at + 8
    if (long := _LONG_VRS.get(vr)) is not None:
        return tag, long, _LENGTH(data, at + 8)[0], at + 12
    return tag, None, length, at + 8


def _value(data: bytes, start: int, length: int) -> bytes:
    if start + length > len(data):
        raise RanOut
    return data[start : start + length]


def _after_items(data: bytes, at: int, depth: int) -> int | None:
    """Where an explicit sequence of undefined length ends (PS3.5 7.5), if all in it is ordinary."""
    while True:
        tag, _, length, start = _element(data, at, is_implicit=True)
        if tag == _SEQUENCE_END:
            return start
        if tag != _ITEM:
            return None
        end = _after_elements(data, start, None if length == UNDEFINED_LENGTH else start + length, depth)
        if end is None:
            return None
        at = end


def _after_elements(data: bytes, at: int, end: int | None, depth: int) -> int | None:
    """Where an item ends: at `end`, or without one at its delimiter."""
    last = 0
    while at != end:
        tag, vr, length, start = _element(data, at, is_implicit=False)
        if tag == _ITEM_END and end is None:
            return start
        if vr is None or tag <= last or tag == _CHARACTER_SET or (end is not None and start > end):
            return None
        if length == UNDEFINED_LENGTH:
            after = _after_items(data, start, depth - 1) if vr == "SQ" and depth else None
        else:
            after = start + length
        if after is None or (end is not None and after > end):
            return None
        at, last = after, tag
    return at


@lru_cache(maxsize=4096)
def _remembered(tag: BaseTag, vr: str | None, length: int, value: bytes | None, encodings: _Encodings) -> Any:
    """What most files of an archive have in common is converted once."""
    return _converted(RawDataElement(tag, vr, length, value, 0, vr is None, True), encodings)


@lru_cache(maxsize=64)
def _encodings(vr: str | None, length: int, value: bytes | None) -> tuple[str, ...]:
    raw = RawDataElement(BaseTag(_CHARACTER_SET), vr, length, value, 0, vr is None, True)
    return tuple(convert_encodings(convert_raw_data_element(raw).value))


def _converted(raw: RawDataElement, encodings: _Encodings) -> Any:
    named = default_encoding if raw.tag == _CHARACTER_SET else _as_read(encodings)
    return convert_raw_data_element(raw, encoding=named).value


def _as_read(encodings: _Encodings) -> str | list[str]:
    return encodings if isinstance(encodings, str) else list(encodings)

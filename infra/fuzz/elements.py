"""DICOM as bytes: where the elements of a data set begin, and how one is written, without asking whether it is sane.

A second, much simpler parser than pydicom's on purpose: it goes on where pydicom gives up, so a file that is damaged
once can be damaged again. Source: PS3.5 section 7.1 (data elements), 7.5 (sequences), A.4 (fragments), PS3.10 7.1.
"""

import struct
from dataclasses import dataclass, replace

PREAMBLE = 128
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
TRANSFER_SYNTAX = 0x00020010
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_IMPLICIT, _BIG = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2"
_FRAGMENT = b"OB"  # stands for the VR of an item that is one: its value is bytes, not elements
_MOST = 4000  # elements: more than any seed has


@dataclass(frozen=True, slots=True)
class Element:
    """One element, item or delimiter. `at` is where its tag begins, `value` its value; `vr` is empty if implicit."""

    tag: int
    vr: bytes
    at: int
    value: int
    length: int  # as it says
    little: bool

    @property
    def end(self) -> int:
        """Of what belongs to it alone: the elements inside a sequence are found as elements of their own."""
        return self.value if self.opens else self.value + self.length

    @property
    def opens(self) -> bool:
        return self.length == UNDEFINED or self.vr == b"SQ" or (self.tag == ITEM and self.vr != _FRAGMENT)

    @property
    def group(self) -> int:
        return self.tag >> 16


def elements_of(data: bytes) -> list[Element]:
    """Find the elements, those inside sequences included, as far as the bytes make sense."""
    at = PREAMBLE + 4 if data[PREAMBLE : PREAMBLE + 4] == b"DICM" else 0
    found: list[Element] = []
    syntax, in_pixels = b"", False
    while at + 8 <= len(data) and len(found) < _MOST:
        one = _element(data, at, b"" if data[at : at + 2] == b"\2\0" else syntax)
        if one is None:
            break
        if in_pixels and one.tag == ITEM:
            one = replace(one, vr=_FRAGMENT)
        if one.end > len(data):
            break
        found.append(one)
        if one.tag == TRANSFER_SYNTAX:
            syntax = data[one.value : one.end].strip(b"\0 ")
        if one.tag == PIXEL_DATA:
            in_pixels = one.length == UNDEFINED
        elif one.tag == SEQUENCE_END:
            in_pixels = False
        at = one.end
    return found


def _element(data: bytes, at: int, syntax: bytes) -> Element | None:
    little = syntax != _BIG
    order = "<" if little else ">"
    group, number = struct.unpack_from(f"{order}HH", data, at)
    tag, vr = group << 16 | number, data[at + 4 : at + 6]
    if tag in {ITEM, ITEM_END, SEQUENCE_END} or syntax == _IMPLICIT or not (vr.isalpha() and vr.isupper()):
        return Element(tag, b"", at, at + 8, struct.unpack_from(f"{order}I", data, at + 4)[0], little)
    if vr not in LONG_VRS:
        return Element(tag, vr, at, at + 8, struct.unpack_from(f"{order}H", data, at + 6)[0], little)
    if at + 12 > len(data):
        return None
    return Element(tag, vr, at, at + 12, struct.unpack_from(f"{order}I", data, at + 8)[0], little)


def head(tag: int, vr: bytes, length: int, *, little: bool = True) -> bytes:
    """Write the bytes before a value; a length that does not fit its field is cut to it. An empty `vr`: implicit."""
    order = "<" if little else ">"
    start = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if not vr:
        return start + struct.pack(f"{order}I", length & UNDEFINED)
    if vr in LONG_VRS:
        return start + vr + b"\0\0" + struct.pack(f"{order}I", length & UNDEFINED)
    return start + vr + struct.pack(f"{order}H", length & 0xFFFF)


def written(tag: int, vr: bytes, value: bytes, like: Element) -> bytes:
    """An element in the encoding of another one."""
    vr = vr if like.vr else b""
    return head(tag, vr, len(value), little=like.little) + value


def spliced(data: bytes, start: int, end: int, middle: bytes) -> bytes:
    return data[:start] + middle + data[end:]


def renamed_syntax(data: bytes, syntax: bytes) -> bytes:
    """Name another transfer syntax and change nothing else."""
    for one in elements_of(data):
        if one.tag == TRANSFER_SYNTAX:
            return spliced(data, one.at, one.end, written(one.tag, b"UI", syntax + b"\0" * (len(syntax) % 2), one))
    return data

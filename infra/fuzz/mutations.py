"""Ways to damage a DICOM file, each a sentence and a function of a source of chance and the bytes.

None looks at what the intake does with the result, and each takes files that are damaged already. What does not
apply to a file leaves it as it is.
"""

import math
import struct
from collections.abc import Callable, Mapping
from random import Random

from pydicom.datadict import dictionary_VR

from infra.fuzz.bombs import BOMBS
from infra.fuzz.elements import (
    ITEM,
    ITEM_END,
    LONG_VRS,
    PIXEL_DATA,
    PREAMBLE,
    SEQUENCE_END,
    TRANSFER_SYNTAX,
    UNDEFINED,
    Element,
    elements_of,
    head,
    renamed_syntax,
    spliced,
    written,
)
from infra.fuzz.fragments import FRAGMENTS
from silo_agent.intake.header import HEADER_TAGS
from silo_agent.intake.volumes.headers import SLICE_TAGS

Mutation = Callable[[Random, bytes], bytes]

_META = (0x00020000, 0x00020002, 0x00020003, TRANSFER_SYNTAX)
ASKED_FOR = frozenset((*HEADER_TAGS, *SLICE_TAGS, *_META, PIXEL_DATA))
_LENGTHS = (0, 1, 2, 3, 7, 0xFFFE, 0xFFFF, 0x10000, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, UNDEFINED)
_VRS = tuple(sorted(LONG_VRS | {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT",
                                b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}))  # fmt: skip
_NO_VRS = (b"ZZ", b"??", b"\0\0", b"us", b"A1")
_BINARY = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"AT": "I", b"SV": "q", b"UV": "Q",
           b"OW": "H", b"OF": "f", b"OD": "d"}  # fmt: skip
_TEXTS = (
    b"", b" ", b"NaN", b"inf", b"-inf", b"1e308", b"-1e308", b"1e309", b"1e-320", b"-0", b"0", b"-1", b"1", b"2",
    b"1\\2", b"1\\2\\3", b"0\\0\\1", b"1\\0\\0\\0\\1\\0", b"1\\2\\3\\4\\5\\6\\7", b"\\", b"\\\\\\", b"9" * 20,
    b"2147483648", b"1e5", b"0x10", b"1_0", b"1,5", b"\0", b"\0\0\0\0", b"YES", b"NO", b"00", b"01", b"MONOCHROME1",
    b"MONOCHROME2", b"RGB", b"CT", b"MR", b"US", b"CR", b"ORIGINAL\\PRIMARY\\AXIAL", b"ORIGINAL\\SECONDARY", b"1.2.3",
    b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.5.1.4.1.1.4",
    b"1.2.840.10008.1.3.10", b"A" * 70, b"9" * 400, b"\xef\xbc\x91\xef\xbc\x92", b"\xff\xfe\xfd", b"\x1b$B8+\x1b(B",
    b"+2AA-", b"\\ud800", b"%s%n", b"1e" + b"9" * 40,
)  # fmt: skip
_NUMBERS = (0, 1, 2, 7, 8, 12, 16, 17, 32, 64, 255, 256, 512, 4095, 16384, 16385, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_CHARACTER_SETS = (
    b"ISO_IR 192", b"ISO_IR 100", b"ISO_IR 13", b"ISO 2022 IR 87", b"\\ISO 2022 IR 149", b"GB18030", b"utf-7", b"x",
    b"utf-16", b"unicode_escape", b"raw_unicode_escape", b"punycode", b"idna", b"undefined", b"zlib_codec", b"hex",
)  # fmt: skip
_SYNTAXES = (
    *(b"1.2.840.10008.1.2" + part for part in (b"", b".1", b".2", b".5", b".1.99", b".1.98", b".9", b".1 ", b"\\1")),
    *(b"1.2.840.10008.1.2.4." + part for part in (b"50", b"70", b"80", b"90", b"91", b"95", b"201", b"202", b"205")),
)


# --- bytes, without asking what they mean --------------------------------------------------------------
def flip_bytes(chance: Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 4, 32))):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def flip_header_bits(chance: Random, data: bytes) -> bytes:
    damaged, end = bytearray(data), min(len(data), 2500)
    for _ in range(chance.choice((1, 2, 8))):
        if end > PREAMBLE:
            damaged[chance.randrange(PREAMBLE, end)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut_off(chance: Random, data: bytes) -> bytes:
    ends = [one.at for one in elements_of(data)] or [0]
    return data[: chance.choice((chance.randrange(len(data) + 1), chance.choice(ends), max(0, len(data) - 8)))]


def take_out(chance: Random, data: bytes) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 8, 100, 5000))
    return spliced(data, start, start + length, b"")


def repeat_bytes(chance: Random, data: bytes) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.choice((1, 8, 100, 2000))
    return spliced(data, start, start, data[start : start + length])


def blank(chance: Random, data: bytes) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.choice((4, 64, 1000))
    return spliced(data, start, start + length, bytes([chance.choice((0, 255))]) * length)[: len(data)]


def append_zeros(chance: Random, data: bytes) -> bytes:
    return data + bytes(chance.choice((1, 8, 1000, 300_000)))


def damage_preamble(chance: Random, data: bytes) -> bytes:
    start, rest = data[:PREAMBLE], data[PREAMBLE:]
    return chance.choice((
        rest[4:], rest, start[:100] + rest, start + start + rest, start + b"dicm" + rest[4:], start + b"DICM" + rest,
        start + b"DICM\0\0\0\0" + rest[4:], start + rest[4:], b"II*\0" + start[4:] + rest, start + b"DICM",
    ))  # fmt: skip


# --- elements ------------------------------------------------------------------------------------------
def _pick(chance: Random, data: bytes) -> Element | None:
    """An element, most often one that the intake reads."""
    found = elements_of(data)
    asked = [one for one in found if one.tag in ASKED_FOR]
    if asked and chance.random() < 0.8:
        return chance.choice(asked)
    return chance.choice(found) if found else None


def change_length(chance: Random, data: bytes) -> bytes:
    one = _pick(chance, data)
    if one is None:
        return data
    rest = len(data) - one.value
    near = (one.length - 2, one.length - 1, one.length + 1, one.length + 2, rest - 1, rest, rest + 1)
    length = chance.choice((*_LENGTHS, *near))
    return spliced(data, one.at, one.value, head(one.tag, one.vr, length, little=one.little))


def repeat_element(chance: Random, data: bytes) -> bytes:
    """The same element again, next to it or anywhere, as it is or with another value."""
    one = _pick(chance, data)
    if one is None:
        return data
    copy = data[one.at : one.end]
    if chance.random() < 0.6 and not one.opens:
        copy = written(one.tag, one.vr, _extreme(chance, one.vr or _vr_of(one.tag), little=one.little), one)
    places = [one.at, one.end, len(data), *(other.at for other in elements_of(data))]
    at = chance.choice((one.end, chance.choice(places)))
    return spliced(data, at, at, copy)


def remove_element(chance: Random, data: bytes) -> bytes:
    one = _pick(chance, data)
    return data if one is None else spliced(data, one.at, one.end, b"")


def move_element(chance: Random, data: bytes) -> bytes:
    one = _pick(chance, data)
    if one is None:
        return data
    rest = spliced(data, one.at, one.end, b"")
    at = chance.choice([len(rest), *(other.at for other in elements_of(rest))])
    return spliced(rest, at, at, data[one.at : one.end])


def retag_element(chance: Random, data: bytes) -> bytes:
    one = _pick(chance, data)
    if one is None:
        return data
    others = (*ASKED_FOR, 0x00000000, 0x00080001, 0x00091010, ITEM, ITEM_END, SEQUENCE_END, 0xFFFCFFFC, 0x7FE00008)
    return spliced(data, one.at, one.value, head(chance.choice(others), one.vr, one.length, little=one.little))


def swap_vr(chance: Random, data: bytes) -> bytes:
    """Another VR with the same bytes after it, or with a head as long as that VR asks for."""
    explicit = [one for one in elements_of(data) if len(one.vr) == 2 and one.tag != ITEM]
    if not explicit:
        return data
    asked = [one for one in explicit if one.tag in ASKED_FOR]
    one = chance.choice(asked if asked and chance.random() < 0.8 else explicit)
    vr = chance.choice((*_VRS, *_NO_VRS))
    if chance.random() < 0.3:
        return spliced(data, one.at + 4, one.at + 6, vr)
    return spliced(data, one.at, one.value, head(one.tag, vr, one.length, little=one.little))


def replace_value(chance: Random, data: bytes) -> bytes:
    one = _pick(chance, data)
    if one is None or one.opens:
        return data
    vr = one.vr or _vr_of(one.tag)
    return spliced(data, one.at, one.end, written(one.tag, one.vr, _extreme(chance, vr, little=one.little), one))


def add_element(chance: Random, data: bytes) -> bytes:
    """An element that the intake asks for, with an odd value, where it belongs or somewhere else."""
    found = [one for one in elements_of(data) if one.group > 2]
    if not found:
        return data
    tag = chance.choice(sorted(ASKED_FOR))
    before = next((one for one in found if one.tag > tag), found[-1])
    beside = before if chance.random() < 0.8 else chance.choice(found)
    vr = _vr_of(tag)
    made = written(tag, vr, _extreme(chance, vr, little=beside.little), beside)
    return spliced(data, beside.at, beside.at, made)


def _vr_of(tag: int) -> bytes:
    try:
        return dictionary_VR(tag).split(" or ")[0].encode()
    except KeyError:
        return b"UN"


def _extreme(chance: Random, vr: bytes, *, little: bool) -> bytes:
    if vr == b"SQ":
        return chance.choice((b"", bytes(8), head(ITEM, b"", 0, little=little), b"\1\2\3\4\5\6\7\10", b"\0" * 400))
    if vr not in _BINARY:
        value = chance.choice(_TEXTS)
        return value + b" " * (len(value) % 2) if chance.random() < 0.9 else value
    code = _BINARY[vr]
    number = chance.choice((*_NUMBERS, -1)) if code not in "fd" else chance.choice((math.nan, math.inf, -0.0, 1e30))
    size = struct.calcsize(code)
    one = struct.pack(f"{'<' if little else '>'}{code}", number) if code in "fd" else _integer(number, size, little)
    return chance.choice((one, one, one, one * 2, one * 3, one[:-1], b"", b"\x01" + one))


def _integer(number: float, size: int, little: bool) -> bytes:
    cut: int = int(number) % 256**size
    return cut.to_bytes(size, "little" if little else "big")


def set_numbers(chance: Random, data: bytes) -> bytes:
    """Several numbers of the image at once, so that they fit each other and nothing else."""
    sizes = {0x00280010: _NUMBERS, 0x00280011: _NUMBERS, 0x00280100: (8, 16, 32, 64), 0x00280101: (1, 8, 12, 16),
             0x00280102: (0, 7, 11, 15), 0x00280103: (0, 1, 2), 0x00280002: (1, 2, 3)}  # fmt: skip
    for tag in chance.sample(sorted(sizes), chance.randint(1, 5)):
        for one in elements_of(data):
            if one.tag == tag:
                value = _integer(chance.choice(sizes[tag]), 2, one.little)
                data = spliced(data, one.at, one.end, written(tag, one.vr, value, one))
                break
    return data


def huge_frame_count(chance: Random, data: bytes) -> bytes:
    found = [one for one in elements_of(data) if one.group == 0x0028]
    if not found:
        return data
    value = chance.choice((b"2 ", b"4097", b"2147483647", b"99999999999999999999", b"1e9 ", b"-1", b"0 ", b"1\\1 "))
    there = next((one for one in found if one.tag == 0x00280008), None)
    at, end = (there.at, there.end) if there else (found[0].at, found[0].at)
    return spliced(data, at, end, written(0x00280008, b"IS", value, found[0]))


def change_character_set(chance: Random, data: bytes) -> bytes:
    """And a name for it to be read in."""
    found = [one for one in elements_of(data) if one.group > 2]
    if not found:
        return data
    value = chance.choice(_CHARACTER_SETS)
    made = written(0x00080005, b"CS", value + b" " * (len(value) % 2), found[0])
    kept = b"".join(data[one.at : one.end] for one in found if one.tag == 0x00080005)
    data = data.replace(kept, made, 1) if kept else spliced(data, found[0].at, found[0].at, made)
    for one in elements_of(data):
        if one.tag == 0x00100020 and chance.random() < 0.7:
            return spliced(data, one.at, one.end, written(one.tag, b"LO", chance.choice(_TEXTS), one))
    return data


def change_transfer_syntax(chance: Random, data: bytes) -> bytes:
    """The name only: the data stay as they are."""
    return renamed_syntax(data, chance.choice(_SYNTAXES))


MUTATIONS: Mapping[str, Mutation] = {
    "bytes are flipped": flip_bytes,
    "bits of the header are flipped": flip_header_bits,
    "the end is cut off": cut_off,
    "bytes are taken out": take_out,
    "bytes are repeated": repeat_bytes,
    "bytes are blanked": blank,
    "zeros are appended": append_zeros,
    "the preamble is damaged": damage_preamble,
    "a length is changed": change_length,
    "an element stands there twice": repeat_element,
    "an element is removed": remove_element,
    "an element is moved": move_element,
    "an element has another tag": retag_element,
    "an element has another VR": swap_vr,
    "a value is extreme": replace_value,
    "an element with an extreme value is added": add_element,
    "the numbers of the image are changed": set_numbers,
    "the number of frames is huge": huge_frame_count,
    "the character set is odd": change_character_set,
    "the transfer syntax has another name": change_transfer_syntax,
    **BOMBS,
    **FRAGMENTS,
}

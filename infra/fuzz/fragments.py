"""Damage to compressed pixel data: the fragments, the codestream of JPEG 2000, the segments of RLE.

Sources: PS3.5 A.4 (Basic Offset Table, fragments), PS3.5 annex G (RLE), ISO/IEC 15444-1 annex A (markers).
"""

import struct
from collections.abc import Callable, Mapping
from random import Random

from infra.fuzz.elements import ITEM, PIXEL_DATA, UNDEFINED, Element, elements_of, head, spliced

_START, _TILE_PART = b"\xff\x4f\xff\x51", 0xFF90
_EXTREME_BYTES = (0, 1, 2, 7, 15, 31, 32, 33, 64, 127, 128, 255)
# Offsets into the SIZ segment, after its marker, and the sizes of what stands there.
_SIZ_FIELDS = {"Xsiz": (4, 4), "Ysiz": (8, 4), "XOsiz": (12, 4), "YOsiz": (16, 4), "XTsiz": (20, 4), "YTsiz": (24, 4),
               "XTOsiz": (28, 4), "YTOsiz": (32, 4), "Csiz": (36, 2), "Ssiz": (38, 1), "XRsiz": (39, 1)}  # fmt: skip
# And into COD: style, progression, layers, component transform, levels, block width and height, wavelet.
_COD_FIELDS = {"Scod": (2, 1), "order": (3, 1), "layers": (4, 2), "levels": (7, 1), "width": (8, 1), "height": (9, 1),
               "style": (10, 1), "wavelet": (11, 1)}  # fmt: skip


def _pixels(data: bytes) -> tuple[Element, list[Element]] | None:
    """The pixel data element, if it is encapsulated, and its items: the offset table and the fragments."""
    found = elements_of(data)
    for number, one in enumerate(found):
        if one.tag == PIXEL_DATA and one.length == UNDEFINED:
            items = []
            for other in found[number + 1 :]:
                if other.tag != ITEM:
                    break
                items.append(other)
            return one, items
    return None


def _some_fragment(chance: Random, data: bytes) -> Element | None:
    found = _pixels(data)
    return chance.choice(found[1]) if found and found[1] else None


def change_fragment_length(chance: Random, data: bytes) -> bytes:
    one = _some_fragment(chance, data)
    if one is None:
        return data
    length = chance.choice((0, 1, one.length - 1, one.length + 2, len(data), 0x7FFFFFFF, 0xFFFFFFFE, UNDEFINED))
    return spliced(data, one.at, one.value, head(ITEM, b"", length))


def change_offset_table(chance: Random, data: bytes) -> bytes:
    found = _pixels(data)
    if found is None or not found[1]:
        return data
    table = found[1][0]
    offsets = [chance.choice((0, 1, 8, 100, len(data), 0xFFFFFFFF)) for _ in range(chance.choice((1, 2, 5, 1000)))]
    value = struct.pack(f"<{len(offsets)}I", *offsets)[: -1 if chance.random() < 0.2 else None]
    return spliced(data, table.at, table.end, head(ITEM, b"", len(value)) + value)


def split_fragment(chance: Random, data: bytes) -> bytes:
    one = _some_fragment(chance, data)
    if one is None:
        return data
    value, step = data[one.value : one.end], chance.choice((2, 100, 1000))
    step = max(step, len(value) // 2000)
    parts = [value[at : at + step] for at in range(0, len(value), step)]
    return spliced(data, one.at, one.end, b"".join(head(ITEM, b"", len(part)) + part for part in parts))


def repeat_fragments(chance: Random, data: bytes) -> bytes:
    """Empty fragments by the thousand, or the same one again."""
    one = _some_fragment(chance, data)
    if one is None:
        return data
    again = chance.choice((head(ITEM, b"", 0) * chance.choice((1, 100, 200_000)), data[one.at : one.end] * 3))
    return spliced(data, one.end, one.end, again)


def lose_delimiter(chance: Random, data: bytes) -> bytes:
    found = _pixels(data)
    if found is None or not found[1]:
        return data
    end = found[1][-1].end
    return chance.choice((data[:end], spliced(data, end, end + 4, b"\0\0\0\0"), spliced(data, end, end + 8, b"")))


def replace_fragment(chance: Random, data: bytes) -> bytes:
    one = _some_fragment(chance, data)
    if one is None:
        return data
    length = chance.choice((0, 2, 64, 5000))
    value = chance.choice((bytes(length), chance.randbytes(length), _START + bytes(length)))
    return spliced(data, one.at, one.end, head(ITEM, b"", len(value)) + value)


def change_marker(chance: Random, data: bytes) -> bytes:
    """One field of the codestream's own size or coding style, or any byte of its main header."""
    start = data.find(_START)
    if start < 0:
        return data
    segments = dict(_segments(data, start + 2))
    fields = [(segments[0xFF51] + at, size) for at, size in _SIZ_FIELDS.values()] if 0xFF51 in segments else []
    fields += [(segments[0xFF52] + at, size) for at, size in _COD_FIELDS.values()] if 0xFF52 in segments else []
    fields += [(chance.randrange(start, start + 120), 1)]
    damaged = bytearray(data)
    for at, size in chance.sample(fields, min(len(fields), chance.choice((1, 1, 2, 3)))):
        value = chance.choice(_EXTREME_BYTES) if size == 1 else chance.choice((0, 1, 2, 256**size // 2, 256**size - 1))
        damaged[at : at + size] = value.to_bytes(size, "big")
    return bytes(damaged[: len(data)])


def _segments(data: bytes, at: int) -> list[tuple[int, int]]:
    """(marker, offset of its length) of the main header."""
    found = []
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _TILE_PART or marker < 0xFF00 or length < 2:
            break
        found.append((marker, at + 2))
        at += 2 + length
    return found


def change_runs(chance: Random, data: bytes) -> bytes:
    """The header of RLE, or a segment that says much more, or much less, than there is room for."""
    found = _pixels(data)
    if found is None or len(found[1]) < 2 or _START in data:
        return data
    one = found[1][1]
    value = bytearray(data[one.value : one.end])
    if chance.random() < 0.5:
        for _ in range(chance.choice((1, 3))):
            at = 4 * chance.randrange(16)
            value[at : at + 4] = struct.pack("<I", chance.choice((0, 1, 2, 15, 16, 64, 65, len(value), 0xFFFFFFFF)))
    else:
        runs = chance.choice((b"\x81\0", b"\x80", b"\x7f", b"\0\1")) * chance.choice((4, 1000, 2_000_000))
        value = value[:64] + runs
    return spliced(data, one.at, one.end, head(ITEM, b"", len(value)) + bytes(value))


FRAGMENTS: Mapping[str, Callable[[Random, bytes], bytes]] = {
    "a fragment has another length": change_fragment_length,
    "the offset table leads elsewhere": change_offset_table,
    "a fragment is split": split_fragment,
    "fragments are repeated": repeat_fragments,
    "the last delimiter is lost": lose_delimiter,
    "a fragment is no picture": replace_fragment,
    "the codestream says something else": change_marker,
    "the runs say something else": change_runs,
}

"""Little that asks for much: deflated data sets, sequences in sequences, items by the thousand."""

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from random import Random

from infra.fuzz.elements import (
    ITEM,
    ITEM_END,
    PREAMBLE,
    SEQUENCE_END,
    UNDEFINED,
    elements_of,
    head,
    renamed_syntax,
    spliced,
)

_INFLATED = 100_000_000  # bytes, from a hundred thousand


def deflate(chance: Random, data: bytes) -> bytes:
    """The data set deflated, or a few kilobytes that inflate to a hundred megabytes; named in ways that differ."""
    found = [one for one in elements_of(data) if one.group > 2]
    if not found:
        return data
    start = found[0].at
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = squeeze.compress(data[start:])
    body += squeeze.flush() if chance.random() < 0.3 else squeeze.flush(zlib.Z_FULL_FLUSH) + _deflated_zeros()
    named = renamed_syntax(data[:start], b"1.2.840.10008.1.2.1.99")
    if chance.random() < 0.3:
        named = _command_before(chance, named)
    return named + body


@cache
def _deflated_zeros() -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(bytes(_INFLATED)) + squeeze.flush()


def _command_before(chance: Random, start: bytes) -> bytes:
    """Group 0000, which has no place in a file, before the file meta or after it."""
    command = head(0x00000000, b"", 4) + struct.pack("<I", 0)
    at = PREAMBLE + 4 if start[PREAMBLE : PREAMBLE + 4] == b"DICM" else 0
    return start[:at] + command + start[at:] if chance.random() < 0.5 else start + command


def nest_deeper(chance: Random, data: bytes) -> bytes:
    """Sequences in sequences, closed or not."""
    found = [one for one in elements_of(data) if one.group > 2]
    if not found:
        return data
    beside, depth = chance.choice(found), chance.choice((1, 3, 30, 300, 2000))
    tag = chance.choice((0x00081140, 0x00283000, 0x52009230, 0x00091010, 0x00080051))
    opening = head(tag, b"SQ" if beside.vr else b"", UNDEFINED, little=beside.little)
    item = head(ITEM, b"", UNDEFINED, little=beside.little)
    closing = head(ITEM_END, b"", 0, little=beside.little) + head(SEQUENCE_END, b"", 0, little=beside.little)
    made = (opening + item) * depth + closing * chance.choice((0, depth, depth - 1))
    return spliced(data, beside.at, beside.at, made)


def multiply_items(chance: Random, data: bytes) -> bytes:
    """A sequence of very many items: proper ones, ones that are none, or ones that hold each other."""
    found = [one for one in elements_of(data) if one.group > 2]
    if not found:
        return data
    beside, count = chance.choice(found), chance.choice((10, 1000, 60_000))
    little = beside.little
    one_item = chance.choice((
        head(ITEM, b"", 0, little=little), bytes(8), head(ITEM, b"", UNDEFINED, little=little) + bytes(8),
        head(ITEM, b"", UNDEFINED, little=little) + head(ITEM_END, b"", 0, little=little), head(ITEM, b"", 2) + b"\1\2",
    ))  # fmt: skip
    body = one_item * count
    length = chance.choice((UNDEFINED, len(body)))
    end = head(SEQUENCE_END, b"", 0, little=little) if length == UNDEFINED else b""
    tag = chance.choice((0x00081140, 0x00283000, 0x52009230, 0x52009229, 0x00091010))
    opening = head(tag, b"SQ" if beside.vr else b"", length, little=little)
    return spliced(data, beside.at, beside.at, opening + body + end)


BOMBS: Mapping[str, Callable[[Random, bytes], bytes]] = {
    "the data set is deflated": deflate,
    "sequences are nested": nest_deeper,
    "items come by the thousand": multiply_items,
}

"""pydicom's parser, held to a number of items: what it has no option for and no hook.

It makes an object of one or two kB of each eight bytes that may be an item of a sequence, and searches the rest of the
file for the end of each value of undefined length, at once or when a sequence is first asked for. Megabytes of such
bytes become gigabytes, or hours. Importing this module puts counters before the two functions; outside `few_items` they
count nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import filereader

# Of a sequence, in either byte order. Empty private sequences look like values, and some vendors write many.
_EMPTY = frozenset({b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd"})
_MOST_VALUES = 64  # of undefined length, with something in them, that are no sequence: an icon has one


class TooManyItems(MemoryError):
    """The file says more than there is room for: it is refused as what runs out of memory is."""


@dataclass(slots=True)
class _Left:
    items: int
    values: int = _MOST_VALUES


_left: ContextVar[_Left | None] = ContextVar("left", default=None)  # one for each thread


@contextmanager
def few_items(most: int) -> Iterator[None]:
    """Let pydicom raise `TooManyItems` at more items in sequences, at any depth, than `most`."""
    token = _left.set(_Left(most))
    try:
        yield
    finally:
        _left.reset(token)


def _install(parser: Any) -> None:
    item: Callable[..., Any] = parser.read_sequence_item
    value: Callable[..., bytes | None] = parser.read_undefined_length_value

    def counted_item(*arguments: Any, **named: Any) -> Any:
        if left := _left.get():
            left.items -= 1
            if left.items < 0:
                raise TooManyItems
        return item(*arguments, **named)

    def counted_value(file: BinaryIO, *arguments: Any, **named: Any) -> bytes | None:
        if left := _left.get():
            start = file.read(4)
            file.seek(-len(start), os.SEEK_CUR)
            left.values -= start not in _EMPTY
            if left.values < 0:
                raise TooManyItems
        return value(file, *arguments, **named)

    parser.read_sequence_item, parser.read_undefined_length_value = counted_item, counted_value


_install(filereader)

"""Whether JSON is canonical, at the speed of pydantic's own reader and writer, where that provably is RFC 8785.

Over ASCII, members in the order of their keys without space between are what RFC 8785 asks for: code units sort as
code points. Escapes are the same short ones and lower-case hex, integers below 2^53 are decimal. A fraction has the
same shortest digits as in ECMAScript, and from 10^-5 to 10^15 they are written alike too. So bytes that come out again
as they went in, over values like these, are canonical, have no key twice, and no number that a double would bend.
Whoever is told `Unsure` asks `boundary.canonical`, which decides. The tests hold both against each other.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pydantic_core import from_json, to_json

from boundary.canonical import MAX_DEPTH

_MOST = 2**53 - 1
_SMALLEST, _LARGEST = 1e-5, 1e15


class Unsure(Exception):
    """Not decided here: ask `boundary.canonical`."""


def loads(data: bytes) -> Any:
    """The value of canonical bytes. Raises `Unsure` for all others, and for some of these."""
    if not data.isascii():
        raise Unsure
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as why:
        raise Unsure from why
    if not _is_plain(value, MAX_DEPTH) or to_json(value) != data:
        raise Unsure
    return value


def _is_plain(value: Any, depth: int) -> bool:
    """Whether it is written in one way by everybody: members in order, numbers of usual size, nested a little."""
    kind = type(value)
    if kind is dict:
        return depth > 0 and _is_in_order(tuple(value)) and _are_plain(value.values(), depth - 1)
    if kind is list:
        return depth > 0 and _are_plain(value, depth - 1)
    if kind is int:
        return bool(-_MOST <= value <= _MOST)
    if kind is float:
        return _SMALLEST <= abs(value) < _LARGEST and not value.is_integer()
    return True


def _are_plain(values: Iterable[Any], depth: int) -> bool:
    return all(type(one) is str or _is_plain(one, depth) for one in values)


@lru_cache(maxsize=1024)
def _is_in_order(keys: tuple[str, ...]) -> bool:
    return list(keys) == sorted(keys)

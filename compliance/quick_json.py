"""Canonical JSON at the speed of the standard library, where that provably is RFC 8785; everything else is `Unsure`.

Over ASCII, without fractions and without integers beyond 15 digits, `json.dumps` with sorted keys writes what RFC 8785
asks for: code units sort as code points, escapes are the same short ones and lower-case hex, integers are decimal.
So bytes that come out again as they went in are canonical, have no key twice, and no number that a double would bend.
Whoever is told `Unsure` asks `boundary.canonical`, which decides. The tests hold both against each other.
"""

import json
from typing import Any

_SURE_DIGITS = 15  # every integer of 15 digits is below 2^53


class Unsure(Exception):
    """Not decided here: ask `boundary.canonical`."""


def loads(data: bytes) -> Any:
    """The value, if `dumps` of it, or of something equal to it, is then compared with `data`. Raises `Unsure`."""
    if not data.isascii():
        raise Unsure
    try:
        return json.loads(data, parse_float=_unsure, parse_int=_integer, parse_constant=_unsure)
    except (ValueError, RecursionError) as why:
        raise Unsure from why


def dumps(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _integer(text: str) -> int:
    if len(text) > _SURE_DIGITS:
        raise Unsure
    return int(text)


def _unsure(_text: str) -> Any:
    raise Unsure

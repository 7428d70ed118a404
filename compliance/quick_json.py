"""Canonical JSON at the speed of the standard library, where that provably is RFC 8785; everything else is `Unsure`.

Over ASCII and without integers beyond 15 digits, `json` with sorted keys writes what RFC 8785 asks for: code units sort
as code points, escapes are the same short ones and lower-case hex, integers are decimal. A double has the same shortest
digits in Python's `repr` as in ECMAScript; from 10^-4 on they are written alike, from 10^-6 on after moving the point.
So bytes that come out again as they went in are canonical, have no key twice, and no number that a double would bend.
Whoever is told `Unsure` asks `boundary.canonical`, which decides. The tests hold both against each other.
"""

import json
import re
from typing import Any

_SURE_DIGITS = 15  # every integer of 15 digits is below 2^53
_FRACTION = re.compile(r'":(-?)([0-9]+)(?:\.([0-9]+)(?:e([+-][0-9]+))?|e([+-][0-9]+))(?=[,}])')
_POINT_MOVED = {"-05": "0.0000", "-06": "0.00000"}


class Unsure(Exception):
    """Not decided here: ask `boundary.canonical`."""


def loads(data: bytes) -> Any:
    """The value, if `dumps` of it, or of something equal to it, is then compared with `data`. Raises `Unsure`."""
    if not data.isascii():
        raise Unsure
    try:
        return _DECODE(data.decode("ascii"))
    except (ValueError, RecursionError) as why:
        raise Unsure from why


def dumps(value: Any) -> bytes:
    """What to compare the bytes with that `loads` was given. Raises `Unsure` for some fractions."""
    return _FRACTION.sub(_as_ecmascript, _ENCODE(value)).encode(errors="replace")


def _as_ecmascript(found: re.Match[str]) -> str:
    """A member's number as `repr` wrote it, in the words of ECMA-262, Number::toString.

    It may look like one and be in a string. That string stood as it was in the bytes that are compared, so they differ
    from what this makes of it, and nothing is decided. Numbers in lists are left as they are, to the same effect.
    """
    sign, whole, fraction, exponent, bare = found.groups()
    if exponent or bare:
        if (exponent or bare) not in _POINT_MOVED:
            raise Unsure
        return f'":{sign}{_POINT_MOVED[exponent or bare]}{whole}{fraction or ""}'
    return f'":{sign}{whole}' if fraction == "0" else found[0]


def _integer(text: str) -> int:
    if len(text) > _SURE_DIGITS:
        raise Unsure
    return int(text)


def _fraction(text: str) -> float:
    """From 10^-6 to 10^21 ECMAScript writes no exponent, and never a zero at the end."""
    number = float(text)
    if "e" in text or "E" in text or number.is_integer():
        raise Unsure
    return number


def _constant(_text: str) -> Any:
    raise Unsure


_DECODE = json.JSONDecoder(parse_float=_fraction, parse_int=_integer, parse_constant=_constant).decode
_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode

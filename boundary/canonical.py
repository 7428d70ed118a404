"""One byte form for everything that is signed or hashed: RFC 8785 out, strict JSON in.

In: UTF-8, size-limited, no duplicate keys, no NaN or Infinity, no lone surrogates, limited depth, integers within
the 2^53 that RFC 8785 (section 3.2.2.3, IEEE 754 doubles) can carry. Out: nothing that would not be let in again.
"""

import hashlib
import json
import math
import re
from typing import Any, NewType

import rfc8785

from boundary.errors import MalformedMessage, TooLarge

Digest = NewType("Digest", str)

MAX_MESSAGE_BYTES = 2 * 1024 * 1024  # the keys of a cohort of 200 hospitals, quoted as signed, are 1.1 MB
MAX_DEPTH = 24  # our deepest message has 7 levels
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_INTEGER = 2**53 - 1
_AS_IT_IS = frozenset({str, bool, type(None)})
_NO_EXPONENT_FROM = 1e-4  # Python writes a smaller double with an exponent, RFC 8785 one below 1e-6
_written = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")).encode
_EXPONENT_FROM = 1e21  # RFC 8785 writes a double below this without exponent, so it would be read as an integer


def canonical_bytes(value: Any) -> bytes:
    """Return the RFC 8785 form of a JSON value; raises `MalformedMessage` for what JSON cannot carry."""
    try:
        return _written(_plain(value, MAX_DEPTH)).encode()
    except (_NotPlain, UnicodeEncodeError):  # rare, or to be refused: by the library, which is several times slower
        pass
    _check(value, MAX_DEPTH)
    try:
        return rfc8785.dumps(value)
    except ValueError as why:  # CanonicalizationError, and UnicodeEncodeError for a key
        raise MalformedMessage(f"no canonical form: {why}") from why


def digest(data: bytes | memoryview) -> Digest:
    """SHA-256 as `sha256:<64 hex digits>`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def parse_digest(raw: object) -> Digest:
    if not isinstance(raw, str) or not _DIGEST.fullmatch(raw):
        raise MalformedMessage(f"not a digest: {raw!r:.80}")
    return Digest(raw)


def parse_json(data: bytes, *, limit: int = MAX_MESSAGE_BYTES) -> Any:
    """Parse strict JSON; raises `TooLarge` or `MalformedMessage`. Need not be canonical."""
    if len(data) > limit:
        raise TooLarge("message", len(data), limit)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as why:  # ValueError: also an integer of more than 4300 digits
        raise MalformedMessage(f"not JSON: {why}") from why
    _check(value, MAX_DEPTH)
    return value


def parse_canonical(data: bytes, *, limit: int = MAX_MESSAGE_BYTES) -> Any:
    """Parse JSON that must already be in its one canonical form, so that one meaning has one byte string."""
    value = parse_json(data, limit=limit)
    if canonical_bytes(value) != data:
        raise MalformedMessage("JSON is not in its canonical form (RFC 8785)")
    return value


class _NotPlain(Exception):
    """Something whose form is not a matter of course."""


def _plain(value: Any, depth_left: int) -> Any:
    """The same value in what `json` writes as RFC 8785 does, which tests/boundary/test_canonical.py compares.

    Raises `_NotPlain` for all else: enumerations, keys outside ASCII (which are sorted in UTF-16), very small numbers,
    what is refused.
    """
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:
        return value
    if kind is float and -_MAX_INTEGER <= value <= _MAX_INTEGER:
        if value.is_integer():
            return int(value)
        if abs(value) >= _NO_EXPONENT_FROM:
            return value
    if depth_left > 1:
        if kind is dict and all(type(key) is str and key.isascii() for key in value):
            return {key: one if type(one) in _AS_IT_IS else _plain(one, depth_left - 1) for key, one in value.items()}
        if kind is list or kind is tuple:
            return [one if type(one) in _AS_IT_IS else _plain(one, depth_left - 1) for one in value]
    raise _NotPlain


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedMessage("an object names the same key twice")
    return found


def _no_constants(name: str) -> Any:
    raise MalformedMessage(f"{name} is not JSON")


def _check(value: Any, depth_left: int) -> None:
    if depth_left == 0:
        raise MalformedMessage(f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case str() if value.isascii():  # most of what there is
            return
        case int() if abs(value) > _MAX_INTEGER:
            raise MalformedMessage("an integer beyond 2^53")
        case float() if not (abs(value) <= _MAX_INTEGER or _EXPONENT_FROM <= abs(value) < math.inf):
            raise MalformedMessage("a number that is an integer beyond 2^53, or beyond a double")  # 1e999 is infinity
        case str() if _SURROGATE.search(value):
            raise MalformedMessage("half of a surrogate pair is not a character")
        case dict():
            for key, inner in value.items():
                _check(key, depth_left)
                _check(inner, depth_left - 1)
        case list() | tuple():
            for inner in value:
                _check(inner, depth_left - 1)

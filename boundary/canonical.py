"""One byte form for everything that is signed or hashed: RFC 8785 out, strict JSON in.

In: UTF-8, size-limited, no duplicate keys, no NaN or Infinity, limited depth, integers within the 2^53
that RFC 8785 (section 3.2.2.3, IEEE 754 doubles) can carry.
"""

import hashlib
import json
import re
from typing import Any, NewType

import rfc8785

from boundary.errors import MalformedMessage, TooLarge

Digest = NewType("Digest", str)

MAX_MESSAGE_BYTES = 1024 * 1024  # a plan with 200 hospitals and their keys is about 400 kB
MAX_DEPTH = 24  # our deepest message has 7 levels
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_INTEGER = 2**53 - 1


def canonical_bytes(value: Any) -> bytes:
    """Return the RFC 8785 form of a JSON value; raises `MalformedMessage` for what JSON cannot carry."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as why:
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
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as why:
        raise MalformedMessage(f"not JSON: {why}") from why
    _check(value, MAX_DEPTH)
    return value


def parse_canonical(data: bytes, *, limit: int = MAX_MESSAGE_BYTES) -> Any:
    """Parse JSON that must already be in its one canonical form, so that one meaning has one byte string."""
    value = parse_json(data, limit=limit)
    if canonical_bytes(value) != data:
        raise MalformedMessage("JSON is not in its canonical form (RFC 8785)")
    return value


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
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_INTEGER:
        raise MalformedMessage("an integer beyond 2^53")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise MalformedMessage("a number beyond the range of a double")  # 1e999 parses to infinity
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner, depth_left - 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth_left - 1)

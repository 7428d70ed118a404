"""One byte form out, strict JSON in."""

import json
from enum import IntEnum, StrEnum
from types import SimpleNamespace
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from boundary.canonical import MAX_DEPTH, canonical_bytes, digest, parse_canonical, parse_digest, parse_json
from boundary.errors import MalformedMessage, PeerFault, TooLarge


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


NOT_JSON = {
    "nothing at all": b"",
    "not UTF-8": b'"\xff"',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "cut short": b'{"a":',
    "two values": b"{} {}",
    "a comment": b"{}//",
    "single quotes": b"{'a':1}",
    "a trailing comma": b"[1,]",
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key, once written as an escape": b'{"a":1,"\\u0061":2}',
    "duplicate key deep inside": b'[{"b":{"a":1,"a":2}}]',
    "NaN": b"NaN",
    "NaN inside": b'{"a":NaN}',
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "1e999": b"1e999",
    "-1e999": b"[-1e999]",
    "integer beyond 2^53": b"9007199254740992",
    "integer below -2^53": b"-9007199254740992",
    "an integer of 5000 digits": b"1" * 5000,
    "a double that would be written as an integer beyond 2^53": b"1e20",
    "half of a surrogate pair": b'"\\ud800"',
    "half of a surrogate pair as a key": b'{"\\udfff":1}',
    "nested deeper than 24 levels": b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH,
    "objects nested deeper than 24 levels": b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
    "nested until the parser gives up": b"[" * 500_000,
}
NOT_CANONICAL = {
    "a space": b'{"a": 1}',
    "a line end": b"{}\n",
    "keys in another order": b'{"b":1,"a":2}',
    "keys sorted by code point, not by UTF-16 unit": '{"\ufb33":1,"\U0001f600":2}'.encode(),
    "an escape where none is due": b'"\\u0041"',
    "an escape in capitals": b'"\\u001F"',
    "an escaped slash": b'"\\/"',
    "a float where an integer is meant": b"1.0",
    "an exponent where none is due": b"1e2",
    "a capital exponent": b"1E+30",
    "minus zero": b"-0",
    "minus zero as a float": b"-0.0",
    "more digits than the double has": b"0.1000000000000000055511151231257827",
}
NO_CANONICAL_FORM = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "integer beyond 2^53": 2**53,
    "a double that reads back as an integer beyond 2^53": 2.0**53,
    "a double below 1e21": -1e20,
    "bytes": b"x",
    "a set": {1},
    "a key that is no string": {1: 2},
    "half of a surrogate pair": ["\ud800"],
    "half of a surrogate pair as a key": {"\ud800": 1},
    "deeper than we would read": json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH + ""),
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_json(data)


@pytest.mark.parametrize("data", NOT_CANONICAL.values(), ids=NOT_CANONICAL)
def test_json_in_another_form_than_its_one_is_refused(data: bytes) -> None:
    parse_json(data)
    with pytest.raises(MalformedMessage, match="canonical form"):
        parse_canonical(data)


@pytest.mark.parametrize("value", [*NO_CANONICAL_FORM.values()], ids=NO_CANONICAL_FORM)
def test_nothing_goes_out_that_would_not_be_let_in(value: object) -> None:
    if value == json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH):
        value = [value]
    with pytest.raises(MalformedMessage):
        canonical_bytes(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    knot: list[object] = []
    knot.append(knot)
    with pytest.raises(MalformedMessage, match="nested deeper"):
        canonical_bytes(knot)


def test_the_size_is_looked_at_before_the_bytes() -> None:
    with pytest.raises(TooLarge) as refusal:
        parse_json(b"\xff" * 11, limit=10)  # not even UTF-8
    assert (refusal.value.size, refusal.value.limit) == (11, 10)
    assert parse_json(b'"12345678"', limit=10) == "12345678"
    with pytest.raises(TooLarge):
        parse_canonical(b'"123456789"', limit=10)


def test_the_limits_themselves_are_allowed() -> None:
    deepest = b"[" * (MAX_DEPTH - 1) + b"1" + b"]" * (MAX_DEPTH - 1)
    assert canonical_bytes(parse_canonical(deepest)) == deepest
    assert parse_canonical(b"[9007199254740991,-9007199254740991]") == [2**53 - 1, 1 - 2**53]
    assert parse_canonical(canonical_bytes([1e21, -1e300, 5e-324, 0.5])) == [1e21, -1e300, 5e-324, 0.5]


def test_true_is_not_one() -> None:
    assert parse_canonical(b"[true,1]") == [True, 1]
    assert canonical_bytes([True, 1]) == b"[true,1]"


@given(st.data())
def test_what_goes_out_comes_back_the_same(strategies: SimpleNamespace, data: st.DataObject) -> None:
    value = data.draw(strategies.json)
    written = canonical_bytes(value)
    assert parse_canonical(written) == value
    assert canonical_bytes(parse_json(written)) == written
    assert json.loads(written) == value
    assert written == rfc8785.dumps(value)
    assert canonical_bytes(json.loads(json.dumps(value, indent=3))) == written


BORDERS = {
    "doubles without an exponent in Python and in RFC 8785": [0.0001, 0.5, 1.5e15, 4503599627370495.5, -0.25],
    "doubles with one in Python alone": [0.00009999, 1e-05, -0.0000012, 1e-6],
    "doubles with one in both": [9.9e-7, 5e-324, 1e21, -1.7e308],
    "doubles that are written as integers": [0.0, -0.0, 1.0, -3.0, 2.0**53 - 1],
    "keys that UTF-16 sorts otherwise": {"\ufb33": 1, "\U0001f600": 2, "a": 3},
    "keys in ASCII": {"b": 1, "B": 2, "": 3, "\x7f": 4, "a\n": 5},
    "what is escaped and what is not": ['"\\/\b\f\n\r\t\x00\x1f\x7f\u2028\u2029\xe9\U0001f600'],
    "enumerations, tuples and nothing": [Colour.RED, Number.ONE, (), (1, (True, None)), {}, []],
}


@pytest.mark.parametrize("value", BORDERS.values(), ids=BORDERS)
def test_the_quick_way_writes_what_the_library_does(value: Any) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)
    assert canonical_bytes({"in": [value, value]}) == rfc8785.dumps({"in": [value, value]})


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except PeerFault:
        return
    assert canonical_bytes(value) == data


@given(st.text(st.sampled_from('{}[]",:0123456789.eE+-truefalsn\\ud8 '), max_size=20))
def test_any_text_that_looks_like_json_is_parsed_or_refused(text: str) -> None:
    try:
        value = parse_json(text.encode())
    except PeerFault:
        return
    canonical_bytes(value)


def test_a_digest_is_sha256() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest(b"") == digest(memoryview(b"")) == parse_digest(empty) == empty


NOT_A_DIGEST = {
    "no algorithm": "e3" * 32,
    "another algorithm": "sha512:" + "e3" * 32,
    "capital letters": "sha256:" + "E3" * 32,
    "too short": "sha256:" + "e3" * 31,
    "a line end": "sha256:" + "e3" * 32 + "\n",
    "digits of another script": "sha256:" + "\u0663" * 64,
    "bytes": b"sha256:" + b"e3" * 32,
    "nothing": None,
}


@pytest.mark.parametrize("raw", NOT_A_DIGEST.values(), ids=NOT_A_DIGEST)
def test_what_is_not_a_digest_is_refused(raw: object) -> None:
    with pytest.raises(MalformedMessage, match="not a digest"):
        parse_digest(raw)

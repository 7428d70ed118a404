"""The fast reader of entries gives the answers of the slow one: the same value, or the same refusal."""

import json
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from boundary.canonical import canonical_bytes
from boundary.errors import BoundaryError
from compliance import quick_json, quick_leaf
from compliance.quick_leaf import Read
from compliance.trail import read_leaf
from tests.compliance.made_study import PARTIES
from tests.compliance.verification_cases import clean_bundle

ACTORS = frozenset(PARTIES)
LEAVES = [(party, entry) for party, log in clean_bundle().logs.items() for entry in log.entries]
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.floats(1e-7, 1e-3) | st.floats(1e14, 1e22)
NUMBERS = FLOATS | st.integers(-(10**17), 10**17)
TEXTS = st.text() | st.sampled_from(('":1.0,', '":1e-05}', "\ud800", "\x7f", '\\u0041"', "\u2028"))
VALUES = st.recursive(
    NUMBERS | TEXTS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def tightly(value: Any) -> str:
    """As canonical JSON nearly is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_or_near(value: Any) -> bytes:
    try:
        return to_json(value)
    except ValueError:  # half a character
        return b"null"


def slowly(data: bytes) -> Read | None:
    try:
        leaf = read_leaf(data)
    except BoundaryError:
        return None
    return Read(leaf.log, leaf.sequence, leaf.time, leaf.actor, leaf.event)


def quickly(data: bytes, log: str) -> Read | None:
    try:
        return quick_leaf.read(data, log, ACTORS)
    except BoundaryError:
        return None


def test_every_kind_is_read_alike_and_without_asking_the_slow_one(
    fed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for fractions below a hundred thousandth, which the slow one decides."""
    written = [("coordinator", fed.leaf(event).replace(b"0.000001", b"0.00003")) for event in fed.events().values()]
    expected = [slowly(entry) for _, entry in written + LEAVES]
    monkeypatch.setattr(quick_leaf, "read_leaf", None)
    assert [quick_leaf.read(entry, party, ACTORS) for party, entry in written + LEAVES] == expected


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_changed_entry_is_read_alike(data: st.DataObject) -> None:
    party, entry = data.draw(st.sampled_from(LEAVES))
    begin = data.draw(st.integers(0, len(entry)))
    end = data.draw(st.integers(begin, min(len(entry), begin + 4)))
    put = data.draw(
        st.binary(max_size=3) | st.sampled_from((b" ", b"1e0", b".0", b"0", b"true", b"\\u0041", b",", b"e"))
    )
    changed = entry[:begin] + put + entry[end:]
    assert quickly(changed, party) == slowly(changed)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_entry_with_another_value_is_read_alike(data: st.DataObject) -> None:
    party, entry = data.draw(st.sampled_from(LEAVES))
    leaf = json.loads(entry)
    place = data.draw(st.sampled_from((leaf, leaf["data"])))
    place[data.draw(st.sampled_from((*place, "more")))] = data.draw(VALUES)
    dump: Any = data.draw(st.sampled_from((canonical_bytes, tightly, json.dumps)))
    try:
        changed = dump(leaf)
    except BoundaryError:
        return
    changed = changed if isinstance(changed, bytes) else changed.encode(errors="replace")
    assert quickly(changed, party) == slowly(changed)


ODD = {
    "the log of a hospital that is no party": (b'"log":"charite"', b'"log":"mayo"'),
    "an actor that is no party": (b'"actor":"charite"', b'"actor":"mayo"'),
    "a sequence of 16 digits": (b'"seq":1,', b'"seq":1000000000000000,'),
    "an event that is none": (b'"event":"hospital-enrolled"', b'"event":"hospital-closed"'),
    "a time that is none": (b'"time":"2026-11', b'"time":"2026-99'),
    "a salt of 15 bytes": (b'=="', b'=="'),
    "version 3": (b'"v":2', b'"v":3'),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_read_alike(what: str) -> None:
    old, new = ODD[what]
    entry = clean_bundle().logs["charite"].entries[0]
    if what == "a salt of 15 bytes":
        leaf = json.loads(entry)
        changed = canonical_bytes(leaf | {"salt": "AAAAAAAAAAAAAAAAAAAA"})
    else:
        changed = entry.replace(old, new)
    assert changed != entry
    assert quickly(changed, "charite") == slowly(changed)


def test_what_the_model_would_fill_in_is_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a value of the model, and not what the model writes: only the slow one can say what that means."""
    party, entry = next((party, entry) for party, entry in LEAVES if b'"budget-committed"' in entry)
    changed = entry.replace(b',"unit":"patient"', b"")
    assert changed != entry
    assert quickly(changed, party) == slowly(changed)
    asked: list[bytes] = []
    monkeypatch.setattr(quick_leaf, "read_leaf", lambda data: asked.append(data) or read_leaf(data))
    quickly(changed, party)
    assert asked == [changed]


# --- the JSON under it -------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_is_taken_for_canonical_is(value: Any) -> None:
    for data in (
        json.dumps(value).encode(),
        tightly(value).encode(errors="replace"),
        canonical_or_near(value),
    ):
        try:
            found = quick_json.loads(data)
        except quick_json.Unsure:
            continue
        assert canonical_bytes(found) == data
        assert found == json.loads(data)


@given(st.floats(1e-5, 1e15, exclude_max=True).map(lambda number: {"a": number, "b": [{"c": -number}, 1]}))
def test_fractions_are_sure_where_they_occur(value: Any) -> None:
    assert quick_json.loads(canonical_bytes(value)) == value


UNSURE = (
    b'"\xc3\xa9"', b"9007199254740992", b"-9007199254740992", b"1.0", b"-0.0", b"0.0", b"1e-7", b"1E2", b"NaN",
    b"Infinity", b"{", b"[" * 100_000, b'{"b":1,"a":2}', b'{"a":1,"a":2}', b'[{"b":1,"a":2}]', b"[1, 2]", b'"\\u0041"',
    b'"\\ud800"', b"1000000000000000.5", b"0.000001", b"[" * 25 + b"]" * 25, b'{"a":' * 25 + b"1" + b"}" * 25,
)  # fmt: skip


@pytest.mark.parametrize("data", UNSURE)
def test_what_is_not_decided(data: bytes) -> None:
    with pytest.raises(quick_json.Unsure):
        quick_json.loads(data)


@pytest.mark.parametrize(
    "data",
    [b"0", b'{"a":1.5}', b"[0.00001]", b"[1.5,2]", b"9007199254740991", b'{"a":{"b":[]}}', b"[" * 24 + b"]" * 24],
)
def test_what_is_decided(data: bytes) -> None:
    assert quick_json.loads(data) == json.loads(data)

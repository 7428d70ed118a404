"""Audit events: a closed set, one leaf each, for ever readable and never anything else."""

import json
from collections.abc import Callable
from datetime import datetime
from types import ModuleType
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.canonical import canonical_bytes
from boundary.errors import BoundaryError, CallerFault, MalformedMessage
from compliance.events import EVENTS, AnyEvent, Event
from compliance.privacy import PoissonGaussian
from compliance.trail import LEAF_VERSION, Leaf, leaf_bytes, read_leaf

DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
SILOS = st.lists(st.sampled_from(("charite", "st-olavs", "ucl")), max_size=3, unique=True).map(tuple)
COUNTS = st.integers(1, 2**53 - 1)
EPSILONS = st.floats(0, 2**53 - 1)
DELTAS = st.floats(0, 1, exclude_min=True, exclude_max=True)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "silo": st.sampled_from(("charite", "3", "a" * 40)),
    "fingerprint": st.binary(min_size=32, max_size=32).map(lambda raw: raw.hex(" ", 2)),
    "roster_version": COUNTS,
    "roster_digest": DIGESTS,
    "study": st.binary(min_size=4, max_size=4).map(lambda raw: "ct-contrast-" + raw.hex()),
    "plan_digest": DIGESTS,
    "dataset_digest": DIGESTS,
    "fence": COUNTS,
    "round": st.integers(1, 10_000),
    "model": DIGESTS,
    "model_in": DIGESTS,
    "model_out": DIGESTS,
    "phase": st.sampled_from(("train", "evaluate")),
    "attempt": COUNTS,
    "members": SILOS,
    "absent": SILOS,
    "contributing": SILOS,
    "reason": st.sampled_from(("NO_DATA", "A0")),
    "code": st.sampled_from(("NO_DATA", "A_" * 20)),
    "order": DIGESTS,
    "cohort": DIGESTS,
    "sharers": DIGESTS,
    "survivors": DIGESTS,
    "result": DIGESTS,
    "surviving": SILOS,
    "lost": SILOS,
    "vector": DIGESTS,
    "size": COUNTS,
    "release": st.builds(
        PoissonGaussian,
        noise_multiplier=st.floats(0.01, 1e6),
        sampling_rate=st.floats(0, 1, exclude_min=True),
        steps=st.integers(1, 10**9),
    ),
    "epsilon_study": EPSILONS,
    "epsilon_lifetime": EPSILONS,
    "delta_study": DELTAS,
    "delta_lifetime": DELTAS,
    "cap": st.sampled_from(("study", "lifetime")),
    "asked": EPSILONS,
    "left": EPSILONS,
}


def test_the_registry_holds_every_event_by_its_name(fed: ModuleType) -> None:
    assert set(EVENTS.values()) == set(get_args(AnyEvent)) == set(Event.__subclasses__())
    assert all(kind.event == name for name, kind in EVENTS.items())
    assert set(fed.events()) == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_leaf_is_read_as_it_was_written(name: str, data: st.DataObject, fed: ModuleType) -> None:
    kind = EVENTS[name]
    event: Any = data.draw(st.builds(kind, **{field: FIELDS[field] for field in kind.model_fields}))
    sequence = data.draw(COUNTS)
    leaf = leaf_bytes(event, log="coordinator", sequence=sequence, time=fed.NOW, actor="ucl")
    assert read_leaf(leaf) == Leaf(
        log="coordinator", sequence=sequence, time="2026-11-20T12:00:00.123456Z", actor="ucl", event=event
    )
    assert canonical_bytes(json.loads(leaf)) == leaf


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_leaf_with_one_bit_flipped_is_refused_or_says_something_else(fed: ModuleType, data: st.DataObject) -> None:
    leaf = bytearray(fed.leaf(fed.events()["round-closed"]))
    before = read_leaf(bytes(leaf))
    bit = data.draw(st.integers(0, len(leaf) * 8 - 1))
    leaf[bit // 8] ^= 1 << bit % 8
    try:
        after = read_leaf(bytes(leaf))
    except BoundaryError:
        return
    assert after != before


def changed(fed: ModuleType, **changes: Any) -> bytes:
    return canonical_bytes(json.loads(fed.leaf(fed.events()["round-closed"])) | changes)


def with_data(fed: ModuleType, **changes: Any) -> bytes:
    data = json.loads(fed.leaf(fed.events()["round-closed"]))["data"]
    return changed(fed, data=data | changes)


def with_release(fed: ModuleType, **changes: Any) -> bytes:
    leaf = json.loads(fed.leaf(fed.events()["budget-committed"]))
    release = leaf["data"]["release"] | changes
    leaf["data"]["release"] = {key: value for key, value in release.items() if value is not None}
    return canonical_bytes(leaf)


REFUSED: dict[str, Callable[[ModuleType], bytes]] = {
    "empty": lambda _: b"",
    "no JSON": lambda _: b"round closed",
    "a list": lambda _: b"[]",
    "non-canonical JSON": lambda fed: fed.leaf(fed.events()["round-closed"]) + b"\n",
    "another version": lambda fed: changed(fed, v=2),
    "true for version 1": lambda fed: changed(fed, v=True),
    "unknown event": lambda fed: changed(fed, event="round-forgotten"),
    "the data of another event": lambda fed: changed(fed, event="hospital-invited"),
    "an event that is no text": lambda fed: changed(fed, event=None),
    "extra key": lambda fed: changed(fed, note="patient 17"),
    "extra key in the data": lambda fed: with_data(fed, note="patient 17"),
    "data that is no object": lambda fed: changed(fed, data=[]),
    "a key is missing": lambda _: canonical_bytes({"v": 1, "event": "round-closed", "data": {}}),
    "sequence 0": lambda fed: changed(fed, seq=0),
    "true for sequence 1": lambda fed: changed(fed, seq=True),
    "half a sequence": lambda fed: changed(fed, seq=1.5),
    "an actor in free text": lambda fed: changed(fed, actor="Dr. Hansen"),
    "a log in free text": lambda fed: changed(fed, log="my log"),
    "a time in free text": lambda fed: changed(fed, time="this morning"),
    "a time in another form": lambda fed: changed(fed, time="2026-11-20T12:00:00Z"),
    "a time in another offset": lambda fed: changed(fed, time="2026-11-20T13:00:00.123456+01:00"),
    "a round in words": lambda fed: with_data(fed, round="two"),
    "bool where int is due": lambda fed: with_data(fed, round=True),
    "a hospital called coordinator": lambda fed: with_data(fed, absent=["coordinator"]),
    "hospitals that are no list": lambda fed: with_data(fed, absent="ucl"),
    "a model without its digest": lambda fed: with_data(fed, model_out="the new one"),
    "a release of an unknown mechanism": lambda fed: with_release(fed, mechanism="laplace"),
    "a release per image": lambda fed: with_release(fed, unit="image"),
    "a release without its mechanism": lambda fed: with_release(fed, mechanism=None),
    "a release with a note": lambda fed: with_release(fed, note="patient 17"),
    "a release that is no object": lambda fed: changed(
        fed, event="budget-committed", data={"study": "ct-contrast-0123abcd", "round": 1, "release": "laplace"}
    ),
}


@pytest.mark.parametrize("forge", REFUSED.values(), ids=REFUSED)
def test_what_is_not_an_entry_is_refused(fed: ModuleType, forge: Callable[[ModuleType], bytes]) -> None:
    with pytest.raises(MalformedMessage):
        read_leaf(forge(fed))


UNWRITABLE: dict[str, dict[str, Any]] = {
    "sequence 0": {"sequence": 0},
    "a sequence beyond 2^53": {"sequence": 2**53},
    "an actor in free text": {"actor": "Dr. Hansen"},
    "a log without a name": {"log": ""},
    "a time without an offset": {"time": datetime(2026, 11, 20)},  # noqa: DTZ001 - that is what is refused
}


@pytest.mark.parametrize("changes", UNWRITABLE.values(), ids=UNWRITABLE)
def test_nothing_is_written_that_could_not_be_read(fed: ModuleType, changes: dict[str, Any]) -> None:
    said: dict[str, Any] = {"log": "coordinator", "sequence": 1, "time": fed.NOW, "actor": "coordinator"}
    leaf_bytes(fed.events()["study-ended"], **said)
    with pytest.raises((ValueError, CallerFault, MalformedMessage)):
        leaf_bytes(fed.events()["study-ended"], **said | changes)


def test_a_leaf_says_its_version(fed: ModuleType) -> None:
    assert json.loads(fed.leaf(fed.events()["study-ended"]))["v"] == LEAF_VERSION == 1

"""Audit events: a closed set, one leaf each, for ever readable and never anything else."""

import json
from collections.abc import Callable
from datetime import datetime
from types import ModuleType
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.canonical import canonical_bytes
from boundary.errors import BoundaryError, CallerFault, MalformedMessage
from boundary.names import encode_base64
from compliance.events import EVENTS, AnyEvent, Event, IntakeCounted, SeenHead, in_tens
from compliance.merkle import HASH_BYTES
from compliance.privacy import PoissonGaussian
from compliance.trail import LEAF_VERSION, Leaf, leaf_bytes, read_leaf

DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
SILOS = st.lists(st.sampled_from(("charite", "st-olavs", "ucl")), max_size=3, unique=True).map(tuple)
COUNTS = st.integers(1, 2**53 - 1)
EPSILONS = st.floats(0, 2**53 - 1)
DELTAS = st.floats(0, 1, exclude_min=True, exclude_max=True)
FINGERPRINTS = st.binary(min_size=32, max_size=32).map(lambda raw: raw.hex(" ", 2))
TENS = st.integers(0, (2**53 - 1) // 10).map(lambda count: 10 * count)
SALTS = st.binary(min_size=16, max_size=16)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "silo": st.sampled_from(("charite", "3", "a" * 40)),
    "fingerprint": FINGERPRINTS,
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
    "consenting": SILOS,
    "resting": SILOS,
    "drawn": SILOS,
    "made_in": st.integers(1, 10_000),
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
    "record": DIGESTS,
    "coordinator": FINGERPRINTS,
    "officer": FINGERPRINTS,
    "usable": st.booleans(),
    "patients": TENS,
    "used": TENS,
    "excluded": st.dictionaries(st.sampled_from(("NO_LABEL", "BURNED_IN", "A0")), TENS),
    "start": COUNTS,
    "transcript": DIGESTS,
    "tried": st.none() | DIGESTS,
    "receipt": DIGESTS,
    "heads": st.lists(
        st.builds(SeenHead, log=st.sampled_from(("coordinator", "ucl")), size=COUNTS, root=DIGESTS), max_size=3
    ).map(tuple),
    "incident": COUNTS,
    "number": COUNTS,
    "policy": DIGESTS,
    "how": st.sampled_from(("signed", "tightened")),
    "gate": st.sampled_from(("signature", "hours")),
    "gates": st.lists(st.sampled_from(("signature", "hours", "budget")), min_size=1, max_size=5).map(tuple),
    "log": st.sampled_from(("coordinator", "ucl")),
    "evidence": DIGESTS,
    "private": DIGESTS,
    "manifest": DIGESTS,
    "what": st.sampled_from(("blobs", "caches", "results", "sidecars")),
    "files": st.integers(0, 2**53 - 1),
    "bytes": st.integers(0, 2**53 - 1),
}
DECISIONS: dict[str, tuple[str, ...]] = {  # what `decision` may be depends on what was decided
    "incident-closed": ("ACCEPTED", "RESTORED_BACKUP"),
    "withdrawal-effective": ("keep", "retrain", "retire"),
    "release-decided": ("release", "reject"),
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
    fields = FIELDS | {"decision": st.sampled_from(DECISIONS.get(name, ("",)))}
    event: Any = data.draw(st.builds(kind, **{field: fields[field] for field in kind.model_fields}))
    sequence, salt = data.draw(COUNTS), data.draw(SALTS)
    leaf = leaf_bytes(event, log="coordinator", sequence=sequence, time=fed.NOW, actor="ucl", salt=salt)
    assert read_leaf(leaf) == Leaf(
        log="coordinator", sequence=sequence, time="2026-11-20T12:00:00.123456Z", actor="ucl", salt=salt, event=event
    )
    assert len(leaf) > HASH_BYTES, "an entry is never taken for the hash of one"
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
    "the version before salts": lambda fed: changed(fed, v=1),
    "a later version": lambda fed: changed(fed, v=3),
    "a version in words": lambda fed: changed(fed, v="2"),
    "true for a version": lambda fed: changed(fed, v=True),
    "a salt of 15 bytes": lambda fed: changed(fed, salt=encode_base64(bytes(15))),
    "a salt of 17 bytes": lambda fed: changed(fed, salt=encode_base64(bytes(17))),
    "no salt": lambda fed: changed(fed, salt=""),
    "a salt that is no text": lambda fed: changed(fed, salt=None),
    "a salt in another form": lambda fed: changed(fed, salt=encode_base64(bytes(16))[:-3] + "B=="),
    "unknown event": lambda fed: changed(fed, event="round-forgotten"),
    "the data of another event": lambda fed: changed(fed, event="hospital-invited"),
    "an event that is no text": lambda fed: changed(fed, event=None),
    "extra key": lambda fed: changed(fed, note="patient 17"),
    "extra key in the data": lambda fed: with_data(fed, note="patient 17"),
    "data that is no object": lambda fed: changed(fed, data=[]),
    "a key is missing": lambda _: canonical_bytes({"v": 2, "event": "round-closed", "data": {}}),
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
    "a salt too short to hide anything": {"salt": bytes(15)},
    "a time without an offset": {"time": datetime(2026, 11, 20)},  # noqa: DTZ001 - that is what is refused
}


@pytest.mark.parametrize("changes", UNWRITABLE.values(), ids=UNWRITABLE)
def test_nothing_is_written_that_could_not_be_read(fed: ModuleType, changes: dict[str, Any]) -> None:
    said: dict[str, Any] = {
        "log": "coordinator", "sequence": 1, "time": fed.NOW, "actor": "coordinator", "salt": bytes(16),
    }  # fmt: skip
    leaf_bytes(fed.events()["study-ended"], **said)
    with pytest.raises((ValueError, CallerFault, MalformedMessage)):
        leaf_bytes(fed.events()["study-ended"], **said | changes)


def test_a_leaf_says_its_version(fed: ModuleType) -> None:
    assert json.loads(fed.leaf(fed.events()["study-ended"]))["v"] == LEAF_VERSION == 2


def test_one_event_under_two_salts_is_two_entries(fed: ModuleType) -> None:
    """Who holds a hash cannot try what it is of."""
    said: dict[str, Any] = {"log": "coordinator", "sequence": 1, "time": fed.NOW, "actor": "coordinator"}
    event = fed.events()["patient-withdrawn"]
    assert len({leaf_bytes(event, **said, salt=bytes([salt]) * 16) for salt in range(3)}) == 3


@given(st.integers(0, 10**9))
def test_counts_are_told_as_the_next_ten(count: int) -> None:
    told = in_tens(count)
    assert told % 10 == 0
    assert count <= told < count + 10
    assert (told == 0) is (count == 0)


COUNTED: dict[str, Any] = {
    "study": "ct-contrast-0123abcd", "dataset_digest": "sha256:" + "0" * 64, "usable": True, "patients": 20,
    "used": 30, "excluded": {"NO_LABEL": 10},
}  # fmt: skip


@pytest.mark.parametrize(
    "exact", [{"patients": 17}, {"used": 1}, {"excluded": {"NO_LABEL": 3}}, {"excluded": {"no label": 10}}]
)
def test_an_exact_count_cannot_be_written(exact: dict[str, Any]) -> None:
    IntakeCounted(**COUNTED)
    with pytest.raises(ValidationError):
        IntakeCounted(**(COUNTED | exact))

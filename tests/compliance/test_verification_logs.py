"""Checks of logs, one by one: entries, heads, cosignatures, what others saw, incidents."""

import json
import multiprocessing
import os
from dataclasses import replace
from typing import Any

import pytest

from boundary.names import COORDINATOR
from compliance.bundle import Bundle, Manifest
from compliance.events import (
    ContributionReleased,
    HeadsWitnessed,
    IncidentClosed,
    IncidentOpened,
    RoundClosed,
    SeenHead,
)
from compliance.verification import case, logs, signatures, witnesses
from compliance.verification.case import open_case
from compliance.verification.findings import Severity, span
from infra.golden import sha
from tests.compliance import made_study
from tests.compliance.made_study import SILOS, trust
from tests.compliance.verification_cases import (
    changed,
    clean_bundle,
    dropped,
    entry_for,
    finds,
    hidden,
    numbers,
    resigned,
    retold,
    unlogged,
)

BROKEN, INCOMPLETE, NOTE = Severity


def with_log(**changes: Any) -> Bundle:
    bundle = clean_bundle()
    return replace(bundle, logs=bundle.logs | {"ucl": replace(bundle.logs["ucl"], **changes)})


# --- entries -----------------------------------------------------------------------------------------
def test_an_entry_that_no_version_writes_is_broken() -> None:
    entries = clean_bundle().logs["ucl"].entries
    found = finds(logs.entries, with_log(entries=(b'{"v":9,"entry":"of the future"} ...', *entries[1:])))
    assert found == {BROKEN: ["ucl, entry 1: not JSON: Extra data: line 1 column 33 (char 32)"]}


def test_a_shift_is_told_where_it_begins_and_where_it_ends() -> None:
    entries = clean_bundle().logs["ucl"].entries
    found = finds(logs.entries, with_log(entries=(*entries[:4], *entries[5:8], entries[4], *entries[8:])))
    assert found[BROKEN] == [
        "ucl, entry 5: calls itself entry 6",
        "ucl, entry 8: calls itself entry 5",
        "ucl, entry 9: calls itself entry 9",
    ]
    assert "the time goes back from" in found[NOTE][0]


def test_a_clock_that_was_set_back_is_a_note_and_told_once() -> None:
    log = clean_bundle().logs["ucl"]
    event = ContributionReleased(
        study=clean_bundle().study, round=5, phase="train", attempt=9, sharers=sha("s"), vector=sha("v"), size=1
    )
    for time in ("2025-01-01T00:00:00.000000Z", "2024-01-01T00:00:00.000000Z"):
        log = replace(log, entries=(*log.entries, entry_for(log, event, time=time)))
    found = finds(logs.entries, with_log(entries=log.entries))
    assert found.keys() == {NOTE}
    assert len(found[NOTE]) == 1


def test_the_coordinator_hides_nothing() -> None:
    assert finds(logs.entries, hidden(clean_bundle(), COORDINATOR)) == {
        INCOMPLETE: ["coordinator: 1 entries are not shown"]
    }
    assert list(finds(logs.entries, hidden(clean_bundle(), "ucl"))) == [NOTE]


def test_only_who_took_no_part_may_have_no_log() -> None:
    bundle = clean_bundle()
    only = unlogged(replace(bundle, approvals={}), *SILOS, COORDINATOR)
    assert finds(logs.entries, only) == {
        INCOMPLETE: ["coordinator: the log is not here"], NOTE: [f"{silo}: has no log here" for silo in SILOS],
    }  # fmt: skip
    approved = unlogged(bundle, *SILOS, COORDINATOR)
    assert finds(logs.entries, approved) == {INCOMPLETE: [f"{one}: the log is not here" for one in case_parties()]}
    seen = unlogged(replace(bundle, approvals={}), "charite", COORDINATOR)
    assert "charite: the log is not here" in finds(logs.entries, seen)[INCOMPLETE]


def case_parties() -> tuple[str, ...]:
    return open_case(clean_bundle(), trust(), None).parties


# --- heads -------------------------------------------------------------------------------------------
def test_a_log_without_a_head_is_incomplete() -> None:
    assert finds(logs.heads, with_log(heads=())) == {INCOMPLETE: ["ucl: no signed head"]}


def test_a_head_of_somebody_else_is_broken() -> None:
    heads = clean_bundle().logs["ucl"].heads
    forged = heads[0].model_copy(update={"signature": heads[1].signature})
    found = finds(logs.heads, with_log(heads=(forged, *heads[1:])))
    assert found == {BROKEN: [f"ucl, head over {forged.size}: not signed with the key that is believed"]}


def test_a_changed_entry_is_told_between_the_heads_around_it() -> None:
    log = clean_bundle().logs["ucl"]
    second, third = log.heads[1].size, log.heads[2].size
    entries = (*log.entries[: third - 1], b"x" * 32, *log.entries[third:])
    assert finds(logs.heads, with_log(entries=entries)) == {
        BROKEN: [f"ucl, entries {second + 1} to {third}: their root is not the signed one"]
    }
    assert span(3, 3) == "entry 3"


# --- cosignatures ------------------------------------------------------------------------------------
def some_witnesses(*who: str) -> Bundle:
    log = clean_bundle().logs["ucl"]
    return with_log(cosignatures={n: {w: c for w, c in by.items() if w in who} for n, by in log.cosignatures.items()})


def test_a_minority_of_witnesses_is_incomplete() -> None:
    found = finds(witnesses.cosignatures, some_witnesses("charite", "leuven", "ucl"))
    last = max(numbers(clean_bundle().logs["ucl"], made_study.say.UnmaskingHelped)) + 1
    assert found[INCOMPLETE] == [f"ucl: entries 1 to {last}: cosigned by 2 of 5"]
    assert INCOMPLETE not in finds(witnesses.cosignatures, some_witnesses("charite", "leuven", "st-olavs"))


def test_no_cosignature_at_all_is_incomplete() -> None:
    found = finds(witnesses.cosignatures, with_log(cosignatures={}))
    assert found[INCOMPLETE][0].endswith("cosigned by 0 of 5")


def test_only_those_who_take_part_are_counted() -> None:
    """Two hospitals that have not approved and did nothing: two of the other three are a majority."""
    bundle = some_witnesses("charite", "leuven")
    approvals = {silo: one for silo, one in bundle.approvals.items() if silo in {"charite", "leuven", "ucl"}}
    closed = changed(RoundClosed, contributing=("charite", "leuven", "ucl"))
    few = retold(COORDINATOR, closed, replace(bundle, approvals=approvals))
    assert not any("ucl" in line for line in finds(witnesses.cosignatures, few).get(INCOMPLETE, []))


def test_a_study_without_a_round_needs_no_witness() -> None:
    bundle = retold(COORDINATOR, dropped(RoundClosed), with_log(cosignatures={}))
    found = finds(witnesses.cosignatures, bundle)
    assert INCOMPLETE not in found
    assert f"ucl: entries 1 to {len(bundle.logs['ucl'].entries)}: not cosigned yet" in found[NOTE]


def test_a_cosignature_over_no_head_is_broken() -> None:
    log = clean_bundle().logs["ucl"]
    found = finds(
        witnesses.cosignatures, with_log(cosignatures=log.cosignatures | {3: log.cosignatures[log.heads[0].size]})
    )
    assert "ucl, head over 3: the cosignature of charite does not verify" in found[BROKEN]


# --- all signatures, aside -----------------------------------------------------------------------------
def forgeries() -> Bundle:
    heads = clean_bundle().logs["ucl"].heads
    receipts = clean_bundle().receipts
    none = replace(receipts[2], signatures=receipts[2].signatures | {"leuven": b"x" * 64})
    forged = heads[0].model_copy(update={"signature": b"x" * 64})
    return replace(with_log(heads=(forged, *heads[1:])), receipts=receipts | {2: none})


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two other processes, one piece of work for each signature."""
    monkeypatch.setattr(signatures, "MANY", 0)
    monkeypatch.setattr(signatures, "PIECE", 1)
    monkeypatch.setattr(signatures, "cores", lambda: 3)


def test_alone_and_with_others_the_same_forgeries_are_found(request: pytest.FixtureRequest) -> None:
    bundle = forgeries()
    alone = open_case(bundle, trust(), None).forged
    first = bundle.logs["ucl"].heads[0]
    assert alone == {("head", "ucl", first.size, first.root), ("receipt", "", 2, "leuven")}
    request.getfixturevalue("helped")
    assert open_case(bundle, trust(), None).forged == alone


def test_without_a_second_core_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "MANY", 0)
    monkeypatch.setattr(signatures, "cores", lambda: 1)
    monkeypatch.setattr(signatures, "tell", None)
    assert len(open_case(forgeries(), trust(), None).forged) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("helped")
def test_a_process_that_was_killed_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(say: Any, _pieces: Any) -> None:
        say.close()

    def killed_in_its_answer(say: Any, _pieces: Any) -> None:
        os.write(say.fileno(), b"\x00\x00\x10\x00half")  # of 4096 bytes
        say.close()

    for told in (killed, killed_in_its_answer):
        monkeypatch.setattr(signatures, "tell", told)
        assert len(open_case(forgeries(), trust(), None).forged) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("helped")
def test_where_no_process_can_be_had_all_is_checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", no_more_processes)
    assert len(open_case(forgeries(), trust(), None).forged) == 2


def no_more_processes(_self: Any) -> None:
    raise BlockingIOError


def test_what_another_process_says() -> None:
    case = open_case(clean_bundle(), trust(), None)
    hear, say = multiprocessing.Pipe(duplex=False)
    signatures.tell(say, signatures._pieces(forgeries(), case.keys, every=True))
    assert len(json.loads(hear.recv_bytes())) == 2
    assert say.closed
    hear.close()


def cosigned_wrongly(*sizes: int) -> Bundle:
    """What charite has under these heads of ucl is what it has under another one."""
    by = clean_bundle().logs["ucl"].cosignatures
    other = by[min(set(by) - set(sizes))]["charite"]
    return with_log(cosignatures=by | {size: by[size] | {"charite": other} for size in sizes})


def wrong_ones(bundle: Bundle, *, every: bool) -> list[str]:
    found = witnesses.cosignatures(open_case(bundle, trust(), None, every=every))
    return [one.where for one in found if one.severity is BROKEN]


def test_the_newest_cosignature_of_a_witness_says_all_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many the older ones are looked at until one is genuine; of few, or if somebody asks for it, all."""
    sizes = sorted(clean_bundle().logs["ucl"].cosignatures)
    old, newest = cosigned_wrongly(sizes[1]), cosigned_wrongly(*sizes[-2:])
    assert wrong_ones(old, every=False) == [f"ucl, head over {sizes[1]}"]
    monkeypatch.setattr(case, "MOST_COSIGNATURES", 10)
    assert wrong_ones(old, every=False) == []
    assert wrong_ones(old, every=True) == [f"ucl, head over {sizes[1]}"]
    assert wrong_ones(newest, every=False) == [f"ucl, head over {size}" for size in sizes[-2:]]
    assert (
        f"heads.json: {signatures.older(old)} older cosignatures were not verified"
        in finds(witnesses.cosignatures, old)[NOTE]
    )


def test_one_over_a_newer_head_counts_for_the_older_ones() -> None:
    """Three of five are a majority, though no three of them have cosigned one and the same head."""
    log, all_of = clean_bundle().logs["ucl"], sorted(clean_bundle().logs["ucl"].cosignatures)
    needed = [size for size in all_of if size > max(numbers(log, made_study.say.UnmaskingHelped))]
    assert len(needed) > 1
    chosen = {"charite": needed[0], "leuven": needed[-1], "st-olavs": needed[0]}
    by = {size: {who: log.cosignatures[size][who] for who, at in chosen.items() if at == size} for size in needed}
    assert INCOMPLETE not in finds(witnesses.cosignatures, with_log(cosignatures=by))


# --- what others saw ---------------------------------------------------------------------------------
def witnessing(party: str, head: SeenHead) -> Bundle:
    bundle = clean_bundle()
    log, event = bundle.logs[party], HeadsWitnessed(study=bundle.study, round=5, heads=(head,))
    return replace(bundle, logs=bundle.logs | {party: replace(log, entries=(*log.entries, entry_for(log, event)))})


def test_a_log_of_another_study_is_passed_over() -> None:
    head = SeenHead(log="mayo", size=3, root=sha("root"))
    assert finds(witnesses.seen_by_others, witnessing("charite", head)) == {}


def test_what_the_coordinator_saw_after_the_report_is_passed_over() -> None:
    head = SeenHead(log="ucl", size=3000, root=sha("root"))
    bundle = witnessing(COORDINATOR, head)
    size = len(bundle.logs[COORDINATOR].entries)
    for known, count in ((size, 1), (size - 1, 0)):
        manifest = Manifest(v=1, study=bundle.study, plan_digest=sha("p"), logs={COORDINATOR: known}, files={})
        assert len(list(witnesses.seen_by_others(open_case(bundle, trust(), manifest)))) == count
    assert finds(witnesses.seen_by_others, bundle) == {
        BROKEN: [f"coordinator, entry {size}: saw 3000 entries of ucl, {len(bundle.logs['ucl'].entries)} are here"]
    }


def test_a_rewritten_log_is_found_by_each_witness_once() -> None:
    log = clean_bundle().logs["ucl"]
    bundle = with_log(entries=resigned(log, (b"x" * 32, *log.entries[1:])).entries)
    found = finds(witnesses.seen_by_others, bundle)[BROKEN]
    assert len(found) == 6
    assert all("saw another history in the first" in line for line in found)


# --- incidents ---------------------------------------------------------------------------------------
def incident(*after: Any) -> Bundle:
    opened = IncidentOpened(incident=1, log="ucl", code="LOG_FORKED", evidence=sha("evidence"))
    return retold("charite", lambda events: [*events, opened, *after])


CLOSED = IncidentClosed(incident=1, decision="ACCEPTED")
WORK = ContributionReleased(
    study=clean_bundle().study, round=5, phase="train", attempt=2, sharers=sha("s"), vector=sha("v"), size=1
)


def test_an_incident_stays_broken_until_somebody_has_closed_it() -> None:
    assert "incident 1 about the log of ucl: LOG_FORKED" in finds(witnesses.incidents, incident())[BROKEN][0]
    assert "LOG_FORKED, ACCEPTED" in finds(witnesses.incidents, incident(CLOSED))[NOTE][0]
    again = retold("charite", lambda events: [CLOSED, *events], incident())
    assert list(finds(witnesses.incidents, again)) == [BROKEN]


def test_nobody_works_while_in_doubt() -> None:
    assert "a contribution during incident 1" in finds(witnesses.incidents, incident(WORK, CLOSED))[BROKEN][0]
    assert list(finds(witnesses.incidents, incident(CLOSED, WORK))) == [NOTE]


def test_as_many_processes_as_this_one_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 3, 5})
    assert signatures.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert signatures.cores() == 1

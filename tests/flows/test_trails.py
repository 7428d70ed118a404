"""Everybody's logs through whole rounds: mirrored, shown, cosigned; and what a lie about one of them comes to."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from boundary.checkpoint import Checkpoint, log_name
from boundary.errors import PeerFault
from boundary.messages import (
    CosignedHead,
    HeadsCosigned,
    HeadsShown,
    LogDisputed,
    Refused,
    RoundCommitted,
    ShownHead,
    TrailShown,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import digest_of
from boundary.receipt import Receipt
from compliance.events import HeadsWitnessed, IncidentOpened
from compliance.merkle import BrokenProof, Tree, check_consistency, closed_by, leaf_hash
from compliance.trail import leaf_bytes, read_leaf
from compliance.witnessing import LogForked, LogInDoubt, LogShrunk
from flows.collecting import CollectionFailed
from flows.desk import Desk
from flows.driver import StudyDriver
from flows.store import audit, holdings, studies, witnessed
from flows.store.database import reading, writing
from flows.store.logs import Log
from flows.store.witnessed import Incident
from flows.trails import Trails
from infra.driving import PARAMETERS, collect, run, trail, train_only, work_of
from infra.federation import NO_PRIVACY, SimulatedFederation, SimulatedHospital, make_federation, simulated_plan
from silo_agent.witness import close_incident


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SimulatedFederation]]:
    made: list[SimulatedFederation] = []
    monkeypatch.setattr("flows.driver.WITNESS_SECONDS", 3.0)

    def make(hospitals: int = 3, **options: Any) -> SimulatedFederation:
        works = {f"h{n}": work_of(n) for n in range(1, hospitals + 1)}
        made.append(make_federation(tmp_path / f"home-{len(made)}", works, parameters=PARAMETERS, **options))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


@pytest.fixture
def federation(make: Callable[..., SimulatedFederation]) -> SimulatedFederation:
    return make(rounds=2)


# --- what is asked again and again -------------------------------------------------------------------
def name_of(hospital: SimulatedHospital) -> str:
    return log_name(hospital.silo, hospital.key.public)


def incidents(federation: SimulatedFederation) -> list[tuple[str, str]]:
    with reading(federation.coordinator.store) as connection:
        return [(one.log, one.code) for one in witnessed.open_ones(connection)]


def the_incident(federation: SimulatedFederation) -> Incident:
    with reading(federation.coordinator.store) as connection:
        (found,) = witnessed.open_ones(connection)
    return found


async def shown(federation: SimulatedFederation, number: int, *but: str) -> None:
    """Wait until every hospital has shown its log after round `number`."""
    for silo, hospital in federation.hospitals.items():
        if silo not in but:
            await answered(hospital, TrailShown, number)


async def answered(hospital: SimulatedHospital, kind: type[Any], number: int) -> None:
    while number not in {said.round for said in hospital.said(kind)}:  # noqa: ASYNC110 - it turns in this same loop
        await asyncio.sleep(0.02)


async def doubted(driver: StudyDriver, federation: SimulatedFederation, number: int) -> None:
    """The next round is refused, and again when it is asked for again; and only one incident comes of it."""
    await shown(federation, number - 1)
    for _ in range(2):
        with pytest.raises(LogInDoubt, match="is open"):
            driver.open_round(number)
    assert len(incidents(federation)) == 1


def check_mirrors(federation: SimulatedFederation) -> None:
    """Every log the coordinator holds is its owner's, entry by entry, and its newest head is signed by everybody."""
    store, everybody = federation.coordinator.store, {COORDINATOR, *federation.hospitals}
    with reading(store) as connection:
        for silo, hospital in federation.hospitals.items():
            name, journal = name_of(hospital), hospital.journal
            log, head = Log(connection, name), witnessed.newest(connection, name)
            assert head is not None
            head.check(hospital.key.public)
            assert (head.log, head.size, head.root_bytes) == (silo, log.size, log.root())
            assert log.root() == journal.trail_root(log.size)
            assert log.hashes(0, log.size) == [leaf_hash(leaf) for leaf in journal.trail()[: log.size]]
            whole = witnessed.whole_entries(connection, name)
            assert whole == {number: journal.trail()[number - 1] for number in whole}
            assert set(witnessed.cosigned(connection, name)[head.size]) == everybody
        own = witnessed.every_head(connection, COORDINATOR)
        log, leaves = Log(connection, COORDINATOR), audit.leaves(connection)
        assert log.hashes(0, log.size) == [leaf_hash(leaf) for leaf in leaves]
        for head in own:
            head.check(federation.coordinator.key.public)
            assert log.root(head.size) == head.root_bytes
        assert set(witnessed.cosigned(connection, COORDINATOR)[own[-1].size]) == set(federation.hospitals)
        assert witnessed.every_incident(connection) == []


# --- as it should be ---------------------------------------------------------------------------------
def test_after_the_last_round_every_log_is_mirrored_and_signed_by_everybody(
    federation: SimulatedFederation,
) -> None:
    async def story(driver: StudyDriver) -> tuple[list[Any], tuple[str, ...]]:
        records = [await train_only(driver, 1)]
        await shown(federation, 1)
        return [*records, await train_only(driver, 2)], await driver.witness_end()

    records, missing = run(federation, story)
    assert missing == ()
    check_mirrors(federation)
    events = [event for event in trail(federation) if isinstance(event, HeadsWitnessed)]
    assert [(event.round, len(event.heads)) for event in events] == [(0, 0), (1, 3), (2, 3)]
    with reading(federation.coordinator.store) as connection:
        receipts = witnessed.receipts_of(connection, federation.study.study)
    everybody = {COORDINATOR, *federation.hospitals}
    assert {number: set(by) for number, by in receipts.items()} == {1: everybody, 2: everybody}
    for record in records:
        receipt = Receipt(
            study=record.study, plan_digest=digest_of(federation.plan), round=record.round, model_in=record.model_in,
            model_out=record.model_out.digest, tried=None, transcript=record.transcript,
            contributing=record.contributing, absent=(),
        )  # fmt: skip
        receipt.check(receipts[record.round][COORDINATOR], federation.coordinator.key.public)
        for silo, hospital in federation.hospitals.items():
            receipt.check(receipts[record.round][silo], hospital.key.public)


def test_each_hospital_is_shown_the_same_heads_with_proofs_that_begin_where_it_was(
    federation: SimulatedFederation,
) -> None:
    async def story(driver: StudyDriver) -> None:
        for number in (1, 2):
            await train_only(driver, number)
        await driver.witness_end()

    run(federation, story)
    digests = []
    for hospital in federation.hospitals.values():
        known: dict[str, Checkpoint] = {}
        told = hospital.heard(HeadsShown)
        digests.append([one.digest for one in told])
        for head in (head for one in told for head in one.heads):
            before, now = known.get(head.checkpoint.log), head.checkpoint
            if before is not None:
                check_consistency(before.size, now.size, before.root_bytes, now.root_bytes, head.proof)
            known[now.log] = now
        assert set(known) == {COORDINATOR, *federation.hospitals}
        heads = [order.heads for order in hospital.heard(WorkOrder)]
        assert heads == digests[-1][:2], "the orders of each round are bound to them"
    assert digests[0] == digests[1] == digests[2]


def test_a_driver_that_takes_over_goes_on_from_what_was_said(federation: SimulatedFederation) -> None:
    """Found by reading: what a hospital had shown long ago looked like a log that had shrunk."""

    async def two_rounds(driver: StudyDriver) -> None:
        await train_only(driver, 1)
        await train_only(driver, 2)
        await shown(federation, 2)

    async def end(driver: StudyDriver) -> tuple[str, ...]:
        again = StudyDriver(driver.coordinator, driver.study, driver.reins)
        await driver.witness_end()
        return await again.witness_end()

    run(federation, two_rounds)
    assert run(federation, end, "another") == ()
    check_mirrors(federation)


def test_a_hospital_that_answers_late_is_told_the_same_as_the_others(make: Callable[..., SimulatedFederation]) -> None:
    """Found by reading: who consented after a round was opened was never told of logs, and refused its orders."""
    federation = make(4, rounds=2, ready_minutes=0.2)
    federation.hospitals["h4"].silence()

    async def without_h4(driver: StudyDriver) -> None:
        driver.open_round(1)

    async def with_h4(driver: StudyDriver) -> Any:
        return await train_only(driver, 1)

    run(federation, without_h4)
    federation.hospitals["h4"].speak()
    assert run(federation, with_h4, "another").contributing == ("h1", "h2", "h3", "h4")
    told = [hospital.heard(HeadsShown)[0].digest for hospital in federation.hospitals.values()]
    assert len(set(told)) == 1


def test_a_hospital_that_was_away_for_some_rounds_catches_up(make: Callable[..., SimulatedFederation]) -> None:
    federation = make(4, rounds=3)

    async def story(driver: StudyDriver) -> list[Any]:
        records = [await train_only(driver, 1)]
        await shown(federation, 1)
        federation.hospitals["h4"].silence()
        records.append(await train_only(driver, 2))
        await shown(federation, 2, "h4")
        federation.hospitals["h4"].speak()
        records.append(await train_only(driver, 3))
        await driver.witness_end()
        return records

    records = run(federation, story)
    assert [record.contributing for record in records] == [
        ("h1", "h2", "h3", "h4"),
        ("h1", "h2", "h3"),
        records[0].contributing,
    ]
    check_mirrors(federation)
    assert [one.receipt is not None for one in federation.hospitals["h4"].said(TrailShown)] == [True, False, True]
    cosigned = {one.round for one in federation.hospitals["h4"].said(HeadsCosigned)}
    assert cosigned == {0, 1, 2, 3}, "what was shown meanwhile too: one head after the other"


# --- two studies -------------------------------------------------------------------------------------
def second_study(federation: SimulatedFederation, *silos: str) -> SimulatedFederation:
    """Another study of the same coordinator, with some of its hospitals."""
    coordinator = federation.coordinator
    hospitals = {silo: federation.hospitals[silo] for silo in silos}
    plan = simulated_plan(
        {silo: one.key for silo, one in hospitals.items()}, 2, "second", "none", NO_PRIVACY,
        quorum=3, lost_after_seconds=2.0, ready_minutes=1.0,
    )  # fmt: skip
    with writing(coordinator.store) as connection:
        initial = federation.study.model.initial
        holdings.record(connection, initial, owner=COORDINATOR, now=coordinator.now())
        studies.publish(connection, plan, federation.study.model, coordinator.now())
        study = studies.find(connection, plan.label)
    return SimulatedFederation(coordinator, hospitals, plan, study)


def test_two_studies_with_hospitals_in_common_show_one_log_each(make: Callable[..., SimulatedFederation]) -> None:
    """Found by reading: what a hospital had shown in the other study looked as if it were missing."""
    first = make(4, rounds=2)
    second = second_study(first, "h2", "h3", "h4")

    def rounds(*numbers: int) -> Callable[[StudyDriver], Any]:
        async def story(driver: StudyDriver) -> None:
            for number in numbers:
                await train_only(driver, number)

        return story

    async def end(driver: StudyDriver) -> None:
        assert await driver.witness_end() == ()

    run(first, rounds(1))
    run(second, rounds(1))
    run(first, rounds(2))
    run(second, rounds(2))
    run(second, end)
    run(first, end)
    check_mirrors(first)
    with reading(first.coordinator.store) as connection:
        for federation in (first, second):
            receipts = witnessed.receipts_of(connection, federation.study.study)
            everybody = {COORDINATOR, *federation.hospitals}
            assert {number: set(by) for number, by in receipts.items()} == {1: everybody, 2: everybody}
        assert witnessed.last_shown(connection, "h1").keys() == witnessed.last_shown(connection, "h2").keys()


# --- hospitals that lie, or were restored ------------------------------------------------------------
def skipping(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    def lie(true: TrailShown) -> TrailShown:
        if true.round == 1:
            return true
        return true.model_copy(update={"first": true.first + 1, "entries": true.entries[1:]})

    return lie


def misnumbered(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    return lambda true: true.model_copy(update={"first": true.first + 1})


def with_root(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    def lie(true: TrailShown) -> TrailShown:
        head = Checkpoint.sign(hospital.silo, true.checkpoint.size, bytes(32), hospital.key)
        return true.model_copy(update={"checkpoint": head})

    return lie


def unsigned(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    return lambda true: true.model_copy(
        update={"checkpoint": true.checkpoint.model_copy(update={"signature": bytes(64)})}
    )


def of_another(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    def lie(true: TrailShown) -> TrailShown:
        head = Checkpoint.sign("h2", true.checkpoint.size, true.checkpoint.root_bytes, hospital.key)
        return true.model_copy(update={"checkpoint": head})

    return lie


def with_foreign_entries(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    """Entries that are another hospital's, in a log that is signed as it is shown."""

    def lie(true: TrailShown) -> TrailShown:
        return rewritten(hospital, true, lambda leaf: leaf.replace(b'"log":"h1"', b'"log":"h2"'))

    return lie


def with_unknown_entries(hospital: SimulatedHospital) -> Callable[[TrailShown], TrailShown]:
    def lie(true: TrailShown) -> TrailShown:
        return rewritten(hospital, true, lambda leaf: leaf.replace(b'"event":"work-done"', b'"event":"work-dome"'))

    return lie


def rewritten(hospital: SimulatedHospital, true: TrailShown, change: Callable[[bytes], bytes]) -> TrailShown:
    entries, tree = tuple(change(entry) for entry in true.entries), Tree()
    for entry in entries:
        tree.append(leaf_hash(entry))
    head = Checkpoint.sign(hospital.silo, tree.size, tree.root(), hospital.key)
    return true.model_copy(update={"entries": entries, "checkpoint": head})


LIES: dict[str, tuple[Callable[[SimulatedHospital], Callable[[TrailShown], TrailShown]], int, str]] = {
    "skips an entry": (skipping, 2, BrokenProof.code),
    "numbers its entries otherwise": (misnumbered, 1, BrokenProof.code),
    "signs another root": (with_root, 1, BrokenProof.code),
    "signs nothing": (unsigned, 1, "BAD_SIGNATURE"),
    "signs in another's name": (of_another, 1, BrokenProof.code),
    "shows another's entries": (with_foreign_entries, 1, BrokenProof.code),
    "shows entries that are none": (with_unknown_entries, 1, "MALFORMED"),
}


@pytest.mark.parametrize(("lie", "number", "code"), LIES.values(), ids=LIES)
def test_a_hospital_that_lies_about_its_log_stops_the_next_round(
    federation: SimulatedFederation, lie: Any, number: int, code: str
) -> None:
    hospital = federation.hospitals["h1"]
    hospital.lie("trail-shown", lie(hospital))

    async def story(driver: StudyDriver) -> None:
        for done in range(1, number + 1):
            await train_only(driver, done)
        await doubted(driver, federation, number + 1)

    run(federation, story)
    assert incidents(federation) == [("h1", code)]
    (event,) = [event for event in trail(federation) if isinstance(event, IncidentOpened)]
    assert (event.log, event.code, event.evidence) == ("h1", code, the_incident(federation).evidence.digest)
    with reading(federation.coordinator.store) as connection:
        log = Log(connection, name_of(hospital))
        kept = witnessed.newest(connection, name_of(hospital))
        assert log.size == (0 if kept is None else kept.size), "nothing of it was taken over"


def rewrite_an_entry(hospital: SimulatedHospital) -> None:
    """As its administrator can: another entry 1, and a tree that fits to it."""
    db = hospital.journal._db
    first, *_ = hospital.journal.trail()
    leaf = read_leaf(first)
    forged = leaf_bytes(
        leaf.event, log=leaf.log, sequence=1, time=hospital.coordinator.now(), actor=leaf.actor, salt=leaf.salt
    )
    db.execute("UPDATE trail SET leaf = ? WHERE sequence = 1", (forged,))
    leaves = [leaf_hash(one) for one in hospital.journal.trail()]
    db.execute("DELETE FROM tree")
    for number, one in enumerate(leaves):
        db.executemany("INSERT INTO tree VALUES (?, ?, ?)", closed_by(number, one, hospital.journal.node))


def test_a_hospital_that_rewrites_its_log_is_found_out(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> None:
        await train_only(driver, 1)
        await shown(federation, 1)
        driver.open_round(2)
        rewrite_an_entry(federation.hospitals["h1"])
        work = driver.open_round(2)
        with pytest.raises(CollectionFailed):  # it finds out by itself, and with it the quorum is gone
            await collect(work, "train", work.model_in)

    run(federation, story)
    hospital = federation.hospitals["h1"]
    assert [(one.log, one.code) for one in hospital.journal.incidents()] == [("h1", "LOG_FORKED")]
    assert [said.code for said in hospital.said(Refused)] == ["LOG_IN_DOUBT"]


def test_and_if_its_agent_does_not_say_so_by_the_coordinator(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> None:
        await train_only(driver, 1)
        await shown(federation, 1)
        work = driver.open_round(2)
        await answered(federation.hospitals["h1"], HeadsCosigned, 1)
        rewrite_an_entry(federation.hospitals["h1"])
        gathered = await collect(work, "train", work.model_in)
        work.commit(work.aggregate(gathered), None, 0.0)
        await doubted(driver, federation, 3)

    run(federation, story)
    assert incidents(federation) == [("h1", BrokenProof.code)]


def restore(hospital: SimulatedHospital, copy: Path) -> None:
    """Be down, have yesterday's journal put back, and be started."""
    hospital.journal.close()
    for path in hospital.folder.journal.parent.glob(f"{hospital.folder.journal.name}*"):
        path.unlink()
    shutil.copy(copy, hospital.folder.journal)
    hospital.restart()


def copied(hospital: SimulatedHospital, to: Path) -> Path:
    hospital.journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(hospital.folder.journal, to)
    return to


def test_a_hospital_whose_journal_was_restored_finds_out_and_is_found_out(
    make: Callable[..., SimulatedFederation], tmp_path: Path
) -> None:
    """Its ledger would have forgotten what it spent. It stops by itself, and would be found out if it did not."""
    federation = make(4, rounds=4)
    hospital = federation.hospitals["h4"]

    async def story(driver: StudyDriver) -> Any:
        await train_only(driver, 1)
        await shown(federation, 1)
        copy = copied(hospital, tmp_path / "yesterday")
        await train_only(driver, 2)
        await shown(federation, 2)
        restore(hospital, copy)
        third = await train_only(driver, 3)
        await shown(federation, 3)
        with pytest.raises(LogInDoubt):
            driver.open_round(4)
        return third

    third = run(federation, story)
    assert third.contributing == ("h1", "h2", "h3")
    assert third.absent == {"h4": "LOG_IN_DOUBT"}
    assert {one.log for one in hospital.journal.incidents()} == {"h4"}
    assert {log for log, _ in incidents(federation)} == {"h4"}


# --- disputes ----------------------------------------------------------------------------------------
def dispute(
    federation: SimulatedFederation, known: Checkpoint, now: Checkpoint, code: str = "LOG_FORKED"
) -> LogDisputed:
    return LogDisputed(study=federation.study.study, round=0, code=code, known=known, shown=now)


def heads_of(federation: SimulatedFederation, log: str) -> list[Checkpoint]:
    with reading(federation.coordinator.store) as connection:
        name = COORDINATOR if log == COORDINATOR else name_of(federation.hospitals[log])
        return witnessed.every_head(connection, name)


def after_a_round(federation: SimulatedFederation, act: Callable[[StudyDriver], None]) -> None:
    async def story(driver: StudyDriver) -> None:
        await train_only(driver, 1)
        await shown(federation, 1)
        driver.open_round(2)
        act(driver)

    run(federation, story)


def test_a_dispute_with_two_heads_that_their_owner_signed_is_an_incident(federation: SimulatedFederation) -> None:
    def act(driver: StudyDriver) -> None:
        (true,) = heads_of(federation, "h2")
        other = Checkpoint.sign("h2", true.size, bytes(32), federation.hospitals["h2"].key)
        federation.hospitals["h1"].say(dispute(federation, true, other))
        with pytest.raises(LogInDoubt):
            driver.open_round(2)

    after_a_round(federation, act)
    assert incidents(federation) == [("h2", "LOG_FORKED")]
    (opened,) = [
        leaf for leaf in leaves_of(federation) if isinstance(leaf.event, IncidentOpened)
    ]  # fmt: skip
    assert opened.actor == "h1", "it is said whose word it was"


def leaves_of(federation: SimulatedFederation) -> list[Any]:
    with reading(federation.coordinator.store) as connection:
        return [read_leaf(leaf) for leaf in audit.leaves(connection)]


def two_true_heads(federation: SimulatedFederation) -> LogDisputed:
    old, *_, new = heads_of(federation, COORDINATOR)
    return dispute(federation, new, old, "LOG_SHRUNK")


def forged_by_the_disputer(federation: SimulatedFederation) -> LogDisputed:
    (true,) = heads_of(federation, "h2")
    return dispute(federation, true, Checkpoint.sign("h2", true.size, bytes(32), federation.hospitals["h1"].key))


def of_a_stranger(federation: SimulatedFederation) -> LogDisputed:
    key = federation.hospitals["h1"].key
    return dispute(
        federation, Checkpoint.sign("stranger", 3, bytes(32), key), Checkpoint.sign("stranger", 3, b"x" * 32, key)
    )


FALSE: dict[str, Callable[[SimulatedFederation], LogDisputed]] = {
    "both heads are of one sound log": two_true_heads,
    "one of them is forged by whoever disputes it": forged_by_the_disputer,
    "the log is nobody's": of_a_stranger,
}


@pytest.mark.parametrize("claim", FALSE.values(), ids=FALSE)
def test_a_dispute_about_nothing_stops_nobody(
    federation: SimulatedFederation, claim: Callable[[SimulatedFederation], LogDisputed]
) -> None:
    def act(driver: StudyDriver) -> None:
        federation.hospitals["h1"].say(claim(federation))
        driver.open_round(2)

    after_a_round(federation, act)
    assert incidents(federation) == []


# --- cosignatures and receipts that are none ---------------------------------------------------------
def test_a_cosignature_that_is_none_is_set_aside_and_the_others_count(federation: SimulatedFederation) -> None:
    h1 = federation.hospitals["h1"]

    def lie(true: HeadsCosigned) -> HeadsCosigned:
        (first, *others) = true.cosigned
        forged = [
            first.model_copy(update={"cosignature": first.cosignature.model_copy(update={"signature": bytes(64)})}),
            CosignedHead(log="stranger", size=first.size, cosignature=first.cosignature),
            first.model_copy(update={"size": first.size + 1000}),
            first.model_copy(update={"cosignature": first.cosignature.model_copy(update={"witness": "h2"})}),
        ]
        return true.model_copy(update={"cosigned": (*forged, *others)})

    h1.lie("heads-cosigned", lie)

    async def story(driver: StudyDriver) -> None:
        for number in (1, 2):
            await train_only(driver, number)
        await driver.witness_end()

    run(federation, story)
    with reading(federation.coordinator.store) as connection:
        newest = witnessed.newest(connection, name_of(federation.hospitals["h3"]))
        assert newest is not None
        by = {
            log: witnessed.cosigned(connection, log)
            for log in (COORDINATOR, *map(name_of, federation.hospitals.values()))
        }
    assert set(by[name_of(federation.hospitals["h3"])][newest.size]) == {COORDINATOR, "h1", "h2", "h3"}
    first = by[name_of(h1)]
    assert "h1" not in first[max(first)], "its first head was the one it lied about"
    assert incidents(federation) == []


def test_a_receipt_that_is_none_is_set_aside_and_the_log_is_taken(federation: SimulatedFederation) -> None:
    federation.hospitals["h1"].lie("trail-shown", lambda true: true.model_copy(update={"receipt": bytes(64)}))
    federation.hospitals["h2"].lie("trail-shown", lambda true: true.model_copy(update={"receipt": None}))

    async def story(driver: StudyDriver) -> None:
        for number in (1, 2):
            await train_only(driver, number)
        await driver.witness_end()

    run(federation, story)
    check_mirrors(federation)
    with reading(federation.coordinator.store) as connection:
        receipts = witnessed.receipts_of(connection, federation.study.study)
    both = {COORDINATOR, "h3"}
    assert {number: set(by) for number, by in receipts.items()} == {1: both, 2: both}


# --- a coordinator that lies, or was restored --------------------------------------------------------
def test_hospitals_that_are_shown_different_logs_make_no_sum(
    make: Callable[..., SimulatedFederation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half is shown a log of its own and ordered on it; to each half everything looks right but the others."""
    federation = make(4, rounds=2)
    key, told = federation.coordinator.key, dict[str, str]()
    tell = Desk.tell

    def two_faced(desk: Desk, connection: Any, silo: str, message: Any) -> Any:
        if isinstance(message, HeadsShown) and silo in {"h1", "h2"}:
            *others, own = message.heads
            fork = Checkpoint.sign(COORDINATOR, own.checkpoint.size, b"f" * 32, key)
            message = message.model_copy(update={"heads": (*others, ShownHead(checkpoint=fork, proof=()))})
        if isinstance(message, HeadsShown):
            told[silo] = message.digest
        if isinstance(message, WorkOrder):
            message = message.model_copy(update={"heads": told[silo]})
        return tell(desk, connection, silo, message)

    monkeypatch.setattr(Desk, "tell", two_faced)

    async def story(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        with pytest.raises(CollectionFailed):
            await collect(work, "train", work.model_in)

    run(federation, story)
    assert told["h1"] == told["h2"] != told["h3"] == told["h4"]
    for hospital in federation.hospitals.values():
        assert hospital.journal.incidents() == []
        assert hospital.sent == [], "no vector left"


def test_a_hospital_that_is_ordered_on_other_logs_than_it_was_shown_refuses(
    federation: SimulatedFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Desk.tell

    def otherwise(desk: Desk, connection: Any, silo: str, message: Any) -> Any:
        if isinstance(message, WorkOrder) and silo == "h1":
            message = message.model_copy(update={"heads": "sha256:" + "0" * 64})
        return tell(desk, connection, silo, message)

    monkeypatch.setattr(Desk, "tell", otherwise)

    async def story(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        with pytest.raises(CollectionFailed):
            await collect(work, "train", work.model_in)

    run(federation, story)
    assert [said.code for said in federation.hospitals["h1"].said(Refused)] == ["OUT_OF_TURN"]


def sqlite_file(federation: SimulatedFederation) -> Path:
    found = federation.coordinator.store.url.database
    assert found is not None
    return Path(found)


def test_a_coordinator_whose_database_was_restored_is_refused_by_everybody(
    make: Callable[..., SimulatedFederation], tmp_path: Path
) -> None:
    federation = make(rounds=3, ready_minutes=0.1)
    store, copy = federation.coordinator.store, tmp_path / "yesterday.db"

    async def first(driver: StudyDriver) -> None:
        await train_only(driver, 1)
        await shown(federation, 1)

    async def second(driver: StudyDriver) -> None:
        await train_only(driver, 2)
        await shown(federation, 2)
        driver.open_round(3)
        for hospital in federation.hospitals.values():
            await answered(hospital, HeadsCosigned, 2)

    async def again(driver: StudyDriver) -> None:
        work = driver.open_round(2)
        with pytest.raises(CollectionFailed):
            await collect(work, "train", work.model_in)
        for hospital in federation.hospitals.values():
            await answered(hospital, LogDisputed, 1)
        with pytest.raises(LogInDoubt):
            driver.open_round(2)

    run(federation, first)
    source = sqlite3.connect(sqlite_file(federation))
    source.execute("VACUUM INTO ?", (str(copy),))
    source.close()
    run(federation, second)
    store.dispose()
    for path in sqlite_file(federation).parent.glob(f"{sqlite_file(federation).name}-*"):
        path.unlink()
    shutil.copy(copy, sqlite_file(federation))
    with writing(store) as connection:  # numbers that the hospitals have not seen yet, or they would not even listen
        connection.execute(text("UPDATE sqlite_sequence SET seq = seq + 1000 WHERE name = 'envelopes'"))
    run(federation, again)
    for hospital in federation.hospitals.values():
        assert (COORDINATOR, LogShrunk.code) in {(one.log, one.code) for one in hospital.journal.incidents()}
    assert (COORDINATOR, LogShrunk.code) in incidents(federation)


def test_people_can_let_it_go_on_after_all(federation: SimulatedFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hospital that took fright: it and the coordinator close their incidents, and the very round goes on."""
    h1 = federation.hospitals["h1"]
    judge = type(h1.mailroom.witness)._judge

    def afraid(witness: Any, head: ShownHead, known: Checkpoint | None) -> None:
        if witness.journal is h1.journal and head.checkpoint.log == "h2":
            raise LogForked("a bad dream")
        judge(witness, head, known)

    async def story(driver: StudyDriver) -> Any:
        await train_only(driver, 1)
        await shown(federation, 1)
        with monkeypatch.context() as dream:
            dream.setattr(type(h1.mailroom.witness), "_judge", afraid)
            work = driver.open_round(2)
            with pytest.raises(CollectionFailed) as failed:
                await collect(work, "train", work.model_in)
        assert [said.code for said in h1.said(Refused)] == ["LOG_IN_DOUBT"]
        close_incident(h1.journal, 1, h1.coordinator.now())
        work = work.give_up(failed.value)
        gathered = await collect(work, "train", work.model_in)
        return work.commit(work.aggregate(gathered), None, 0.0)

    assert run(federation, story).contributing == ("h1", "h2", "h3")
    assert incidents(federation) == []


def test_an_error_in_our_own_code_is_not_taken_for_a_lie(
    federation: SimulatedFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Trails, "_extend", broken)

    async def story(driver: StudyDriver) -> None:
        await train_only(driver, 1)
        await shown(federation, 1)
        with pytest.raises(ZeroDivisionError):
            driver.open_round(2)

    run(federation, story)
    assert incidents(federation) == []
    assert not issubclass(ZeroDivisionError, PeerFault)


def test_a_commitment_carries_the_coordinators_receipt(federation: SimulatedFederation) -> None:
    run(federation, train_only)
    for hospital in federation.hospitals.values():
        (committed,) = hospital.heard(RoundCommitted)
        with reading(federation.coordinator.store) as connection:
            receipts = witnessed.receipts_of(connection, federation.study.study)
        assert committed.receipt == receipts[1][COORDINATOR]

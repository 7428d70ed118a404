"""The agent's memory: what is promised is kept, what fails leaves nothing, and every step has its entry."""

import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from silo_agent_tests_benches import Cut, Mortal, kill_myself

from boundary.canonical import digest
from boundary.checkpoint import Checkpoint
from boundary.errors import OutOfTurn
from boundary.identity import SigningIdentity
from boundary.protocol import Heard, Step
from compliance.events import WorkDone
from compliance.merkle import EMPTY_ROOT, Tree, leaf_hash
from compliance.trail import read_leaf
from silo_agent.errors import ConfigError, StateUnavailable, UpgradeNeeded
from silo_agent.journal import _EVIDENCE, LEDGER_SCHEMA, SCHEMA_VERSION, Journal, KeptOrder

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STUDY = "ct-contrast-0123abcd"
UNIT = (Path(__file__).parents[2] / "infra/systemd/silo-agent.service").read_text("utf-8")
(_NOT,) = re.findall(r"^RestartPreventExitStatus=(.+)$", UNIT, re.MULTILINE)
NOT_RESTARTED = {int(code) for code in _NOT.split()}
DONE = WorkDone(study=STUDY, round=1, phase="train", order=digest(b"order"))


def order(number: int = 1, attempt: int = 1, envelope: bytes = b"order") -> KeptOrder:
    name = f"{STUDY}/{number}/train/{attempt}"
    return KeptOrder(name, STUDY, number, "train", digest(envelope), envelope, Step.WORKING, 0, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal(path, "st-olavs")
    yield opened
    opened.close()


def finish(journal: Journal, kept: KeptOrder) -> None:
    """What the workbench does when work is done: step, entry, parcel."""
    with journal.transaction():
        journal.advance(kept.collection, Heard.DONE, result="folder")
        journal.record(DONE, NOW)
        journal.put_out(f"ready/{kept.collection}", STUDY, "ready", b"envelope")


EVIDENCE_TABLES = re.findall(r"CREATE TABLE (\w+)", ";".join(_EVIDENCE))[::-1]  # who is referred to goes last


def snapshot(path: Path) -> list[Any]:
    with sqlite3.connect(path) as db:
        tables = ("facts", "plans", "orders", "outbox", "trail", "spent", "budget", *EVIDENCE_TABLES)
        found = [db.execute(f"SELECT * FROM {table}").fetchall() for table in tables]  # noqa: S608 - our own names
    db.close()
    return found


def test_only_the_agents_user_may_read_it(journal: Journal, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_everything_is_there_after_a_restart(journal: Journal, path: Path) -> None:
    journal.accept_order(order())
    finish(journal, order())
    journal.close()
    again = Journal(path, "st-olavs")
    kept = again.order(order().collection)
    assert kept is not None
    assert (kept.step, kept.result) == (Step.READY, "folder")
    assert [parcel.slot for parcel in again.waiting()] == [f"ready/{kept.collection}"]
    again.close()


# --- all or nothing ----------------------------------------------------------------------------------
def test_a_failure_at_any_statement_leaves_nothing(journal: Journal, path: Path) -> None:
    journal.accept_order(order())
    before, real = snapshot(path), journal._db
    for statement in range(50):
        journal._db = Mortal(real, statement)  # type: ignore[assignment]
        try:
            finish(journal, order())
        except Cut:
            assert snapshot(path) == before, f"something was left by a failure at statement {statement}"
            assert not real.in_transaction
        else:
            break
    journal._db = real
    assert statement >= 8, "BEGIN, order, step, last entry, entry, its hash, parcel, COMMIT"
    assert snapshot(path) != before


def finish_in_a_process_that_dies(path: Path, at: int) -> int:
    """Its wait status."""

    def act() -> None:
        journal = Journal(path, "st-olavs")
        journal._db = Mortal(journal._db, at, kill_myself)  # type: ignore[assignment]
        finish(journal, order())

    return in_a_process(act)


def in_a_process(act: Callable[[], None]) -> int:
    """Its wait status. An error in it does not come back with a second pytest."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, it ends here
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("at", range(9))
def test_kill_9_before_any_statement_leaves_nothing_and_after_the_last_everything(
    journal: Journal, path: Path, at: int
) -> None:
    journal.accept_order(order())
    before, statements = snapshot(path), 8  # BEGIN, order, step, last entry, entry, its hash, parcel, COMMIT
    assert finish_in_a_process_that_dies(path, at) == (signal.SIGKILL if at < statements else 0)
    assert (snapshot(path) == before) is (at < statements)
    if at < statements:
        finish(journal, order())  # as the restarted agent does
    kept = journal.order(order().collection)
    assert kept is not None
    assert kept.step is Step.READY
    assert len(journal.trail()) == 1


def test_an_inner_step_that_fails_leaves_nothing_of_itself_in_the_outer_one(journal: Journal) -> None:
    with journal.transaction():
        journal.set_fact("outer", b"kept")
        with pytest.raises(Cut), journal.transaction():  # noqa: PT012 - the whole block is one step
            journal.set_fact("inner", b"lost")
            raise Cut
    assert (journal.fact("outer"), journal.fact("inner")) == (b"kept", None)


def test_a_commit_that_fails_does_not_swallow_what_comes_later(journal: Journal, path: Path) -> None:
    real = journal._db
    journal._db = Mortal(real, 2)  # type: ignore[assignment] - BEGIN, the fact, then COMMIT fails
    with pytest.raises(Cut), journal.transaction():
        journal.set_fact("cursor", b"1")
    journal._db = real
    with journal.transaction():
        journal.set_fact("cursor", b"2")
    assert snapshot(path)[0] == [("cursor", b"2")]


def test_a_full_disk_is_told_and_nothing_is_half_written(journal: Journal, path: Path) -> None:
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"), journal.transaction():  # noqa: PT012 - as above
        journal.set_fact("small", b"x")
        journal.set_fact("large", b"x" * 100_000)
    journal._db.execute(f"PRAGMA max_page_count={pages + 1000}")
    assert snapshot(path)[0] == []
    with journal.transaction():
        journal.set_fact("later", b"x")
    assert snapshot(path)[0] == [("later", b"x")]


# --- orders ------------------------------------------------------------------------------------------
def test_the_first_order_for_a_collection_is_the_only_one(journal: Journal) -> None:
    assert journal.accept_order(order())
    assert not journal.accept_order(order())
    assert not journal.accept_order(order(envelope=b"a second, different one"))
    kept = journal.order(order().collection)
    assert kept is not None
    assert kept.envelope == b"order"


def test_a_step_that_the_table_does_not_have_is_refused(journal: Journal) -> None:
    journal.accept_order(order())
    with pytest.raises(OutOfTurn), journal.transaction():
        journal.advance(order().collection, Heard.COHORT_CLOSED)
    with pytest.raises(KeyError), journal.transaction():
        journal.advance(f"{STUDY}/9/train/1", Heard.DONE)


def test_open_orders_are_those_something_may_still_happen_to(journal: Journal) -> None:
    for number in (1, 2, 3):
        journal.accept_order(order(number))
    with journal.transaction():
        journal.advance(order(1).collection, Heard.ROUND_OVER)
        journal.advance(order(2).collection, Heard.DONE)
    assert [kept.round for kept in journal.open_orders()] == [2, 3]
    assert len(journal.orders_of(STUDY)) == 3


def test_starts_are_counted(journal: Journal) -> None:
    journal.accept_order(order())
    assert [journal.starting(order().collection) for _ in range(3)] == [1, 2, 3]


UNACCOMPANIED: dict[str, Callable[[Journal], object]] = {
    "a step": lambda journal: journal.advance(order().collection, Heard.DONE),
    "an entry": lambda journal: journal.record(DONE, NOW),
    "what was spent": lambda journal: journal.spend("result", order().collection, frozenset({"charite"})),
    "an incident": lambda journal: journal.open_incident("charite", "LOG_FORKED", b"{}", NOW),
    "the end of an incident": lambda journal: journal.close_incident(1, NOW),
}


@pytest.mark.parametrize("act", UNACCOMPANIED.values(), ids=UNACCOMPANIED)
def test_a_step_and_its_entry_need_a_transaction_around_both(
    journal: Journal, act: Callable[[Journal], object]
) -> None:
    journal.accept_order(order())
    with pytest.raises(RuntimeError, match="one transaction"):
        act(journal)


# --- plans -------------------------------------------------------------------------------------------
def test_a_plan_is_kept_as_it_came_first(journal: Journal) -> None:
    assert journal.keep_plan(STUDY, "sha256:1", b"{}", NOW)
    assert not journal.keep_plan(STUDY, "sha256:2", b"another", NOW)
    kept = journal.plan(STUDY)
    assert kept is not None
    assert (kept.digest, kept.state) == ("sha256:1", "received")


def test_a_late_scan_does_not_undo_what_was_decided_meanwhile(journal: Journal) -> None:
    journal.keep_plan(STUDY, "sha256:1", b"{}", NOW)
    journal.set_plan(STUDY, "closed")
    assert not journal.set_plan(STUDY, "scanned", only_from="received")
    kept = journal.plan(STUDY)
    assert kept is not None
    assert kept.state == "closed"


# --- results -----------------------------------------------------------------------------------------
def test_a_result_is_spent_on_the_survivors_it_was_first_unmasked_among(journal: Journal, path: Path) -> None:
    first, second = frozenset({"st-olavs", "charite"}), frozenset({"st-olavs", "utrecht"})
    with journal.transaction():
        journal.spend("result", order().collection, first)
    with journal.transaction():
        journal.spend("result", order(attempt=2).collection, second)
    assert (journal.spent_on("result"), journal.spent_on("another result")) == (first, None)
    assert snapshot(path)[5] == [("result", order().collection, "charite,st-olavs")]


def test_what_fails_is_not_spent(journal: Journal) -> None:
    with pytest.raises(Cut), journal.transaction():  # noqa: PT012 - the whole block is one step
        journal.spend("result", order().collection, frozenset({"charite"}))
        raise Cut
    assert journal.spent_on("result") is None


# --- the outbox --------------------------------------------------------------------------------------
def test_parcels_leave_in_order_and_one_slot_has_one_parcel(journal: Journal) -> None:
    journal.put_out("ready/b", STUDY, "ready", b"first")
    journal.put_out("ready/a", STUDY, "ready", b"second")
    journal.put_out("ready/b", STUDY, "ready", b"other bytes for the same slot")
    assert [parcel.envelope for parcel in journal.waiting()] == [b"first", b"second"]
    first = journal.next_waiting(0)
    assert first is not None
    journal.settle(first, accepted=True, verdict="OK")
    following = journal.next_waiting(0)
    assert following is not None
    assert following.envelope == b"second"
    assert journal.next_waiting(following.position) is None
    assert [(slot, state) for slot, _, state, _ in journal.left()] == [
        ("ready/b", "acknowledged"),
        ("ready/a", "waiting"),
    ]


def test_withdrawn_parcels_wait_no_longer_and_what_had_left_stays_told(journal: Journal) -> None:
    collection = order().collection
    journal.put_out(f"ready/{collection}", STUDY, "ready", b"1")
    journal.put_out(f"masked-vector/{collection}", STUDY, "masked-vector", b"2")
    journal.put_out(f"masked-vector/{order(2).collection}", STUDY, "masked-vector", b"3")
    journal.settle(journal.waiting()[0], accepted=True, verdict="OK")
    journal.withdraw(collection)
    assert [state for _, _, state, _ in journal.left()] == ["acknowledged", "rejected", "waiting"]


# --- the trail ---------------------------------------------------------------------------------------
def test_the_trail_has_no_gap_even_after_failures(journal: Journal) -> None:
    for number in range(3):
        with journal.transaction():
            journal.record(DONE, NOW)
        with pytest.raises(Cut), journal.transaction():  # noqa: PT012 - as above
            journal.record(DONE, NOW)
            raise Cut(number)
    assert [read_leaf(leaf).sequence for leaf in journal.trail()] == [1, 2, 3]
    assert {read_leaf(leaf).log for leaf in journal.trail()} == {"st-olavs"}


def test_the_tree_covers_every_entry_and_every_earlier_root_can_still_be_given(journal: Journal) -> None:
    tree, roots = Tree(), [EMPTY_ROOT]
    for number in range(20):
        with journal.transaction():
            journal.record(DONE, NOW)
        with pytest.raises(Cut), journal.transaction():  # noqa: PT012 - as above
            journal.record(DONE, NOW)
            raise Cut(number)
        tree.append(leaf_hash(journal.trail(after=number)[0]))
        roots.append(tree.root())
    assert [journal.trail_root(size) for size in range(journal.trail_size + 1)] == roots
    with pytest.raises(KeyError, match="has no node 0, 20"):
        journal.trail_root(21)


def test_no_two_entries_have_one_salt(path: Path) -> None:
    """Who is shown a hash cannot try what it may be of."""
    drawn = iter(range(100))
    journal = Journal(path, "st-olavs", lambda count: bytes([next(drawn)]) * count)
    for _ in range(3):
        with journal.transaction():
            journal.record(DONE, NOW)
    assert [read_leaf(leaf).salt for leaf in journal.trail()] == [bytes([number]) * 16 for number in range(3)]
    journal.close()


# --- others' logs ------------------------------------------------------------------------------------
def head(size: int = 3) -> Checkpoint:
    return Checkpoint.sign("charite", size, bytes(32), SigningIdentity.generate())


def test_the_newest_head_of_a_log_is_kept_and_goes_with_a_closed_incident(journal: Journal) -> None:
    assert journal.head("charite") is None
    for name in ("charite", "wardround/charite/0123456789abcdef", "wardround/charite-2/0123456789abcdef"):
        for one in (head(3), newest := head(5)):
            journal.keep_head(name, one)
        assert journal.head(name) == newest
    newest = journal.head("charite")
    with journal.transaction():
        number = journal.open_incident("charite", "LOG_FORKED", b"evidence", NOW)
    assert journal.head("charite") == newest, "what we knew of it is what it is held against"
    with journal.transaction():
        closed = journal.close_incident(number, NOW)
    assert (closed.log, closed.code, closed.evidence) == ("charite", "LOG_FORKED", b"evidence")
    assert journal.head("charite") is None
    assert journal.head("wardround/charite/0123456789abcdef") is None, "whatever key it has"
    assert journal.head("wardround/charite-2/0123456789abcdef") is not None
    assert [one.closed_at is None for one in journal.incidents()] == [False]
    assert journal.incidents(only_open=True) == []


def test_only_an_open_incident_is_closed(journal: Journal) -> None:
    with journal.transaction():
        number = journal.open_incident("charite", "LOG_FORKED", b"evidence", NOW)
        journal.close_incident(number, NOW)
    for which in (number, number + 1):
        with pytest.raises(ConfigError, match=f"no incident {which} is open"), journal.transaction():
            journal.close_incident(which, NOW)


WRITER = """
import sys
from datetime import datetime, UTC
from pathlib import Path
from compliance.events import WorkDone
from silo_agent.journal import Journal
journal = Journal(Path(sys.argv[1]), "st-olavs")
for number in range(40):
    with journal.transaction():
        journal.record(WorkDone(study="ct-contrast-0123abcd", round=1, phase="train", order="sha256:" + "0" * 64),
                       datetime.now(UTC))
        journal.set_fact(f"{sys.argv[2]} {number}", b"x")
"""


def test_two_processes_write_one_journal_and_the_trail_stays_whole(journal: Journal, path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in ("steward", "daemon")]
    assert [child.wait(60) for child in children] == [0, 0]
    assert [read_leaf(leaf).sequence for leaf in journal.trail()] == list(range(1, 81))
    assert len(snapshot(path)[0]) == 80


# --- files we cannot use -----------------------------------------------------------------------------
def test_the_journal_of_a_newer_agent_is_left_alone(journal: Journal, path: Path) -> None:
    journal._db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    journal.close()
    with pytest.raises(UpgradeNeeded, match="schema 5, this agent knows 4: install the newer agent") as refused:
        Journal(path, "st-olavs")
    assert refused.value.exit_code == 5


def made_of(path: Path) -> list[Any]:
    """Every table, index and trigger there is, as SQLite remembers it."""
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    db.close()
    return found


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_the_journal_of_an_older_agent_is_brought_up_to_date_and_keeps_what_it_holds(
    journal: Journal, path: Path, version: int
) -> None:
    journal.accept_order(order())
    journal.put_out(f"ready/{order().collection}", STUDY, "ready", b"envelope")
    before, new = snapshot(path), made_of(path)
    made_older(journal, version)
    assert made_of(path) != new
    for _ in range(2):
        Journal(path, "st-olavs").close()
    assert (snapshot(path), made_of(path)) == (before, new)


def made_older(journal: Journal, version: int) -> None:
    """Take away what each version after the first has brought, and close."""
    for tables in (("spent",), ("budget",), EVIDENCE_TABLES)[version - 1 :]:
        for table in tables:
            journal._db.execute(f"DROP TABLE {table}")
    journal._db.execute(f"PRAGMA user_version={version}")
    journal.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_trail_without_salt_and_tree_cannot_be_gone_on_with_and_is_left_as_it_is(
    journal: Journal, path: Path, version: int
) -> None:
    journal.accept_order(order())
    finish(journal, order())
    made_older(journal, version)
    with sqlite3.connect(path) as db:
        before = list(db.iterdump())
    for _ in range(2):
        with pytest.raises(UpgradeNeeded, match="finish its studies with that agent") as refused:
            Journal(path, "st-olavs")
        assert refused.value.exit_code == 5
    assert list(db.iterdump()) == before
    assert db.execute("PRAGMA user_version").fetchone() == (version,)
    db.close()


def open_in_a_process_that_dies(path: Path, at: int) -> int:
    """Its wait status."""

    def act() -> None:
        connect = sqlite3.connect
        sqlite3.connect = lambda *how, **more: Mortal(connect(*how, **more), at, kill_myself)  # type: ignore[assignment]
        Journal(path, "st-olavs")

    return in_a_process(act)


def test_an_update_that_is_killed_half_way_is_begun_anew(journal: Journal, path: Path) -> None:
    """A ledger without one of its triggers would be a ledger that can be refunded."""
    new = made_of(path)
    made_older(journal, 2)
    old, died = made_of(path), 0
    while open_in_a_process_that_dies(path, died) == signal.SIGKILL:
        assert made_of(path) == old, f"something was left of an update killed at statement {died}"
        died += 1
    assert died > len(LEDGER_SCHEMA), "PRAGMAs, BEGIN, every statement of the ledger, COMMIT"
    assert made_of(path) == new


def test_a_damaged_journal_is_said_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database, whatever it is, and longer than a page header" * 100)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never delete it"):
        Journal(path, "st-olavs")
    assert path.read_bytes() == before


def test_a_journal_that_somebody_holds_just_now_is_no_mistake_of_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit starts the agent again, which it does not behind what a person has to correct."""
    monkeypatch.setattr("silo_agent.journal.LOCK_SECONDS", 0.05)
    path = tmp_path / "journal.sqlite"
    Journal(path, "st-olavs").close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateUnavailable, match="database is locked") as busy:
        Journal(path, "st-olavs")
    assert busy.value.exit_code not in NOT_RESTARTED
    holder.close()
    Journal(path, "st-olavs").close()


@pytest.mark.parametrize(
    ("why", "passes"),
    [("database or disk is full", True), ("disk I/O error", True), (errno.ENOSPC, True), (errno.EACCES, False)],
)
def test_a_full_disk_passes_and_a_wrong_owner_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str | int, passes: bool
) -> None:
    def fail(_self: Journal, _path: Path) -> None:
        if isinstance(why, int):
            raise OSError(why, "said by the system")
        error = sqlite3.OperationalError(why)
        error.sqlite_errorcode = sqlite3.SQLITE_FULL if "full" in why else sqlite3.SQLITE_IOERR | (3 << 8)
        raise error

    monkeypatch.setattr(Journal, "_prepare", fail)
    with pytest.raises(ConfigError, match="cannot be used") as found:
        Journal(tmp_path / "journal.sqlite", "st-olavs")
    assert isinstance(found.value, StateUnavailable) is passes
    assert (found.value.exit_code in NOT_RESTARTED) is not passes


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used: unable to open database file"):
        Journal(tmp_path / "nowhere" / "journal.sqlite", "st-olavs")

"""The ledger: never less spent than released, no cap passed, whatever dies when. What it cannot read it refuses."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from boundary.errors import CallerFault
from compliance.accountant import epsilon, steps_left
from compliance.errors import BudgetExceeded, LedgerUnreadable, NotAccountable, SlotReserved, UnknownPrivacyEvent
from compliance.ledger import SCHEMA, Caps, Ledger
from compliance.privacy import Budget, PoissonGaussian, event_bytes

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
WARD, OTHER_WARD = "ct-archive", "mr-archive"
STUDY, OTHER_STUDY = "ct-contrast-0123abcd", "mr-knee-4567cdef"
A_ROUND = PoissonGaussian(noise_multiplier=1.1, sampling_rate=0.02, steps=20)
CAPS = Caps(study=Budget(epsilon=2, delta=1e-5), lifetime=Budget(epsilon=3, delta=1e-6))


def opened(path: Path) -> sqlite3.Connection:
    """As the agent's journal opens its file, without the wait for the disk."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    return db


def created(path: Path) -> sqlite3.Connection:
    db = opened(path)
    for statement in SCHEMA:
        db.execute(statement)
    return db


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def db(path: Path) -> Iterator[sqlite3.Connection]:
    """Inside a transaction, as the ledger wants it."""
    opened_db = created(path)
    opened_db.execute("BEGIN IMMEDIATE")
    yield opened_db
    opened_db.close()


@pytest.fixture
def ledger(db: sqlite3.Connection) -> Ledger:
    return Ledger(db)


def slot(number: int, study: str = STUDY) -> str:
    return f"{study}/{number}/train/1"


def rows(db: sqlite3.Connection) -> list[Any]:
    return db.execute("SELECT * FROM budget ORDER BY position").fetchall()


# --- reserving ---------------------------------------------------------------------------------------
def test_a_reservation_says_what_is_spent_after_it(ledger: Ledger, db: sqlite3.Connection) -> None:
    before = ledger.balance(WARD, STUDY, CAPS)
    assert (before.study.epsilon, before.lifetime.epsilon, before.reserved, before.committed) == (0, 0, 0, 0)
    balance = ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    assert balance == ledger.balance(WARD, STUDY, CAPS)
    assert (balance.study.epsilon, balance.study.delta) == (epsilon([A_ROUND], 1e-5), 1e-5)
    assert (balance.lifetime.epsilon, balance.lifetime.delta) == (epsilon([A_ROUND], 1e-6), 1e-6)
    assert (balance.caps, balance.reserved, balance.committed) == (CAPS, 1, 0)
    moment = "2026-11-20T12:00:00.000000Z"
    assert rows(db) == [(1, WARD, STUDY, slot(1), event_bytes(A_ROUND), "reserved", moment, None)]


def test_epsilon_is_computed_from_all_events_never_added_up(ledger: Ledger) -> None:
    other = A_ROUND.model_copy(update={"noise_multiplier": 1.3})
    first = ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    ledger.reserve(WARD, STUDY, slot(2), other, CAPS, NOW)
    third = ledger.reserve(WARD, OTHER_STUDY, slot(1, OTHER_STUDY), A_ROUND, CAPS, NOW)
    assert third.lifetime.epsilon == epsilon([A_ROUND, other, A_ROUND], 1e-6) < 3 * first.lifetime.epsilon
    assert third.study.epsilon == first.study.epsilon
    assert ledger.balance(WARD, STUDY, CAPS).study.epsilon == epsilon([other, A_ROUND], 1e-5)


def test_other_people_are_not_charged(ledger: Ledger) -> None:
    ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    assert ledger.balance(OTHER_WARD, OTHER_STUDY, CAPS).lifetime.epsilon == 0


def test_a_study_is_charged_for_all_people_it_names(ledger: Ledger) -> None:
    """Whoever moves a study to another population does not start anew: they may be the same people."""
    ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    balance = ledger.reserve(OTHER_WARD, STUDY, slot(2), A_ROUND, CAPS, NOW)
    assert balance.study.epsilon == epsilon([A_ROUND] * 2, 1e-5)
    assert balance.lifetime.epsilon == epsilon([A_ROUND], 1e-6)


def test_the_same_slot_is_spent_once(ledger: Ledger, db: sqlite3.Connection) -> None:
    first = ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    before = rows(db)
    tighter = Caps(study=Budget(epsilon=0.01, delta=1e-5), lifetime=CAPS.lifetime)
    assert ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, LATER) == first
    assert ledger.reserve(WARD, STUDY, slot(1), A_ROUND, tighter, LATER).study == first.study  # what is spent is spent
    ledger.commit(slot(1), LATER)
    assert ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, LATER).committed == 1
    assert [row[:5] for row in rows(db)] == [row[:5] for row in before]


OTHERWISE: dict[str, tuple[str, str, PoissonGaussian]] = {
    "less noise": (WARD, STUDY, A_ROUND.model_copy(update={"noise_multiplier": 1.0})),
    "more noise": (WARD, STUDY, A_ROUND.model_copy(update={"noise_multiplier": 2.0})),
    "one step more": (WARD, STUDY, A_ROUND.model_copy(update={"steps": 21})),
    "other people": (OTHER_WARD, STUDY, A_ROUND),
    "another study": (WARD, OTHER_STUDY, A_ROUND),
}


@pytest.mark.parametrize("wanted", OTHERWISE.values(), ids=OTHERWISE)
def test_a_slot_is_not_used_for_something_else(
    ledger: Ledger, db: sqlite3.Connection, wanted: tuple[str, str, PoissonGaussian]
) -> None:
    ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    before = rows(db)
    population, study, release = wanted
    with pytest.raises(SlotReserved):
        ledger.reserve(population, study, slot(1), release, CAPS, NOW)
    assert rows(db) == before


# --- caps --------------------------------------------------------------------------------------------
def test_the_study_cap_holds_to_the_last_round_and_no_further(ledger: Ledger, db: sqlite3.Connection) -> None:
    fitting = steps_left(CAPS.study, A_ROUND, [])
    for number in range(1, fitting + 1):
        balance = ledger.reserve(WARD, STUDY, slot(number), A_ROUND, CAPS, NOW)
    assert balance.study.epsilon <= 2 < epsilon([A_ROUND] * (fitting + 1), 1e-5)
    with pytest.raises(BudgetExceeded, match=r"the study would come to epsilon .*, its cap is 2 and .* is left") as why:
        ledger.reserve(WARD, STUDY, slot(fitting + 1), A_ROUND, CAPS, NOW)
    refused = why.value
    assert (refused.code, refused.which, refused.cap) == ("BUDGET_SPENT", "study", 2)
    assert refused.asked == epsilon([A_ROUND] * (fitting + 1), 1e-5)
    assert refused.left == 2 - balance.study.epsilon
    assert len(rows(db)) == fitting


def test_the_lifetime_cap_holds_over_all_studies(ledger: Ledger, db: sqlite3.Connection) -> None:
    caps = Caps(study=Budget(epsilon=1, delta=1e-4), lifetime=CAPS.lifetime)  # no study comes near its own
    fitting = steps_left(CAPS.lifetime, A_ROUND, [])
    for number in range(1, fitting + 1):
        balance = ledger.reserve(WARD, f"study-{number:08x}", slot(1, f"study-{number:08x}"), A_ROUND, caps, NOW)
    with pytest.raises(BudgetExceeded, match="the lifetime would") as why:
        ledger.reserve(WARD, "one-more-00000000", slot(1, "one-more-00000000"), A_ROUND, caps, NOW)
    assert (why.value.which, why.value.asked) == ("lifetime", epsilon([A_ROUND] * (fitting + 1), 1e-6))
    assert why.value.left == 3 - balance.lifetime.epsilon
    assert len(rows(db)) == fitting


def test_exactly_the_cap_is_allowed(ledger: Ledger) -> None:
    exact = epsilon([A_ROUND], 1e-5)
    ledger.reserve(
        WARD, STUDY, slot(1), A_ROUND, Caps(study=Budget(epsilon=exact, delta=1e-5), lifetime=CAPS.lifetime), NOW
    )
    less = Caps(study=Budget(epsilon=math.nextafter(exact, 0), delta=1e-5), lifetime=CAPS.lifetime)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(WARD, OTHER_STUDY, slot(2), A_ROUND, less, NOW)


def test_a_cap_that_was_lowered_below_what_is_spent_leaves_nothing(ledger: Ledger) -> None:
    ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    lowered = Caps(study=Budget(epsilon=0.05, delta=1e-5), lifetime=CAPS.lifetime)
    with pytest.raises(BudgetExceeded) as why:
        ledger.reserve(WARD, STUDY, slot(2), A_ROUND, lowered, NOW)
    assert why.value.left == 0


# --- committing --------------------------------------------------------------------------------------
def test_committing_changes_no_epsilon(ledger: Ledger, db: sqlite3.Connection) -> None:
    reserved = ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    ledger.commit(slot(1), NOW)
    ledger.commit(slot(1), LATER)
    balance = ledger.balance(WARD, STUDY, CAPS)
    assert (balance.study, balance.lifetime) == (reserved.study, reserved.lifetime)
    assert (balance.reserved, balance.committed) == (0, 1)
    assert rows(db)[0][5:] == ("committed", "2026-11-20T12:00:00.000000Z", "2026-11-20T12:00:00.000000Z")


def test_what_was_not_reserved_cannot_be_committed(ledger: Ledger) -> None:
    with pytest.raises(KeyError):
        ledger.commit(slot(1), NOW)


# --- what is refused ---------------------------------------------------------------------------------
def test_it_writes_only_in_the_callers_transaction(ledger: Ledger, db: sqlite3.Connection) -> None:
    db.execute("COMMIT")
    with pytest.raises(RuntimeError, match="one transaction"):
        ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    with pytest.raises(RuntimeError, match="one transaction"):
        ledger.commit(slot(1), NOW)
    assert rows(db) == []


def test_what_the_caller_rolls_back_was_not_reserved(ledger: Ledger, db: sqlite3.Connection) -> None:
    ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    db.execute("ROLLBACK")
    db.execute("BEGIN IMMEDIATE")
    ledger.reserve(WARD, STUDY, slot(2), A_ROUND, CAPS, NOW)
    assert [row[0] for row in rows(db)] == [1]


UNACCOUNTABLE: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "another unit": ({"unit": "image"}, UnknownPrivacyEvent),
    "another mechanism": ({"mechanism": "laplace"}, UnknownPrivacyEvent),
    "more steps than can be read back": ({"steps": 10**9 + 1}, UnknownPrivacyEvent),
    "no noise": ({"noise_multiplier": 0.0}, UnknownPrivacyEvent),
}


@pytest.mark.parametrize(("changes", "refusal"), UNACCOUNTABLE.values(), ids=UNACCOUNTABLE)
def test_a_release_without_a_known_cost_is_not_reserved(
    ledger: Ledger, db: sqlite3.Connection, changes: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        ledger.reserve(WARD, STUDY, slot(1), A_ROUND.model_copy(update=changes), CAPS, NOW)
    assert rows(db) == []


def test_a_cap_at_a_delta_out_of_range_allows_nothing(ledger: Ledger, db: sqlite3.Connection) -> None:
    nan = CAPS.study.model_copy(update={"delta": math.nan})
    with pytest.raises(NotAccountable):
        ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS.model_copy(update={"study": nan}), NOW)
    assert rows(db) == []


def test_a_moment_needs_its_offset(ledger: Ledger) -> None:
    with pytest.raises(CallerFault):
        ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, datetime(2026, 11, 20))  # noqa: DTZ001 - that is refused


# --- nobody rewrites it ------------------------------------------------------------------------------
COMMIT = "UPDATE budget SET state = 'committed', committed_at = 'today'"
REWRITES = {
    "a refund": "DELETE FROM budget WHERE slot = 's1'",
    "a refund of everything": "DELETE FROM budget",
    "a commit taken back": "UPDATE budget SET state = 'reserved', committed_at = NULL WHERE slot = 's2'",
    "a commit without its moment": "UPDATE budget SET state = 'committed' WHERE slot = 's1'",
    "a moment without its commit": "UPDATE budget SET committed_at = 'today' WHERE slot = 's1'",
    "a commit at another moment": "UPDATE budget SET committed_at = 'today' WHERE slot = 's2'",
    "a second commit": f"{COMMIT} WHERE slot = 's2'",
    "a state of its own": "UPDATE budget SET state = 'refunded', committed_at = 'today' WHERE slot = 's1'",
    "a cheaper event": "UPDATE budget SET event = x'00' WHERE slot = 's1'",
    "other people": "UPDATE budget SET population = 'nobody' WHERE slot = 's1'",
    "other people on commit": f"{COMMIT}, population = 'y' WHERE slot = 's1'",
    "another study on commit": f"{COMMIT}, study = 'y' WHERE slot = 's1'",
    "another slot on commit": f"{COMMIT}, slot = 'y' WHERE slot = 's1'",
    "another event on commit": f"{COMMIT}, event = '' WHERE slot = 's1'",
    "another time on commit": f"{COMMIT}, reserved_at = 'y' WHERE slot = 's1'",
    "another place on commit": f"{COMMIT}, position = 9 WHERE slot = 's1'",
    "nothing at all": "UPDATE budget SET slot = slot",
    "one over another": "UPDATE OR REPLACE budget SET slot = 's2' WHERE slot = 's1'",
    "a cheaper one over it": (
        "INSERT OR REPLACE INTO budget VALUES (NULL, 'p', 's', 's1', x'00', 'reserved', 't', NULL)"
    ),
    "a cheaper one in its place": (
        "INSERT OR REPLACE INTO budget VALUES (1, 'p', 's', 's9', x'00', 'reserved', 't', NULL)"
    ),
    "an update in disguise": (
        "INSERT INTO budget VALUES (1, 'p', 's', 's1', x'00', 'reserved', 't', NULL) "
        "ON CONFLICT DO UPDATE SET event = x'00'"
    ),
    "an entry that was never reserved": "INSERT INTO budget VALUES (3, 'p', 's', 's3', x'00', 'committed', 't', 't')",
    "an entry with a commit's moment": "INSERT INTO budget VALUES (3, 'p', 's', 's3', x'00', 'reserved', 't', 't')",
    "an entry of no state": "INSERT INTO budget VALUES (3, 'p', 's', 's3', x'00', 'new', 't', NULL)",
    "an entry of nobody": "INSERT INTO budget VALUES (3, NULL, 's', 's3', x'00', 'reserved', 't', NULL)",
}


@pytest.mark.parametrize("statement", REWRITES.values(), ids=REWRITES)
def test_the_database_itself_refuses_to_rewrite_it(ledger: Ledger, db: sqlite3.Connection, statement: str) -> None:
    for name in ("s1", "s2"):
        ledger.reserve(WARD, STUDY, name, A_ROUND, CAPS, NOW)
    ledger.commit("s2", NOW)
    before = rows(db)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    assert rows(db) == before


# --- what cannot be read -----------------------------------------------------------------------------
DAMAGE = {
    "an unknown mechanism": "UPDATE budget SET event = replace(event, 'gaussian', 'cauchian') WHERE position = 2",
    "another unit": "UPDATE budget SET event = replace(event, 'patient', 'image') WHERE position = 2",
    "a key more": "UPDATE budget SET event = replace(event, '{', '{\"clip\":1,') WHERE position = 2",
    "a noise of 0": "UPDATE budget SET event = replace(event, ':1.1', ':0') WHERE position = 2",
    "half an event": "UPDATE budget SET event = substr(event, 1, 40) WHERE position = 2",
    "nothing": "UPDATE budget SET event = x'' WHERE position = 2",
    "a number": "UPDATE budget SET event = 1000000000000 WHERE position = 2",
    "the first entry is gone": "DELETE FROM budget WHERE position = 1",
    "the last entry is gone": "DELETE FROM budget WHERE position = 3",
    "all entries are gone": "DELETE FROM budget",
    "an entry was moved": "UPDATE budget SET position = 7 WHERE position = 2",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_ledger_releases_nothing(ledger: Ledger, db: sqlite3.Connection, statement: str) -> None:
    for number in (1, 2, 3):
        ledger.reserve(WARD, STUDY, slot(number), A_ROUND, CAPS, NOW)
    for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(statement)
    before = rows(db)
    with pytest.raises(LedgerUnreadable):
        ledger.reserve(WARD, STUDY, slot(4), A_ROUND, CAPS, NOW)
    with pytest.raises(LedgerUnreadable):
        ledger.balance(WARD, STUDY, CAPS)
    assert rows(db) == before


def test_an_event_of_a_newer_agent_stops_an_older_one(ledger: Ledger, db: sqlite3.Connection) -> None:
    db.execute(
        "INSERT INTO budget VALUES (1, ?, ?, 's', '{\"mechanism\":\"new\"}', 'reserved', 't', NULL)", (WARD, STUDY)
    )
    with pytest.raises(LedgerUnreadable, match="an entry of ct-contrast-0123abcd that is no release"):
        ledger.reserve(WARD, STUDY, slot(1), A_ROUND, CAPS, NOW)
    with pytest.raises(LedgerUnreadable, match="an entry of ct-archive"):  # another study, the same people
        ledger.reserve(WARD, OTHER_STUDY, slot(1), A_ROUND, CAPS, NOW)


# --- killed ------------------------------------------------------------------------------------------
CHILD = """
import sqlite3, sys, time
from datetime import UTC, datetime
from compliance.ledger import Caps, Ledger
from compliance.privacy import Budget, PoissonGaussian
db = sqlite3.connect(sys.argv[1], isolation_level=None)
caps = Caps(study=Budget(epsilon=2, delta=1e-5), lifetime=Budget(epsilon=3, delta=1e-6))
event = PoissonGaussian(noise_multiplier=1.1, sampling_rate=0.02, steps=20)
db.execute("BEGIN IMMEDIATE")
Ledger(db).reserve("ct-archive", "ct-contrast-0123abcd", "s1", event, caps, datetime.now(UTC))
if sys.argv[2] == "training":
    db.execute("COMMIT")
print("now", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("killed_while", "spent"), [("reserving", 0), ("training", 1)])
def test_a_process_killed_before_its_commit_leaves_what_it_reserved(path: Path, killed_while: str, spent: int) -> None:
    created(path).close()
    child = subprocess.Popen([sys.executable, "-c", CHILD, path, killed_while], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout as said:
        assert said.readline() == "now\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
    db = opened(path)
    ledger = Ledger(db)
    balance = ledger.balance(WARD, STUDY, CAPS)
    assert (balance.reserved, balance.committed) == (spent, 0)
    assert balance.study.epsilon == epsilon([A_ROUND] * spent, 1e-5)
    db.execute("BEGIN IMMEDIATE")
    assert ledger.reserve(WARD, STUDY, "s2", A_ROUND, CAPS, NOW).study.epsilon == epsilon([A_ROUND] * (spent + 1), 1e-5)
    db.close()


# --- any history -------------------------------------------------------------------------------------
UNIT = 64  # one unit is a Gaussian of noise multiplier 8: n units cost what n / 64 = 1 / sigma^2 costs
Spent = tuple[str, str, int]  # population, study, units


def gaussian(units: int) -> PoissonGaussian:
    return PoissonGaussian(noise_multiplier=math.sqrt(UNIT / units), sampling_rate=1, steps=1)


def affordable(cap: Budget) -> int:
    """How many units fit, by the textbook: Renyi divergence order / 2 sigma^2, and the conversion spelled out."""

    def cost(units: int, order: int) -> float:
        log_term = math.log(1 / cap.delta) + (order - 1) * math.log(1 - 1 / order) - math.log(order)
        return order * units / (2 * UNIT) + log_term / (order - 1)

    return max(n for n in range(200) if min(cost(n, order) for order in range(2, 65)) <= cap.epsilon)


def exact_delta(units: int, at_epsilon: float) -> float:
    """Of the Gaussian mechanism itself, without any bound: Balle and Wang, arXiv:1805.06530, theorem 8."""
    mu = math.sqrt(units / UNIT)

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return below(mu / 2 - at_epsilon / mu) - math.exp(at_epsilon) * below(-mu / 2 - at_epsilon / mu)


LIMITS: dict[Literal["study", "lifetime"], int] = {
    "study": affordable(CAPS.study),
    "lifetime": affordable(CAPS.lifetime),
}


class Hospital(RuleBasedStateMachine):
    """Trainings that are reserved, released and committed, and an agent that dies between any two steps.

    The model counts whole units and knows nothing of events, SQL or floating point.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.sqlite"
        self.db = created(self.path)
        self.ledger = Ledger(self.db)
        self.entries: dict[str, tuple[Spent, str]] = {}  # what is on the disk: slot, and its state
        self.pending: dict[str, tuple[Spent, str]] = {}  # with what the open transaction has changed
        self.released: dict[str, Spent] = {}

    def teardown(self) -> None:
        self.db.close()
        self.folder.cleanup()

    def begin(self) -> None:
        if not self.db.in_transaction:
            self.db.execute("BEGIN IMMEDIATE")
            self.pending = dict(self.entries)

    @rule(
        number=st.integers(1, 12),
        population=st.sampled_from((WARD, WARD, OTHER_WARD)),
        study=st.sampled_from((STUDY, OTHER_STUDY, "third-89abcdef")),
        units=st.sampled_from((1, 2, 3, 5, 8)),
    )
    def reserve(self, number: int, population: str, study: str, units: int) -> None:
        self.begin()
        name, wanted = f"slot {number}", (population, study, units)
        held = self.pending.get(name)
        before = [spent for spent, _ in self.pending.values()]
        totals = {
            "study": units + sum(n for _, s, n in before if s == study),
            "lifetime": units + sum(n for p, _, n in before if p == population),
        }
        passed = [which for which, limit in LIMITS.items() if totals[which] > limit]
        outcome = "reserved"
        try:
            self.ledger.reserve(population, study, name, gaussian(units), CAPS, NOW)
        except SlotReserved:
            outcome = "taken"
        except BudgetExceeded as why:
            outcome = why.which
        if held is not None:
            assert outcome == ("reserved" if held[0] == wanted else "taken")
        else:
            assert outcome == (passed[0] if passed else "reserved")
            event(f"new: {outcome}")
        if outcome == "reserved":
            self.pending.setdefault(name, (wanted, "reserved"))

    @rule(data=st.data())
    def train_and_release(self, data: st.DataObject) -> None:
        """Only what is on the disk: the reservation's transaction is over before training starts."""
        names = [name for name, (_, state) in self.entries.items() if state == "reserved"]
        if names:
            name = data.draw(st.sampled_from(names))
            self.released[name] = self.entries[name][0]
            self.look_at_the_disk()

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        if self.released:
            self.begin()
            name = data.draw(st.sampled_from(list(self.released)))
            self.ledger.commit(name, LATER)
            self.pending[name] = (self.released[name], "committed")

    @rule(how=st.sampled_from(("all of it", "all of it", "all of it", "none of it", "crash")))
    def end_of_a_transaction(self, how: str) -> None:
        """A crash, in or between transactions: the connection is gone, with whatever was not on the disk."""
        event(f"{how} {'in' if self.db.in_transaction else 'between'} transactions")
        if how == "crash":
            self.db.close()
            self.db = opened(self.path)
            self.ledger = Ledger(self.db)
        elif self.db.in_transaction:
            self.db.execute("COMMIT" if how == "all of it" else "ROLLBACK")
            self.entries = self.pending if how == "all of it" else self.entries
        self.look_at_the_disk()

    def look_at_the_disk(self) -> None:
        """As another process, which does not see what is not committed."""
        witness = opened(self.path)
        try:
            self.look(witness)
        finally:
            witness.close()

    def look(self, witness: sqlite3.Connection) -> None:
        stored = witness.execute("SELECT slot, population, study, event, state FROM budget").fetchall()
        assert {row[0]: row[1:] for row in stored} == {
            name: (population, study, event_bytes(gaussian(units)), state)
            for name, ((population, study, units), state) in self.entries.items()
        }
        for population, study in {(p, s) for (p, s, _), _ in self.entries.values()}:
            balance = Ledger(witness).balance(population, study, CAPS)
            of_study = sum(n for _, s, n in self.released.values() if s == study)
            of_people = sum(n for p, _, n in self.released.values() if p == population)
            assert balance.study.epsilon <= CAPS.study.epsilon
            assert balance.lifetime.epsilon <= CAPS.lifetime.epsilon
            assert not of_study or exact_delta(of_study, balance.study.epsilon) <= CAPS.study.delta
            assert not of_people or exact_delta(of_people, balance.lifetime.epsilon) <= CAPS.lifetime.delta


TestHospital = Hospital.TestCase
TestHospital.settings = settings(
    deadline=None,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
    max_examples=int(os.environ.get("WARDROUND_EXAMPLES", "60")),
)


def test_the_limits_of_the_machine_are_within_its_reach() -> None:
    assert LIMITS == {"study": 13, "lifetime": 23}

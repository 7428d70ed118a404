"""The hospital's ledger: which releases its patients' data was reserved for, and what they cost together.

The rules it keeps. A release is reserved before its training starts and counts from then on: a crash, a withdrawn
consent or an abandoned round leave it spent, nothing is ever refunded. Epsilon is computed anew from all events,
never added up. What the ledger cannot read, it refuses to build on.

It lives in a database of the caller, who begins and commits: a reservation, its audit entry and the step that it
allows are one transaction. BEGIN IMMEDIATE, or two processes could look before either of them writes.
"""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from boundary.names import Frozen, timestamp
from compliance.accountant import epsilon
from compliance.errors import BudgetExceeded, LedgerUnreadable, SlotReserved, UnknownPrivacyEvent
from compliance.privacy import Budget, PrivacyEvent, Spent, event_bytes, parse_event

# Positions are handed out without a gap and AUTOINCREMENT remembers the last one: a row that was taken out shows.
# The triggers hold against every statement, also INSERT OR REPLACE, which deletes without asking a DELETE trigger.
SCHEMA: tuple[str, ...] = (
    """CREATE TABLE budget (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    population TEXT NOT NULL,            -- which people: data sets that may share patients have one population
    study TEXT NOT NULL,
    slot TEXT NOT NULL UNIQUE,           -- one start of one training
    event BLOB NOT NULL,                 -- compliance.privacy.event_bytes
    state TEXT NOT NULL CHECK (state IN ('reserved', 'committed')),
    reserved_at TEXT NOT NULL,
    committed_at TEXT
)""",
    "CREATE INDEX budget_by_population ON budget (population)",
    "CREATE INDEX budget_by_study ON budget (study)",
    """CREATE TRIGGER budget_starts_reserved BEFORE INSERT ON budget
WHEN NEW.state IS NOT 'reserved' OR NEW.committed_at IS NOT NULL
    OR EXISTS (SELECT 1 FROM budget WHERE slot = NEW.slot OR position = NEW.position)
BEGIN SELECT RAISE(ABORT, 'an entry of the privacy ledger is new and starts as reserved'); END""",
    """CREATE TRIGGER budget_only_commits BEFORE UPDATE ON budget
WHEN OLD.state IS NOT 'reserved' OR NEW.state IS NOT 'committed' OR NEW.committed_at IS NULL
    OR NEW.position IS NOT OLD.position OR NEW.population IS NOT OLD.population OR NEW.study IS NOT OLD.study
    OR NEW.slot IS NOT OLD.slot OR NEW.event IS NOT OLD.event OR NEW.reserved_at IS NOT OLD.reserved_at
BEGIN SELECT RAISE(ABORT, 'an entry of the privacy ledger only ever becomes committed'); END""",
    """CREATE TRIGGER budget_is_never_refunded BEFORE DELETE ON budget
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is never refunded'); END""",
)


class Caps(Frozen):
    """What the plan allows its study here, and what the hospital allows all studies on the same people together."""

    study: Budget
    lifetime: Budget


class Balance(Frozen):
    """What is spent, reserved or committed alike, and how many releases of the study are in which state."""

    study: Spent
    lifetime: Spent
    caps: Caps
    reserved: int
    committed: int


class Ledger:
    """The ledger in `db`, which has `SCHEMA` in it and belongs to the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def reserve(
        self, population: str, study: str, slot: str, event: PrivacyEvent, caps: Caps, now: datetime
    ) -> Balance:
        """Spend `event` on `slot`, inside the caller's transaction; returns the balance after it.

        Reserving a slot again for the same changes nothing; for anything else it raises `SlotReserved`. Raises
        `BudgetExceeded` if a cap would be passed, `LedgerUnreadable` if what is spent cannot be computed.
        """
        self._inside()
        wanted = (population, study, event_bytes(event))
        event = parse_event(wanted[2])  # what could not be read back is not written
        held = self._db.execute("SELECT population, study, event FROM budget WHERE slot = ?", (slot,)).fetchone()
        if held is None:
            _check("study", caps.study, self.of_study(study), event)
            _check("lifetime", caps.lifetime, self.of_population(population), event)
            (last,) = self._db.execute("SELECT COALESCE(MAX(position), 0) FROM budget").fetchone()
            self._db.execute(
                "INSERT INTO budget VALUES (?, ?, ?, ?, ?, 'reserved', ?, NULL)",
                (last + 1, population, study, slot, wanted[2], timestamp(now)),
            )
        elif held != wanted:
            raise SlotReserved(f"{slot} was reserved for another release")
        return self.balance(population, study, caps)

    def after(self, population: str, study: str, event: PrivacyEvent, caps: Caps) -> tuple[Spent, Spent]:
        """What study and lifetime would come to with `event`; nothing is spent. Raises `LedgerUnreadable`."""
        return (
            _spent([*self.of_study(study), event], caps.study.delta),
            _spent([*self.of_population(population), event], caps.lifetime.delta),
        )

    def commit(self, slot: str, now: datetime) -> None:
        """The release of `slot` has left; committing again changes nothing. Raises `KeyError` for an unknown slot."""
        self._inside()
        if self._db.execute("SELECT 1 FROM budget WHERE slot = ?", (slot,)).fetchone() is None:
            raise KeyError(slot)
        self._db.execute(
            "UPDATE budget SET state = 'committed', committed_at = ? WHERE slot = ? AND state = 'reserved'",
            (timestamp(now), slot),
        )

    def balance(self, population: str, study: str, caps: Caps) -> Balance:
        """What is spent now; raises `LedgerUnreadable`."""
        states = dict(self._db.execute("SELECT state, COUNT(*) FROM budget WHERE study = ? GROUP BY state", (study,)))
        return Balance(
            study=_spent(self.of_study(study), caps.study.delta),
            lifetime=_spent(self.of_population(population), caps.lifetime.delta),
            caps=caps,
            reserved=states.get("reserved", 0),
            committed=states.get("committed", 0),
        )

    def of_study(self, study: str) -> list[PrivacyEvent]:
        """Everything the study has spent here, whichever people it names: they may be the same. In no order."""
        return self._events("SELECT CAST(event AS BLOB), COUNT(*) FROM budget WHERE study = ? GROUP BY 1", study)

    def of_population(self, population: str) -> list[PrivacyEvent]:
        """Everything that was spent on these people, by any study. In no order."""
        return self._events(
            "SELECT CAST(event AS BLOB), COUNT(*) FROM budget WHERE population = ? GROUP BY 1", population
        )

    def _events(self, query: str, name: str) -> list[PrivacyEvent]:
        """Reserved and committed alike. A study repeats one event, so the same bytes are parsed once."""
        self._expect_no_gap()
        found: list[PrivacyEvent] = []
        for stored, count in self._db.execute(query, (name,)):
            try:
                found += [parse_event(stored)] * count
            except UnknownPrivacyEvent as why:
                raise LedgerUnreadable(f"the privacy ledger has an entry of {name} that is no release: {why}") from why
        return found

    def _expect_no_gap(self) -> None:
        count, last, handed_out = self._db.execute(
            "SELECT COUNT(*), COALESCE(MAX(position), 0), "
            "COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'budget'), 0) FROM budget"
        ).fetchone()
        if not count == last == handed_out:
            raise LedgerUnreadable(f"the privacy ledger has {count} entries of {max(last, handed_out)}: some are gone")

    def _inside(self) -> None:
        if not self._db.in_transaction:
            raise RuntimeError("a reservation and its audit entry belong into one transaction")


def _spent(events: Sequence[PrivacyEvent], delta: float) -> Spent:
    return Spent(epsilon=epsilon(events, delta), delta=delta)


def _check(
    which: Literal["study", "lifetime"], cap: Budget, before: Sequence[PrivacyEvent], event: PrivacyEvent
) -> None:
    asked = epsilon([*before, event], cap.delta)
    if asked > cap.epsilon:
        left = max(0.0, cap.epsilon - epsilon(before, cap.delta))
        raise BudgetExceeded(which, asked=asked, cap=cap.epsilon, left=left)

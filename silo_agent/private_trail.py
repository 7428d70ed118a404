"""The hospital's private log: who withdrew consent, as a keyed hash. It is never sent, and never shown.

The shared trail names each entry by its digest and says when it took effect where, so that nothing here can be changed
unseen; the entry itself can be erased later, and the shared trail still verifies. It lives in the journal's database,
in the transactions of its owner.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.names import encode_base64, timestamp
from compliance.trail import SALT_BYTES

LEAF_VERSION = 1
SCHEMA = (
    "CREATE TABLE private_trail (sequence INTEGER PRIMARY KEY AUTOINCREMENT, leaf BLOB)",  # NULL once it was erased
    """CREATE TABLE withdrawn (
    sequence INTEGER PRIMARY KEY REFERENCES private_trail (sequence), reference TEXT NOT NULL UNIQUE,
    withdrawn_at TEXT NOT NULL, private TEXT NOT NULL,
    erased_at TEXT)""",  # NULL until it is out of every cache
    """CREATE TABLE withdrawn_from (
    sequence INTEGER REFERENCES withdrawn (sequence), study TEXT, round INTEGER NOT NULL, decision TEXT NOT NULL,
    PRIMARY KEY (sequence, study)) WITHOUT ROWID""",
    # whom a study's data are of, and how many had withdrawn when they were fixed; outlives the study's images
    "CREATE TABLE cohorts (study TEXT PRIMARY KEY, withdrawn_before INTEGER NOT NULL, known BLOB NOT NULL)",
)
Decision = Literal["keep", "retrain", "retire"]


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """One entry: when, its digest as the shared trail has it, and since when the patient is in no cache."""

    sequence: int
    reference: str
    withdrawn_at: str
    private: str
    erased_at: str | None


@dataclass(frozen=True, slots=True)
class Effect:
    """From which round on a study does without the patient, and what was decided of its models."""

    study: str
    round: int
    decision: Decision


class PrivateTrail:
    """The private log in `db`, which has `SCHEMA` in it. The caller begins and commits."""

    def __init__(self, db: sqlite3.Connection, silo: str, entropy: Callable[[int], bytes]) -> None:
        self._db, self._silo, self._entropy = db, silo, entropy

    # --- who -----------------------------------------------------------------------------------------
    def withdraw(self, reference: str, now: datetime) -> Withdrawal:
        """Append an entry, inside the transaction of the shared trail's entry that names it."""
        if not self._db.in_transaction:
            raise RuntimeError("a withdrawal and its audit entry belong into one transaction")
        sequence, time = self.last + 1, timestamp(now)
        leaf = canonical_bytes(
            {
                "v": LEAF_VERSION,
                "log": f"{self._silo}/private",
                "seq": sequence,
                "time": time,
                "salt": encode_base64(self._entropy(SALT_BYTES)),
                "event": "patient-withdrawn",
                "reference": reference,
            }
        )
        private: Digest = digest(leaf)
        self._db.execute("INSERT INTO private_trail (sequence, leaf) VALUES (?, ?)", (sequence, leaf))
        self._db.execute("INSERT INTO withdrawn VALUES (?, ?, ?, ?, NULL)", (sequence, reference, time, private))
        return Withdrawal(sequence, reference, time, private, None)

    @property
    def last(self) -> int:
        """How many withdrew so far."""
        (last,) = self._db.execute("SELECT COALESCE(MAX(sequence), 0) FROM private_trail").fetchone()
        return int(last)

    def withdrawals(self) -> list[Withdrawal]:
        return [Withdrawal(*row) for row in self._db.execute("SELECT * FROM withdrawn ORDER BY sequence")]

    def find(self, reference: str) -> Withdrawal | None:
        row = self._db.execute("SELECT * FROM withdrawn WHERE reference = ?", (reference,)).fetchone()
        return None if row is None else Withdrawal(*row)

    def around(self, known: int, excluded: frozenset[str] = frozenset()) -> dict[str, list[str]]:
        """References of the first `known` who withdrew, and of those since, as a scan is told them.

        Who is on the hospital's list (`excluded`) counts as of before, unless they withdrew since.
        """
        said: dict[str, list[str]] = {"before": [], "after": []}
        for one in self.withdrawals():
            said["before" if one.sequence <= known else "after"].append(one.reference)
        said["before"] += sorted(excluded.difference(*said.values()))
        return said

    @property
    def unfinished(self) -> bool:
        """Whether somebody who withdrew may still be in a cache."""
        return self._db.execute("SELECT 1 FROM withdrawn WHERE erased_at IS NULL").fetchone() is not None

    def unfinished_of(self) -> list[str]:
        """Studies from whose data somebody of them withdrew."""
        wanted = (
            "SELECT DISTINCT study FROM withdrawn_from JOIN withdrawn USING (sequence) WHERE erased_at IS NULL "
            "ORDER BY study"
        )
        return [study for (study,) in self._db.execute(wanted)]

    def finished(self, upto: int, now: datetime) -> None:
        """The first `upto` who withdrew are in no cache any more."""
        self._db.execute(
            "UPDATE withdrawn SET erased_at = ? WHERE erased_at IS NULL AND sequence <= ?", (timestamp(now), upto)
        )

    # --- from what -----------------------------------------------------------------------------------
    def take_effect(self, one: Withdrawal, effect: Effect) -> None:
        row = (one.sequence, effect.study, effect.round, effect.decision)
        self._db.execute("INSERT INTO withdrawn_from VALUES (?, ?, ?, ?)", row)

    def effects(self, one: Withdrawal) -> list[Effect]:
        wanted = "SELECT study, round, decision FROM withdrawn_from WHERE sequence = ? ORDER BY study"
        return [Effect(*row) for row in self._db.execute(wanted, (one.sequence,))]

    def effective_from(self, study: str) -> int:
        """The first round without everybody who withdrew from this study so far; 0 if nobody did."""
        wanted = "SELECT COALESCE(MAX(round), 0) FROM withdrawn_from WHERE study = ?"
        (number,) = self._db.execute(wanted, (study,)).fetchone()
        return int(number)

    def count_of(self, study: str) -> int:
        """How many withdrew from the study's data since they were fixed."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM withdrawn_from WHERE study = ?", (study,)).fetchone()
        return int(count)

    def keep_cohort(self, study: str, withdrawn_before: int, known: bytes) -> None:
        """Remember whom the study's data are of (`silo_agent.intake.withdrawn.known_patients`), of its newest scan."""
        self._db.execute("INSERT OR REPLACE INTO cohorts VALUES (?, ?, ?)", (study, withdrawn_before, known))

    def cohort(self, study: str) -> tuple[int, bytes]:
        """How many had withdrawn when the study's data were fixed, and its patients; (0, nobody) before its scan."""
        row = self._db.execute("SELECT withdrawn_before, known FROM cohorts WHERE study = ?", (study,)).fetchone()
        return (0, b"") if row is None else (int(row[0]), bytes(row[1]))

"""The agent's memory: orders, results, outbox, audit trail. SQLite, one transaction per step, kill -9 safe.

The rules it keeps: an order is answered once and its answer is these bytes for ever; no step without its audit
entry in the same transaction; what has to leave stays in the outbox until the relay has acknowledged it.
"""

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Literal

from boundary.canonical import parse_json
from boundary.checkpoint import Checkpoint
from boundary.messages import MEASURING
from boundary.names import timestamp
from boundary.plan import StudyPlan, plan_from_json
from boundary.protocol import FINAL, Heard, Step, next_step
from compliance.events import AnyEvent
from compliance.ledger import SCHEMA as LEDGER_SCHEMA
from compliance.ledger import Ledger
from compliance.merkle import closed_by, leaf_hash, root_at
from compliance.trail import SALT_BYTES, leaf_bytes
from silo_agent.errors import ConfigError, StateUnavailable, UpgradeNeeded, disk_code
from silo_agent.private_trail import SCHEMA as PRIVATE_SCHEMA
from silo_agent.private_trail import PrivateTrail

SCHEMA_VERSION = 4
_FIRST_WITH_A_TREE = 4
_PASSING = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR})
LOCK_SECONDS = 30.0  # how long one process waits for another's transaction; masking a large vector takes seconds
_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE plans (
    study TEXT PRIMARY KEY, digest TEXT NOT NULL, plan BLOB NOT NULL, received_at TEXT NOT NULL,
    state TEXT NOT NULL,            -- received, scanned, unsuitable, approved, declined, closed
    dataset_digest TEXT, approval BLOB, reason TEXT
);
CREATE TABLE orders (
    collection TEXT PRIMARY KEY, study TEXT NOT NULL, round INTEGER NOT NULL, phase TEXT NOT NULL,
    digest TEXT NOT NULL, envelope BLOB NOT NULL, step TEXT NOT NULL, starts INTEGER NOT NULL DEFAULT 0,
    result TEXT
);
CREATE INDEX orders_by_study ON orders (study, round);
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT, slot TEXT NOT NULL UNIQUE, study TEXT NOT NULL,
    kind TEXT NOT NULL, envelope BLOB NOT NULL, blob_path TEXT, blob_digest TEXT, blob_size INTEGER,
    state TEXT NOT NULL DEFAULT 'waiting',   -- waiting, acknowledged, rejected
    verdict TEXT
);
CREATE TABLE trail (sequence INTEGER PRIMARY KEY AUTOINCREMENT, leaf BLOB NOT NULL);
"""
_SPENT = "CREATE TABLE spent (result TEXT PRIMARY KEY, collection TEXT NOT NULL, survivors TEXT NOT NULL)"
_EVIDENCE = (
    """CREATE TABLE tree (
    level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, position)) WITHOUT ROWID""",
    # the newest head of each other party's log that we verified, and what did not fit to it
    "CREATE TABLE heads (log TEXT PRIMARY KEY, checkpoint BLOB NOT NULL)",
    """CREATE TABLE agreed (
    study TEXT, round INTEGER, phase TEXT, survivors TEXT, silos TEXT NOT NULL,
    PRIMARY KEY (study, round, phase, survivors)) WITHOUT ROWID""",
    """CREATE TABLE incidents (
    incident INTEGER PRIMARY KEY, log TEXT NOT NULL, code TEXT NOT NULL, opened_at TEXT NOT NULL,
    evidence BLOB NOT NULL, closed_at TEXT)""",
    *PRIVATE_SCHEMA,
)
_STEPS = (
    [statement for statement in _SCHEMA.split(";\n") if statement.strip()], [_SPENT], LEDGER_SCHEMA, _EVIDENCE
)  # fmt: skip

_WAITING = (
    "SELECT position, slot, study, kind, envelope, blob_path, blob_digest, blob_size FROM outbox "
    "WHERE state = 'waiting'"
)

PlanState = Literal["received", "scanned", "unsuitable", "approved", "declined", "closed"]


@dataclass(frozen=True, slots=True)
class KeptPlan:
    """A plan the coordinator proposed, and what the hospital made of it."""

    study: str
    digest: str
    plan: bytes
    received_at: str
    state: PlanState
    dataset_digest: str | None
    approval: bytes | None
    reason: str | None

    @property
    def parsed(self) -> StudyPlan:
        return plan_from_json(parse_json(self.plan))


@dataclass(frozen=True, slots=True)
class KeptOrder:
    """An accepted work order and how far it got. `result` is the folder of the stored result."""

    collection: str
    study: str
    round: int
    phase: str
    digest: str
    envelope: bytes
    step: Step
    starts: int
    result: str | None


@dataclass(frozen=True, slots=True)
class Parcel:
    """Something that has to leave: an envelope, and the blob that must be there before it."""

    position: int
    slot: str
    study: str
    kind: str
    envelope: bytes
    blob_path: str | None
    blob_digest: str | None
    blob_size: int | None


@dataclass(frozen=True, slots=True)
class Incident:
    """A log that was not what it was. `evidence` is a `compliance.witnessing.Contradiction`."""

    incident: int
    log: str
    code: str
    opened_at: str
    evidence: bytes
    closed_at: str | None


class Journal:
    """One agent's journal. Use it from one thread; other processes may use the same file."""

    def __init__(self, path: Path, silo: str, entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """Open or make the file; `entropy` salts the trail.

        Raises `ConfigError` for a file we cannot use, a `StateUnavailable` if only now, `UpgradeNeeded` for one of a
        newer agent.
        """
        self._silo, self._entropy = silo, entropy
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS)
        except sqlite3.Error as why:
            raise _unusable(path, why) from why
        try:
            self._prepare(path)
        except (sqlite3.Error, OSError) as why:
            self._db.close()
            raise _unusable(path, why) from why
        except UpgradeNeeded:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # a power cut must not forget what was promised
        self._db.execute("PRAGMA foreign_keys=ON")
        with self.transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version < SCHEMA_VERSION:
                self._expect_no_old_trail(version)
                for statement in chain.from_iterable(_STEPS[version:]):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif version > SCHEMA_VERSION:
                raise UpgradeNeeded(
                    f"{path} has schema {version}, this agent knows {SCHEMA_VERSION}: install the newer agent again"
                )

    def _expect_no_old_trail(self, version: int) -> None:
        """Entries of before version 4 have no salt and are in no tree: nothing can go on from them."""
        if 0 < version < _FIRST_WITH_A_TREE and self.trail_size:
            raise UpgradeNeeded(
                "this journal's trail was begun by an agent whose entries had no salt and no tree: finish its studies "
                "with that agent, keep the folder as it is, and enrol anew in another one"
            )

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; BEGIN IMMEDIATE so that two processes queue instead of failing half-way.

        Inside another one it is a step of its own: an error that the outer one survives leaves nothing of it.
        """
        begin, commit, undo = "BEGIN IMMEDIATE", ["COMMIT"], ["ROLLBACK"]
        if self._db.in_transaction:
            begin, commit, undo = "SAVEPOINT step", ["RELEASE step"], ["ROLLBACK TO step", "RELEASE step"]
        self._db.execute(begin)
        try:
            yield
            self._all(commit)
        except BaseException:
            if self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
                self._all(undo)
            raise

    def _all(self, statements: list[str]) -> None:
        for statement in statements:
            self._db.execute(statement)

    def _inside(self) -> None:
        if not self._db.in_transaction:
            raise RuntimeError("a step and its audit entry belong into one transaction")

    # --- audit ---------------------------------------------------------------------------------------
    def record(self, event: AnyEvent, now: datetime) -> None:
        """Append to the trail, inside the caller's transaction."""
        self._inside()
        last, salt = self.trail_size, self._entropy(SALT_BYTES)
        leaf = leaf_bytes(event, log=self._silo, sequence=last + 1, time=now, actor=self._silo, salt=salt)
        self._db.execute("INSERT INTO trail (sequence, leaf) VALUES (?, ?)", (last + 1, leaf))
        self._db.executemany("INSERT INTO tree VALUES (?, ?, ?)", closed_by(last, leaf_hash(leaf), self.node))

    @property
    def silo(self) -> str:
        """Whose journal this is."""
        return self._silo

    @property
    def trail_size(self) -> int:
        (last,) = self._db.execute("SELECT COALESCE(MAX(sequence), 0) FROM trail").fetchone()
        return int(last)

    def trail(self, after: int = 0) -> list[bytes]:
        """The entries behind `after`, in order."""
        found = self._db.execute("SELECT leaf FROM trail WHERE sequence > ? ORDER BY sequence", (after,))
        return [leaf for (leaf,) in found]

    def trail_root(self, size: int) -> bytes:
        """The Merkle root over the first `size` entries."""
        return root_at(size, self.node)

    def node(self, level: int, position: int) -> bytes:
        """The hash of a complete subtree (`compliance.merkle`); raises `KeyError`."""
        where = (level, position)
        row = self._db.execute("SELECT hash FROM tree WHERE level = ? AND position = ?", where).fetchone()
        if row is None:
            raise KeyError(f"the trail's tree has no node {level}, {position}")
        return bytes(row[0])

    @property
    def ledger(self) -> Ledger:
        """What the patients' data was spent on, in this same database."""
        return Ledger(self._db)

    @property
    def private(self) -> PrivateTrail:
        """The private log, in this same database."""
        return PrivateTrail(self._db, self._silo, self._entropy)

    # --- others' logs --------------------------------------------------------------------------------
    def head(self, log: str) -> Checkpoint | None:
        """The newest head of a log that we verified."""
        row = self._db.execute("SELECT checkpoint FROM heads WHERE log = ?", (log,)).fetchone()
        return None if row is None else Checkpoint.model_validate_json(row[0])

    def keep_head(self, log: str, head: Checkpoint) -> None:
        """`log` is the log's name, for a hospital's with its key in it (`boundary.checkpoint.log_name`)."""
        self._db.execute(
            "INSERT INTO heads VALUES (?, ?) ON CONFLICT (log) DO UPDATE SET checkpoint = excluded.checkpoint",
            (log, head.model_dump_json().encode()),
        )

    def open_incident(self, log: str, code: str, evidence: bytes, now: datetime) -> int:
        """Keep what contradicts what we knew of a log; returns the incident's number. Only with its audit entry."""
        self._inside()
        (last,) = self._db.execute("SELECT COALESCE(MAX(incident), 0) FROM incidents").fetchone()
        row = (last + 1, log, code, timestamp(now), evidence)
        self._db.execute("INSERT INTO incidents VALUES (?, ?, ?, ?, ?, NULL)", row)
        return int(last) + 1

    def incidents(self, *, only_open: bool = False) -> list[Incident]:
        wanted = "SELECT * FROM incidents WHERE closed_at IS NULL OR ? ORDER BY incident"
        rows = self._db.execute(wanted, (not only_open,))
        return [Incident(*row) for row in rows]

    def close_incident(self, number: int, now: datetime) -> Incident:
        """The log is believed anew, from its next head on. Raises `ConfigError` if it is not open."""
        self._inside()
        for found in self.incidents(only_open=True):
            if found.incident == number:
                self._db.execute("UPDATE incidents SET closed_at = ? WHERE incident = ?", (timestamp(now), number))
                names = (found.log, f"wardround/{found.log}/%")
                self._db.execute("DELETE FROM heads WHERE log = ? OR log LIKE ?", names)
                return found
        raise ConfigError(f"no incident {number} is open: see `silo-agent incidents`")

    # --- facts ---------------------------------------------------------------------------------------
    def fact(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_fact(self, name: str, value: bytes) -> None:
        self._db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def committed_round(self, study: str) -> int:
        """The last round that the coordinator told us is over, 0 before the first."""
        fact = self.fact(f"progress {study}")
        return 0 if fact is None else int(parse_json(fact)["round"])

    def committed_model(self, study: str) -> str | None:
        """The digest of the model that the coordinator told us came out of it."""
        fact = self.fact(f"progress {study}")
        return None if fact is None else parse_json(fact).get("model")

    # --- plans ---------------------------------------------------------------------------------------
    def keep_plan(self, study: str, digest: str, plan: bytes, now: datetime) -> bool:
        """Whether it is new. A plan that is already here is left as it is."""
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO plans (study, digest, plan, received_at, state) VALUES (?, ?, ?, ?, 'received')",
            (study, digest, plan, timestamp(now)),
        )
        return cursor.rowcount == 1

    def plans(self) -> list[KeptPlan]:
        return [KeptPlan(*row) for row in self._db.execute("SELECT * FROM plans ORDER BY received_at")]

    def plan(self, study: str) -> KeptPlan | None:
        row = self._db.execute("SELECT * FROM plans WHERE study = ?", (study,)).fetchone()
        return None if row is None else KeptPlan(*row)

    def set_plan(
        self, study: str, state: PlanState, *,
        dataset_digest: str | None = None, reason: str | None = None, only_from: PlanState | None = None,
    ) -> bool:  # fmt: skip
        """Whether it was done: with `only_from` not if somebody else has decided in the meantime."""
        cursor = self._db.execute(
            "UPDATE plans SET state = ?, dataset_digest = COALESCE(?, dataset_digest), reason = ? "
            "WHERE study = ? AND state = COALESCE(?, state)",
            (state, dataset_digest, reason, study, only_from),
        )
        return cursor.rowcount == 1

    def keep_approval(self, study: str, approval: bytes, reason: str) -> None:
        self._db.execute(
            "UPDATE plans SET state = 'approved', approval = ?, reason = ? WHERE study = ?", (approval, reason, study)
        )

    # --- orders --------------------------------------------------------------------------------------
    def accept_order(self, order: KeptOrder) -> bool:
        """Whether it is new. The first order for a collection is the only one, for ever."""
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (order.collection, order.study, order.round, order.phase, order.digest, order.envelope,
             order.step.value, order.starts, order.result),
        )  # fmt: skip
        return cursor.rowcount == 1

    def order(self, collection: str) -> KeptOrder | None:
        row = self._db.execute("SELECT * FROM orders WHERE collection = ?", (collection,)).fetchone()
        return None if row is None else _order(row)

    def open_orders(self) -> list[KeptOrder]:
        final = [step.value for step in FINAL]
        marks = ", ".join("?" * len(final))
        rows = self._db.execute(f"SELECT * FROM orders WHERE step NOT IN ({marks}) ORDER BY rowid", final)  # noqa: S608
        return [_order(row) for row in rows]

    def orders_of(self, study: str) -> list[KeptOrder]:
        return [
            _order(row) for row in self._db.execute("SELECT * FROM orders WHERE study = ? ORDER BY rowid", (study,))
        ]

    def starting(self, collection: str) -> int:
        """Count one more start of the work; returns how many there have been, this one included."""
        self._db.execute("UPDATE orders SET starts = starts + 1 WHERE collection = ?", (collection,))
        (starts,) = self._db.execute("SELECT starts FROM orders WHERE collection = ?", (collection,)).fetchone()
        return int(starts)

    def advance(self, collection: str, heard: Heard, *, result: str | None = None) -> Step:
        """Move by the protocol's table; raises `OutOfTurn`. Only inside a transaction with its audit entry."""
        self._inside()
        order = self.order(collection)
        if order is None:
            raise KeyError(collection)
        step = next_step(order.step, heard)
        self._db.execute(
            "UPDATE orders SET step = ?, result = COALESCE(?, result) WHERE collection = ?",
            (step.value, result, collection),
        )
        return step

    # --- results -------------------------------------------------------------------------------------
    def spend(self, result: str, collection: str, survivors: frozenset[str]) -> None:
        """Remember, before a share leaves, in which sum we help to unmask a result. Only inside a transaction."""
        self._inside()
        names = ",".join(sorted(survivors))
        self._db.execute("INSERT OR IGNORE INTO spent VALUES (?, ?, ?)", (result, collection, names))

    def spent_on(self, result: str) -> frozenset[str] | None:
        """The survivors this result was unmasked among, None if it was not.

        Nobody, if it was unmasked as it was with patients who have withdrawn since (`results.identity_of`), or without:
        two sums, one with them and one without, would differ by exactly their part.
        """
        row = self._db.execute("SELECT survivors FROM spent WHERE result = ?", (result,)).fetchone()
        if row is not None:
            return frozenset(row[0].split(","))
        same = result.partition("#")[0]
        wanted = "SELECT 1 FROM spent WHERE result = ? OR substr(result, 1, ?) = ?"
        others = self._db.execute(wanted, (same, len(same) + 1, f"{same}#")).fetchone()
        return None if others is None else frozenset()

    def measured_elsewhere(self, study: str, model: str) -> str | None:
        """Another study in which we helped to measure this model, if there is one."""
        wanted = "SELECT result FROM spent WHERE result LIKE ? OR result LIKE ?"
        for (result,) in self._db.execute(wanted, tuple(f"%/{phase}/{model}%" for phase in MEASURING)):
            other: str = result.partition("/")[0]
            if other != study:
                return other
        return None

    def counted_elsewhere(self, study: str) -> list[tuple[str, frozenset[str]]]:
        """Other studies in whose counts of images ours are, each with the hospitals of the sum."""
        rows = self._db.execute("SELECT result, survivors FROM spent WHERE result LIKE '%/statistics/%'")
        found = [(str(result).partition("/")[0], frozenset(str(names).split(","))) for result, names in rows]
        return [(other, names) for other, names in found if other != study]

    def agree(self, order: KeptOrder, survivors: str, silos: Iterable[str]) -> None:
        """Remember which survivors we signed, and who they are: the round's receipt must be about one such set."""
        about = (order.study, order.round, order.phase, survivors, ",".join(sorted(silos)))
        self._db.execute("INSERT OR IGNORE INTO agreed VALUES (?, ?, ?, ?, ?)", about)

    def agreed(self, study: str, number: int) -> dict[str, frozenset[str]]:
        """The survivors of a round's train sums that we signed, one digest for each attempt, and who they are."""
        rows = self._db.execute(
            "SELECT survivors, silos FROM agreed WHERE study = ? AND round = ? AND phase = 'train'", (study, number)
        )
        return {survivors: frozenset(silos.split(",")) for survivors, silos in rows}

    # --- outbox --------------------------------------------------------------------------------------
    def put_out(
        self, slot: str, study: str, kind: str, envelope: bytes, *,
        blob_path: str | None = None, blob_digest: str | None = None, blob_size: int | None = None,
    ) -> None:  # fmt: skip
        """Store what has to leave. The first parcel for a slot stays; the same request gets the same bytes."""
        self._db.execute(
            "INSERT OR IGNORE INTO outbox (slot, study, kind, envelope, blob_path, blob_digest, blob_size) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (slot, study, kind, envelope, blob_path, blob_digest, blob_size),
        )

    def waiting(self) -> list[Parcel]:
        return [Parcel(*row) for row in self._db.execute(f"{_WAITING} ORDER BY position")]

    def next_waiting(self, after: int) -> Parcel | None:
        """The first parcel behind position `after` that still waits now."""
        row = self._db.execute(f"{_WAITING} AND position > ? ORDER BY position LIMIT 1", (after,)).fetchone()
        return None if row is None else Parcel(*row)

    def settle(self, parcel: Parcel, *, accepted: bool, verdict: str) -> None:
        state = "acknowledged" if accepted else "rejected"
        self._db.execute(
            "UPDATE outbox SET state = ?, verdict = ? WHERE position = ?", (state, verdict, parcel.position)
        )

    def withdraw(self, collection: str, verdict: str = "ROUND_OVER") -> None:
        """Nobody waits for these any more, or a person said no: what had not left by now does not leave."""
        self._db.execute(
            "UPDATE outbox SET state = 'rejected', verdict = ? WHERE state = 'waiting' "
            "AND slot IN (SELECT kind || '/' || ? FROM (SELECT DISTINCT kind FROM outbox))",
            (verdict, collection),
        )

    def is_waiting(self, parcel: Parcel) -> bool:
        """Whether it may still leave."""
        wanted = "SELECT 1 FROM outbox WHERE position = ? AND state = 'waiting'"
        return self._db.execute(wanted, (parcel.position,)).fetchone() is not None

    def has_put_out(self, slots: str) -> bool:
        """Whether anything whose slot begins so was ever put into the outbox, whatever became of it."""
        behind = slots[:-1] + chr(ord(slots[-1]) + 1)
        wanted = "SELECT 1 FROM outbox WHERE slot >= ? AND slot < ?"
        return self._db.execute(wanted, (slots, behind)).fetchone() is not None

    def left(self) -> list[tuple[str, str, str, int | None]]:
        """What has left or is leaving: (slot, kind, state, blob bytes), for the status page."""
        return list(self._db.execute("SELECT slot, kind, state, blob_size FROM outbox ORDER BY position"))


def _unusable(path: Path, why: sqlite3.Error | OSError) -> ConfigError:
    said = (
        f"{path} cannot be used: {why}. Look at the disk space and at who owns the file; never delete it, it holds "
        "what this hospital has promised and sent"
    )
    if isinstance(why, OSError):
        return StateUnavailable(said) if disk_code(why) == "DISK_FULL" else ConfigError(said)
    code = getattr(why, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest tells which kind of it
    return StateUnavailable(said) if code in _PASSING else ConfigError(said)


def _order(row: tuple[str, str, int, str, str, bytes, str, int, str | None]) -> KeptOrder:
    collection, study, number, phase, digest, envelope, step, starts, result = row
    return KeptOrder(collection, study, number, phase, digest, envelope, Step(step), starts, result)

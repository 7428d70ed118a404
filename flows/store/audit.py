"""The coordinator's audit log: one leaf per state change, written in the transaction that makes the change."""

from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from boundary.checkpoint import Checkpoint
from boundary.identity import SigningIdentity
from boundary.names import COORDINATOR
from compliance.events import AnyEvent
from compliance.merkle import leaf_hash
from compliance.trail import SALT_BYTES, leaf_bytes
from flows.store.database import ENTROPY
from flows.store.logs import Log
from flows.store.schema import audit

_INSERT = insert(audit)


def append(connection: Connection, event: AnyEvent, *, actor: str, now: datetime) -> int:
    """Write `event` as the next leaf and return its sequence: 1, 2, 3, without gaps.

    The caller's transaction must come from `database.writing`, which admits one writer at a time; a rollback takes
    the number back with the leaf.
    """
    log, salt = Log(connection, COORDINATOR), connection.get_execution_options()[ENTROPY](SALT_BYTES)
    sequence = 1 + log.size
    leaf = leaf_bytes(event, log=COORDINATOR, sequence=sequence, time=now, actor=actor, salt=salt)
    connection.execute(_INSERT, {"sequence": sequence, "leaf": leaf})
    log.extend([leaf_hash(leaf)])
    return sequence


def head(connection: Connection, key: SigningIdentity) -> Checkpoint:
    """Sign the log as it is in this transaction. Raises `ValueError` while it is empty."""
    log = Log(connection, COORDINATOR)
    return Checkpoint.sign(COORDINATOR, log.size, log.root(), key)


def latest(connection: Connection) -> int:
    """The last sequence, 0 for an empty log."""
    found: int = connection.execute(select(func.coalesce(func.max(audit.c.sequence), 0))).scalar_one()
    return found


def leaves(connection: Connection, *, after: int = 0, limit: int | None = None) -> list[bytes]:
    """The exact bytes of the leaves behind `after`, in order."""
    wanted = select(audit.c.leaf).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(limit)
    return [bytes(leaf) for leaf in connection.execute(wanted).scalars()]

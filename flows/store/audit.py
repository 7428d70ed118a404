"""The coordinator's audit log: one leaf per state change, written in the transaction that makes the change."""

from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from boundary.names import COORDINATOR
from compliance.trail import AnyEvent, leaf_bytes
from flows.store.schema import audit


def append(connection: Connection, event: AnyEvent, *, actor: str, now: datetime) -> int:
    """Write `event` as the next leaf and return its sequence: 1, 2, 3, without gaps.

    The caller's transaction must come from `database.writing`, which admits one writer at a time; a rollback takes
    the number back with the leaf.
    """
    sequence = 1 + latest(connection)
    leaf = leaf_bytes(event, log=COORDINATOR, sequence=sequence, time=now, actor=actor)
    connection.execute(insert(audit).values(sequence=sequence, leaf=leaf))
    return sequence


def latest(connection: Connection) -> int:
    """The last sequence, 0 for an empty log."""
    found: int = connection.execute(select(func.coalesce(func.max(audit.c.sequence), 0))).scalar_one()
    return found


def leaves(connection: Connection, *, after: int = 0, limit: int | None = None) -> list[bytes]:
    """The exact bytes of the leaves behind `after`, in order."""
    wanted = select(audit.c.leaf).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(limit)
    return [bytes(leaf) for leaf in connection.execute(wanted).scalars()]

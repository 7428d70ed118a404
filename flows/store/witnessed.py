"""What the coordinator keeps of everybody's logs: signed heads, cosignatures, receipts, incidents.

A log is known by its name with its key (`boundary.checkpoint.log_name`): a hospital that enrols with a new key begins a
new one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from boundary.checkpoint import Checkpoint, Cosignature
from boundary.names import COORDINATOR
from compliance.events import IncidentClosed, IncidentOpened
from compliance.merkle import BrokenProof
from compliance.witnessing import Contradiction
from flows.store import audit
from flows.store.schema import cosignatures, entries, heads, incidents, receipts, shown


@dataclass(frozen=True, slots=True)
class Incident:
    """A log that is not what it was. While one is open, no round starts."""

    incident: int
    log: str
    code: str
    opened_at: datetime
    closed_at: datetime | None
    evidence: Contradiction


class NoSuchIncident(LookupError):
    """There is no open incident of that number."""


# --- heads and what is under them ---------------------------------------------------------------------
def newest(connection: Connection, log: str) -> Checkpoint | None:
    """The largest head of a log that was verified."""
    wanted = select(heads.c.checkpoint).where(heads.c.log == log).order_by(heads.c.size.desc()).limit(1)
    found = connection.execute(wanted).scalar()
    return None if found is None else _checkpoint(log, found)


def head_of(connection: Connection, log: str, size: int) -> Checkpoint | None:
    """The head of this size, if it was shown."""
    found = connection.execute(select(heads.c.checkpoint).where(heads.c.log == log, heads.c.size == size)).scalar()
    return None if found is None else _checkpoint(log, found)


def every_head(connection: Connection, log: str) -> list[Checkpoint]:
    wanted = select(heads.c.checkpoint).where(heads.c.log == log).order_by(heads.c.size)
    return [_checkpoint(log, found) for found in connection.execute(wanted).scalars()]


def _checkpoint(log: str, stored: Any) -> Checkpoint:
    """Raises `BrokenProof` for a row that is none any more."""
    try:
        return Checkpoint.model_validate_json(bytes(stored))
    except (ValueError, TypeError) as why:
        raise BrokenProof(f"a head of {log} in the database is no checkpoint") from why


def has_heads(connection: Connection, log: str) -> bool:
    return connection.execute(select(heads.c.size).where(heads.c.log == log).limit(1)).scalar() is not None


def keep(connection: Connection, log: str, head: Checkpoint, now: datetime) -> None:
    """A verified head, or one of ours. The same one again changes nothing."""
    known = select(heads.c.size).where(heads.c.log == log, heads.c.size == head.size)
    if connection.execute(known).scalar() is None:
        data = head.model_dump_json().encode()
        connection.execute(insert(heads).values(log=log, size=head.size, checkpoint=data, seen_at=now))


def keep_cosignature(connection: Connection, log: str, size: int, said: Cosignature) -> None:
    """The first of a witness for a head counts."""
    at = {"log": log, "size": size, "witness": said.witness}
    known = select(cosignatures.c.size).filter_by(**at)
    if connection.execute(known).scalar() is None:
        connection.execute(insert(cosignatures).values(**at, cosignature=said.model_dump_json().encode()))


def cosigned(connection: Connection, log: str) -> dict[int, dict[str, Cosignature]]:
    """By size and witness."""
    found: dict[int, dict[str, Cosignature]] = {}
    for row in connection.execute(select(cosignatures).where(cosignatures.c.log == log)):
        said = Cosignature.model_validate_json(bytes(row.cosignature))
        found.setdefault(row.size, {})[said.witness] = said
    return found


def keep_entries(connection: Connection, log: str, leaves: dict[int, bytes]) -> None:
    """Entries of a hospital's log that are shown whole, by their sequence."""
    if leaves:
        connection.execute(
            insert(entries), [{"log": log, "sequence": number, "leaf": leaf} for number, leaf in leaves.items()]
        )


def whole_entries(connection: Connection, log: str) -> dict[int, bytes]:
    rows = connection.execute(select(entries.c.sequence, entries.c.leaf).where(entries.c.log == log))
    return {sequence: bytes(leaf) for sequence, leaf in rows}


def last_shown(connection: Connection, witness: str) -> dict[str, int]:
    """How large each log was when this hospital was last told of it."""
    rows = connection.execute(select(shown.c.log, shown.c.size).where(shown.c.witness == witness))
    return {log: size for log, size in rows}  # noqa: C416 - rows are not pairs to mypy


def mark_shown(connection: Connection, witness: str, log: str, size: int) -> None:
    where = (shown.c.witness == witness, shown.c.log == log)
    if connection.execute(update(shown).where(*where).values(size=size)).rowcount == 0:
        connection.execute(insert(shown).values(witness=witness, log=log, size=size))


# --- receipts -----------------------------------------------------------------------------------------
def keep_receipt(connection: Connection, study: str, number: int, party: str, signature: bytes) -> None:
    at = {"study": study, "round": number, "party": party}
    if connection.execute(select(receipts.c.party).filter_by(**at)).scalar() is None:
        connection.execute(insert(receipts).values(**at, signature=signature))


def receipts_of(connection: Connection, study: str) -> dict[int, dict[str, bytes]]:
    """Signatures by round and party."""
    found: dict[int, dict[str, bytes]] = {}
    for row in connection.execute(select(receipts).where(receipts.c.study == study)):
        found.setdefault(row.round, {})[row.party] = bytes(row.signature)
    return found


# --- incidents ----------------------------------------------------------------------------------------
def open_incident(
    connection: Connection, log: str, code: str, found: Contradiction, *, actor: str, now: datetime
) -> None:
    """Keep what contradicts what is known of a party's log, once. From now on no round starts."""
    if any((one.log, one.code, one.evidence) == (log, code, found) for one in every_incident(connection)):
        return
    number = 1 + connection.execute(select(func.coalesce(func.max(incidents.c.incident), 0))).scalar_one()
    connection.execute(
        insert(incidents).values(incident=number, log=log, code=code, opened_at=now, evidence=found.data)
    )
    event = IncidentOpened(incident=number, log=log, code=code, evidence=found.digest)
    audit.append(connection, event, actor=actor, now=now)


def every_incident(connection: Connection) -> list[Incident]:
    return [
        Incident(
            row.incident, row.log, row.code, row.opened_at, row.closed_at,
            Contradiction.model_validate_json(bytes(row.evidence)),
        )
        for row in connection.execute(select(incidents).order_by(incidents.c.incident))
    ]  # fmt: skip


def open_ones(connection: Connection) -> Iterable[Incident]:
    return [one for one in every_incident(connection) if one.closed_at is None]


def close_incident(connection: Connection, number: int, decision: str, now: datetime) -> None:
    """A person looked into it; `decision` is a code for the record. Raises `NoSuchIncident`."""
    if number not in {one.incident for one in open_ones(connection)}:
        raise NoSuchIncident(f"no incident {number} is open: see `wardround incidents`")
    connection.execute(update(incidents).where(incidents.c.incident == number).values(closed_at=now))
    audit.append(connection, IncidentClosed(incident=number, decision=decision), actor=COORDINATOR, now=now)

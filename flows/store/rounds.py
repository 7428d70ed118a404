"""Rounds in the store: opened, closed, committed, each in one transaction with its audit entry.

A committed round is final: (study, round) is the key, so no round can be applied twice, whoever retries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from boundary.canonical import digest, parse_json
from boundary.messages import Collection
from boundary.names import COORDINATOR
from compliance.events import AttemptFailed, CohortDecided, RoundClosed, RoundOpened
from compliance.records import CohortDecision, RoundRecord, record_from, to_bytes
from flows.engine import RoundFacts
from flows.records import Candidate
from flows.store import audit, studies
from flows.store.schema import cohorts, published
from flows.store.schema import rounds as table
from flows.store.studies import Reins


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round as the store has it."""

    facts: RoundFacts
    model_in: str
    candidate: Candidate | None
    opened_at: datetime


def committed(connection: Connection, study: str) -> list[RoundRecord]:
    """The records of all committed rounds, in order."""
    return list(newest_first(connection, study))[::-1]


def newest_first(connection: Connection, study: str) -> Iterator[RoundRecord]:
    """The same from the last one back, each parsed when it is asked for."""
    wanted = select(table.c.record).where(table.c.study == study, table.c.state == "committed")
    for data in connection.execute(wanted.order_by(table.c.round.desc())).scalars():
        yield record_from(bytes(data))


def committed_one(connection: Connection, study: str, number: int) -> RoundRecord | None:
    wanted = select(table.c.record).filter_by(study=study, round=number, state="committed")
    found = connection.execute(wanted).scalar()
    return None if found is None else record_from(bytes(found))


def candidate_of(connection: Connection, study: str, number: int) -> Candidate | None:
    """What a committed round was committed from; None if it is not committed."""
    wanted = select(table.c.candidate).filter_by(study=study, round=number, state="committed")
    return _candidate(connection.execute(wanted).scalar())


def last_kept(connection: Connection, study: str) -> tuple[int, Candidate] | None:
    """Number and candidate of the last committed round that was not rolled back; None if there is none."""
    kept = next((record.round for record in newest_first(connection, study) if record.rolled_back is None), 0)
    candidate = candidate_of(connection, study, kept)
    return None if candidate is None else (kept, candidate)


def memories(connection: Connection, study: str) -> set[str]:
    """Digests of all that the study's server strategy has remembered, of every round."""
    kept = connection.execute(select(table.c.candidate).where(table.c.study == study)).scalars()
    return {one.memory.digest for one in map(_candidate, kept) if one is not None and one.memory is not None}


def last_committed(connection: Connection, study: str) -> int:
    """The number of the last committed round, 0 if there is none."""
    wanted = select(func.coalesce(func.max(table.c.round), 0)).where(
        table.c.study == study, table.c.state == "committed"
    )
    number: int = connection.execute(wanted).scalar_one()
    return number


def open_round(connection: Connection, reins: Reins, number: int, model_in: str, now: datetime) -> OpenRound:
    """Open a round, or find it as an interrupted run left it."""
    studies.check(connection, reins)
    found = _round(connection, reins.study, number)
    if found is not None:
        return found
    connection.execute(
        insert(table).values(study=reins.study, round=number, state="open", attempt=1, model_in=model_in, opened_at=now)
    )
    opened = RoundOpened(study=reins.study, round=number, model=model_in)
    audit.append(connection, opened, actor=COORDINATOR, now=now)
    return OpenRound(RoundFacts(number, 1, has_candidate=False, is_committed=False), model_in, None, now)


def close_cohort(
    connection: Connection, reins: Reins, collection: Collection, decision: CohortDecision, now: datetime
) -> CohortDecision:
    """Keep who is in the sum. The first decision counts: a restarted driver gets that one back."""
    studies.check(connection, reins)
    found = decided(connection, collection)
    if found is not None:
        return found
    connection.execute(
        insert(cohorts).values(
            collection=str(collection), study=collection.study, closed_at=now, decision=to_bytes(decision)
        )
    )
    event = CohortDecided(
        study=collection.study,
        round=collection.round,
        phase=collection.phase,
        attempt=collection.attempt,
        members=decision.members,
        absent=tuple(sorted(decision.absent)),
        reason=decision.reason,
    )
    audit.append(connection, event, actor=COORDINATOR, now=now)
    return decision


def decided(connection: Connection, collection: Collection) -> CohortDecision | None:
    wanted = select(cohorts.c.decision).where(cohorts.c.collection == str(collection))
    data = connection.execute(wanted).scalar()
    return None if data is None else CohortDecision.model_validate(parse_json(bytes(data)))


def next_attempt(connection: Connection, reins: Reins, collection: Collection, reason: str, now: datetime) -> int:
    """Give the current attempt of a round up and count a new one."""
    studies.check(connection, reins)
    attempt = collection.attempt + 1
    connection.execute(
        update(table)
        .where(table.c.study == reins.study, table.c.round == collection.round, table.c.attempt == collection.attempt)
        .values(attempt=attempt)
    )
    failed = AttemptFailed(
        study=collection.study,
        round=collection.round,
        phase=collection.phase,
        attempt=collection.attempt,
        reason=reason,
    )
    audit.append(connection, failed, actor=COORDINATOR, now=now)
    return attempt


def keep_candidate(connection: Connection, reins: Reins, number: int, candidate: Candidate) -> None:
    """Keep the new model before its evaluation; what is not committed yet may still be computed again."""
    studies.check(connection, reins)
    connection.execute(
        update(table)
        .where(table.c.study == reins.study, table.c.round == number, table.c.state == "open")
        .values(candidate=to_bytes(candidate))
    )


def commit(connection: Connection, reins: Reins, record: RoundRecord, now: datetime) -> bool:
    """Whether this call committed the round. A round that is committed already stays as it is."""
    studies.check(connection, reins)
    data = to_bytes(record)
    changed = connection.execute(
        update(table)
        .where(table.c.study == reins.study, table.c.round == record.round, table.c.state == "open")
        .values(state="committed", model_out=record.model_out.digest, record=data, committed_at=now)
    )
    if changed.rowcount == 0:
        return False
    closed = RoundClosed(
        study=record.study,
        round=record.round,
        model_in=record.model_in,
        model_out=record.model_out.digest,
        tried=None if record.tried is None else record.tried.digest,
        contributing=record.contributing,
        absent=tuple(sorted(record.absent)),
        record=digest(data),
    )
    audit.append(connection, closed, actor=COORDINATOR, now=now)
    return True


def is_published(connection: Connection, study: str, what: str) -> str | None:
    """The reference under which `what` was published, or None."""
    wanted = select(published.c.reference).where(published.c.study == study, published.c.what == what)
    return connection.execute(wanted).scalar()


def mark_published(connection: Connection, study: str, what: str, reference: str, now: datetime) -> None:
    if is_published(connection, study, what) is None:
        connection.execute(insert(published).values(study=study, what=what, reference=reference, published_at=now))


def _round(connection: Connection, study: str, number: int) -> OpenRound | None:
    row = connection.execute(select(table).where(table.c.study == study, table.c.round == number)).one_or_none()
    if row is None:
        return None
    candidate = _candidate(row.candidate)
    facts = RoundFacts(number, row.attempt, has_candidate=candidate is not None, is_committed=row.state == "committed")
    return OpenRound(facts, row.model_in, candidate, row.opened_at)


def _candidate(data: bytes | None) -> Candidate | None:
    return None if data is None else Candidate.model_validate(parse_json(bytes(data)))

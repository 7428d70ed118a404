"""Removes what a finished study has kept and no longer needs, each time with a receipt in the log.

Masked vectors say nothing once their sum is open, what a server strategy remembers is for the next round only, and
models of rounds that are over are in MLflow. What stays for the plan's `retain_years` is small: logs, envelopes,
receipts, records, the first and the last model. Nothing here removes that; after the last day a person has to decide,
and `due` says so.
"""

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, delete, select

from boundary.messages import MaskedVector
from boundary.names import COORDINATOR
from compliance.events import DataPurged
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.store import audit, rounds, studies
from flows.store.database import reading, writing
from flows.store.schema import blob_readers, blobs
from flows.store.studies import Study


@dataclass(frozen=True, slots=True)
class Purge:
    """What was removed of one study; bytes of files."""

    label: str
    files: int
    bytes: int


def purge(coordinator: Coordinator) -> list[Purge]:
    """Every finished study's blobs that nobody needs. Again is harmless, and makes no second receipt."""
    with reading(coordinator.store) as connection:
        known = studies.every(connection)
    done = []
    for study in known:
        if study.state == "finished" and not _is_behind(coordinator, study):
            with writing(coordinator.store) as connection:
                sizes = _superfluous(connection, coordinator, study, known)
                if not sizes:
                    continue
                _forget(connection, sizes)
                event = DataPurged(study=study.study, what="blobs", files=len(sizes), bytes=sum(sizes.values()))
                audit.append(connection, event, actor=COORDINATOR, now=coordinator.now())
            for digest in sizes:  # after the receipt: what a crash leaves is found by nobody, and swept
                coordinator.blobs.remove(digest)
            done.append(Purge(study.label, len(sizes), sum(sizes.values())))
    return done


def _is_behind(coordinator: Coordinator, study: Study) -> bool:
    """Whether MLflow still has to be given the models."""
    if not study.plan.training.rounds:
        return False  # it makes none
    with reading(coordinator.store) as connection:
        shown = rounds.is_published(connection, study.study, "model")
    return coordinator.settings.mlflow_url is not None and shown is None


def due(coordinator: Coordinator) -> list[tuple[str, date]]:
    """Studies whose records have been kept as long as their plan says: (label, last day)."""
    today = coordinator.now().date()
    with reading(coordinator.store) as connection:
        ends = [(study.label, last_day(study)) for study in studies.every(connection)]
    return [(label, end) for label, end in ends if end < today]


def last_day(study: Study) -> date:
    """Until when the study's records are kept, by its plan."""
    purpose = study.plan.purpose
    year = purpose.expires.year + purpose.retain_years
    if year > date.max.year:
        return date.max
    leap = purpose.expires.month == 2 and purpose.expires.day == 29
    return purpose.expires.replace(year=year, day=28 if leap else purpose.expires.day)


def _superfluous(
    connection: Connection, coordinator: Coordinator, study: Study, known: list[Study]
) -> dict[str, int]:  # fmt: skip
    """Digest -> size of this study's vectors, server memories and models of rounds.

    Not of the first and the last model, and not of what others need.
    """
    desk = Desk(coordinator.key, coordinator.now, study.plan)
    records = rounds.committed(connection, study.study)
    wanted = {record.model_out.digest for record in records} | rounds.memories(connection, study.study)
    for _, envelope in desk.heard_since(connection, (MaskedVector.kind,), study.study, 0):
        if isinstance(envelope.message, MaskedVector):
            wanted.add(envelope.message.vector.digest)
    for other in known:
        wanted -= {other.model.initial.digest, other.model.first.digest, *other.plan.evaluation.models}
        theirs = rounds.committed(connection, other.study)
        needed = theirs if other.study != study.study and other.state != "finished" else theirs[-1:]
        wanted -= {record.model_out.digest for record in needed}
        if other.state != "finished":
            wanted -= rounds.memories(connection, other.study)
    found = connection.execute(select(blobs.c.digest, blobs.c.size).where(blobs.c.digest.in_(wanted)))
    return {digest: size for digest, size in found}  # noqa: C416 - rows are not pairs to mypy


def _forget(connection: Connection, digests: dict[str, int]) -> None:
    for table in (blob_readers, blobs):
        connection.execute(delete(table).where(table.c.digest.in_(digests)))

"""Models measured in sums of their own, in the store: each once, with its audit entry."""

from sqlalchemy import Connection, insert, select

from boundary.canonical import digest, parse_json
from boundary.messages import Phase
from boundary.names import COORDINATOR
from compliance.events import ModelMeasured
from compliance.records import to_bytes
from flows.records import Measurement
from flows.store import audit, studies
from flows.store.schema import measurements as table
from flows.store.studies import Reins


def keep(connection: Connection, reins: Reins, found: Measurement) -> Measurement:
    """Keep what a sum gave. The first counts: no hospital is in another sum of the same."""
    studies.check(connection, reins)
    kept = one(connection, found.study, found.round, found.phase)
    if kept is not None:
        return kept
    data = to_bytes(found)
    connection.execute(insert(table).values(study=found.study, round=found.round, phase=found.phase, data=data))
    event = ModelMeasured(
        study=found.study,
        round=found.round,
        phase=found.phase,
        model=found.model,
        survivors=found.survivors,
        result=digest(data),
    )
    audit.append(connection, event, actor=COORDINATOR, now=found.taken_at)
    return found


def one(connection: Connection, study: str, number: int, phase: Phase) -> Measurement | None:
    wanted = select(table.c.data).filter_by(study=study, round=number, phase=phase)
    data = connection.execute(wanted).scalar()
    return None if data is None else _read(data)


def of_study(connection: Connection, study: str) -> list[Measurement]:
    """In the order of rounds."""
    wanted = select(table.c.data).filter_by(study=study).order_by(table.c.round, table.c.phase)
    return [_read(data) for data in connection.execute(wanted).scalars()]


def _read(data: bytes) -> Measurement:
    return Measurement.model_validate(parse_json(bytes(data)))

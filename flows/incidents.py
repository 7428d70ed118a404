"""`wardround incidents`: whose log is not what it was, and what a person can make of it."""

from compliance.witnessing import MEANS, NO_MEANING
from flows.coordinator import Coordinator
from flows.store import witnessed
from flows.store.database import reading, writing


def incident_lines(coordinator: Coordinator) -> list[str]:
    """One block for each incident, open ones first."""
    with reading(coordinator.store) as connection:
        found = witnessed.every_incident(connection)
    if not found:
        return ["no incident: every log that was shown goes on from what was shown of it before"]
    said = []
    for one in sorted(found, key=lambda one: (one.closed_at is not None, one.incident)):
        state = "OPEN: no round starts" if one.closed_at is None else f"closed {one.closed_at:%Y-%m-%d %H:%M} UTC"
        said += [
            f"incident {one.incident}  {one.log}  {one.code}  {one.opened_at:%Y-%m-%d %H:%M} UTC  {state}",
            *(f"  {line}" for line in (MEANS.get(one.code, NO_MEANING), *one.evidence.lines)),
        ]
    return said


def close(coordinator: Coordinator, number: int, decision: str) -> None:
    """Let rounds go on. Raises `NoSuchIncident`."""
    with writing(coordinator.store) as connection:
        witnessed.close_incident(connection, number, decision, coordinator.now())

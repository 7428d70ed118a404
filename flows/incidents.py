"""`wardround incidents`: whose log is not what it was, and what a person can make of it."""

from boundary.checkpoint import Checkpoint
from flows.coordinator import Coordinator
from flows.store import witnessed
from flows.store.database import reading, writing

_MEANS = {
    "LOG_FORKED": "two signed logs of one size differ: somebody rewrote an entry, or ran two copies",
    "LOG_SHRUNK": "a log has fewer entries than it had: an older copy of its database was restored",
    "LOG_INCONSISTENT": "a log does not go on from what was shown of it before",
    "BAD_SIGNATURE": "a log's head is not signed with its owner's key",
}


def incident_lines(coordinator: Coordinator) -> list[str]:
    """One block for each incident, open ones first."""
    with reading(coordinator.store) as connection:
        found = witnessed.every_incident(connection)
    if not found:
        return ["no incident: every log that was shown goes on from what was shown of it before"]
    said = []
    for one in sorted(found, key=lambda one: (one.closed_at is not None, one.incident)):
        state = "OPEN: no round starts" if one.closed_at is None else f"closed {one.closed_at:%Y-%m-%d %H:%M} UTC"
        known, shown = _head(one.evidence.known), _head(one.evidence.shown)
        said += [
            f"incident {one.incident}  {one.log}  {one.code}  {one.opened_at:%Y-%m-%d %H:%M} UTC  {state}",
            f"  {_MEANS.get(one.code, 'a log could not be taken over')}",
            f"  known {known}; shown {shown}",
        ]
    return said


def close(coordinator: Coordinator, number: int, decision: str) -> None:
    """Let rounds go on. Raises `NoSuchIncident`."""
    with writing(coordinator.store) as connection:
        witnessed.close_incident(connection, number, decision, coordinator.now())


def _head(head: Checkpoint | None) -> str:
    return "nothing" if head is None else f"{head.size} entries, root {head.root.removeprefix('sha256:')[:16]}"

"""What the log says about a study's evidence and release: it is the record, so it is where to look."""

from collections.abc import Iterator

from sqlalchemy import Connection

from compliance.events import AnyEvent, EvidenceIssued, ReleaseDecided
from compliance.trail import read_leaf
from flows.store import audit


def latest_evidence(connection: Connection, study: str) -> EvidenceIssued | None:
    """The newest bundle about a study."""
    return next((event for event in _newest(connection, study) if isinstance(event, EvidenceIssued)), None)


def latest_decision(connection: Connection, study: str) -> ReleaseDecided | None:
    """What an officer decided last about a study's model."""
    return next((event for event in _newest(connection, study) if isinstance(event, ReleaseDecided)), None)


def _newest(connection: Connection, study: str) -> Iterator[AnyEvent]:
    mark = f'"study":"{study}"'.encode()
    for leaf in reversed(audit.leaves(connection)):
        if mark in leaf:
            yield read_leaf(leaf).event

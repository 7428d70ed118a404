"""What has left this hospital, or is leaving: of every parcel its bytes and digests, never what is in it."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from silo_agent.journal import LOCK_SECONDS

_ALL = "SELECT slot, kind, state, verdict, envelope, blob_digest, blob_size FROM outbox ORDER BY position DESC"
_TOTALS = (
    "SELECT state, COUNT(*), COALESCE(SUM(LENGTH(envelope)), 0), COALESCE(SUM(blob_size), 0) FROM outbox "
    "GROUP BY state ORDER BY state"
)


@dataclass(frozen=True, slots=True)
class Departure:
    """`envelope` is the digest of the exact bytes that are sent, `vector` that of the masked vector beside them."""

    slot: str
    kind: str
    state: str
    verdict: str
    envelope: str
    envelope_bytes: int
    vector: str | None
    vector_bytes: int | None


@dataclass(frozen=True, slots=True)
class Total:
    """Of all parcels in one state."""

    state: str
    parcels: int
    envelope_bytes: int
    vector_bytes: int


def departures(journal: Path, most: int) -> list[Departure]:
    """The last `most`, newest first. The file is opened for reading only."""
    with _reading(journal) as db:
        return [
            Departure(
                slot, kind, state, verdict or "", f"sha256:{hashlib.sha256(envelope).hexdigest()}", len(envelope),
                vector, size,
            )
            for slot, kind, state, verdict, envelope, vector, size in db.execute(f"{_ALL} LIMIT ?", (most,))
        ]  # fmt: skip


def totals(journal: Path) -> list[Total]:
    with _reading(journal) as db:
        return [Total(*row) for row in db.execute(_TOTALS)]


@contextmanager
def _reading(journal: Path) -> Iterator[sqlite3.Connection]:
    place = f"file:{quote(str(journal.resolve()))}?mode=ro"
    with closing(sqlite3.connect(place, uri=True, timeout=LOCK_SECONDS)) as db:
        yield db

"""Which blobs are complete, whose they are, who may read them, and how many bytes moved. The bytes are in blobs.py."""

from datetime import datetime

from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from boundary.errors import PeerFault
from boundary.messages import BlobRef
from flows.store.schema import blob_readers, blobs, transfers


class BlobMissing(PeerFault):
    """A message names a blob its sender has not completely stored here, or with another size."""

    code = "BLOB_MISSING"

    def __init__(self, blob: BlobRef) -> None:
        super().__init__(f"{blob.digest} with {blob.size} bytes is not stored here by the sender: upload it first")
        self.blob = blob


def record(connection: Connection, blob: BlobRef, *, owner: str, now: datetime) -> None:
    """`owner` has shown that it holds these bytes, and they are completely stored. Again is harmless."""
    known = connection.execute(select(blobs.c.digest).where(blobs.c.digest == blob.digest)).scalar()
    if known is None:
        connection.execute(insert(blobs).values(digest=blob.digest, size=blob.size, owner=owner, stored_at=now))
    _allow(connection, blob.digest, owner)


def grant(connection: Connection, blob: BlobRef, *, giver: str, reader: str) -> None:
    """Let `reader` fetch what `giver` may fetch; raises `BlobMissing`."""
    size = connection.execute(select(blobs.c.size).where(blobs.c.digest == blob.digest)).scalar()
    if size != blob.size or not may_read(connection, blob.digest, giver):
        raise BlobMissing(blob)
    _allow(connection, blob.digest, reader)


def may_read(connection: Connection, digest: str, party: str) -> bool:
    """Whether `party` put the blob here or was sent a message that names it."""
    found = select(blob_readers.c.party).where(blob_readers.c.digest == digest, blob_readers.c.party == party)
    return connection.execute(found).scalar() is not None


def moved(connection: Connection, party: str, digest: str, *, up: int = 0, down: int = 0) -> None:
    """Count bytes that crossed the wire, repeated ones included."""
    row = {"party": party, "digest": digest, "bytes_up": up, "bytes_down": down}
    summed = {"bytes_up": transfers.c.bytes_up + up, "bytes_down": transfers.c.bytes_down + down}
    connection.execute(
        upsert(connection)(transfers)
        .values(**row)
        .on_conflict_do_update(index_elements=["party", "digest"], set_=summed)
    )


def bytes_moved(connection: Connection, party: str, digest: str) -> tuple[int, int]:
    """(up, down) so far."""
    found = select(transfers.c.bytes_up, transfers.c.bytes_down).where(
        transfers.c.party == party, transfers.c.digest == digest
    )
    row = connection.execute(found).one_or_none()
    return (0, 0) if row is None else (row.bytes_up, row.bytes_down)


def _allow(connection: Connection, digest: str, party: str) -> None:
    row = upsert(connection)(blob_readers).values(digest=digest, party=party)
    connection.execute(row.on_conflict_do_nothing())


def upsert(connection: Connection) -> "type[sqlite.Insert | postgresql.Insert]":
    """INSERT that knows ON CONFLICT: the same words in both databases, two classes in SQLAlchemy."""
    return sqlite.Insert if connection.dialect.name == "sqlite" else postgresql.Insert

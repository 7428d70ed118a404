"""The coordinator's tables. The relay, the flow and the command line share them and nothing else.

Times are UTC, stored with their zone where the database can. Bytes are canonical JSON unless said otherwise.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes only; SQLite has no zone, so UTC is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is not None and value.tzinfo is None:
            raise ValueError("a naive datetime must not reach the store")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite counts only INTEGER PRIMARY KEY upwards by itself; PostgreSQL should have 64 bits
Serial = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- who -------------------------------------------------------------------------------------------------
invitations = Table(
    "invitations",
    metadata,
    Column("token_digest", String(71), primary_key=True),  # SHA-256 of the token; the token is not kept
    Column("silo", String(40), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime),
)

silos = Table(
    "silos",
    metadata,
    Column("silo", String(40), primary_key=True),
    Column("state", String(20), nullable=False),  # waiting, admitted, renewing, removed: see members.py
    Column("asked_at", UtcDateTime, nullable=False),
    Column("card", LargeBinary, nullable=False),  # KeyCard
    Column("csr_pem", Text, nullable=False),
    Column("certificate_pem", Text),
    Column("certificate_expires_at", UtcDateTime),
    Column("last_seen_at", UtcDateTime),
    Column("lease_until", UtcDateTime),
    Column("heartbeat", LargeBinary),  # the last Heartbeat
)

rosters = Table(
    "rosters",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),  # SignedRoster.data
    Column("issued_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

# --- what was said ---------------------------------------------------------------------------------------
envelopes = Table(
    "envelopes",
    metadata,
    Column("sequence", Serial, primary_key=True, autoincrement=True),
    Column("digest", String(71), nullable=False, unique=True),
    Column("sender", String(40), nullable=False),
    Column("recipient", String(40), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("study", String(60), nullable=False),
    # one slot, one envelope: "ct-7f3a90c1/3/train/1" for what belongs to a collection, else the study
    Column("slot", String(120), nullable=False),
    Column("posted_at", UtcDateTime, nullable=False),
    Column("data", LargeBinary, nullable=False),
    UniqueConstraint("recipient", "kind", "slot", "sender"),  # in the order `mail.said` asks
    Index("ix_envelopes_recipient_sequence", "recipient", "sequence"),
    sqlite_autoincrement=True,
)

nonces = Table(
    "nonces",
    metadata,
    Column("party", String(40), primary_key=True),
    Column("nonce", String(32), primary_key=True),
    Column("forget_at", UtcDateTime, nullable=False, index=True),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(71), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("owner", String(40), nullable=False),  # who put it there first
    Column("stored_at", UtcDateTime, nullable=False),
)

blob_readers = Table(
    "blob_readers",
    metadata,
    Column("digest", String(71), primary_key=True),
    Column("party", String(40), primary_key=True),
)

transfers = Table(
    "transfers",
    metadata,
    Column("party", String(40), primary_key=True),
    Column("digest", String(71), primary_key=True),
    Column("bytes_up", BigInteger, nullable=False, default=0),
    Column("bytes_down", BigInteger, nullable=False, default=0),
)

# --- what was done ---------------------------------------------------------------------------------------
studies = Table(
    "studies",
    metadata,
    Column("study", String(60), primary_key=True),
    Column("plan_digest", String(71), nullable=False, unique=True),
    Column("label", String(60), nullable=False, unique=True),  # ct-contrast@3
    Column("plan", LargeBinary, nullable=False),
    Column("model", LargeBinary, nullable=False),  # ModelStart: the manifest and the initial weights
    Column("statistics", LargeBinary),  # of all hospitals' images, if the plan asks for them
    Column("personalised", LargeBinary),  # at how many hospitals which model is better, if the plan asks for it
    Column("state", String(20), nullable=False),  # proposed, running, finished, stopped
    Column("published_at", UtcDateTime, nullable=False),
    # who drives it now: a flow run. A driver whose lease has run out is presumed dead.
    Column("driver", String(80)),
    Column("driver_until", UtcDateTime),
    Column("driver_fence", Integer, nullable=False, default=0),
)

rounds = Table(
    "rounds",
    metadata,
    Column("study", String(60), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("state", String(20), nullable=False),  # open, committed, abandoned
    Column("attempt", Integer, nullable=False),
    Column("model_in", String(71), nullable=False),
    Column("candidate", LargeBinary),  # after aggregation, before evaluation: JSON of what would be committed
    Column("model_out", String(71)),
    Column("record", LargeBinary),  # RoundRecord
    Column("opened_at", UtcDateTime, nullable=False),
    Column("committed_at", UtcDateTime),
)

cohorts = Table(
    "cohorts",
    metadata,
    Column("collection", String(120), primary_key=True),
    Column("study", String(60), nullable=False, index=True),
    Column("closed_at", UtcDateTime, nullable=False),
    Column("decision", LargeBinary, nullable=False),  # members, absent and why
)

measurements = Table(
    "measurements",
    metadata,
    Column("study", String(60), ForeignKey("studies.study"), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("phase", String(20), primary_key=True),
    Column("data", LargeBinary, nullable=False),  # Measurement
)

published = Table(
    "published",
    metadata,
    Column("study", String(60), primary_key=True),
    Column("what", String(60), primary_key=True),  # "start", "round-0003", "model"
    Column("published_at", UtcDateTime, nullable=False),
    Column("reference", String(200), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # gapless: `audit.append` counts
    Column("leaf", LargeBinary, nullable=False),
)

# --- whose log says what -----------------------------------------------------------------------------------
tree = Table(
    "tree",
    metadata,
    Column("log", String(80), primary_key=True),  # `boundary.checkpoint.log_name`: ours, and hospitals'
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),  # of a complete subtree: `compliance.merkle`
)

entries = Table(
    "entries",
    metadata,
    Column("log", String(80), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),  # of a hospital's log, where its plan lets it be shown
)

heads = Table(
    "heads",
    metadata,
    Column("log", String(80), primary_key=True),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("checkpoint", LargeBinary, nullable=False),  # Checkpoint
    Column("seen_at", UtcDateTime, nullable=False),
)

cosignatures = Table(
    "cosignatures",
    metadata,
    Column("log", String(80), primary_key=True),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("witness", String(40), primary_key=True),
    Column("cosignature", LargeBinary, nullable=False),  # Cosignature
)

shown = Table(
    "shown",
    metadata,
    Column("witness", String(40), primary_key=True),
    Column("log", String(80), primary_key=True),
    Column("size", BigInteger, nullable=False),  # the newest head of `log` that `witness` was told of
)

receipts = Table(
    "receipts",
    metadata,
    Column("study", String(60), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("party", String(40), primary_key=True),
    Column("signature", LargeBinary(64), nullable=False),
)

incidents = Table(
    "incidents",
    metadata,
    Column("incident", Integer, primary_key=True, autoincrement=False),
    Column("log", String(40), nullable=False),
    Column("code", String(42), nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("evidence", LargeBinary, nullable=False),  # Evidence: the signed heads that contradict each other
    Column("closed_at", UtcDateTime),
)

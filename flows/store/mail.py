"""Envelopes between the parties.

The first one in its slot counts, for ever: a retry is harmless, a change of mind is refused and shows. Posting what
names a blob also gives its recipient the right to fetch that blob.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, insert, select

from boundary.api import MAX_ENVELOPES_PER_POLL, Delivery
from boundary.canonical import Digest
from boundary.envelope import Envelope
from boundary.errors import PeerFault
from boundary.messages import AnyMessage, BlobRef, MaskedVector, RoundCommitted, WorkOrder, slot_of, study_of
from flows.store import holdings
from flows.store.schema import envelopes

MAX_INBOX_BYTES = 4 * 1024 * 1024  # of envelopes in one answer; one envelope always fits

# made once: putting them together costs as much as running them, and they run many times a second
_MINE = (envelopes.c.recipient == bindparam("recipient"), envelopes.c.sequence > bindparam("after"))
_SIZES = (
    select(envelopes.c.sequence, func.length(envelopes.c.data))
    .where(*_MINE)
    .order_by(envelopes.c.sequence)
    .limit(bindparam("most"))
)
_INBOX = (
    select(envelopes.c.sequence, envelopes.c.data)
    .where(*_MINE, envelopes.c.sequence <= bindparam("last"))
    .order_by(envelopes.c.sequence)
)
_SAID = (
    select(envelopes.c.sender, envelopes.c.data)
    .where(
        envelopes.c.recipient == bindparam("recipient"),
        envelopes.c.kind == bindparam("kind"),
        envelopes.c.slot == bindparam("slot"),
    )
    .order_by(envelopes.c.sequence)
)
_LATEST = select(func.coalesce(func.max(envelopes.c.sequence), 0))
_RECIPIENTS = select(envelopes.c.recipient).where(envelopes.c.sequence > bindparam("after")).distinct()


class SlotTaken(PeerFault):
    """Another envelope of this kind was posted for this slot before; this one was not kept."""

    code = "SLOT_TAKEN"

    def __init__(self, kind: str, slot: str) -> None:
        super().__init__(f"another {kind} was posted for {slot} before: send that one again, or nothing")
        self.kind, self.slot = kind, slot


@dataclass(frozen=True, slots=True)
class Posted:
    """The receipt. `fresh` is False when the very same envelope was there already."""

    digest: Digest
    fresh: bool


def post(connection: Connection, envelope: Envelope, *, now: datetime) -> Posted:
    """Keep a verified or freshly signed envelope. Raises `SlotTaken` or `BlobMissing`; then nothing was kept."""
    slot, kind, identity = slot_of(envelope.message), envelope.message.kind, envelope.digest
    place = (
        envelopes.c.recipient == envelope.recipient,
        envelopes.c.kind == kind,
        envelopes.c.slot == slot,
        envelopes.c.sender == envelope.sender,
    )
    before = connection.execute(select(envelopes.c.digest).where(*place)).scalar()
    if before is not None:
        if before != identity:
            raise SlotTaken(kind, slot)
        return Posted(identity, fresh=False)
    for blob in blobs_of(envelope.message):
        holdings.grant(connection, blob, giver=envelope.sender, reader=envelope.recipient)
    connection.execute(
        insert(envelopes).values(
            digest=identity,
            sender=envelope.sender,
            recipient=envelope.recipient,
            kind=kind,
            study=study_of(envelope.message),
            slot=slot,
            posted_at=now,
            data=envelope.data,
        )
    )
    return Posted(identity, fresh=True)


def blobs_of(message: AnyMessage) -> tuple[BlobRef, ...]:
    """The blobs a message hands to its recipient."""
    match message:
        case MaskedVector():
            return (message.vector,)
        case WorkOrder():
            return message.blobs
        case RoundCommitted():
            return (message.model,)
        case _:
            return ()


def inbox(
    connection: Connection, recipient: str, *, after: int, limit: int = MAX_ENVELOPES_PER_POLL
) -> tuple[Delivery, ...]:
    """What came for `recipient` behind `after`, in order: at most `limit` and about `MAX_INBOX_BYTES`."""
    mine = {"recipient": recipient, "after": after}
    last, total = after, 0
    for sequence, size in connection.execute(_SIZES, {**mine, "most": limit}).all():
        total += size
        if last > after and total > MAX_INBOX_BYTES:
            break
        last = sequence
    if last == after:
        return ()
    found = connection.execute(_INBOX, {**mine, "last": last})
    return tuple(Delivery(sequence=at, envelope=bytes(data)) for at, data in found)


def said(connection: Connection, recipient: str, kind: str, slot: str) -> dict[str, bytes]:
    """The envelopes of one kind and slot, by sender."""
    found = connection.execute(_SAID, {"recipient": recipient, "kind": kind, "slot": slot})
    return {sender: bytes(data) for sender, data in found}


def posted_at(connection: Connection, digests: list[str]) -> list[datetime]:
    """When each of these envelopes was posted, by our own clock; in no order."""
    found = connection.execute(select(envelopes.c.posted_at).where(envelopes.c.digest.in_(digests)))
    return list(found.scalars())


def since(
    connection: Connection, recipient: str, kinds: tuple[str, ...], study: str | None, after: int
) -> list[tuple[int, str, bytes]]:  # fmt: skip
    """(sequence, sender, envelope) of these kinds about a study, None for all, behind `after`, in order."""
    wanted = (
        select(envelopes.c.sequence, envelopes.c.sender, envelopes.c.data)
        .where(envelopes.c.recipient == recipient, envelopes.c.sequence > after, envelopes.c.kind.in_(kinds))
        .order_by(envelopes.c.sequence)
    )
    if study is not None:
        wanted = wanted.where(envelopes.c.study == study)
    return [(sequence, sender, bytes(data)) for sequence, sender, data in connection.execute(wanted)]


def latest_sequence(connection: Connection) -> int:
    """0 before the first."""
    found: int = connection.execute(_LATEST).scalar_one()
    return found


def recipients_after(connection: Connection, after: int) -> frozenset[str]:
    """For whom something came behind `after`."""
    return frozenset(connection.execute(_RECIPIENTS, {"after": after}).scalars())

"""The leaf that an audit event becomes in its party's log.

A leaf is canonical JSON (RFC 8785), fixed for ever once written. It is written in the transaction of the state change
that it records, and hashed into its party's Merkle tree with it (`compliance.merkle`). A leaf is salted: a log may be
shown with some entries as hashes only, and nobody can find out by trying what they say.
"""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import MalformedMessage
from boundary.names import Base64Bytes, Frozen, PartyId, decode_base64, encode_base64, parse_timestamp, timestamp
from compliance.events import EVENTS, AnyEvent

LEAF_VERSION = 2
SALT_BYTES = 16
Salt = Annotated[Base64Bytes, Field(min_length=SALT_BYTES, max_length=SALT_BYTES)]


class Leaf(Frozen):
    """One entry of a log as it is read back."""

    log: PartyId
    sequence: Annotated[int, Field(ge=1)]
    time: str
    actor: PartyId
    salt: Salt
    event: AnyEvent


def leaf_bytes(event: AnyEvent, *, log: str, sequence: int, time: datetime, actor: str, salt: bytes) -> bytes:
    """The canonical bytes of an entry. `log` is whose log, `actor` who did it, `time` the log's own clock.

    `salt` has `SALT_BYTES` from a CSPRNG. Raises `ValueError` or `CallerFault` for what `read_leaf` would refuse: a log
    is for ever.
    """
    leaf = Leaf(log=log, sequence=sequence, time=timestamp(time), actor=actor, salt=salt, event=event)
    return canonical_bytes(
        {
            "v": LEAF_VERSION,
            "log": leaf.log,
            "seq": leaf.sequence,
            "time": leaf.time,
            "actor": leaf.actor,
            "salt": encode_base64(leaf.salt),
            "event": event.event,
            "data": event.model_dump(mode="json"),
        }
    )


def read_leaf(data: bytes) -> Leaf:
    """Parse an entry; raises `MalformedMessage` for an unknown event or key, and for what we would not have written."""
    match parse_canonical(data):
        case {
            "v": 2,
            "log": str(log),
            "seq": int(sequence),
            "time": str(time),
            "actor": str(actor),
            "salt": str(salt),
            "event": str(event),
            "data": dict(content),
            **rest,
        } if not rest and event in EVENTS:
            try:
                parsed = EVENTS[event].model_validate(content)
                grains, at = decode_base64(salt), parse_timestamp(time)
                written = leaf_bytes(parsed, log=log, sequence=sequence, time=at, actor=actor, salt=grains)
            except ValueError as why:
                raise MalformedMessage(f"audit entry {event}: {why}") from why
            if written != data:  # `true` for 1
                raise MalformedMessage("an audit entry in another form than its one")
            return Leaf(log=log, sequence=sequence, time=time, actor=actor, salt=grains, event=parsed)
        case _:
            raise MalformedMessage("not an audit entry")

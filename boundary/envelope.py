"""Signed envelopes: who says what to whom, when. One canonical byte string per envelope, and one digest.

The whole envelope except `signature` is signed. Its digest is its identity: the same envelope delivered twice is
recognised by it, and a second, different envelope for the same slot is an equivocation by its signer.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from boundary.canonical import MAX_MESSAGE_BYTES, Digest, canonical_bytes, digest, parse_canonical
from boundary.errors import BadSignature, CallerFault, MalformedMessage, WrongRecipient
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.messages import AnyMessage, from_body, to_body
from boundary.names import COORDINATOR, decode_base64, encode_base64, parse_timestamp, timestamp

ENVELOPE_VERSION = 1
_CONTEXT = "envelope"
_KEYS = {"v", "sender", "recipient", "sent_at", "kind", "body", "signature"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A verified or freshly signed envelope; `data` are its exact bytes."""

    sender: str
    recipient: str
    sent_at: datetime
    message: AnyMessage
    data: bytes

    @property
    def digest(self) -> Digest:
        return digest(self.data)


def seal_envelope(
    message: AnyMessage, *, sender: str, recipient: str, sent_at: datetime, key: SigningIdentity
) -> Envelope:
    """Sign `message`. The clock is the caller's. Raises `CallerFault` for what the other side would refuse."""
    role = "coordinator" if sender == COORDINATOR else "silo"
    if message.sender != role:
        raise CallerFault(f"{message.kind} is not for a {role} to say")
    content = {
        "v": ENVELOPE_VERSION,
        "sender": sender,
        "recipient": recipient,
        "sent_at": timestamp(sent_at),
        "kind": message.kind,
        "body": to_body(message),
    }
    signature = key.sign(_CONTEXT, canonical_bytes(content))
    data = canonical_bytes(content | {"signature": encode_base64(signature)})
    if len(data) > MAX_MESSAGE_BYTES:
        raise CallerFault(f"an envelope of {len(data)} bytes, over the limit of {MAX_MESSAGE_BYTES}")
    return Envelope(sender, recipient, sent_at, message, data)


def open_envelope(data: bytes, *, recipient: str, signer: PublicIdentity, sender: str) -> Envelope:
    """Verify and parse; raises `BadSignature`, `WrongRecipient`, `MalformedMessage`, `TooLarge`.

    The signature is checked before the body is interpreted. `sender` is whom the caller has `signer` for.
    """
    content = _content(data)
    try:
        signature = decode_base64(content.pop("signature"))
    except (ValueError, TypeError) as why:
        raise BadSignature("the signature is not base64") from why
    signer.verify(_CONTEXT, canonical_bytes(content), signature)
    if content["sender"] != sender:
        raise BadSignature(f"signed with {sender}'s key in the name of {content['sender']!r:.60}")
    if content["recipient"] != recipient:
        raise WrongRecipient(f"addressed to {content['recipient']!r:.60}, not to {recipient}")
    message = from_body(content["kind"], content["body"])
    if message.sender != ("coordinator" if sender == COORDINATOR else "silo"):
        raise MalformedMessage(f"{message.kind} is not for {sender} to say")
    return Envelope(sender, recipient, _moment(content["sent_at"]), message, data)


def peek(data: bytes) -> tuple[str, str, str]:
    """(sender, recipient, kind) as claimed, for routing only: nothing is verified."""
    content = _content(data)
    claimed = content["sender"], content["recipient"], content["kind"]
    if not all(isinstance(part, str) for part in claimed):
        raise MalformedMessage("sender, recipient and kind are strings")
    return claimed


def _content(data: bytes) -> dict[str, Any]:
    content = parse_canonical(data)
    if not isinstance(content, dict) or set(content) != _KEYS:
        raise MalformedMessage("not an envelope")
    if content["v"] != ENVELOPE_VERSION or isinstance(content["v"], bool):
        raise MalformedMessage(f"envelope version {content['v']!r:.20} is not spoken here")
    return content


def _moment(raw: object) -> datetime:
    if not isinstance(raw, str):
        raise MalformedMessage("sent_at is not a time")
    try:
        return parse_timestamp(raw)
    except ValueError as why:
        raise MalformedMessage(f"sent_at: {why}") from why

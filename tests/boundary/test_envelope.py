"""Who says what to whom, when: everything that is not exactly that is refused."""

import json
from collections.abc import Callable
from datetime import timedelta, timezone
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.canonical import MAX_MESSAGE_BYTES, canonical_bytes, digest
from boundary.envelope import Envelope, open_envelope, peek, seal_envelope
from boundary.errors import BadSignature, CallerFault, MalformedMessage, PeerFault, TooLarge, WrongRecipient
from boundary.identity import SigningIdentity
from boundary.messages import REGISTRY, AnyMessage
from boundary.names import COORDINATOR, encode_base64

Forgery = Callable[[ModuleType], bytes]


def opened(data: bytes, fed: ModuleType) -> Envelope:
    """As st-olavs opens what the coordinator is supposed to have said."""
    return open_envelope(data, recipient="st-olavs", sender=COORDINATOR, signer=fed.key(COORDINATOR).public)


def content_of(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(data)
    return content


def order(fed: ModuleType) -> bytes:
    data: bytes = fed.envelope(fed.messages()["work-order"]).data
    return data


def changed(fed: ModuleType, **changes: Any) -> bytes:
    return canonical_bytes(content_of(order(fed)) | changes)


def signed(content: dict[str, Any], key: SigningIdentity, context: str = "envelope") -> bytes:
    content = {name: value for name, value in content.items() if name != "signature"}
    return canonical_bytes(content | {"signature": encode_base64(key.sign(context, canonical_bytes(content)))})


def resigned(fed: ModuleType, signer: str = COORDINATOR, **changes: Any) -> bytes:
    """What a party with a real key could say."""
    return signed(content_of(order(fed)) | changes, fed.key(signer))


def with_body(fed: ModuleType, **changes: Any) -> bytes:
    return resigned(fed, body=content_of(order(fed))["body"] | changes)


def stray_bits(fed: ModuleType) -> bytes:
    signature = content_of(order(fed))["signature"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return changed(fed, signature=signature[:85] + alphabet[alphabet.index(signature[85]) + 1] + "==")


def of_another_message(fed: ModuleType) -> bytes:
    other = content_of(fed.envelope(fed.messages()["study-closed"]).data)
    return changed(fed, signature=other["signature"])


FORGED: dict[str, tuple[Forgery, type[PeerFault]]] = {
    "body changed after signing": (
        lambda fed: changed(fed, body=content_of(order(fed))["body"] | {"plan_digest": fed.sha("mine")}),
        BadSignature,
    ),
    "kind changed after signing": (lambda fed: changed(fed, kind="cohort-closed"), BadSignature),
    "recipient changed after signing": (lambda fed: changed(fed, recipient="ucl"), BadSignature),
    "sender changed after signing": (lambda fed: changed(fed, sender="ucl"), BadSignature),
    "time changed after signing": (lambda fed: changed(fed, sent_at="2027-01-01T00:00:00.000000Z"), BadSignature),
    "signature of another message": (of_another_message, BadSignature),
    "signature of another kind of message": (
        lambda fed: signed(content_of(order(fed)), fed.key(COORDINATOR), "roster"),
        BadSignature,
    ),
    "signed by a hospital": (lambda fed: resigned(fed, "ucl"), BadSignature),
    "signed by a hospital in its own name": (lambda fed: resigned(fed, "ucl", sender="ucl"), BadSignature),
    "signed by the coordinator in the name of a hospital": (lambda fed: resigned(fed, sender="ucl"), BadSignature),
    "a sender that is no text": (lambda fed: resigned(fed, sender=None), BadSignature),
    "signature with stray bits": (stray_bits, BadSignature),
    "signature of no bytes": (lambda fed: changed(fed, signature=""), BadSignature),
    "signature that is no base64": (lambda fed: changed(fed, signature="*" * 88), BadSignature),
    "signature that is a number": (lambda fed: changed(fed, signature=7), BadSignature),
    "signature that is null": (lambda fed: changed(fed, signature=None), BadSignature),
    "signature that is a list": (lambda fed: changed(fed, signature=["A" * 88]), BadSignature),
    "addressed to another hospital": (lambda fed: resigned(fed, recipient="ucl"), WrongRecipient),
    "addressed to nobody": (lambda fed: resigned(fed, recipient=""), WrongRecipient),
    "addressed to a list of hospitals": (lambda fed: resigned(fed, recipient=["st-olavs"]), WrongRecipient),
    "non-canonical JSON": (lambda fed: order(fed).replace(b'"kind":', b'"kind": '), MalformedMessage),
    "a line end after it": (lambda fed: order(fed) + b"\n", MalformedMessage),
    "duplicate key": (lambda fed: order(fed)[:-1] + b',"v":1}', MalformedMessage),
    "NaN": (lambda fed: order(fed).replace(b'"v":1', b'"v":NaN'), MalformedMessage),
    "integer beyond 2^53": (lambda fed: order(fed).replace(b'"v":1', b'"v":9007199254740993'), MalformedMessage),
    "1e999": (lambda fed: order(fed).replace(b'"v":1', b'"v":1e999'), MalformedMessage),
    "no JSON": (lambda _: b"\x80\x04pickle", MalformedMessage),
    "empty": (lambda _: b"", MalformedMessage),
    "a list": (lambda _: b"[]", MalformedMessage),
    "extra key": (lambda fed: resigned(fed, note="hello"), MalformedMessage),
    "a key is missing": (
        lambda fed: canonical_bytes({k: v for k, v in content_of(order(fed)).items() if k != "sent_at"}),
        MalformedMessage,
    ),
    "another version": (lambda fed: resigned(fed, v=2), MalformedMessage),
    "true for version 1": (lambda fed: resigned(fed, v=True), MalformedMessage),
    "a version in words": (lambda fed: resigned(fed, v="1"), MalformedMessage),
    "unknown kind": (lambda fed: resigned(fed, kind="run-this-code"), MalformedMessage),
    "a kind that is no text": (lambda fed: resigned(fed, kind=["work-order"]), MalformedMessage),
    "the body of another kind": (lambda fed: resigned(fed, kind="cohort-closed"), MalformedMessage),
    "a body that is no object": (lambda fed: resigned(fed, body="train"), MalformedMessage),
    "extra key in the body": (lambda fed: with_body(fed, script="print(1)"), MalformedMessage),
    "float where int is due": (
        lambda fed: with_body(fed, model={"digest": fed.sha("model"), "size": 0.5}),
        MalformedMessage,
    ),
    "bool where int is due": (
        lambda fed: with_body(fed, model={"digest": fed.sha("model"), "size": True}),
        MalformedMessage,
    ),
    "a due date in another form": (lambda fed: with_body(fed, due="2026-11-20T12:30:00Z"), MalformedMessage),
    "a default left out": (
        lambda fed: with_body(fed, collection={"study": fed.study(), "round": 2, "phase": "train"}),
        MalformedMessage,
    ),
    "message a coordinator may not say": (
        lambda fed: resigned(fed, kind="ready", body=content_of(fed.envelope(fed.messages()["ready"]).data)["body"]),
        MalformedMessage,
    ),
    "a time without an offset": (lambda fed: resigned(fed, sent_at="2026-11-20T12:00:00.000000"), MalformedMessage),
    "a time in another offset": (
        lambda fed: resigned(fed, sent_at="2026-11-20T13:00:00.000000+01:00"),
        MalformedMessage,
    ),
    "a time before year 1": (lambda fed: resigned(fed, sent_at="0001-01-01T00:00:00.000000+23:59"), MalformedMessage),
    "a time that never was": (lambda fed: resigned(fed, sent_at="2026-02-30T12:00:00.000000Z"), MalformedMessage),
    "a time that is a number": (lambda fed: resigned(fed, sent_at=1795176000), MalformedMessage),
    "larger than the limit": (lambda _: b" " * (MAX_MESSAGE_BYTES + 1), TooLarge),
}


@pytest.mark.parametrize(("forge", "refusal"), FORGED.values(), ids=FORGED)
def test_a_forged_envelope_is_refused(fed: ModuleType, forge: Forgery, refusal: type[PeerFault]) -> None:
    opened(order(fed), fed)
    with pytest.raises(refusal) as why:
        opened(forge(fed), fed)
    assert type(why.value) is refusal


def test_a_message_a_silo_may_not_say_is_refused(fed: ModuleType) -> None:
    forged = resigned(fed, "ucl", sender="ucl", recipient=COORDINATOR)
    with pytest.raises(MalformedMessage, match="not for ucl to say"):
        open_envelope(forged, recipient=COORDINATOR, sender="ucl", signer=fed.key("ucl").public)


@pytest.mark.parametrize("kind", REGISTRY)
def test_we_do_not_say_what_is_not_ours_to_say(fed: ModuleType, kind: str) -> None:
    message = fed.messages()[kind]
    sender = "ucl" if message.sender == "coordinator" else COORDINATOR
    with pytest.raises(CallerFault, match="to say"):
        seal_envelope(message, sender=sender, recipient="st-olavs", sent_at=fed.NOW, key=fed.key(sender))


def test_we_do_not_say_what_nobody_would_read(fed: ModuleType) -> None:
    closed = fed.messages()["cohort-closed"]
    endless = closed.model_copy(update={"absent": ("a" * 40,) * 60_000})
    with pytest.raises(CallerFault, match="over the limit"):
        seal_envelope(endless, sender=COORDINATOR, recipient="ucl", sent_at=fed.NOW, key=fed.key(COORDINATOR))
    with pytest.raises(CallerFault, match="offset"):
        seal_envelope(
            closed,
            sender=COORDINATOR,
            recipient="ucl",
            sent_at=fed.NOW.replace(tzinfo=None),
            key=fed.key(COORDINATOR),
        )


@pytest.mark.parametrize("kind", REGISTRY)
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(
    fed: ModuleType, strategies: SimpleNamespace, kind: str, data: st.DataObject
) -> None:
    message: AnyMessage = data.draw(strategies.messages[kind])
    sent_at = data.draw(strategies.moments)
    sender, recipient = (COORDINATOR, "ucl") if message.sender == "coordinator" else ("ucl", COORDINATOR)
    sent = seal_envelope(message, sender=sender, recipient=recipient, sent_at=sent_at, key=fed.key(sender))
    got = open_envelope(sent.data, recipient=recipient, sender=sender, signer=fed.key(sender).public)
    assert got == sent
    assert got.digest == sent.digest == digest(sent.data)
    assert peek(sent.data) == (sender, recipient, kind)
    assert canonical_bytes(json.loads(sent.data)) == sent.data


@given(st.data())
def test_an_envelope_with_one_bit_flipped_is_refused(fed: ModuleType, data: st.DataObject) -> None:
    envelope = bytearray(order(fed))
    bit = data.draw(st.integers(0, len(envelope) * 8 - 1))
    envelope[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerFault):
        opened(bytes(envelope), fed)


def test_the_same_message_at_the_same_time_is_the_same_bytes(fed: ModuleType) -> None:
    message = fed.messages()["work-order"]
    elsewhere = fed.NOW.astimezone(timezone(timedelta(hours=5)))
    key = fed.key(COORDINATOR)
    there = seal_envelope(message, sender=COORDINATOR, recipient="st-olavs", sent_at=elsewhere, key=key)
    assert there.data == order(fed)


def test_the_clock_of_the_sender_is_read_to_the_microsecond(fed: ModuleType) -> None:
    assert opened(order(fed), fed).sent_at == fed.NOW


NOT_ROUTABLE: dict[str, Forgery] = {
    "a sender that is no text": lambda fed: changed(fed, sender=1),
    "a recipient that is null": lambda fed: changed(fed, recipient=None),
    "a kind that is an object": lambda fed: changed(fed, kind={}),
    "no envelope": lambda _: b"{}",
    "another version": lambda fed: changed(fed, v=0),
}


@pytest.mark.parametrize("forge", NOT_ROUTABLE.values(), ids=NOT_ROUTABLE)
def test_what_cannot_be_routed_is_refused(fed: ModuleType, forge: Forgery) -> None:
    with pytest.raises(MalformedMessage):
        peek(forge(fed))


def test_peeking_verifies_nothing(fed: ModuleType) -> None:
    assert peek(changed(fed, signature="", recipient="anybody")) == (COORDINATOR, "anybody", "work-order")

"""What the coordinator passes on: other hospitals' own envelopes, opened with the keys that the plan pins.

Each refusal is a row. A malicious coordinator holds every envelope ever sent, and every key but the hospitals'.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.agreement import Hospital
from boundary.canonical import MAX_MESSAGE_BYTES, canonical_bytes
from boundary.envelope import seal_envelope
from boundary.errors import BadSignature, BoundaryError, MalformedMessage, OutOfTurn, UnknownMember, WrongRecipient
from boundary.messages import AnyMessage, CohortClosed, Ready, Refused, RevealedShare, SharesRevealed
from boundary.names import COORDINATOR
from boundary.secagg.errors import BadShares
from boundary.secagg.hospital import Part
from boundary.secagg.quoted import Said, announcement, part, revealed
from infra import golden_messages as golden
from infra.cohort import flipped
from infra.golden import NOW, SILOS, collection, key, plan, sha

SAID = Said(plan(), collection())
HOLDER = "ucl"


def signed(
    message: AnyMessage, sender: str, recipient: str, *, by: str | None = None, sent_at: datetime = NOW
) -> bytes:
    return seal_envelope(message, sender=sender, recipient=recipient, sent_at=sent_at, key=key(by or sender)).data


def with_signature_of(envelope: bytes, other: bytes) -> bytes:
    return canonical_bytes(json.loads(envelope) | {"signature": json.loads(other)["signature"]})


@dataclass(frozen=True)
class Method:
    """One method of `Said` that reads envelopes: who says what to whom, and how it is read."""

    says: Callable[[str], Any]
    read: Callable[[tuple[bytes, ...]], dict[str, Any]]
    to: str = COORDINATOR
    senders: tuple[str, ...] = SILOS

    def from_(self, silo: str, *, by: str | None = None, to: str | None = None, **changes: Any) -> bytes:
        return signed(self.says(silo).model_copy(update=changes), silo, to or self.to, by=by)

    def all_but(self, *absent: str) -> tuple[bytes, ...]:
        return tuple(self.from_(silo) for silo in self.senders if silo not in absent)


METHODS = {
    "announcements": Method(golden.ready, SAID.announcements),
    "parts": Method(
        lambda silo: golden.share(silo, HOLDER),
        lambda quoted: SAID.parts_for(HOLDER, golden.cohort(), quoted),
        to=HOLDER,
        senders=("charite", "st-olavs"),
    ),
    "vectors": Method(golden.masked, SAID.vectors),
    "agreements": Method(lambda _: golden.seen(), SAID.agreements),
}
of_each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


# --- what is read -----------------------------------------------------------------------------------------
def test_announcements_are_read_with_the_digests_of_their_envelopes() -> None:
    found = SAID.announcements(METHODS["announcements"].all_but())
    assert tuple(found) == SILOS
    for silo, said in found.items():
        assert said == announcement(golden.envelope(golden.ready(silo), silo).digest, golden.ready(silo))
        assert said.mask_key == golden.ready(silo).mask_key != said.transport_key == golden.ready(silo).transport_key
        assert (said.context, said.self_commitment) == (golden.ready(silo).context, golden.ready(silo).self_commitment)


def test_parts_are_read_for_the_hospital_they_are_for() -> None:
    found = METHODS["parts"].read(METHODS["parts"].all_but())
    assert set(found) == {"charite", "st-olavs"}
    said = golden.share("charite", HOLDER)
    assert found["charite"] == Part(said.sealed, said.pair, said.self_digest, said.seed_digest)
    assert part(golden.share("ucl", "charite"), golden.cohort()).pair is None


def test_a_vector_is_read_as_its_digest_and_whom_it_was_masked_for() -> None:
    found = SAID.vectors(METHODS["vectors"].all_but("ucl"))
    assert found == {silo: (golden.masked(silo).sharers, sha(f"masked vector of {silo}")) for silo in golden.SURVIVING}


def test_an_agreement_is_read_as_the_survivors_it_is_about() -> None:
    found = SAID.agreements(METHODS["agreements"].all_but("ucl"))
    assert found == dict.fromkeys(golden.SURVIVING, golden.survivors())


@of_each_method
def test_nobody_quoted_is_nobody_read(method: Method) -> None:
    assert method.read(()) == {}


# --- what is refused, whatever is quoted --------------------------------------------------------------------
def about(**changes: Any) -> dict[str, Any]:
    return {"collection": collection().model_copy(update=changes)}


def refused(silo: str) -> Refused:
    del silo
    return Refused(
        collection=collection(), order=golden.ORDER, code="NO_DATA", reference="0123456789ab", retryable=True
    )


ATTACKS: dict[str, tuple[Callable[[Method], bytes], type[BoundaryError]]] = {
    "a roster key swapped": (lambda m: m.from_("st-olavs", by="a key of the coordinator's making"), BadSignature),
    "the coordinator's own key": (lambda m: m.from_("st-olavs", by=COORDINATOR), BadSignature),
    "another hospital of the plan in its name": (lambda m: m.from_("st-olavs", by="charite"), BadSignature),
    "replayed from the last attempt": (lambda m: m.from_("st-olavs", **about(attempt=2)), OutOfTurn),
    "of the next attempt": (lambda m: m.from_("st-olavs", **about(attempt=4)), OutOfTurn),
    "of another round": (lambda m: m.from_("st-olavs", **about(round=1)), OutOfTurn),
    "of the other phase": (lambda m: m.from_("st-olavs", **about(phase="evaluate")), OutOfTurn),
    "of another study": (lambda m: m.from_("st-olavs", **about(study="ct-contrast-00000000")), OutOfTurn),
    "quoted twice": (lambda m: m.from_("charite"), UnknownMember),
    "quoted twice, said at two times": (
        lambda m: signed(m.says("charite"), "charite", m.to, sent_at=NOW + timedelta(seconds=1)),
        UnknownMember,
    ),
    "a hospital that is not in the plan": (lambda m: m.from_("mallory"), UnknownMember),
    "the coordinator as a hospital": (
        lambda m: signed(golden.work_order(), COORDINATOR, m.to),
        UnknownMember,
    ),
    "another kind of message": (lambda m: signed(refused("st-olavs"), "st-olavs", m.to), OutOfTurn),
    "a kind of message that is about no sum": (
        lambda m: signed(golden.messages()["plan-declined"], "st-olavs", m.to),
        OutOfTurn,
    ),
    "for the wrong recipient": (lambda m: m.from_("st-olavs", to="charite"), WrongRecipient),
    "with the signature it had in the last attempt": (
        lambda m: with_signature_of(m.from_("st-olavs"), m.from_("st-olavs", **about(attempt=2))),
        BadSignature,
    ),
    "changed after it was signed": (
        lambda m: m.from_("st-olavs").replace(b'"attempt":3', b'"attempt":4'),
        BadSignature,
    ),
    "cut short": (lambda m: m.from_("st-olavs")[:-1], MalformedMessage),
    "no envelope": (lambda _: b"", MalformedMessage),
}


@pytest.mark.parametrize(("attack", "refusal"), ATTACKS.values(), ids=ATTACKS)
@of_each_method
def test_an_envelope_that_does_not_belong_here_is_refused(
    method: Method, attack: Callable[[Method], bytes], refusal: type[BoundaryError]
) -> None:
    sound = method.all_but("st-olavs")
    method.read((*sound, method.from_("st-olavs")))
    for quoted in ((*sound, attack(method)), (attack(method), *sound)):
        with pytest.raises(refusal) as why:
            method.read(quoted)
        assert type(why.value) is refusal


@of_each_method
@given(data=st.data())
def test_one_flipped_bit_is_refused(method: Method, data: st.DataObject) -> None:
    envelope = method.from_("st-olavs")
    at = data.draw(st.integers(0, len(envelope) - 1))
    with pytest.raises(BoundaryError):
        method.read((flipped(envelope, at),))


# --- shares -------------------------------------------------------------------------------------------------
def test_a_share_for_the_wrong_recipient_is_refused() -> None:
    """The coordinator gives ucl what st-olavs sealed for charite."""
    for_charite = golden.envelope(golden.share("st-olavs", "charite"), to="charite").data
    with pytest.raises(WrongRecipient):
        SAID.parts_for(HOLDER, golden.cohort(), (for_charite,))


def test_a_share_of_another_cohort_is_refused() -> None:
    with pytest.raises(OutOfTurn, match="another cohort"):
        SAID.parts_for(HOLDER, sha("another cohort"), METHODS["parts"].all_but())


def test_all_that_one_hospital_dealt_is_read_by_holder() -> None:
    said = golden.shares("st-olavs")
    dealt = SAID.dealt("st-olavs", said)
    assert (dealt.cohort, dealt.self_digest, dealt.seed_digest) == (said.cohort, said.self_digest, said.seed_digest)
    assert set(dealt.parts) == {"charite", "ucl"}
    assert dealt.promised("st-olavs", "ucl", "seed") == golden.share("st-olavs", "ucl").seed_digest
    assert dealt.promised("st-olavs", "st-olavs", "self") == said.self_digest


def share_of(dealer: str, holder: str, *, by: str | None = None, to: str | None = None, **changes: Any) -> bytes:
    return signed(golden.share(dealer, holder).model_copy(update=changes), dealer, to or holder, by=by)


DEALT: dict[str, tuple[Callable[[], tuple[bytes, ...]], type[BoundaryError]]] = {
    "somebody else's share": (lambda: (share_of("charite", "ucl"),), BadShares),
    "two shares for one hospital": (lambda: (share_of("st-olavs", "ucl"), share_of("st-olavs", "ucl")), BadShares),
    "two different shares for one hospital": (
        lambda: (share_of("st-olavs", "ucl"), share_of("st-olavs", "charite", to="ucl")),
        BadShares,
    ),
    "a share under another key": (lambda: (share_of("st-olavs", "ucl", by="mallory"),), BadSignature),
    "a share of another cohort": (lambda: (share_of("st-olavs", "ucl", cohort=sha("other")),), OutOfTurn),
    "a share of the last attempt": (lambda: (share_of("st-olavs", "ucl", **about(attempt=2)),), OutOfTurn),
    "another kind of message": (lambda: (signed(refused("st-olavs"), "st-olavs", "ucl"),), OutOfTurn),
    "no envelope": (lambda: (b"{}",), MalformedMessage),
}


@pytest.mark.parametrize(("parts", "refusal"), DEALT.values(), ids=DEALT)
def test_a_dealer_that_quotes_anything_else_is_refused(
    parts: Callable[[], tuple[bytes, ...]], refusal: type[BoundaryError]
) -> None:
    with pytest.raises(refusal) as why:
        SAID.dealt("st-olavs", golden.shares("st-olavs").model_copy(update={"parts": parts()}))
    assert type(why.value) is refusal


def test_a_dealer_that_is_not_in_the_plan_is_refused() -> None:
    shares = golden.shares("st-olavs").model_copy(update={"parts": (share_of("mallory", "ucl"),)})
    with pytest.raises(UnknownMember):
        SAID.dealt("mallory", shares)


# --- revealed shares ------------------------------------------------------------------------------------------
def share(silo: str, fill: int = 0) -> RevealedShare:
    return RevealedShare(silo=silo, share=bytes([fill]) * 33)


def test_revealed_shares_are_read_by_hospital() -> None:
    found = revealed(golden.revealed())
    assert found.survivors == golden.survivors()
    assert found.of_survivors == dict.fromkeys(golden.SURVIVING, bytes(33))
    assert found.of_lost == {"ucl": bytes([0, *range(32)])}


REVEALED: dict[str, tuple[tuple[RevealedShare, ...], tuple[RevealedShare, ...]]] = {
    "one hospital named in both lists of revealed shares": ((share("charite"), share("ucl")), (share("ucl", 1),)),
    "one hospital named in both lists, with one share": ((share("ucl"),), (share("ucl"),)),
    "a survivor twice": ((share("charite"), share("charite", 1)), ()),
    "a lost hospital twice": ((share("charite"),), (share("ucl"), share("ucl"))),
}


@pytest.mark.parametrize(("of_survivors", "of_lost"), REVEALED.values(), ids=REVEALED)
def test_both_kinds_of_share_of_one_hospital_are_refused(
    of_survivors: tuple[RevealedShare, ...], of_lost: tuple[RevealedShare, ...]
) -> None:
    said: SharesRevealed = golden.revealed()
    with pytest.raises(BadShares, match="twice"):
        revealed(said.model_copy(update={"of_survivors": of_survivors, "of_lost": of_lost}))


# --- as large as it gets ----------------------------------------------------------------------------------------
def test_the_keys_of_two_hundred_hospitals_fit_in_one_message() -> None:
    silos = tuple(f"{'h' * 37}{number:03d}" for number in range(200))
    hospitals = tuple(Hospital(silo=silo, signing_key=key(silo).public.text) for silo in silos)
    said: Ready = golden.ready("ucl")
    ready = tuple(signed(said, silo, COORDINATOR) for silo in silos)
    closed = CohortClosed(collection=collection(), order=golden.ORDER, members=silos, absent=(), ready=ready)
    data = golden.envelope(closed).data
    assert MAX_MESSAGE_BYTES / 2 < len(data) < MAX_MESSAGE_BYTES
    wide = Said(plan().model_copy(update={"hospitals": hospitals}), collection())
    assert tuple(wide.announcements(closed.ready)) == silos

"""The roster never goes backwards and never trusts a key that a trusted key did not introduce (TUF 5.3)."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from boundary.canonical import canonical_bytes
from boundary.errors import BadSignature, Expired, MalformedMessage, PeerFault, RolledBack, UnknownMember
from boundary.identity import SigningIdentity
from boundary.names import COORDINATOR, encode_base64
from boundary.roster import KeyCard, SignedRoster, TrustedRoster, make_card, read_roster

NEW = "new coordinator"


def trusted(fed: ModuleType, version: int = 3) -> TrustedRoster:
    return TrustedRoster.first(fed.roster(version=version).data, fed.key(COORDINATOR).public, fed.NOW)


def wire(fed: ModuleType, *signers: str, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(fed.roster(*signers, **changes).data)
    return content


def said(content: dict[str, Any], *keys: SigningIdentity, context: str = "roster") -> bytes:
    """Sign `content` as the roster, whatever it is."""
    signatures = {key.public.text: encode_base64(key.sign(context, canonical_bytes(content))) for key in keys}
    return canonical_bytes({"roster": content, "signatures": signatures})


def edited(fed: ModuleType, **changes: Any) -> bytes:
    """A roster with other content, signed by the coordinator: what only a coordinator could try."""
    return said(wire(fed, version=4)["roster"] | changes, fed.key(COORDINATOR))


def with_signatures(fed: ModuleType, **more: Any) -> bytes:
    content = wire(fed, version=4)
    return canonical_bytes(content | {"signatures": content["signatures"] | more})


def other_signature(fed: ModuleType, signature: Any) -> bytes:
    content = wire(fed, version=4)
    return canonical_bytes(content | {"signatures": {fed.key(COORDINATOR).public.text: signature}})


def edited_card(fed: ModuleType, **changes: Any) -> bytes:
    members = wire(fed)["roster"]["members"]
    return edited(fed, members=[members[0] | changes, *members[1:]])


def changed_after_signing(fed: ModuleType) -> bytes:
    content = wire(fed, version=4)
    return canonical_bytes(content | {"roster": content["roster"] | {"version": 5}})


def bad_card(fed: ModuleType, signer: str) -> KeyCard:
    """ucl's name and key with a sealing key that somebody else put beside them."""
    card: KeyCard = fed.card("ucl", owner=signer, sealing="mallory")
    return card.model_copy(update={"signing_key": fed.key("ucl").public.text})


def one_key_twice(fed: ModuleType) -> bytes:
    cards = (fed.card("ucl"), fed.card("twin", owner="ucl"))
    data: bytes = fed.roster(version=4, members=cards).data
    return data


def coordinator_as_member(fed: ModuleType) -> bytes:
    data: bytes = fed.roster(version=4, members=(fed.card("ucl", owner=COORDINATOR),)).data
    return data


Offer = Callable[[ModuleType], bytes]
OFFERED: dict[str, tuple[Offer, type[PeerFault]]] = {
    "older roster replayed": (lambda fed: fed.roster(version=2).data, RolledBack),
    "another roster of the same version": (lambda fed: fed.roster(version=3, members=()).data, RolledBack),
    "the same roster with another signature beside": (
        lambda fed: fed.roster(COORDINATOR, "mallory", version=3).data,
        RolledBack,
    ),
    "new coordinator key not signed by the old one": (
        lambda fed: fed.roster(NEW, coordinator=NEW, version=4).data,
        BadSignature,
    ),
    "new coordinator key not signed by itself": (
        lambda fed: fed.roster(COORDINATOR, coordinator=NEW, version=4).data,
        BadSignature,
    ),
    "signed by a member": (lambda fed: fed.roster("ucl", version=4).data, BadSignature),
    "signed by nobody": (lambda fed: said(wire(fed, version=4)["roster"]), BadSignature),
    "signature of another kind of message": (
        lambda fed: said(wire(fed, version=4)["roster"], fed.key(COORDINATOR), context="envelope"),
        BadSignature,
    ),
    "content changed after signing": (changed_after_signing, BadSignature),
    "a signature that is no text": (lambda fed: other_signature(fed, 1), BadSignature),
    "a signature that is null": (lambda fed: other_signature(fed, None), BadSignature),
    "a signature that is a list": (lambda fed: other_signature(fed, [1]), BadSignature),
    "a signature of 63 bytes": (lambda fed: other_signature(fed, encode_base64(bytes(63))), BadSignature),
    "a signature with stray bits": (lambda fed: other_signature(fed, "A" * 85 + "B=="), BadSignature),
    "junk among the signatures": (lambda fed: with_signatures(fed, note="hello"), MalformedMessage),
    "a number among the signatures": (lambda fed: with_signatures(fed, note=7), MalformedMessage),
    "a wrong signature of another key beside the right one": (
        lambda fed: with_signatures(fed, **{fed.key("ucl").public.text: encode_base64(bytes(64))}),
        BadSignature,
    ),
    "expired when it is offered": (
        lambda fed: fed.roster(version=4, expires_at=fed.NOW).data,
        Expired,
    ),
    "non-canonical JSON": (lambda fed: fed.roster(version=4).data + b" ", MalformedMessage),
    "duplicate key": (lambda fed: fed.roster(version=4).data[:-1] + b',"roster":{}}', MalformedMessage),
    "a list": (lambda _: b"[]", MalformedMessage),
    "no signatures": (lambda fed: canonical_bytes({"roster": wire(fed)["roster"]}), MalformedMessage),
    "signatures in a list": (
        lambda fed: canonical_bytes({"roster": wire(fed)["roster"], "signatures": []}),
        MalformedMessage,
    ),
    "extra key beside the roster": (lambda fed: canonical_bytes(wire(fed) | {"note": 1}), MalformedMessage),
    "extra key in the roster": (lambda fed: edited(fed, note=1), MalformedMessage),
    "version 0": (lambda fed: edited(fed, version=0), MalformedMessage),
    "true for version 1": (lambda fed: edited(fed, version=True), MalformedMessage),
    "half a version": (lambda fed: edited(fed, version=4.5), MalformedMessage),
    "a date in another form": (lambda fed: edited(fed, expires_at="2027-02-18T12:00:00Z"), MalformedMessage),
    "a date before year 1": (
        lambda fed: edited(fed, issued_at="0001-01-01T00:00:00.000000+23:59"),
        MalformedMessage,
    ),
    "members that are no list": (lambda fed: edited(fed, members={}), MalformedMessage),
    "201 members": (lambda fed: edited(fed, members=wire(fed)["roster"]["members"][:1] * 201), MalformedMessage),
    "a party named twice": (
        lambda fed: edited(fed, members=wire(fed)["roster"]["members"][:1] * 2),
        MalformedMessage,
    ),
    "one key under two names": (one_key_twice, MalformedMessage),
    "the coordinator's key as a member": (coordinator_as_member, MalformedMessage),
    "a member called coordinator": (
        lambda fed: fed.roster(version=4, members=(fed.card(COORDINATOR, owner="ucl"),)).data,
        MalformedMessage,
    ),
    "the coordinator's card bears another name": (
        lambda fed: (
            fed.roster(version=4, coordinator=COORDINATOR).data
            and said(
                wire(fed, version=4)["roster"]
                | {"coordinator": fed.card("ucl", owner=COORDINATOR).model_dump(mode="json"), "members": []},
                fed.key(COORDINATOR),
            )
        ),
        MalformedMessage,
    ),
    "a sealing key put beside a member's name by another": (
        lambda fed: fed.roster(version=4, members=(bad_card(fed, "mallory"),)).data,
        BadSignature,
    ),
    "a sealing key put beside a member's name by the coordinator": (
        lambda fed: fed.roster(version=4, members=(bad_card(fed, COORDINATOR),)).data,
        BadSignature,
    ),
    "a member's card under another name": (lambda fed: edited_card(fed, party="other"), BadSignature),
    "a member's card without a sealing key": (lambda fed: edited_card(fed, sealing_key=""), MalformedMessage),
    "a member's key that would sign anything": (
        lambda fed: edited_card(fed, signing_key="ed25519:AQ" + "A" * 41 + "="),
        MalformedMessage,
    ),
    "a member's key with stray bits": (
        lambda fed: edited_card(fed, signing_key="ed25519:" + "A" * 42 + "B="),
        MalformedMessage,
    ),
}


@pytest.mark.parametrize(("offer", "refusal"), OFFERED.values(), ids=OFFERED)
def test_a_roster_that_is_not_the_next_one_is_refused(fed: ModuleType, offer: Offer, refusal: type[PeerFault]) -> None:
    held = trusted(fed)
    with pytest.raises(refusal) as why:
        held.update(offer(fed), fed.NOW)
    assert type(why.value) is refusal
    assert held.roster.version == 3


def test_the_next_roster_is_accepted_and_versions_may_be_skipped(fed: ModuleType) -> None:
    held = trusted(fed).update(fed.roster(version=4).data, fed.NOW)
    assert held.update(fed.roster(version=9).data, fed.NOW).roster.version == 9


def test_the_same_bytes_change_nothing(fed: ModuleType) -> None:
    held = trusted(fed)
    assert held.update(held.signed.data, fed.NOW) == held
    with pytest.raises(Expired):
        held.update(held.signed.data, held.roster.expires_at)


def test_a_new_coordinator_key_is_introduced_by_the_old_one(fed: ModuleType) -> None:
    held = trusted(fed).update(fed.roster(COORDINATOR, NEW, coordinator=NEW, version=4).data, fed.NOW)
    assert held.roster.coordinator.signing_key == fed.key(NEW).public.text
    held.update(fed.roster(NEW, coordinator=NEW, version=5).data, fed.NOW)
    with pytest.raises(BadSignature):  # the old key counts no more
        held.update(fed.roster(COORDINATOR, version=5).data, fed.NOW)


def test_the_first_roster_is_signed_by_the_key_a_person_compared(fed: ModuleType) -> None:
    with pytest.raises(BadSignature, match="not signed by"):
        TrustedRoster.first(fed.roster().data, fed.key("mallory").public, fed.NOW)
    introduced = fed.roster(COORDINATOR, NEW, coordinator=NEW).data
    with pytest.raises(BadSignature, match="another coordinator key"):
        TrustedRoster.first(introduced, fed.key(COORDINATOR).public, fed.NOW)
    assert TrustedRoster.first(introduced, fed.key(NEW).public, fed.NOW).roster.version == 1
    with pytest.raises(Expired):
        TrustedRoster.first(fed.roster(expires_at=fed.NOW).data, fed.key(COORDINATOR).public, fed.NOW)


def test_it_lives_until_its_last_instant(fed: ModuleType) -> None:
    held = trusted(fed)
    end = held.roster.expires_at
    assert held.alive(end - timedelta(microseconds=1)) is held
    with pytest.raises(Expired, match="wardround roster renew"):
        held.alive(end)


def test_a_kept_roster_is_reloaded_even_when_it_has_expired(fed: ModuleType) -> None:
    held = trusted(fed)
    again = TrustedRoster.kept(held.signed.data)
    assert again == held
    assert again.signed.digest == held.signed.digest


DAMAGED: dict[str, Offer] = {
    "empty": lambda _: b"",
    "zeros, as a power cut leaves them": lambda fed: bytes(len(fed.roster().data)),
    "cut short": lambda fed: fed.roster().data[:-1],
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "no roster in it": lambda _: b'{"signatures":{}}',
    "a roster that is null": lambda _: b'{"roster":null,"signatures":{}}',
    "a roster of no fields": lambda _: b'{"roster":{},"signatures":{}}',
    "its signatures lost": lambda fed: said(wire(fed)["roster"]),
    "another version written into it": changed_after_signing,
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_kept_roster_that_was_damaged_is_refused(fed: ModuleType, damaged: Offer) -> None:
    with pytest.raises(PeerFault):
        TrustedRoster.kept(damaged(fed))


@given(st.data())
def test_a_roster_with_one_bit_flipped_is_refused(fed: ModuleType, data: st.DataObject) -> None:
    roster = bytearray(fed.roster(version=4).data)
    bit = data.draw(st.integers(0, len(roster) * 8 - 1))
    roster[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerFault):
        trusted(fed).update(bytes(roster), fed.NOW)
    with pytest.raises(PeerFault):
        TrustedRoster.kept(bytes(roster))


def test_members_are_found_by_name(fed: ModuleType) -> None:
    roster = trusted(fed).roster
    assert roster.member("ucl") == fed.card("ucl")
    assert roster.member("ucl").sealing == fed.unsealing("ucl").public
    for name in ("nobody", "UCL", COORDINATOR, ""):
        with pytest.raises(UnknownMember):
            roster.member(name)


def test_a_plan_runs_on_exactly_the_keys_it_pins(fed: ModuleType) -> None:
    trusted(fed).check_plan(fed.plan())
    cards = (fed.card("charite"), fed.card("st-olavs"))
    swapped = (*cards, fed.card("ucl", owner="mallory"))
    for members, reason in ((cards, "not on roster"), (swapped, "another key")):
        held = trusted(fed).update(fed.roster(version=4, members=members).data, fed.NOW)
        with pytest.raises(UnknownMember, match=reason):
            held.check_plan(fed.plan())


def test_a_card_is_made_by_its_owner(fed: ModuleType) -> None:
    card = make_card("ucl", fed.key("ucl"), fed.unsealing("ucl").public)
    card.check()
    assert card.identity == fed.key("ucl").public
    for changes in ({"party": "other"}, {"sealing_key": fed.unsealing("mallory").public.text}):
        with pytest.raises(BadSignature):
            card.model_copy(update=changes).check()


def test_a_roster_reads_as_it_was_signed(fed: ModuleType) -> None:
    signed: SignedRoster = fed.roster()
    assert read_roster(signed.data, fed.key(COORDINATOR).public) == signed


KEYS = (COORDINATOR, NEW, "third coordinator", "mallory")


class Federation(RuleBasedStateMachine):
    """Whatever is offered, by whomever it is signed, in whatever order: the version never goes back."""

    def __init__(self, fed: ModuleType) -> None:
        super().__init__()
        self.fed = fed
        self.now: datetime = fed.NOW
        self.held = trusted(fed, version=1)
        self.version, self.key, self.ends = 1, COORDINATOR, self.held.roster.expires_at

    @rule(
        version=st.integers(1, 8),
        names=st.sampled_from(KEYS),
        signers=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True),
        days=st.integers(-1, 200),
    )
    def offer(self, version: int, names: str, signers: list[str], days: int) -> None:
        expires = self.now + timedelta(days=days)
        data = self.fed.roster(*signers, coordinator=names, version=version, expires_at=expires).data
        accepted = {self.key, names} <= set(signers) and version > self.version and days > 0
        if data == self.held.signed.data:
            accepted = self.now < self.ends
        try:
            self.held = self.held.update(data, self.now)
        except (BadSignature, RolledBack, Expired):
            assert not accepted
        else:
            assert accepted
            self.version, self.key, self.ends = version, names, expires

    @rule(days=st.integers(1, 60))
    def wait(self, days: int) -> None:
        self.now += timedelta(days=days)

    @rule()
    def restart(self) -> None:
        self.held = TrustedRoster.kept(self.held.signed.data)

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert self.held.roster.version == self.version
        assert self.held.roster.coordinator.signing_key == self.fed.key(self.key).public.text
        if self.now < self.ends:
            self.held.alive(self.now)
        else:
            with pytest.raises(Expired):
                self.held.alive(self.now)


def test_the_roster_never_goes_back_and_never_trusts_an_unsigned_key(fed: ModuleType) -> None:
    class OfTheGoldenOne(Federation):
        def __init__(self) -> None:
            super().__init__(fed)

    run_state_machine_as_test(OfTheGoldenOne, settings=settings(max_examples=8, stateful_step_count=15))

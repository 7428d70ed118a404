"""The roster: who is in the federation, with which keys. Signed, versioned, and it never goes backwards.

The rules are those of a TUF root (spec 5.3): a new roster counts only if the coordinator key we already trust
signed it, its version is higher, and it has not expired; a new coordinator key must be introduced by the old one.
Every member vouches for its own sealing key with the signing key that the approved plan pins.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError

from boundary.aggregation import MAX_HOSPITALS
from boundary.canonical import Digest, canonical_bytes, digest, parse_canonical
from boundary.errors import BadSignature, Expired, MalformedMessage, RolledBack, UnknownMember
from boundary.fields import PublicKeyStr
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import COORDINATOR, Base64Bytes, Frozen, Moment, PartyId, encode_base64, list_in
from boundary.plan import StudyPlan
from boundary.sealing import SealingKey

_CARD = "key card"
_ROSTER = "roster"
Signature = Annotated[Base64Bytes, Field(min_length=64, max_length=64)]


class KeyCard(Frozen):
    """A party's two public keys, self-signed: nobody can pair its name with a sealing key of theirs."""

    party: PartyId
    signing_key: PublicKeyStr
    sealing_key: Annotated[str, Field(max_length=2000)]
    signature: Signature

    def check(self) -> None:
        """Raises `BadSignature` or `MalformedMessage`."""
        SealingKey(self.sealing_key)
        PublicIdentity(self.signing_key).verify(
            _CARD, _card_bytes(self.party, self.signing_key, self.sealing_key), self.signature
        )

    @property
    def identity(self) -> PublicIdentity:
        return PublicIdentity(self.signing_key)

    @property
    def sealing(self) -> SealingKey:
        return SealingKey(self.sealing_key)


class Roster(Frozen):
    """One version of the membership."""

    version: Annotated[int, Field(ge=1)]
    issued_at: Moment
    expires_at: Moment
    coordinator: KeyCard
    members: Annotated[tuple[KeyCard, ...], BeforeValidator(list_in), Field(max_length=MAX_HOSPITALS)]

    def member(self, silo: str) -> KeyCard:
        """Raises `UnknownMember`."""
        for card in self.members:
            if card.party == silo:
                return card
        raise UnknownMember(f"{silo} is not on roster version {self.version}")


@dataclass(frozen=True, slots=True)
class SignedRoster:
    """A roster's exact bytes with the signatures over them, by key."""

    roster: Roster
    data: bytes

    @property
    def digest(self) -> Digest:
        return digest(self.data)


class _Signature(Frozen):
    """One signature in the map, so that it is parsed like every other."""

    v: Signature


def make_card(party: str, key: SigningIdentity, sealing: SealingKey) -> KeyCard:
    signing_key = key.public.text
    signature = key.sign(_CARD, _card_bytes(party, signing_key, sealing.text))
    return KeyCard(party=party, signing_key=signing_key, sealing_key=sealing.text, signature=signature)


def sign_roster(roster: Roster, *keys: SigningIdentity) -> SignedRoster:
    """Sign with the coordinator's key, and with the former one too when the key changes."""
    content = roster.model_dump(mode="json")
    signatures = {key.public.text: encode_base64(key.sign(_ROSTER, canonical_bytes(content))) for key in keys}
    return SignedRoster(roster, canonical_bytes({"roster": content, "signatures": signatures}))


def read_roster(data: bytes, signer: PublicIdentity) -> SignedRoster:
    """Verify `data` under `signer` and under the coordinator key it names; raises `PeerFault`s."""
    content, signatures = _parts(data)
    said = canonical_bytes(content)
    _verify(said, signatures, signer)
    roster = _roster(content)
    _verify(said, signatures, roster.coordinator.identity)
    for key in signatures:  # signatures are not themselves signed: nothing else may hide among them
        _verify(said, signatures, PublicIdentity(key))
    if roster.coordinator.party != COORDINATOR:
        raise MalformedMessage("the coordinator's card bears another name")
    cards = (roster.coordinator, *roster.members)
    if len({card.party for card in cards}) != len(cards) or len({card.signing_key for card in cards}) != len(cards):
        raise MalformedMessage("the roster names a party or a key twice")
    for card in cards:
        card.check()
    return SignedRoster(roster, data)


def _parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    match parse_canonical(data):
        case {"roster": dict(content), "signatures": dict(signatures), **rest} if not rest:
            return content, signatures
        case _:
            raise MalformedMessage("not a signed roster")


def _roster(content: dict[str, Any]) -> Roster:
    try:
        return Roster.model_validate(content)
    except ValidationError as why:
        raise MalformedMessage(f"not a roster: {why.errors(include_url=False)[0]['msg']}") from why


def _verify(said: bytes, signatures: dict[str, Any], signer: PublicIdentity) -> None:
    try:
        signature = _Signature.model_validate({"v": signatures.get(signer.text)}).v
    except ValidationError as why:
        raise BadSignature(f"the roster is not signed by {signer.text}") from why
    signer.verify(_ROSTER, said, signature)


@dataclass(frozen=True, slots=True)
class TrustedRoster:
    """The roster we act on, and the only door to a newer one."""

    signed: SignedRoster

    @classmethod
    def first(cls, data: bytes, pinned: PublicIdentity, now: datetime) -> Self:
        """From enrolment, where a person compared the coordinator's fingerprint."""
        signed = read_roster(data, pinned)
        if signed.roster.coordinator.signing_key != pinned.text:
            raise BadSignature("the first roster names another coordinator key than the pinned one")
        return cls(signed).alive(now)

    @classmethod
    def kept(cls, data: bytes) -> Self:
        """Reload what `first` or `update` accepted before; expiry is asked at each use with `alive`.

        Raises a `PeerFault` for bytes that were damaged since: they no longer verify under the key they name.
        """
        content, _ = _parts(data)
        return cls(read_roster(data, _roster(content).coordinator.identity))

    def update(self, data: bytes, now: datetime) -> Self:
        """Raises `RolledBack`, `Expired`, `BadSignature` or `MalformedMessage`; the old one stays trusted."""
        if data == self.signed.data:
            return self.alive(now)
        newer = read_roster(data, self.roster.coordinator.identity)
        if newer.roster.version <= self.roster.version:
            raise RolledBack(f"roster version {newer.roster.version} was offered, {self.roster.version} is trusted")
        return type(self)(newer).alive(now)

    def alive(self, now: datetime) -> Self:
        if now >= self.roster.expires_at:
            raise Expired(
                f"roster version {self.roster.version} expired at {self.roster.expires_at:%Y-%m-%d %H:%M} UTC: "
                "the coordinator must issue a new one (wardround roster renew)"
            )
        return self

    def check_plan(self, plan: StudyPlan) -> None:
        """Raises `UnknownMember` unless every hospital of the plan is here under the key the plan pins."""
        for hospital in plan.hospitals:
            if self.roster.member(hospital.silo).signing_key != hospital.signing_key:
                raise UnknownMember(f"{hospital.silo} has another key on the roster than in the plan")

    @property
    def roster(self) -> Roster:
        return self.signed.roster


def _card_bytes(party: str, signing_key: str, sealing_key: str) -> bytes:
    return canonical_bytes([party, signing_key, sealing_key])

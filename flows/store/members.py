"""Who may talk to us: invitations, enrolment, admission by a person, the roster, and who was seen when.

    invited --enrol--> waiting --admit--> admitted --enrol, same keys, new CSR--> renewing --admit--> admitted
    admitted or renewing --issued a roster without it--> removed --enrol, new invitation--> waiting

Every step is one transaction of the caller with its audit event in it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from boundary.api import ENROLMENT_CONTEXT, EnrolmentState, Heartbeat, SignedEnrolment
from boundary.canonical import Digest, canonical_bytes, digest, parse_json
from boundary.errors import BadSignature, PeerFault, RolledBack, UnknownMember
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR
from boundary.roster import KeyCard, SignedRoster
from compliance.events import EnrolmentAsked, HospitalAdmitted, HospitalInvited, RosterIssued
from flows.store import audit
from flows.store.schema import invitations, rosters, silos

_ADMITTED = ("admitted", "renewing")  # "renewing" keeps working on its old certificate

# made once: they run with every request of a hospital
_KEY = select(silos.c.state, silos.c.card).where(silos.c.silo == bindparam("asking"))
_VERSION = select(func.coalesce(func.max(rosters.c.version), 0))
_BEAT = (
    update(silos)
    .where(silos.c.silo == bindparam("asking"))
    .values(last_seen_at=bindparam("now"), lease_until=bindparam("until"), heartbeat=bindparam("said"))
)


class InvitationRefused(PeerFault):
    """A token that is unknown, used, expired or another hospital's."""

    code = "INVITATION_REFUSED"


class OtherKey(PeerFault):
    """A hospital that is on the roster asks to be admitted under other keys."""

    code = "OTHER_KEY"


@dataclass(frozen=True, slots=True)
class Member:
    """A hospital as the coordinator sees it: its keys, its state, when it was last heard."""

    silo: str
    state: str
    card: KeyCard
    csr_pem: str
    asked_at: datetime
    certificate_expires_at: datetime | None
    last_seen_at: datetime | None
    lease_until: datetime | None
    heartbeat: Heartbeat | None

    @property
    def fingerprint(self) -> str:
        return self.card.identity.fingerprint

    def is_live(self, now: datetime) -> bool:
        """Whether it was heard recently enough to be counted on."""
        return self.lease_until is not None and now < self.lease_until


def token_digest(token: str) -> Digest:
    """What is kept of a token."""
    return digest(token.encode())


def invite(connection: Connection, silo: str, token: Digest, *, expires_at: datetime, now: datetime) -> None:
    """Keep the digest of a one-time token for `silo`."""
    connection.execute(insert(invitations).values(token_digest=token, silo=silo, expires_at=expires_at))
    audit.append(connection, HospitalInvited(silo=silo), actor=COORDINATOR, now=now)


def enrol(connection: Connection, signed: SignedEnrolment, now: datetime) -> EnrolmentState:
    """Take an enrolment request in; the same request again gets the same answer.

    Raises `BadSignature`, `MalformedMessage`, `InvitationRefused` or `OtherKey`; then nothing was changed.
    """
    request = signed.request
    _check_signed(signed)
    card = canonical_bytes(request.card.model_dump(mode="json"))
    known = _row(connection, request.silo)
    if known is not None and known.state != "removed":
        if (bytes(known.card), known.csr_pem) == (card, request.csr_pem):
            return enrolment_state(connection, request.silo)
        if known.state in _ADMITTED and bytes(known.card) != card:
            raise OtherKey(f"{request.silo} is admitted under another key: the coordinator must remove it first")
    _use_token(connection, request.silo, token_digest(request.token), now)
    state = "renewing" if known is not None and known.state in _ADMITTED else "waiting"
    values = {"state": state, "asked_at": now, "card": card, "csr_pem": request.csr_pem, "certificate_pem": None}
    if known is None:
        connection.execute(insert(silos).values(silo=request.silo, **values))
    else:
        connection.execute(update(silos).where(silos.c.silo == request.silo).values(**values))
    asked = EnrolmentAsked(silo=request.silo, fingerprint=request.card.identity.fingerprint)
    audit.append(connection, asked, actor=request.silo, now=now)
    return EnrolmentState(state="waiting")


def enrolment_state(connection: Connection, silo: str) -> EnrolmentState:
    """What a hospital is told about its request; raises `UnknownMember` when it never asked."""
    row = _row(connection, silo)
    if row is None:
        raise UnknownMember(f"{silo} has not asked to be admitted")
    match row.state:
        case "admitted":
            return EnrolmentState(
                state="admitted", certificate_pem=row.certificate_pem, roster=current_roster(connection)
            )
        case "waiting" | "renewing":
            return EnrolmentState(state="waiting")
        case _:
            return EnrolmentState(state="refused")


def waiting(connection: Connection) -> tuple[Member, ...]:
    """Requests a person must look at, oldest first."""
    asked = (member for member in members(connection) if member.state in ("waiting", "renewing"))
    return tuple(sorted(asked, key=lambda member: member.asked_at))


def admit(
    connection: Connection,
    silo: str,
    certificate_pem: str,
    certificate_expires_at: datetime,
    *,
    roster: SignedRoster | None,
    now: datetime,
) -> None:
    """A person compared the fingerprint: hand out the certificate, with `roster` as the first that names the silo.

    `roster` is None for a renewal, when the current one already holds the very same card. Raises `UnknownMember`.
    """
    row = _row(connection, silo)
    if row is None or row.state not in ("waiting", "renewing"):
        raise UnknownMember(f"{silo} is not waiting to be admitted")
    if roster is not None:
        issue(connection, roster, now=now)
    version, current = roster_version(connection), current_roster(connection)
    card = _card(row)
    if current is None or parse_json(current)["roster"]["members"].count(card.model_dump(mode="json")) != 1:
        raise UnknownMember(f"roster version {version} does not hold the card {silo} asked with")
    connection.execute(
        update(silos)
        .where(silos.c.silo == silo)
        .values(state="admitted", certificate_pem=certificate_pem, certificate_expires_at=certificate_expires_at)
    )
    admitted = HospitalAdmitted(silo=silo, fingerprint=card.identity.fingerprint, roster_version=version)
    audit.append(connection, admitted, actor=COORDINATOR, now=now)


def issue(connection: Connection, roster: SignedRoster, *, now: datetime) -> None:
    """Make `roster` the current one; a hospital it no longer holds is removed. Raises `RolledBack`."""
    version, current = roster.roster.version, roster_version(connection)
    if version <= current:
        raise RolledBack(f"roster version {version} was offered, {current} is issued")
    connection.execute(
        insert(rosters).values(
            version=version, data=roster.data, issued_at=roster.roster.issued_at, expires_at=roster.roster.expires_at
        )
    )
    held = [card.party for card in roster.roster.members]
    connection.execute(
        update(silos).where(silos.c.state.in_(_ADMITTED), silos.c.silo.not_in(held)).values(state="removed")
    )
    issued = RosterIssued(roster_version=version, roster_digest=roster.digest)
    audit.append(connection, issued, actor=COORDINATOR, now=now)


def current_roster(connection: Connection) -> bytes | None:
    """The exact bytes of the newest roster."""
    found = connection.execute(select(rosters.c.data).order_by(rosters.c.version.desc()).limit(1)).scalar()
    return None if found is None else bytes(found)


def roster_version(connection: Connection) -> int:
    """0 before the first."""
    found: int = connection.execute(_VERSION).scalar_one()
    return found


def key_of(connection: Connection, silo: str) -> PublicIdentity:
    """The key an admitted hospital signs with; raises `UnknownMember`."""
    row = connection.execute(_KEY, {"asking": silo}).one_or_none()
    if row is None or row.state not in _ADMITTED:
        raise UnknownMember(f"{silo} is not admitted: finish the enrolment first")
    return _card(row).identity


def asking_key_of(connection: Connection, silo: str) -> PublicIdentity:
    """The key on the card a hospital last asked with, admitted or not; raises `UnknownMember`."""
    row = _row(connection, silo)
    if row is None:
        raise UnknownMember(f"{silo} has not asked to be admitted")
    return _card(row).identity


def beat(connection: Connection, silo: str, heartbeat: Heartbeat, now: datetime, lease: timedelta) -> None:
    """Note that `silo` was heard; until `now + lease` it counts as there."""
    said = canonical_bytes(heartbeat.model_dump(mode="json"))
    connection.execute(_BEAT, {"asking": silo, "now": now, "until": now + lease, "said": said})


def members(connection: Connection) -> tuple[Member, ...]:
    """Everybody who ever asked, by name."""
    return tuple(_member(row) for row in connection.execute(select(silos).order_by(silos.c.silo)))


def _check_signed(signed: SignedEnrolment) -> None:
    request = signed.request
    if request.card.party != request.silo:
        raise BadSignature(f"{request.silo} sent the key card of {request.card.party}")
    request.card.check()
    content = canonical_bytes(request.model_dump(mode="json"))
    request.card.identity.verify(ENROLMENT_CONTEXT, content, signed.signature)


def _use_token(connection: Connection, silo: str, token: Digest, now: datetime) -> None:
    row = connection.execute(select(invitations).where(invitations.c.token_digest == token)).one_or_none()
    if row is None or row.silo != silo:
        raise InvitationRefused(f"no invitation for {silo} has this token: ask the coordinator for one")
    if row.used_at is not None:
        raise InvitationRefused("the invitation was used already: ask the coordinator for a new one")
    if now >= row.expires_at:
        raise InvitationRefused(f"the invitation expired at {row.expires_at:%Y-%m-%d %H:%M} UTC: ask for a new one")
    connection.execute(update(invitations).where(invitations.c.token_digest == token).values(used_at=now))


def _row(connection: Connection, silo: str) -> Row[Any] | None:
    return connection.execute(select(silos).where(silos.c.silo == silo)).one_or_none()


def _card(row: Any) -> KeyCard:
    return _parsed_card(bytes(row.card))


@lru_cache(maxsize=1024)
def _parsed_card(data: bytes) -> KeyCard:
    return KeyCard.model_validate(parse_json(data))


def _member(row: Row[Any]) -> Member:
    return Member(
        silo=row.silo,
        state=row.state,
        card=_card(row),
        csr_pem=row.csr_pem,
        asked_at=row.asked_at,
        certificate_expires_at=row.certificate_expires_at,
        last_seen_at=row.last_seen_at,
        lease_until=row.lease_until,
        heartbeat=None if row.heartbeat is None else Heartbeat.model_validate(parse_json(bytes(row.heartbeat))),
    )

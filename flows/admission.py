"""Who is in: invitations out, fingerprints compared by a person, rosters signed."""

from pathlib import Path

from boundary.canonical import canonical_bytes
from boundary.errors import UnknownMember
from boundary.roster import KeyCard, read_roster
from flows.authority import issue_roster, write_secret
from flows.coordinator import ROSTER_LIFETIME, Coordinator, SettingsError
from flows.store import members
from flows.store.database import reading, writing


class FingerprintDiffers(ValueError):
    """What was read aloud is not what the request carries: somebody is in between."""


def invite(coordinator: Coordinator, silo: str, target: Path) -> None:
    """Write a one-time invitation file for a hospital, mode 0600."""
    if target.exists():
        raise SettingsError(f"{target} exists already: give the invitation another name")
    invitation = coordinator.authority.invite(silo, coordinator.settings.relay.url, coordinator.key.public)
    with writing(coordinator.store) as connection:
        members.invite(
            connection, silo, members.token_digest(invitation.token),
            expires_at=invitation.expires_at, now=coordinator.now(),
        )  # fmt: skip
    write_secret(target, canonical_bytes(invitation.model_dump(mode="json")))


def admit(coordinator: Coordinator, silo: str, spoken: str) -> int:
    """Admit a waiting hospital; returns the new roster's version.

    `spoken` is the fingerprint its people read aloud. Raises `FingerprintDiffers` or `UnknownMember`.
    """
    with writing(coordinator.store) as connection:
        asking = {member.silo: member for member in members.waiting(connection)}.get(silo)
        if asking is None:
            raise UnknownMember(f"{silo} is not waiting to be admitted: it must run `silo-agent enrol` first")
        if _plain(spoken) != _plain(asking.fingerprint):
            raise FingerprintDiffers(
                f"the request of {silo} carries another fingerprint than the one read aloud. Do not admit it; find "
                "out who sent it"
            )
        certificate = coordinator.authority.issue_client(asking.csr_pem, silo)
        cards = {card.party: card for card in _cards(coordinator)}
        version = members.roster_version(connection)
        changed = cards.get(silo) != asking.card
        cards[silo] = asking.card
        roster = None
        if changed:
            version += 1
            roster = issue_roster(
                cards.values(), version=version, coordinator=coordinator.card, keys=[coordinator.key],
                now=coordinator.now(), lifetime=ROSTER_LIFETIME,
            )  # fmt: skip
        members.admit(
            connection, silo, certificate.certificate_pem, certificate.expires_at,
            roster=roster, now=coordinator.now(),
        )  # fmt: skip
    return version


def renew_roster(coordinator: Coordinator, without: str | None = None) -> int:
    """Sign the membership anew, `without` one hospital if it is to leave; returns the version."""
    with writing(coordinator.store) as connection:
        cards = [card for card in _cards(coordinator) if card.party != without]
        version = members.roster_version(connection) + 1
        roster = issue_roster(
            cards, version=version, coordinator=coordinator.card, keys=[coordinator.key],
            now=coordinator.now(), lifetime=ROSTER_LIFETIME,
        )  # fmt: skip
        members.issue(connection, roster, now=coordinator.now())
    return version


def _cards(coordinator: Coordinator) -> tuple[KeyCard, ...]:
    with reading(coordinator.store) as connection:
        data = members.current_roster(connection)
    return () if data is None else read_roster(data, coordinator.key.public).roster.members


def _plain(fingerprint: str) -> str:
    return "".join(fingerprint.lower().split())

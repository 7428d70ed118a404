"""Joining a federation: keys made here, a one-time invitation, a fingerprint read aloud by telephone.

On an agent that has joined already, a new invitation renews the TLS certificate: the same keys, the same
coordinator, and nothing of the old state is touched before the new one is complete.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from boundary.api import ENROLMENT_CONTEXT, EnrolmentRequest, EnrolmentState, Invitation, SignedEnrolment
from boundary.canonical import canonical_bytes, parse_json
from boundary.errors import BoundaryError
from boundary.identity import PublicIdentity
from boundary.roster import TrustedRoster
from compliance.events import HospitalEnrolled
from silo_agent.config import AgentConfig
from silo_agent.daemon import RELAY_URL, ROSTER, Surroundings
from silo_agent.destination import by_policy
from silo_agent.errors import ConfigError, RelayUnreachable, WrongCoordinator
from silo_agent.journal import Journal
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder, write_private

_ASKED = "enrol.json"  # the request as it was sent: asking again is sending the same one again
_DOOR = ("enrol.crt", "enrol.key", "enrol-ca.crt")  # what the invitation opens the relay's door with
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One try to join, or to renew, with one invitation."""

    config: AgentConfig
    folder: StateFolder
    invitation: Invitation
    world: Surroundings

    async def ask_and_wait(self, wait_seconds: float, on_wait: Callable[[], None]) -> bool:
        """Whether the coordinator admitted us within the time. Asking again later goes on where this stopped."""
        self._check_coordinator()
        enrolment_tls = self._enrolment_tls()
        deadline = asyncio.get_running_loop().time() + wait_seconds
        async with RelayClient(
            self.invitation.relay_url, enrolment_tls, self.config.site, self.folder.identity,
            now=self.world.now, entropy=self.world.entropy, allow=by_policy(self.folder.root),
            proxy=self.config.proxy,
        ) as relay:  # fmt: skip
            state = await relay.enrol(self._request())
            while state.state == "waiting" and asyncio.get_running_loop().time() < deadline:
                on_wait()
                await asyncio.sleep(_LOOK_SECONDS)
                state = await self._ask(relay)
        if state.state == "refused":
            raise ConfigError("the coordinator refused this enrolment: ask why, then ask for a new invitation")
        if state.state == "waiting":
            return False
        self._admitted(state)
        return True

    async def _ask(self, relay: RelayClient) -> EnrolmentState:
        try:
            return await relay.enrolment_state()
        except RelayUnreachable:
            return EnrolmentState(state="waiting")

    def _kept(self, journal: Journal) -> TrustedRoster | None:
        data = journal.fact(ROSTER)
        try:
            return None if data is None else TrustedRoster.kept(data)
        except (BoundaryError, ValueError, LookupError, TypeError):
            return None  # damaged: this enrolment is how it is mended

    def _check_coordinator(self) -> None:
        """An agent that has a coordinator never takes another one from a file."""
        journal = Journal(self.folder.journal, self.config.site)
        kept = self._kept(journal)
        journal.close()
        if kept is not None and kept.roster.coordinator.signing_key != self.invitation.coordinator_key:
            raise WrongCoordinator(
                "the invitation names another coordinator than the one this agent is enrolled with. Nothing was "
                "changed; ask the coordinator by telephone who made it"
            )

    def _request(self) -> SignedEnrolment:
        """The request for this invitation: the one that was sent before, if one was."""
        path, site, token = self.folder.root / _ASKED, self.config.site, self.invitation.token
        try:
            before = SignedEnrolment.model_validate(parse_json(path.read_bytes()))
        except (FileNotFoundError, BoundaryError, ValidationError):
            before = None
        if before is not None and before.request.token == token:
            return before
        request = EnrolmentRequest(silo=site, token=token, card=self.folder.card(site), csr_pem=self.folder.csr(site))
        signature = self.folder.identity.sign(ENROLMENT_CONTEXT, canonical_bytes(request.model_dump(mode="json")))
        signed = SignedEnrolment(request=request, signature=signature)
        write_private(path, canonical_bytes(signed.model_dump(mode="json")))
        return signed

    def _enrolment_tls(self) -> TlsFiles:
        """The invitation's files, beside those in use, which stay as they are."""
        certificate, key, authority = (self.folder.root / name for name in _DOOR)
        write_private(certificate, self.invitation.certificate_pem.encode())
        write_private(key, self.invitation.private_key_pem.encode())
        write_private(authority, self.invitation.relay_ca_pem.encode())
        return TlsFiles(certificate, key, authority)

    def _admitted(self, state: EnrolmentState) -> None:
        if state.certificate_pem is None or state.roster is None:
            raise WrongCoordinator("the relay says 'admitted' without a certificate and a roster")
        journal = Journal(self.folder.journal, self.config.site)
        try:
            self._check_roster(journal, state.roster)
            self._take_certificate(state.certificate_pem)
            with journal.transaction():
                journal.set_fact(ROSTER, state.roster)
                journal.set_fact(RELAY_URL, self.invitation.relay_url.encode())
                coordinator = PublicIdentity(self.invitation.coordinator_key).fingerprint
                enrolled = HospitalEnrolled(
                    fingerprint=self.folder.identity.public.fingerprint, coordinator=coordinator
                )
                journal.record(enrolled, self.world.now())
        finally:
            journal.close()
        for name in (*_DOOR, _ASKED):
            (self.folder.root / name).unlink(missing_ok=True)

    def _check_roster(self, journal: Journal, data: bytes) -> None:
        kept, now = self._kept(journal), self.world.now()
        try:
            first = TrustedRoster.first(data, PublicIdentity(self.invitation.coordinator_key), now)
            card = (first if kept is None else kept.update(data, now)).roster.member(self.config.site)
        except BoundaryError as why:
            raise WrongCoordinator(f"the roster is not the invited coordinator's: {why}") from why
        if card != self.folder.card(self.config.site):
            raise WrongCoordinator("the roster names other keys for us than ours")

    def _take_certificate(self, pem: str) -> None:
        """Put it and the relay's CA in place; the old ones stay until the new ones are known to work together."""
        offered = TlsFiles(self.folder.root / "offered.crt", self.folder.tls_key, self.folder.root / _DOOR[2])
        write_private(offered.certificate, pem.encode())
        try:
            offered.context()
        except ConfigError as why:
            offered.certificate.unlink()
            raise WrongCoordinator("the certificate we got is not for our key") from why
        write_private(self.folder.relay_ca, self.invitation.relay_ca_pem.encode())
        offered.certificate.replace(self.folder.tls_certificate)


def read_invitation(path: Path, site: str) -> Invitation:
    """Raises `ConfigError` if the file is not an invitation for this hospital."""
    try:
        invitation = Invitation.model_validate(parse_json(path.read_bytes()))
    except OSError as why:
        raise ConfigError(
            f"{path} cannot be read ({why.strerror}): give it to the user that the agent runs as"
        ) from why
    except (BoundaryError, ValueError):  # whose text would quote the file, and with it the token
        raise ConfigError(f"{path} is not an invitation: ask the coordinator to send the file again") from None
    if invitation.silo != site:
        raise ConfigError(f"the invitation is for {invitation.silo}, this agent is {site}")
    return invitation

"""Joining a federation: keys made here, a one-time invitation, a fingerprint read aloud by telephone."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from boundary.api import ENROLMENT_CONTEXT, EnrolmentRequest, EnrolmentState, Invitation, SignedEnrolment
from boundary.canonical import canonical_bytes, parse_json
from boundary.errors import BoundaryError
from boundary.identity import PublicIdentity
from boundary.roster import TrustedRoster
from silo_agent.config import AgentConfig
from silo_agent.daemon import RELAY_URL, ROSTER, Surroundings
from silo_agent.errors import ConfigError, RelayUnreachable, WrongCoordinator
from silo_agent.journal import Journal
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder, write_private


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One try to join with one invitation."""

    config: AgentConfig
    folder: StateFolder
    invitation: Invitation
    world: Surroundings

    async def ask_and_wait(self, wait_seconds: float, on_wait: Callable[[], None]) -> bool:
        """Whether the coordinator admitted us within the time. Asking again later goes on where this stopped."""
        enrolment_tls = self._enrolment_tls()
        deadline = asyncio.get_running_loop().time() + wait_seconds
        async with RelayClient(
            self.invitation.relay_url, enrolment_tls, self.config.site, self.folder.identity,
            now=self.world.now, entropy=self.world.entropy, proxy=self.config.proxy,
        ) as relay:  # fmt: skip
            state = await relay.enrol(self._request())
            while state.state == "waiting" and asyncio.get_running_loop().time() < deadline:
                on_wait()
                await asyncio.sleep(0.5)
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

    def _request(self) -> SignedEnrolment:
        site = self.config.site
        request = EnrolmentRequest(
            silo=site, token=self.invitation.token, card=self.folder.card(site), csr_pem=self.folder.csr(site)
        )
        signature = self.folder.identity.sign(ENROLMENT_CONTEXT, canonical_bytes(request.model_dump(mode="json")))
        return SignedEnrolment(request=request, signature=signature)

    def _enrolment_tls(self) -> TlsFiles:
        files = TlsFiles(self.folder.root / "enrol.crt", self.folder.root / "enrol.key", self.folder.relay_ca)
        write_private(files.certificate, self.invitation.certificate_pem.encode())
        write_private(files.key, self.invitation.private_key_pem.encode())
        write_private(files.relay_ca, self.invitation.relay_ca_pem.encode())
        return files

    def _admitted(self, state: EnrolmentState) -> None:
        if state.certificate_pem is None or state.roster is None:
            raise WrongCoordinator("the relay says 'admitted' without a certificate and a roster")
        try:
            roster = TrustedRoster.first(
                state.roster, PublicIdentity(self.invitation.coordinator_key), self.world.now()
            )
            card = roster.roster.member(self.config.site)
        except BoundaryError as why:
            raise WrongCoordinator(f"the first roster is not the invited coordinator's: {why}") from why
        if card != self.folder.card(self.config.site):
            raise WrongCoordinator("the roster names other keys for us than ours")
        certificate = self.folder.tls_certificate
        write_private(certificate, state.certificate_pem.encode())
        try:
            TlsFiles(certificate, self.folder.tls_key, self.folder.relay_ca).context()
        except ssl.SSLError as why:
            certificate.unlink()
            raise WrongCoordinator("the certificate we got is not for our key") from why
        journal = Journal(self.folder.journal, self.config.site)
        with journal.transaction():
            journal.set_fact(ROSTER, state.roster)
            journal.set_fact(RELAY_URL, self.invitation.relay_url.encode())
        journal.close()
        for name in ("enrol.crt", "enrol.key"):
            (self.folder.root / name).unlink(missing_ok=True)


def read_invitation(path: Path, site: str) -> Invitation:
    """Raises `ConfigError` if the file is not an invitation for this hospital."""
    try:
        invitation = Invitation.model_validate(parse_json(path.read_bytes()))
    except (OSError, BoundaryError, ValueError) as why:
        raise ConfigError(f"{path} is not an invitation: {why}") from why
    if invitation.silo != site:
        raise ConfigError(f"the invitation is for {invitation.silo}, this agent is {site}")
    return invitation

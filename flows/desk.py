"""The coordinator's writing desk: signs what it tells hospitals, verifies what they said.

The relay checked signatures when it took the envelopes in; they are checked again here, because the relay's
database is not what we trust.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection

from boundary.envelope import Envelope, open_envelope, seal_envelope
from boundary.errors import PeerFault
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.messages import AnyMessage, slot_of
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.roster import TrustedRoster
from flows.store import mail, members


@dataclass(frozen=True, slots=True)
class Desk:
    """Correspondence of one study: keys of the hospitals are those the plan pins."""

    key: SigningIdentity
    now: Callable[[], datetime]
    plan: StudyPlan

    def tell(self, connection: Connection, silo: str, message: AnyMessage) -> Envelope:
        """Post a message, or find the one posted for its slot before: the same request has the same bytes."""
        before = mail.said(connection, silo, message.kind, slot_of(message)).get(COORDINATOR)
        if before is not None:
            return open_envelope(before, recipient=silo, signer=self.key.public, sender=COORDINATOR)
        envelope = seal_envelope(message, sender=COORDINATOR, recipient=silo, sent_at=self.now(), key=self.key)
        mail.post(connection, envelope, now=self.now())
        return envelope

    def told(self, connection: Connection, silo: str, kind: str, slot: str) -> AnyMessage | None:
        """What was posted for this slot before, if anything: a driver that takes over goes on from there."""
        before = mail.said(connection, silo, kind, slot).get(COORDINATOR)
        if before is None:
            return None
        return open_envelope(before, recipient=silo, signer=self.key.public, sender=COORDINATOR).message

    def heard(self, connection: Connection, kind: str, slot: str) -> dict[str, Envelope]:
        """What hospitals of the plan said, by hospital. What does not verify counts as not said."""
        said = mail.said(connection, COORDINATOR, kind, slot)
        return {envelope.sender: envelope for _, envelope in self._opened(enumerate(said.items()))}

    def heard_since(
        self, connection: Connection, kinds: tuple[str, ...], study: str | None, after: int
    ) -> list[tuple[int, Envelope]]:
        """What hospitals of the plan said of these kinds behind a sequence, in order, in one study or in all."""
        said = mail.since(connection, COORDINATOR, kinds, study, after)
        return list(self._opened((sequence, (silo, data)) for sequence, silo, data in said))

    def _opened(self, said: Iterable[tuple[int, tuple[str, bytes]]]) -> Iterator[tuple[int, Envelope]]:
        keys = self.plan.keys
        for sequence, (silo, data) in said:
            envelope = _opened(data, silo, keys[silo].text) if silo in keys else None
            if envelope is not None:
                yield sequence, envelope

    def roster(self, connection: Connection) -> TrustedRoster:
        """The roster in force; raises `RosterMissing`, `Expired` or `UnknownMember` if the plan cannot run on it."""
        data = members.current_roster(connection)
        if data is None:
            raise RosterMissing("no roster was issued yet: admit hospitals with `wardround admit`")
        roster = TrustedRoster.first(data, self.key.public, self.now())
        roster.check_plan(self.plan)
        return roster


@lru_cache(maxsize=1024)
def _opened(data: bytes, silo: str, key: str) -> Envelope | None:
    """None if it does not verify. The same bytes are looked at many times while the others are waited for."""
    try:
        return open_envelope(data, recipient=COORDINATOR, signer=PublicIdentity(key), sender=silo)
    except PeerFault:
        return None


class RosterMissing(LookupError):
    """The federation has no members yet."""

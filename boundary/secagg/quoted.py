"""Opens other hospitals' signed envelopes that a message quotes, with the keys the approved plan pins.

The coordinator only passes these on. Whoever reads one checks the signature, the recipient, the kind and that it is
about this very collection; what was said in another round, attempt or study does not get through.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from boundary.envelope import Envelope, open_envelope, peek
from boundary.errors import OutOfTurn, UnknownMember
from boundary.messages import (
    Collection,
    MaskedVector,
    OfCollection,
    Ready,
    Share,
    Shares,
    SharesRevealed,
    SurvivorsSeen,
)
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.secagg.errors import BadShares
from boundary.secagg.hospital import Dealt, Part, Revealed
from boundary.secagg.secrets import Announcement

M = TypeVar("M", bound=OfCollection)


@dataclass(frozen=True, slots=True)
class Said:
    """What hospitals of a plan said about one collection, read from their envelopes. Everything raises `PeerFault`."""

    plan: StudyPlan
    collection: Collection

    def announcements(self, quoted: tuple[bytes, ...]) -> dict[str, Announcement]:
        """A1 by hospital."""
        return {one.sender: announcement(one.digest, said) for one, said in self._each(quoted, COORDINATOR, Ready)}

    def parts_for(self, holder: str, cohort: str, quoted: tuple[bytes, ...]) -> dict[str, Part]:
        """The parts of B1 for `holder`, by the hospital that dealt them."""
        return {one.sender: part(said, cohort) for one, said in self._each(quoted, holder, Share)}

    def dealt(self, dealer: str, shares: Shares) -> Dealt:
        """All of one hospital's B1, as the coordinator reads it: promised digests, and sealed parts by holder."""
        parts: dict[str, Part] = {}
        for data in shares.parts:
            sender, holder, _ = peek(data)
            if sender != dealer or holder in parts:
                raise BadShares(f"{dealer} quotes {sender:.60}, or has two parts for {holder:.60}")
            ((_, said),) = self._each((data,), holder, Share)
            parts[holder] = part(said, shares.cohort)
        return Dealt(shares.cohort, parts, shares.self_digest, shares.seed_digest)

    def vectors(self, quoted: tuple[bytes, ...]) -> dict[str, tuple[str, str]]:
        """C1 by hospital: the digest of the sharers it masked for, the digest of its vector."""
        return {
            one.sender: (said.sharers, said.vector.digest)
            for one, said in self._each(quoted, COORDINATOR, MaskedVector)
        }

    def agreements(self, quoted: tuple[bytes, ...]) -> dict[str, str]:
        """D2 by hospital: the digest of the survivors it signed."""
        return {one.sender: said.survivors for one, said in self._each(quoted, COORDINATOR, SurvivorsSeen)}

    def _each(self, quoted: tuple[bytes, ...], recipient: str, kind: type[M]) -> Iterator[tuple[Envelope, M]]:
        keys = self.plan.keys
        seen: set[str] = set()
        for data in quoted:
            sender = peek(data)[0]
            if sender not in keys or sender in seen:
                raise UnknownMember(f"{sender!r:.60} is quoted twice, or is not in the plan")
            seen.add(sender)
            envelope = open_envelope(data, recipient=recipient, signer=keys[sender], sender=sender)
            if not isinstance(envelope.message, kind) or envelope.message.collection != self.collection:
                raise OutOfTurn(f"{sender} is quoted with a {envelope.message.kind} that does not belong here")
            yield envelope, envelope.message


def announcement(digest: str, said: Ready) -> Announcement:
    """`digest` is that of the signed envelope."""
    return Announcement(said.context, said.transport_key, said.mask_key, said.self_commitment, digest)


def part(said: Share, cohort: str) -> Part:
    """Raises `OutOfTurn` for a share that was dealt in another cohort."""
    if said.cohort != cohort:
        raise OutOfTurn("a share that was dealt in another cohort")
    return Part(said.sealed, said.pair, said.self_digest, said.seed_digest)


def revealed(said: SharesRevealed) -> Revealed:
    """Raises `BadShares` for a hospital that is named twice, in one list or in both."""
    of_survivors = {one.silo: one.share for one in said.of_survivors}
    of_lost = {one.silo: one.share for one in said.of_lost}
    if len(of_survivors | of_lost) != len(said.of_survivors) + len(said.of_lost):
        raise BadShares("shares of one hospital twice")
    return Revealed(said.survivors, of_survivors, of_lost)

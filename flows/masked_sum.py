"""The coordinator's part of one masked sum: what it waits for, what it passes on, and the masks it may take off.

Five steps, each of which ends with one transaction that tells every hospital what was decided. What was posted stays
decided: a driver that takes over reads it and goes on behind it. The coordinator holds no secret of its own. It checks
what it passes on, so that a hospital that sends nonsense is left out by name instead of spoiling the attempt.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine

from boundary.envelope import Envelope, peek
from boundary.errors import PeerFault
from boundary.groups import Groups, fewest_groups, group_of, groups_of, summable
from boundary.layout import VectorLayout
from boundary.messages import (
    AgreementShown,
    AnyMessage,
    BlobRef,
    CohortClosed,
    MaskedVector,
    OfCollection,
    Ready,
    Shares,
    SharesRevealed,
    SharesRouted,
    SurvivorsNamed,
    SurvivorsSeen,
)
from boundary.sealing import SealingKey
from boundary.secagg.context import cohort_of, sharers_of, survivors_of
from boundary.secagg.graph import chooses_mask, thresholds
from boundary.secagg.hospital import Dealt
from boundary.secagg.opening import Opening, Sum
from boundary.secagg.quoted import Said, revealed
from boundary.secagg.ring import Encoding
from boundary.secagg.secrets import Announcement, MaskKey
from compliance.records import CohortDecision
from flows.collecting import Asked, CollectionFailed, Watch
from flows.desk import Desk
from flows.engine import Needed, Reason
from flows.store import rounds, studies
from flows.store.database import reading, writing
from flows.store.studies import Reins

_log = logging.getLogger("flows.masked_sum")
M = TypeVar("M", bound=OfCollection)
SPLIT_VIEW, BAD_VECTOR, BAD_SHARES = "SPLIT_VIEW", "BAD_VECTOR", "BAD_SHARES"
GROUP_TOO_SMALL = "GROUP_TOO_SMALL"


@dataclass(frozen=True, slots=True)
class Ordered:
    """What the hospitals were ordered to sum, and how long they may work for it (`flows.engine.CollectionView`)."""

    context: str
    layout: VectorLayout
    encoding: Encoding
    due: datetime
    wanted: int | None = None
    grace: timedelta = timedelta(0)


class MaskedSum:
    """One collection from the closing of its cohort to the masks of its sum. Call the steps in their order."""

    def __init__(self, store: Engine, reins: Reins, desk: Desk, watch: Watch, ordered: Ordered) -> None:
        self.watch, self.ordered, self._store, self._reins, self._desk = watch, ordered, store, reins, desk
        self._said = Said(desk.plan, watch.collection)
        self._members: dict[str, Announcement] = {}
        self._dealt: dict[str, Dealt] = {}
        self._cohort = self._sharers = ""
        self.survivors = ""
        self.vectors: dict[str, BlobRef] = {}
        self.decision: CohortDecision | None = None  # `members` are those that came this far
        everybody, fault = frozenset(watch.orders), self._fault_of_ready
        parts = tuple((frozenset(group), self._plan_quorum) for group in self._groups(everybody))
        enough = Needed(parts, fewest_groups(desk.plan, watch.collection.phase))
        watch.ask(Asked(Ready, everybody, enough, ordered.due, fault, ordered.wanted, ordered.grace))

    @property
    def steps(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What follows the closing of the cohort, by the name people see."""
        return {
            "keys shared": self.route_shares,
            "masked vectors": self.name_survivors,
            "same survivors seen": self.show_agreement,
            "shares revealed": self.collect_shares,
        }

    @property
    def _plan_quorum(self) -> int:
        return self._desk.plan.aggregation.quorum

    def _groups(self, silos: Iterable[str]) -> Groups:
        return groups_of(self._desk.plan, self.watch.collection.phase, silos)

    def _group(self, silo: str) -> frozenset[str]:
        """Those of the closed cohort that this hospital is summed with, itself among them."""
        return group_of(self._desk.plan, self.watch.collection.phase, silo) & set(self._members)

    @property
    def groups(self) -> Groups:
        """The closed cohort, as it is summed: one group of all unless the plan has groups."""
        return self._groups(self._members)

    @property
    def _needed(self) -> Needed:
        """How many of each group of the closed cohort have to stay: hospitals refuse to go on with fewer."""
        quorum = self._plan_quorum
        parts = tuple((frozenset(one), max(quorum, thresholds(len(one)).agreeing)) for one in self.groups)
        return Needed(parts, len(parts))

    # --- A1 -> A2 ------------------------------------------------------------------------------------
    async def close_cohort(self) -> None:
        """Wait for the engine's decision, keep it, tell every hospital. Raises `CollectionFailed`."""
        with reading(self._store) as connection:
            decision = rounds.decided(connection, self.watch.collection)
        if decision is None:
            said = await self.watch.until_decided()
            now, ready = self._desk.now(), frozenset(self.watch.answers)
            members = summable(self._desk.plan, self.watch.collection.phase, ready)
            too_few = dict.fromkeys(sorted(ready.difference(members)), GROUP_TOO_SMALL)
            decision = CohortDecision(
                phase=self.watch.collection.phase,
                attempt=self.watch.collection.attempt,
                reason=said.reason.value,
                members=members,
                absent=self.watch.absences | too_few,
                closed_at=now,
            )
            quoted = self._quoted(members)
            with writing(self._store) as connection:
                decision = rounds.close_cohort(connection, self._reins, self.watch.collection, decision, now)
                members, absent = decision.members, tuple(sorted(decision.absent))
                self._tell(connection, self.watch.orders, lambda order, _: CohortClosed(
                    collection=self.watch.collection, order=order, members=members, absent=absent, ready=quoted,
                ))  # fmt: skip
        closed = self._posted(CohortClosed)
        assert closed is not None  # noqa: S101 - posted in the transaction that keeps the decision
        self._members = self._said.announcements(closed.ready)
        self._cohort = cohort_of(self.ordered.context, {silo: said.digest for silo, said in self._members.items()})
        self.decision = decision

    def _fault_of_ready(self, _silo: str, envelope: Envelope) -> str | None:
        said = envelope.message
        if not isinstance(said, Ready) or said.context != self.ordered.context:
            return SPLIT_VIEW
        try:
            SealingKey(said.transport_key)
            SealingKey(said.mask_key)
        except PeerFault as why:
            return why.code
        return None

    # --- B1 -> B2 ------------------------------------------------------------------------------------
    async def route_shares(self) -> None:
        """Wait for everybody's shares; give each hospital those that are for it."""
        members = frozenset(self._members)
        self._ask(Shares, members, self._needed, self._fault_of_shares)
        posted = self._posted(SharesRouted)
        if posted is None:
            await self.watch.until_decided()
            sharing, parts = tuple(sorted(self.watch.answers)), self._parts()
            with writing(self._store) as connection:
                self._tell(connection, members, lambda order, silo: SharesRouted(
                    collection=self.watch.collection, order=order, members=sharing,
                    parts=parts.get(silo, ()) if silo in sharing else (),
                ))  # fmt: skip
        else:
            sharing = posted.members
            self._found(Shares, sharing, self._fault_of_shares)
        self._leave_out(set(sharing))
        self._dealt = {silo: self._dealt[silo] for silo in sharing}
        self._sharers = sharers_of(self._cohort, sharing)

    def _fault_of_shares(self, silo: str, envelope: Envelope) -> str | None:
        said, group = envelope.message, self._group(silo)
        wanted = thresholds(len(group))
        if not isinstance(said, Shares) or said.cohort != self._cohort:
            return SPLIT_VIEW
        try:
            dealt = self._said.dealt(silo, said)
        except PeerFault as why:
            return why.code
        others = group - {silo}
        if len(dealt.parts) != wanted.neighbours or not set(dealt.parts) <= others:
            return BAD_SHARES
        for holder, part in dealt.parts.items():
            if (part.pair is not None) != chooses_mask(silo, holder, is_complete=wanted.is_complete):
                return BAD_SHARES
        self._dealt[silo] = dealt
        return None

    def _parts(self) -> dict[str, tuple[bytes, ...]]:
        """The quoted parts by the hospital that holds them, of all whose shares arrived."""
        found: dict[str, tuple[bytes, ...]] = {}
        for _, envelope in sorted(self.watch.answers.items()):
            for data in envelope.message.parts if isinstance(envelope.message, Shares) else ():
                _, holder, _ = peek(data)
                found[holder] = (*found.get(holder, ()), data)
        return found

    # --- C1 -> D1 ------------------------------------------------------------------------------------
    async def name_survivors(self) -> None:
        """Wait for the masked vectors; show each hospital whose arrived."""
        sharing = frozenset(self._dealt)
        self._ask(MaskedVector, sharing, self._needed, self._fault_of_vector)
        posted = self._posted(SurvivorsNamed)
        if posted is None:
            await self.watch.until_decided()
            quoted = self._quoted()
            with writing(self._store) as connection:
                self._tell(connection, sharing, lambda order, _: SurvivorsNamed(
                    collection=self.watch.collection, order=order, vectors=quoted,
                ))  # fmt: skip
            answers = dict(self.watch.answers)
        else:
            answers = self._found(MaskedVector, self._said.vectors(posted.vectors), self._fault_of_vector)
        self._leave_out(set(answers))
        self.vectors = {s: e.message.vector for s, e in sorted(answers.items()) if isinstance(e.message, MaskedVector)}
        self.survivors = survivors_of(self._sharers, {silo: blob.digest for silo, blob in self.vectors.items()})

    def _fault_of_vector(self, _silo: str, envelope: Envelope) -> str | None:
        said = envelope.message
        if not isinstance(said, MaskedVector) or said.sharers != self._sharers:
            return SPLIT_VIEW
        return None if said.vector.size == self.ordered.layout.masked_bytes(self.ordered.encoding.ring) else BAD_VECTOR

    # --- D2 -> D3 ------------------------------------------------------------------------------------
    async def show_agreement(self) -> None:
        """Wait until enough hospitals saw the same survivors; show that to all of them."""
        surviving = frozenset(self.vectors)
        self._ask(SurvivorsSeen, surviving, self._needed, self._fault_of_agreement)
        if self._posted(AgreementShown) is None:
            await self.watch.until_decided()
            quoted = self._quoted()
            with writing(self._store) as connection:
                self._tell(connection, surviving, lambda order, _: AgreementShown(
                    collection=self.watch.collection, order=order, seen=quoted,
                ))  # fmt: skip

    def _fault_of_agreement(self, _silo: str, envelope: Envelope) -> str | None:
        said = envelope.message
        return None if isinstance(said, SurvivorsSeen) and said.survivors == self.survivors else SPLIT_VIEW

    # --- E1 ------------------------------------------------------------------------------------------
    async def collect_shares(self) -> None:
        """Wait until the masks of every group's sum can be made; `masks` makes them."""
        self._openings = {group: Opening(self._sum_of(group)) for group in self.groups}
        self._ask(SharesRevealed, frozenset(self.vectors), self._needed, self._fault_of_revealed)
        while True:
            await self.watch.until_decided()
            closed = [frozenset(group) for group, opening in self._openings.items() if opening.missing]
            if not closed:
                return
            for group in closed:
                if not self.watch.view.outstanding & group:
                    raise CollectionFailed(self.watch.collection, Reason.CANNOT_UNMASK)
                self.watch.need_more(group)

    def _sum_of(self, group: tuple[str, ...]) -> Sum:
        return Sum(
            context=self.ordered.context,
            cohort=self._cohort,
            sharers=self._sharers,
            survivors=self.survivors,
            members={silo: self._members[silo] for silo in group},
            dealt={silo: self._dealt[silo] for silo in group if silo in self._dealt},
            surviving=frozenset(silo for silo in group if silo in self.vectors),
        )

    def _fault_of_revealed(self, silo: str, envelope: Envelope) -> str | None:
        said = envelope.message
        if not isinstance(said, SharesRevealed):
            return BAD_SHARES
        try:
            opening = next(one for group, one in self._openings.items() if silo in group)
            opening.take(silo, revealed(said))
        except PeerFault as why:
            _log.warning("%s: %s", self.watch.collection, why)
            return why.code
        return None

    def parts(self) -> list[tuple[dict[str, BlobRef], list[MaskKey]]]:
        """Give for each group its vectors, by hospital, and what takes the masks off their sum. Blocking.

        Raises `BadShares`, which names a dealer who lied.
        """
        return [
            ({silo: self.vectors[silo] for silo in group if silo in self.vectors}, opening.masks())
            for group, opening in self._openings.items()
        ]

    # --- common --------------------------------------------------------------------------------------
    def _ask(
        self, kind: type[OfCollection], expected: frozenset[str], needed: Needed,
        fault: Callable[[str, Envelope], str | None],
    ) -> None:  # fmt: skip
        step = timedelta(minutes=self._desk.plan.aggregation.step_minutes)
        self.watch.ask(Asked(kind, expected, needed, self._desk.now() + step, fault))

    def _quoted(self, of: Iterable[str] | None = None) -> tuple[bytes, ...]:
        """The answers as they were signed, in the order of the hospitals' names; None for all that answered."""
        wanted = self.watch.answers if of is None else of
        return tuple(self.watch.answers[silo].data for silo in sorted(wanted))

    def _tell(self, connection: Connection, silos: Iterable[str], message: Callable[[str, str], AnyMessage]) -> None:
        """Post to each hospital `message(order, silo)`, in the caller's transaction."""
        studies.check(connection, self._reins)
        for silo in sorted(silos):
            self._desk.tell(connection, silo, message(self.watch.orders[silo], silo))

    def _posted(self, kind: type[M]) -> M | None:
        """What was decided before: all hospitals were told in one transaction, so any of them will do."""
        with reading(self._store) as connection:
            for silo in sorted(self.watch.orders):
                message = self._desk.told(connection, silo, kind.kind, str(self.watch.collection))
                if isinstance(message, kind):
                    return message
        return None

    def _found(
        self, kind: type[OfCollection], silos: Iterable[str], fault: Callable[[str, Envelope], str | None]
    ) -> dict[str, Envelope]:
        """The answers that a decision which was posted before stands on. Raises `CollectionFailed` if one is gone."""
        with reading(self._store) as connection:
            heard = self._desk.heard(connection, kind.kind, str(self.watch.collection))
        found = {silo: heard[silo] for silo in silos if silo in heard and fault(silo, heard[silo]) is None}
        if set(found) != set(silos):
            raise CollectionFailed(self.watch.collection, Reason.CANNOT_UNMASK)
        return found

    def _leave_out(self, staying: set[str]) -> None:
        """Count those that did not come this far as absent, each with its reason."""
        before, absences = self.decision, self.watch.absences
        if before is None:
            return
        lost = {silo: absences.get(silo, "LOST") for silo in before.members if silo not in staying}
        members = tuple(silo for silo in before.members if silo in staying)
        self.decision = before.model_copy(update={"members": members, "absent": before.absent | lost})

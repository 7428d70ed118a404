"""One collection, watched: who is ready, who refused, who is silent; closed by the engine's decision.

Several Prefect tasks look at one watch; it polls the store once for all of them, only when something was posted.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine

from boundary.api import Activity
from boundary.messages import CohortClosed, Collection, Contribution, Ready, Refused
from flows.desk import Desk
from flows.engine import CollectionView, Decision, Next, Reason, Standing, next_action
from flows.records import CohortDecision
from flows.store import mail, members
from flows.store.database import reading

LOOK_SECONDS = 0.03  # for news in the store; a cheap query for the last sequence
LEASES_SECONDS = 1.0  # for hospitals that fall silent, and for the clock


@dataclass(frozen=True, slots=True)
class Progress:
    """What a hospital's last heartbeat said, for people."""

    activity: Activity | None
    seen_at: datetime | None


class CollectionFailed(Exception):
    """The attempt was given up; `reason` is the engine's code."""

    def __init__(self, collection: Collection, reason: Reason) -> None:
        super().__init__(f"{collection}: {reason.value}")
        self.collection, self.reason = collection, reason


class Watch:
    """The view of one collection, kept up to date by `keep`. It only reads: the engine decides, the driver writes."""

    def __init__(
        self,
        store: Engine,
        desk: Desk,
        collection: Collection,
        orders: dict[str, str],
        due: datetime,
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._desk, self._now = store, desk, now
        self.collection, self.orders = collection, orders
        self.stage: type[Ready | Contribution] = Ready
        self.members: frozenset[str] = frozenset(orders)
        self.progress: dict[str, Progress] = {}
        self.contributions: dict[str, Contribution] = {}
        self._changed = asyncio.Condition()
        self._sequence = -1
        self.view = CollectionView(self.members, frozenset(), {}, frozenset(), due, desk.plan.aggregation.quorum)
        self.ready: frozenset[str] = frozenset()

    @property
    def decision(self) -> Decision:
        return next_action(self.view, self._now())

    def expect_contributions(self, cohort: frozenset[str], due: datetime) -> None:
        """From now on the question is who of the closed cohort has sent."""
        self.stage, self.members, self._sequence = Contribution, cohort, -1
        self.view = CollectionView(cohort, frozenset(), {}, frozenset(), due, self.view.quorum)

    async def keep(self) -> None:
        """Poll until cancelled."""
        last_look = float("-inf")
        while True:
            clock = asyncio.get_running_loop().time()
            with reading(self._store) as connection:
                sequence = mail.latest_sequence(connection)
                if sequence != self._sequence or clock - last_look >= LEASES_SECONDS:
                    self._look(connection)
                    self._sequence, last_look = sequence, clock
                    async with self._changed:
                        self._changed.notify_all()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, connection: Connection) -> None:
        slot = str(self.collection)
        ready = {s for s, e in self._desk.heard(connection, Ready.kind, slot).items() if self._answers(s, e.message)}
        sent = self._desk.heard(connection, Contribution.kind, slot)
        for silo, envelope in sent.items():
            if isinstance(envelope.message, Contribution) and self._answers(silo, envelope.message):
                self.contributions[silo] = envelope.message
        refused = {
            silo: envelope.message.code
            for silo, envelope in self._desk.heard(connection, Refused.kind, slot).items()
            if isinstance(envelope.message, Refused) and self._answers(silo, envelope.message)
        }
        self.ready = frozenset(ready)
        answered = self.ready if self.stage is Ready else frozenset(self.contributions)
        self.view = replace(
            self.view,
            answered=answered & self.members,
            refused={silo: code for silo, code in refused.items() if silo in self.members - answered},
            silent=self._silent(connection),
        )

    def _answers(self, silo: str, message: object) -> bool:
        return isinstance(message, Ready | Contribution | Refused) and message.order == self.orders.get(silo)

    def _silent(self, connection: Connection) -> frozenset[str]:
        patience = timedelta(seconds=self._desk.plan.aggregation.lost_after_seconds)
        silent = set(self.members)
        for member in members.members(connection):
            heartbeat = member.heartbeat
            self.progress[member.silo] = Progress(heartbeat.activity if heartbeat else None, member.last_seen_at)
            if member.last_seen_at is not None and self._now() - member.last_seen_at < patience:
                silent.discard(member.silo)
        return frozenset(silent)

    async def until_decided(self) -> Decision:
        """Wait until the engine no longer says wait."""
        async with self._changed:
            while self.decision.next is Next.WAIT or self._sequence < 0:
                await self._changed.wait()
            return self.decision

    async def until_answered(self, silo: str) -> Standing:
        """Wait until this hospital has answered in the present stage, or the collection went on without it."""
        async with self._changed:
            while True:
                standing = self.view.standing(silo, self._now())
                if self._sequence >= 0 and (
                    standing in {Standing.READY, Standing.REFUSED} or self.decision.next is not Next.WAIT
                ):
                    return standing
                await self._changed.wait()


def absences(watch: Watch, now: datetime) -> dict[str, str]:
    """Why each hospital that was asked is not in: its own code, SILENT or LATE."""
    view = watch.view
    return {
        silo: view.refused.get(silo) or (Standing.SILENT if silo in view.silent else Standing.LATE).name
        for silo in sorted(view.expected - view.answered)
        if view.standing(silo, now) is not Standing.READY
    }


def closing(watch: Watch, order: str, decision: CohortDecision) -> CohortClosed:
    """The message for one hospital about how the collection was closed."""
    return CohortClosed(
        collection=watch.collection, order=order, members=decision.members, absent=tuple(sorted(decision.absent))
    )

"""One collection, watched: who has answered, who refused, who is silent; closed by the engine's decision.

Several Prefect tasks look at one watch; it polls the store once for all of them, only when something was posted.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine

from boundary.api import Activity
from boundary.envelope import Envelope
from boundary.messages import Collection, OfCollection, Refused
from flows.desk import Desk
from flows.engine import CollectionView, Decision, Needed, Next, Reason, Standing, next_action
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


@dataclass(frozen=True, slots=True)
class Asked:
    """What one step waits for: this kind of message, from these hospitals, for the orders they were given.

    `fault(silo, envelope)` gives the code of what makes an answer unusable, or None; it is asked once per answer.
    `wanted` and `grace` are those of `CollectionView`.
    """

    kind: type[OfCollection]
    expected: frozenset[str]
    needed: Needed
    due: datetime
    fault: Callable[[str, Envelope], str | None]
    wanted: int | None = None
    grace: timedelta = timedelta(0)


class Watch:
    """The view of one collection, kept up to date by `keep`. It only reads: the engine decides, the driver writes."""

    def __init__(
        self, store: Engine, desk: Desk, collection: Collection, orders: dict[str, str], now: Callable[[], datetime]
    ) -> None:
        self._store, self._desk, self._now = store, desk, now
        self.collection, self.orders = collection, orders
        self.progress: dict[str, Progress] = {}
        self.answers: dict[str, Envelope] = {}
        self._changed = asyncio.Condition()
        self._asked: Asked | None = None
        self._judged: dict[str, str | None] = {}
        self._sequence = -1
        self.view = CollectionView(frozenset(orders), frozenset(), {}, frozenset(), now(), Needed.of((), 0))

    @property
    def decision(self) -> Decision:
        return next_action(self.view, self._now())

    def ask(self, asked: Asked) -> None:
        """From now on this is the question."""
        self._asked, self._judged, self._sequence = asked, {}, -1
        self.answers = {}
        self.view = CollectionView(
            asked.expected, frozenset(), {}, frozenset(), asked.due, asked.needed, asked.wanted, asked.grace
        )

    def need_more(self, group: frozenset[str]) -> None:
        """What was enough by number turned out not to be: wait for one more answer of this group."""
        self.view = replace(self.view, needed=self.view.needed.one_more(group, self.view.answered))

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
        if self._asked is None:
            return
        heard = self._heard(connection, self._asked.kind)
        refused = {
            silo: envelope.message.code
            for silo, envelope in self._heard(connection, Refused).items()
            if isinstance(envelope.message, Refused)
        }
        for silo, envelope in heard.items():
            if envelope.digest not in self._judged:
                self._judged[envelope.digest] = self._asked.fault(silo, envelope)
            fault = self._judged[envelope.digest]
            if fault is None:
                self.answers[silo] = envelope
            else:
                refused[silo] = fault
        self.view = replace(
            self.view,
            answered=frozenset(self.answers),
            refused={silo: code for silo, code in refused.items() if silo not in self.answers},
            silent=self._silent(connection),
            full_at=self._full_at(connection),
        )

    def _full_at(self, connection: Connection) -> datetime | None:
        """When the relay had taken as many answers as are wanted: by its clock, and the same for whoever takes over."""
        wanted = self.view.wanted
        if wanted is None or len(self.answers) < wanted:
            return None
        return sorted(mail.posted_at(connection, [envelope.digest for envelope in self.answers.values()]))[wanted - 1]

    def _heard(self, connection: Connection, kind: type[OfCollection]) -> dict[str, Envelope]:
        """Answers of the hospitals that are asked, to the very order they were given."""
        found = self._desk.heard(connection, kind.kind, str(self.collection))
        return {
            silo: envelope
            for silo, envelope in found.items()
            if silo in self.view.expected and getattr(envelope.message, "order", None) == self.orders.get(silo)
        }

    def _silent(self, connection: Connection) -> frozenset[str]:
        patience = timedelta(seconds=self._desk.plan.aggregation.lost_after_seconds)
        silent = set(self.view.expected)
        for member in members.members(connection):
            heartbeat = member.heartbeat
            self.progress[member.silo] = Progress(heartbeat.activity if heartbeat else None, member.last_seen_at)
            if member.last_seen_at is not None and self._now() - member.last_seen_at < patience:
                silent.discard(member.silo)
        return frozenset(silent)

    async def until_decided(self) -> Decision:
        """Wait until the engine no longer says wait. Raises `CollectionFailed` when it gives up."""
        async with self._changed:
            while self._sequence < 0 or self.decision.next is Next.WAIT:
                await self._changed.wait()
            decision = self.decision
        if decision.next is Next.GIVE_UP:
            raise CollectionFailed(self.collection, decision.reason)
        return decision

    async def until_answered(self, silo: str) -> Standing:
        """Wait until this hospital has answered the present question, or the collection went on without it."""
        question = self._asked
        async with self._changed:
            while True:
                standing = self.view.standing(silo, self._now())
                if self._asked is not question:
                    return Standing.READY if silo in self.view.expected else Standing.LATE
                if self._sequence >= 0 and (
                    standing in {Standing.READY, Standing.REFUSED} or self.decision.next is not Next.WAIT
                ):
                    return standing
                await self._changed.wait()

    @property
    def absences(self) -> dict[str, str]:
        """Why each hospital that was asked has not answered: its own code, NOT_NEEDED, SILENT or LATE."""
        view = self.view
        at_work = Standing.NOT_NEEDED if view.is_full else Standing.LATE
        return {
            silo: view.refused.get(silo) or (Standing.SILENT if silo in view.silent else at_work).name
            for silo in sorted(view.expected - view.answered)
        }

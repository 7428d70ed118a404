"""A round's orders: who is asked for which sum, and the watch over their answers.

Orders that were posted stay the orders. So a driver that takes a round over asks those whom the first one asked.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Self

from boundary.groups import summable
from boundary.layout import VectorLayout, layout_in
from boundary.messages import BlobRef, Collection, Phase, WorkOrder
from boundary.names import COORDINATOR
from boundary.parties import taking_part
from boundary.secagg.context import context_of
from boundary.secagg.ring import Encoding, first_encoding
from flows.collecting import CollectionFailed, Watch
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.masked_sum import MaskedSum, Ordered
from flows.selection import asked, pace_of
from flows.server_state import ServerSide
from flows.store import holdings, rounds, studies
from flows.store.database import writing
from flows.store.rounds import OpenRound
from flows.store.studies import Reins, Study
from models.measuring import layout_of

LONGEST_WAIT_MINUTES = 14 * 24 * 60  # as long as a plan may have a round take


@dataclass(frozen=True)
class RoundOrders:
    """One round in this driver's hands, and who is ordered to do what in it."""

    coordinator: Coordinator
    study: Study
    reins: Reins
    desk: Desk
    roster_digest: str
    heads: str
    opened: OpenRound
    model_in: BlobRef
    consenting: tuple[str, ...]
    encoding: Encoding
    without: frozenset[str] = frozenset()  # who rests in this round's training if enough others remain

    @property
    def number(self) -> int:
        return self.opened.facts.number

    def collection(self, phase: Phase) -> Collection:
        """Attempts are counted through the round: every failed one, of either phase, is one more."""
        return Collection(study=self.study.study, round=self.number, phase=phase, attempt=self.opened.facts.attempt)

    def layout(self, phase: Phase) -> VectorLayout:
        plan = self.study.plan
        metrics = len(plan.labels.classes) if phase == "statistics" else layout_of(plan).size
        parameters = plan.aggregation.summed_weights(self.study.parts.moving.size)
        return layout_in(plan, phase, parameters=parameters, metrics=metrics)

    def partakers(self, phase: Phase) -> tuple[str, ...]:
        """The hospitals that consent and have a part in this phase, by the plan.

        Nobody trains, and spends a guarantee on it, whose group cannot be summed.
        """
        may = set(self.consenting).intersection(taking_part(self.study.plan, phase))
        return summable(self.study.plan, phase, may)

    # --- collecting ----------------------------------------------------------------------------------
    @asynccontextmanager
    async def collecting(self, phase: Phase, model: BlobRef) -> AsyncIterator[MaskedSum]:
        """Post the orders (or find them) and watch for answers during the block."""
        collection, orders, control = self.collection(phase), {}, self.server.control if phase == "train" else None
        votes = phase == "evaluate" and self.study.plan.robustness.vote
        order = WorkOrder(
            collection=collection,
            plan_digest=self.study.plan_digest,
            roster_digest=self.roster_digest,
            model=model,
            base=self.study.model.base,
            control=control,
            before=self.model_in if votes else None,
            encoding=self.encoding if phase == "train" else first_encoding(self.study.plan),
            normalisation=self.study.normalisation if phase != "statistics" else None,
            heads=self.heads,
            due=self.coordinator.now() + self._patience(phase),
        )
        with writing(self.coordinator.store) as connection:
            studies.check(connection, self.reins)
            holdings.record(connection, model, owner=COORDINATOR, now=self.coordinator.now())
            may = self.partakers(phase)
            for silo in asked(connection, self.desk, self.study.plan_digest, collection, may, self.without):
                envelope = self.desk.tell(connection, silo, order)
                orders[silo] = envelope.digest
                if isinstance(envelope.message, WorkOrder):
                    order = envelope.message  # one that was posted before counts, its roster and deadline too
        watch = Watch(self.coordinator.store, self.desk, collection, dict(orders), self.coordinator.now)
        pace = pace_of(self.study.plan, collection)
        ordered = Ordered(context_of(order), self.layout(phase), order.encoding, order.due, pace.wanted, pace.grace)
        masked = MaskedSum(self.coordinator.store, self.reins, self.desk, watch, ordered)
        keeping = asyncio.create_task(watch.keep())
        try:
            yield masked
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    def _patience(self, phase: Phase) -> timedelta:
        """To personalise a hospital trains as much again as in all rounds, to know what it would have alone."""
        plan = self.study.plan
        minutes = plan.aggregation.ready_minutes * (plan.training.rounds + 1 if phase == "personalise" else 1)
        return timedelta(minutes=min(minutes, max(LONGEST_WAIT_MINUTES, plan.aggregation.ready_minutes)))

    def give_up(self, failed: CollectionFailed) -> Self:
        """Count the failed attempt; the round with its next one."""
        with writing(self.coordinator.store) as connection:
            attempt = rounds.next_attempt(
                connection, self.reins, failed.collection, failed.reason.value, self.coordinator.now()
            )
        facts = replace(self.opened.facts, attempt=attempt)
        return replace(self, opened=replace(self.opened, facts=facts))

    @cached_property
    def server(self) -> ServerSide:
        return ServerSide(self.coordinator, self.study, self.number, self.model_in)

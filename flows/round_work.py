"""The work of one round: orders out, cohort closed, sum taken, model made, evaluated, committed.

Each step reads what is there before it acts: orders that were posted stay the orders, a cohort that was closed
stays closed, a committed round stays applied. So a round that was interrupted anywhere is simply gone on with.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from boundary.layout import VectorLayout, layout_for
from boundary.messages import PHASES, BlobRef, Collection, Contribution, Phase, RoundCommitted, WorkOrder
from boundary.names import COORDINATOR
from boundary.tensors import Vector, check_values, pack, unpack
from flows.aggregation import ContributionRefused, Sealed, read_train_sum, sum_contributions
from flows.collecting import CollectionFailed, Watch, absences, closing
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.engine import Next, Reason
from flows.records import Candidate, CohortDecision, GlobalMetrics, RoundRecord, Timing, Traffic
from flows.store import holdings, rounds
from flows.store.database import reading, writing
from flows.store.rounds import OpenRound
from flows.store.studies import Reins, Study
from flows.strategies import ServerState, strategy
from models.metrics import MetricLayout, read

MOST_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Gathered:
    """A closed collection with its sum's parts: who is in, who is not and why, and how long it took."""

    decision: CohortDecision
    sealed: tuple[Sealed, ...]
    working_seconds: float
    transport_seconds: float


@dataclass(frozen=True)
class RoundWork:
    """One round in this driver's hands."""

    coordinator: Coordinator
    study: Study
    reins: Reins
    desk: Desk
    roster_digest: str
    opened: OpenRound
    model_in: BlobRef
    consenting: tuple[str, ...]

    @property
    def number(self) -> int:
        return self.opened.facts.number

    def collection(self, phase: Phase) -> Collection:
        attempt = self.opened.facts.attempt if phase == "train" else 1
        return Collection(study=self.study.study, round=self.number, phase=phase, attempt=attempt)

    # --- collecting ----------------------------------------------------------------------------------
    @asynccontextmanager
    async def collecting(self, phase: Phase, model: BlobRef) -> AsyncIterator[Watch]:
        """Post the orders (or find them) and watch for answers during the block."""
        collection, orders = self.collection(phase), {}
        due = self.coordinator.now() + timedelta(minutes=self.study.plan.aggregation.ready_minutes)
        with writing(self.coordinator.store) as connection:
            holdings.record(connection, model, owner=COORDINATOR, now=self.coordinator.now())
            for silo in self.consenting:
                order = WorkOrder(
                    collection=collection,
                    plan_digest=self.study.plan_digest,
                    roster_digest=self.roster_digest,
                    model=model,
                    due=due,
                )
                envelope = self.desk.tell(connection, silo, order)
                orders[silo] = envelope.digest
                if isinstance(envelope.message, WorkOrder):
                    due = min(due, envelope.message.due)
        watch = Watch(self.coordinator.store, self.desk, collection, dict(orders), due, self.coordinator.now)
        keeping = asyncio.create_task(watch.keep())
        try:
            yield watch
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    async def close(self, watch: Watch) -> CohortDecision:
        """Wait for the engine's decision, keep it, tell every hospital. Raises `CollectionFailed`."""
        with reading(self.coordinator.store) as connection:
            decision = rounds.decided(connection, watch.collection)
        if decision is None:
            said = await watch.until_decided()
            if said.next is Next.GIVE_UP:
                raise CollectionFailed(watch.collection, said.reason)
            now = self.coordinator.now()
            decision = CohortDecision(
                phase=watch.collection.phase,
                attempt=watch.collection.attempt,
                reason=said.reason.value,
                members=tuple(sorted(watch.view.answered)),
                absent=absences(watch, now),
                closed_at=now,
            )
        with writing(self.coordinator.store) as connection:
            now = self.coordinator.now()
            decision = rounds.close_cohort(connection, self.reins, watch.collection, decision, now)
            for silo, order in watch.orders.items():
                self.desk.tell(connection, silo, closing(watch, order, decision))
        due = self.coordinator.now() + timedelta(minutes=self.study.plan.aggregation.ready_minutes)
        watch.expect_contributions(frozenset(decision.members), due)
        return decision

    async def gather(self, watch: Watch, decision: CohortDecision) -> tuple[Sealed, ...]:
        """Wait for the members' vectors. A member that is lost now is left out if the quorum still stands."""
        said = await watch.until_decided()
        if said.next is Next.GIVE_UP:
            raise CollectionFailed(watch.collection, said.reason)
        return tuple(
            Sealed(silo, message, self._opener(message.vector.digest))
            for silo, message in sorted(watch.contributions.items())
            if silo in decision.members and silo in watch.view.answered
        )

    def _opener(self, digest: str) -> Callable[[], BinaryIO]:
        return lambda: self.coordinator.blobs.open(digest)

    def give_up(self, failed: CollectionFailed) -> "RoundWork | None":
        """Count the failed attempt; the round with its next one, or None when there have been enough."""
        with writing(self.coordinator.store) as connection:
            attempt = rounds.next_attempt(
                connection, self.reins, failed.collection, failed.reason.value, self.coordinator.now()
            )
        if attempt > MOST_ATTEMPTS:
            return None
        facts = replace(self.opened.facts, attempt=attempt)
        return replace(self, opened=replace(self.opened, facts=facts))

    # --- the model -----------------------------------------------------------------------------------
    def aggregate(self, gathered: Gathered) -> Candidate:
        """Sum, apply the server optimiser, publish the model, keep it as this round's candidate. Blocking."""
        begun = monotonic()
        manifest = self.study.model.manifest
        layout = layout_for("train", parameters=manifest.size, metrics=0)
        decision, total = self._sum(gathered, layout)
        summed = read_train_sum(total, layout)
        del total  # two models' worth, before the next two are made
        state = ServerState(self.number - 1, self._weights(self.model_in))
        state = strategy(self.study.plan.training)(state, summed.mean_delta)
        mean_loss, weight = summed.mean_loss, summed.weight
        del summed  # and the delta with it
        check_values(state.weights, self.study.plan.aggregation.max_model_norm)
        model = self.coordinator.blobs.put_bytes(pack(state.weights, manifest))
        candidate = Candidate(
            model=model,
            train_loss=mean_loss,
            weight=weight,
            train=decision,
            training_seconds=gathered.working_seconds,
            transport_seconds=gathered.transport_seconds,
            aggregation_seconds=monotonic() - begun,
        )
        with writing(self.coordinator.store) as connection:
            rounds.keep_candidate(connection, self.reins, self.number, candidate)
        return candidate

    def measure(self, gathered: Gathered) -> tuple[CohortDecision, GlobalMetrics]:
        """Sum the hospitals' metrics of the candidate. Blocking."""
        metrics = MetricLayout(len(self.study.plan.labels.classes))
        decision, total = self._sum(gathered, layout_for("evaluate", parameters=0, metrics=metrics.size))
        found = read(total, metrics)
        return decision, GlobalMetrics(
            count=found.count,
            loss=found.loss,
            accuracy=found.accuracy,
            auroc=found.auroc,
            balanced_accuracy=found.balanced_accuracy,
            confusion=found.confusion,
        )

    def _sum(self, gathered: Gathered, layout: VectorLayout) -> tuple[CohortDecision, NDArray[np.float64]]:
        """Sum what opens; a hospital whose vector does not is left out while the quorum stands."""
        sealed, decision = list(gathered.sealed), gathered.decision
        absent = decision.absent | {s: "LOST" for s in decision.members if s not in {one.silo for one in sealed}}
        while len(sealed) >= self.study.plan.aggregation.quorum:
            try:
                total = sum_contributions(sealed, layout, self.coordinator.unsealing)
            except ContributionRefused as why:
                absent[why.silo] = why.code
                sealed = [one for one in sealed if one.silo != why.silo]
            else:
                members = tuple(one.silo for one in sealed)
                return decision.model_copy(update={"members": members, "absent": absent}), total
        raise CollectionFailed(self.collection(decision.phase), Reason.BELOW_QUORUM)

    def _weights(self, model: BlobRef) -> Vector:
        with self.coordinator.blobs.open(model.digest) as source:
            return unpack(source.read(), self.study.model.manifest)

    # --- the end -------------------------------------------------------------------------------------
    def commit(
        self, candidate: Candidate, evaluated: tuple[CohortDecision, GlobalMetrics] | None, evaluation_seconds: float
    ) -> RoundRecord:
        """Commit the round and tell the hospitals, in one transaction. Committing twice changes nothing."""
        now = self.coordinator.now()
        with writing(self.coordinator.store) as connection:
            record = self._record(connection, candidate, evaluated, evaluation_seconds)
            rounds.commit(connection, self.reins, record, now)
            holdings.record(connection, candidate.model, owner=COORDINATOR, now=now)
            said = RoundCommitted(
                study=self.study.study,
                round=self.number,
                model=candidate.model,
                contributing=record.contributing,
                absent=tuple(sorted(record.absent)),
            )
            for silo in self.consenting:
                self.desk.tell(connection, silo, said)
        return record

    def _record(
        self,
        connection: Connection,
        candidate: Candidate,
        evaluated: tuple[CohortDecision, GlobalMetrics] | None,
        evaluation_seconds: float,
    ) -> RoundRecord:
        now = self.coordinator.now()
        train = candidate.train
        not_asked = {silo: "NOT_APPROVED" for silo in self.study.plan.silos if silo not in self.consenting}
        asked = rounds.decided(connection, self.collection("train")) or train
        return RoundRecord(
            study=self.study.study,
            round=self.number,
            model_in=self.model_in.digest,
            model_out=candidate.model,
            registered=self.study.plan.silos,
            ready=asked.members,
            contributing=train.members,
            absent=not_asked | train.absent,
            train=train,
            evaluate=None if evaluated is None else evaluated[0],
            train_loss=candidate.train_loss,
            metrics=None if evaluated is None else evaluated[1],
            timing=Timing(
                training=candidate.training_seconds,
                transport=candidate.transport_seconds,
                aggregation=candidate.aggregation_seconds,
                evaluation=evaluation_seconds,
                total=max(0.0, (now - self.opened.opened_at).total_seconds()),
            ),
            traffic=self._traffic(connection, candidate),
            committed_at=now,
        )

    def _traffic(self, connection: Connection, candidate: Candidate) -> dict[str, Traffic]:
        """Blob bytes that crossed the wire for this round: vectors up, the new model (and at first the old) down."""
        models = [candidate.model.digest] + ([self.model_in.digest] if self.number == 1 else [])
        vectors: dict[str, list[str]] = {silo: [] for silo in self.study.plan.silos}
        for phase in PHASES:
            slot = str(self.collection(phase))
            for silo, envelope in self.desk.heard(connection, Contribution.kind, slot).items():
                if isinstance(envelope.message, Contribution):
                    vectors[silo].append(envelope.message.vector.digest)
        return {
            silo: Traffic(
                up=sum(holdings.bytes_moved(connection, silo, digest)[0] for digest in sent),
                down=sum(holdings.bytes_moved(connection, silo, digest)[1] for digest in models),
            )
            for silo, sent in vectors.items()
        }

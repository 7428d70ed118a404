"""The work of one round: orders out, cohort closed, sum taken, model made, evaluated, committed.

Each step reads what is there before it acts: orders that were posted stay the orders, a cohort that was closed
stays closed, a committed round stays applied. So a round that was interrupted anywhere is simply gone on with.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from math import sqrt
from time import monotonic

from sqlalchemy import Connection

from boundary.errors import BoundaryError
from boundary.layout import VectorLayout, layout_for
from boundary.messages import (
    PHASES,
    BlobRef,
    Collection,
    MaskedVector,
    Normalisation,
    Phase,
    RoundCommitted,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.secagg.context import context_of, selection_key, transcript_of
from boundary.secagg.ring import Encoding, first_encoding, next_encoding
from boundary.secagg.selection import spread
from boundary.tensors import Vector, check_values, pack, unpack
from compliance.events import SumOpened
from compliance.records import AnyMetrics, CohortDecision, RoundRecord, Timing, Traffic
from flows import readings
from flows.aggregation import Mean, ServerState, ServerStrategy, strategy_of
from flows.aggregation.memory import MemoryUnusable, packed, recalled
from flows.collecting import CollectionFailed, Watch
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.engine import Reason
from flows.masked_sum import MaskedSum, Ordered
from flows.records import Candidate, Statistics
from flows.store import audit, holdings, rounds, studies, witnessed
from flows.store.database import reading, writing
from flows.store.rounds import OpenRound
from flows.store.studies import Reins, Study
from flows.summing import Total, masked_total, openers, read_train_sum, unmasked
from flows.trails import receipt_of
from models.measuring import layout_of, read

_log = logging.getLogger("flows.round_work")
SMALLEST_DEVIATION = 1e-3  # images without any contrast are not blown up


@dataclass(frozen=True, slots=True)
class Gathered:
    """A collection whose masks can be taken off: who is in, who is not and why, and how long it took."""

    opened: MaskedSum
    decision: CohortDecision
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
    heads: str
    opened: OpenRound
    model_in: BlobRef
    consenting: tuple[str, ...]
    encoding: Encoding

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
        return layout_for(phase, parameters=parameters, metrics=metrics, bands=plan.bands, steps=plan.counts_steps)

    # --- collecting ----------------------------------------------------------------------------------
    @asynccontextmanager
    async def collecting(self, phase: Phase, model: BlobRef) -> AsyncIterator[MaskedSum]:
        """Post the orders (or find them) and watch for answers during the block."""
        collection, orders, control = self.collection(phase), {}, self._control() if phase == "train" else None
        order = WorkOrder(
            collection=collection,
            plan_digest=self.study.plan_digest,
            roster_digest=self.roster_digest,
            model=model,
            base=self.study.model.base,
            control=control,
            encoding=self.encoding if phase == "train" else first_encoding(self.study.plan),
            normalisation=None if self.study.statistics is None else self.study.statistics.normalisation,
            heads=self.heads,
            due=self.coordinator.now() + timedelta(minutes=self.study.plan.aggregation.ready_minutes),
        )
        with writing(self.coordinator.store) as connection:
            studies.check(connection, self.reins)
            holdings.record(connection, model, owner=COORDINATOR, now=self.coordinator.now())
            for silo in self.consenting:
                envelope = self.desk.tell(connection, silo, order)
                orders[silo] = envelope.digest
                if isinstance(envelope.message, WorkOrder):
                    order = envelope.message  # one that was posted before counts, its roster and deadline too
        watch = Watch(self.coordinator.store, self.desk, collection, dict(orders), self.coordinator.now)
        ordered = Ordered(context_of(order), self.layout(phase), order.encoding, order.due)
        masked = MaskedSum(self.coordinator.store, self.reins, self.desk, watch, ordered)
        keeping = asyncio.create_task(watch.keep())
        try:
            yield masked
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    def give_up(self, failed: CollectionFailed) -> "RoundWork":
        """Count the failed attempt; the round with its next one."""
        with writing(self.coordinator.store) as connection:
            attempt = rounds.next_attempt(
                connection, self.reins, failed.collection, failed.reason.value, self.coordinator.now()
            )
        facts = replace(self.opened.facts, attempt=attempt)
        return replace(self, opened=replace(self.opened, facts=facts))

    # --- before round 1 ------------------------------------------------------------------------------
    def count(self, gathered: Gathered) -> Statistics:
        """Read the sums over all training images and keep them for the whole study. Blocking.

        Raises `CollectionFailed` if the sum does not open or holds no image.
        """
        total, classes = self._total(gathered), len(self.study.plan.labels.classes)
        images = round(total.number("images"))
        if images < 1:
            raise CollectionFailed(gathered.opened.watch.collection, Reason.CANNOT_UNMASK)
        mean = min(1.0, max(0.0, total.number("intensity") / images))
        variance = max(0.0, total.number("squares") / images - mean**2)
        statistics = Statistics(
            images=images,
            labels=tuple(round(count) for count in total.numbers[total.layout.where("labels")][:classes]),
            normalisation=Normalisation(mean=mean, deviation=min(1.0, max(SMALLEST_DEVIATION, sqrt(variance)))),
            decision=gathered.decision,
            survivors=gathered.opened.survivors,
        )
        with writing(self.coordinator.store) as connection:
            self._record_opened(connection, gathered)
            return studies.keep_statistics(connection, self.reins, statistics, self.coordinator.now())

    # --- the model -----------------------------------------------------------------------------------
    def aggregate(self, gathered: Gathered) -> Candidate:
        """Sum, apply the server optimiser, publish the model, keep it as this round's candidate. Blocking.

        Raises `CollectionFailed` if the sum does not open, `MemoryUnusable` where the strategy's memory is not that of
        the round before.
        """
        begun = monotonic()
        manifest, plan, masked = self.study.parts.moving, self.study.plan, gathered.opened
        summed = read_train_sum(self._total(gathered), hospitals=len(masked.vectors))
        strategy = strategy_of(plan)
        mean = Mean(
            self._whole(summed.mean_delta, gathered),
            summed.mean_steps,
            share=len(masked.vectors) / len(plan.silos),
            local_rate=plan.training.learning_rate,
        )
        state = strategy.apply(self._state(strategy), mean)
        mean_loss, weight, clipped, largest = summed.mean_loss, summed.weight, summed.clipped, summed.largest
        bands = summed.bands
        del summed, mean  # and the delta with them
        check_values(state.weights, plan.aggregation.max_model_norm)
        model = self.coordinator.blobs.put_bytes(pack(state.weights, manifest))
        memory = self.coordinator.blobs.put_bytes(packed(state.memory)) if state.memory else None
        candidate = Candidate(
            model=model,
            memory=memory,
            train_loss=mean_loss,
            weight=weight,
            clipped=clipped,
            below=bands,
            train=gathered.decision,
            survivors=masked.survivors,
            next_encoding=next_encoding(plan, masked.ordered.encoding, largest=largest, clipped=clipped),
            training_seconds=gathered.working_seconds,
            transport_seconds=gathered.transport_seconds,
            aggregation_seconds=monotonic() - begun,
        )
        with writing(self.coordinator.store) as connection:
            rounds.keep_candidate(connection, self.reins, self.number, candidate)
            if memory is not None:
                holdings.record(connection, memory, owner=COORDINATOR, now=self.coordinator.now())
            self._record_opened(connection, gathered)
        return candidate

    def _state(self, strategy: ServerStrategy) -> ServerState:
        """The strategy's state after the round before: its weights, and its memory as that round left it."""
        state, before = strategy.init(self._weights(self.model_in)), self.number - 1
        if strategy.begins_anew(self.number) or not state.memory:
            return replace(state, round=before)
        memory = recalled(self._memory(before), state.memory, before, self.coordinator.blobs.open)
        return replace(state, round=before, memory=memory)

    def _memory(self, before: int) -> BlobRef:
        with reading(self.coordinator.store) as connection:
            kept = rounds.candidate_of(connection, self.study.study, before)
        if kept is None or kept.memory is None or kept.model != self.model_in:
            raise MemoryUnusable(before, "was not kept together with its model")
        return kept.memory

    def _control(self) -> BlobRef | None:
        """What SCAFFOLD's hospitals are told of all others; nothing where all begin anew."""
        plan = self.study.plan
        has_one = plan.has_controls and not strategy_of(plan).begins_anew(self.number)
        return self._memory(self.number - 1) if has_one else None

    def _whole(self, mean: Vector, gathered: Gathered) -> Vector:
        """The change of all weights, from those that were in the sum."""
        parameters, aggregation = self.study.parts.moving.size, self.study.plan.aggregation
        if len(mean) == parameters:
            return mean
        key = selection_key(gathered.opened.watch.collection, self.model_in.digest)
        return spread(mean, key, parameters, unbiased=not aggregation.error_feedback)

    def measure(self, gathered: Gathered) -> tuple[CohortDecision, AnyMetrics]:
        """Sum the hospitals' metrics of the candidate. Blocking. Raises `CollectionFailed` if the sum does not open."""
        plan = self.study.plan
        found = read(self._total(gathered).numbers, layout_of(plan))
        with writing(self.coordinator.store) as connection:
            studies.check(connection, self.reins)
            self._record_opened(connection, gathered)
        return gathered.decision, readings.kept(found, plan.labels.classes)

    def _total(self, gathered: Gathered) -> Total:
        masked = gathered.opened
        vectors = {silo: blob.digest for silo, blob in masked.vectors.items()}
        try:
            masks = masked.masks()
            opened = openers(vectors, self.coordinator.blobs.open)
            total = masked_total(opened, masked.ordered.layout, masked.ordered.encoding.ring)
        except BoundaryError as why:
            _log.warning("%s cannot be unmasked: %s", masked.watch.collection, why)
            raise CollectionFailed(masked.watch.collection, Reason.CANNOT_UNMASK) from why
        return unmasked(total, masks, masked.ordered.layout, masked.ordered.encoding)

    def _record_opened(self, connection: Connection, gathered: Gathered) -> None:
        event = SumOpened(
            **gathered.opened.watch.collection.model_dump(),
            survivors=gathered.opened.survivors,
            surviving=gathered.decision.members,
        )
        audit.append(connection, event, actor=COORDINATOR, now=self.coordinator.now())

    def _weights(self, model: BlobRef) -> Vector:
        with self.coordinator.blobs.open(model.digest) as source:
            return unpack(source.read(), self.study.parts.moving)

    # --- the end -------------------------------------------------------------------------------------
    def commit(
        self, candidate: Candidate, evaluated: tuple[CohortDecision, AnyMetrics] | None, evaluation_seconds: float
    ) -> RoundRecord:
        """Commit the round and tell the hospitals, in one transaction. Committing twice changes nothing."""
        now = self.coordinator.now()
        with writing(self.coordinator.store) as connection:
            record = self._record(connection, candidate, evaluated, evaluation_seconds)
            rounds.commit(connection, self.reins, record, now)
            receipt = receipt_of(record, self.study.plan_digest).sign(self.desk.key)
            witnessed.keep_receipt(connection, self.study.study, self.number, COORDINATOR, receipt)
            holdings.record(connection, candidate.model, owner=COORDINATOR, now=now)
            said = RoundCommitted(
                study=self.study.study,
                round=self.number,
                model=candidate.model,
                transcript=record.transcript,
                contributing=record.contributing,
                absent=tuple(sorted(record.absent)),
                receipt=receipt,
            )
            for silo in self.consenting:
                self.desk.tell(connection, silo, said)
        return record

    def _record(
        self,
        connection: Connection,
        candidate: Candidate,
        evaluated: tuple[CohortDecision, AnyMetrics] | None,
        evaluation_seconds: float,
    ) -> RoundRecord:
        now = self.coordinator.now()
        train = candidate.train
        not_asked = {silo: "NOT_APPROVED" for silo in self.study.plan.silos if silo not in self.consenting}
        attempt = self.collection("train").model_copy(update={"attempt": train.attempt})
        asked = rounds.decided(connection, attempt) or train
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
            transcript=transcript_of(candidate.survivors, candidate.model.digest),
            clipped=candidate.clipped,
            next_encoding=candidate.next_encoding,
            evaluate=None if evaluated is None else evaluated[0],
            train_loss=candidate.train_loss,
            below=candidate.below,
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
        if self.number == 1 and self.study.model.base is not None:
            models.append(self.study.model.base.digest)
        if (control := self._control()) is not None:
            models.append(control.digest)
        vectors: dict[str, list[str]] = {silo: [] for silo in self.study.plan.silos}
        for phase, attempt in product(PHASES, range(1, self.opened.facts.attempt + 1)):
            slot = str(self.collection(phase).model_copy(update={"attempt": attempt}))
            for silo, envelope in self.desk.heard(connection, MaskedVector.kind, slot).items():
                if isinstance(envelope.message, MaskedVector):
                    vectors[silo].append(envelope.message.vector.digest)
        return {
            silo: Traffic(
                up=sum(holdings.bytes_moved(connection, silo, digest)[0] for digest in sent),
                down=sum(holdings.bytes_moved(connection, silo, digest)[1] for digest in models),
            )
            for silo, sent in vectors.items()
        }

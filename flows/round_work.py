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
from functools import cached_property
from itertools import product
from time import monotonic

import numpy as np
from sqlalchemy import Connection

from boundary.errors import BadTensors, BoundaryError, CallerFault
from boundary.layout import VectorLayout, layout_in
from boundary.messages import (
    PHASES,
    BlobRef,
    Collection,
    MaskedVector,
    Phase,
    RoundCommitted,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.parties import taking_part, trainers
from boundary.secagg.context import context_of, selection_key, transcript_of
from boundary.secagg.ring import Encoding, first_encoding, next_encoding
from boundary.secagg.selection import spread
from boundary.tensors import Vector, pack
from compliance.events import SumOpened
from compliance.records import CohortDecision, RoundRecord, Timing, Traffic
from flows import readings, verdict
from flows.aggregation import Mean
from flows.aggregation.memory import packed
from flows.collecting import CollectionFailed, Watch
from flows.coordinator import Coordinator
from flows.describing import counts, description_in, normalisation_in
from flows.desk import Desk
from flows.engine import Reason
from flows.masked_sum import MaskedSum, Ordered
from flows.personalisation import Personalised, figure_of, read_outcomes
from flows.records import Candidate, Evaluated, Measurement, Statistics
from flows.selection import asked, pace_of
from flows.server_state import ServerSide
from flows.store import audit, holdings, measurements, rounds, studies, witnessed
from flows.store.database import writing
from flows.store.rounds import OpenRound
from flows.store.studies import Reins, Study
from flows.summing import Total, masked_total, openers, read_train_sum, unmasked
from flows.trails import receipt_of
from models.errors import NoImages
from models.measuring import layout_of, read

_log = logging.getLogger("flows.round_work")
LONGEST_WAIT_MINUTES = 14 * 24 * 60  # as long as a plan may have a round take


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
        """The hospitals that consent and have a part in this phase, by the plan."""
        may = taking_part(self.study.plan, phase)
        return tuple(silo for silo in self.consenting if silo in may)

    # --- collecting ----------------------------------------------------------------------------------
    @asynccontextmanager
    async def collecting(self, phase: Phase, model: BlobRef) -> AsyncIterator[MaskedSum]:
        """Post the orders (or find them) and watch for answers during the block."""
        collection, orders, control = self.collection(phase), {}, self._server.control if phase == "train" else None
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
        total, plan = self._total(gathered), self.study.plan
        images = round(total.number("images"))
        if images < 1 and plan.training.rounds:
            raise CollectionFailed(gathered.opened.watch.collection, Reason.CANNOT_UNMASK)
        statistics = Statistics(
            images=images,
            labels=counts(total, "labels"),
            normalisation=normalisation_in(total),
            decision=gathered.decision,
            survivors=gathered.opened.survivors,
            description=description_in(total) if plan.dataset.described else None,
        )
        with writing(self.coordinator.store) as connection:
            self._record_opened(connection, gathered)
            return studies.keep_statistics(connection, self.reins, statistics, self.coordinator.now())

    # --- after the last round ------------------------------------------------------------------------
    def compare(self, gathered: Gathered) -> Personalised:
        """Read at how many hospitals which model is better, and keep it. Blocking.

        Raises `CollectionFailed` if the sum does not open or cannot be one of comparisons.
        """
        total, masked = self._total(gathered), gathered.opened
        try:
            compared = read_outcomes(total, len(masked.vectors))
        except BadTensors as why:
            _log.warning("%s: %s", masked.watch.collection, why)
            raise CollectionFailed(masked.watch.collection, Reason.CANNOT_UNMASK) from why
        found = Personalised(
            figure=figure_of(self.study.plan),
            compared=compared,
            decision=gathered.decision,
            survivors=masked.survivors,
        )
        with writing(self.coordinator.store) as connection:
            self._record_opened(connection, gathered)
            return studies.keep_personalised(connection, self.reins, found, self.coordinator.now())

    # --- the model -----------------------------------------------------------------------------------
    def aggregate(self, gathered: Gathered) -> Candidate:
        """Sum, apply the server optimiser, publish the model, keep it as this round's candidate. Blocking.

        Raises `CollectionFailed` if the sum does not open, `MemoryUnusable` where the strategy's memory is not that of
        the round before.
        """
        begun = monotonic()
        manifest, plan, masked = self.study.parts.moving, self.study.plan, gathered.opened
        summed = read_train_sum(self._total(gathered), hospitals=len(masked.vectors))
        mean = Mean(
            self._whole(summed.mean_delta, gathered),
            summed.mean_steps,
            share=len(masked.vectors) / len(trainers(plan)),
            local_rate=plan.training.learning_rate,
        )
        state = self._server.after(mean)
        update_norm = float(np.linalg.norm(summed.mean_delta))
        summed = replace(summed, mean_delta=np.empty(0, np.float32))
        del mean  # and the delta with it
        refused = verdict.of_sum(plan, update_norm, state.weights)
        model = self.coordinator.blobs.put_bytes(pack(state.weights, manifest, plan.aggregation.downlink))
        is_remembered = bool(state.memory) and refused is None
        memory = self.coordinator.blobs.put_bytes(packed(state.memory)) if is_remembered else None
        candidate = Candidate(
            model=model,
            memory=memory,
            refused=refused,
            train_loss=summed.mean_loss,
            update_norm=update_norm,
            shortened=summed.shortened,
            weight=summed.weight,
            clipped=summed.clipped,
            below=summed.bands,
            late=summed.late,
            train=gathered.decision,
            survivors=masked.survivors,
            next_encoding=next_encoding(plan, masked.ordered.encoding, largest=summed.largest, clipped=summed.clipped),
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

    @cached_property
    def _server(self) -> ServerSide:
        return ServerSide(self.coordinator, self.study, self.number, self.model_in)

    def _whole(self, mean: Vector, gathered: Gathered) -> Vector:
        """The change of all weights, from those that were in the sum."""
        parameters, aggregation = self.study.parts.moving.size, self.study.plan.aggregation
        if len(mean) == parameters:
            return mean
        key = selection_key(gathered.opened.watch.collection, self.model_in.digest)
        return spread(mean, key, parameters, unbiased=not aggregation.error_feedback)

    def measure(self, gathered: Gathered) -> Evaluated:
        """Sum the hospitals' metrics of the candidate, and their votes on it. Blocking.

        Raises `CollectionFailed` if the sum does not open, `ValueError` or `NoImages` for no metrics without a vote.
        """
        plan, total = self.study.plan, self._total(gathered)
        vote, rolled_back = verdict.of_votes(plan, total, self.number, len(gathered.opened.vectors))
        try:
            metrics = readings.kept(
                read(total.numbers[total.layout.where("metrics")], layout_of(plan)), plan.labels.classes
            )
        except (NoImages, ValueError) as why:
            if not plan.robustness.vote:
                raise
            _log.warning("round %d has no metrics: %s", self.number, why)  # one hospital's nonsense; the vote decides
            metrics = None
        with writing(self.coordinator.store) as connection:
            studies.check(connection, self.reins)
            self._record_opened(connection, gathered)
        return Evaluated(decision=gathered.decision, metrics=metrics, vote=vote, rolled_back=rolled_back)

    def measure_apart(self, gathered: Gathered, model: str) -> Measurement:
        """Sum the metrics of a model, by digest, that belong into no round's record, and keep them. Blocking.

        Raises `CollectionFailed` if the sum does not open, or adds up to no metrics.
        """
        plan, total = self.study.plan, self._total(gathered)
        try:
            metrics = readings.kept(read(total.numbers, layout_of(plan)), plan.labels.classes)
        except (NoImages, ValueError) as why:
            _log.warning("%s has no metrics: %s", gathered.opened.watch.collection, why)
            raise CollectionFailed(gathered.opened.watch.collection, Reason.CANNOT_UNMASK) from why
        found = Measurement(
            study=self.study.study,
            round=self.number,
            phase=gathered.decision.phase,
            model=model,
            decision=gathered.decision,
            survivors=gathered.opened.survivors,
            metrics=metrics,
            taken_at=self.coordinator.now(),
        )
        with writing(self.coordinator.store) as connection:
            self._record_opened(connection, gathered)
            return measurements.keep(connection, self.reins, found)

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

    # --- the end -------------------------------------------------------------------------------------
    def must_be_voted_on(self, candidate: Candidate) -> bool:
        """Whether the candidate counts only after an evaluation."""
        return self.study.plan.robustness.vote and candidate.refused is None

    def commit(self, candidate: Candidate, evaluated: Evaluated | None, evaluation_seconds: float) -> RoundRecord:
        """Commit the round and tell the hospitals, in one transaction. Committing twice changes nothing.

        Raises `CallerFault` for a model that hospitals are to vote on and did not.
        """
        if self.must_be_voted_on(candidate) and evaluated is None:
            raise CallerFault("the plan has hospitals vote on this model before it counts")
        now = self.coordinator.now()
        with writing(self.coordinator.store) as connection:
            record = self._record(connection, candidate, evaluated, evaluation_seconds)
            rounds.commit(connection, self.reins, record, now)
            receipt = receipt_of(record, self.study.plan_digest).sign(self.desk.key)
            witnessed.keep_receipt(connection, self.study.study, self.number, COORDINATOR, receipt)
            holdings.record(connection, record.model_out, owner=COORDINATOR, now=now)
            said = RoundCommitted(
                study=self.study.study,
                round=self.number,
                model=record.model_out,
                tried=None if record.tried is None else record.tried.digest,
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
        evaluated: Evaluated | None,
        evaluation_seconds: float,
    ) -> RoundRecord:
        now = self.coordinator.now()
        train = candidate.train
        training = trainers(self.study.plan)
        not_asked = {silo: "NOT_APPROVED" for silo in training if silo not in self.consenting}
        attempt = self.collection("train").model_copy(update={"attempt": train.attempt})
        closed = rounds.decided(connection, attempt) or train
        not_drawn = set(self.partakers("train")) - {*closed.members, *closed.absent}
        rolled_back = candidate.refused or (None if evaluated is None else evaluated.rolled_back)
        found = None if evaluated is None else evaluated.metrics
        return RoundRecord(
            study=self.study.study,
            round=self.number,
            model_in=self.model_in.digest,
            model_out=candidate.model if rolled_back is None else self.model_in,
            registered=training,
            ready=closed.members,
            contributing=train.members,
            absent=not_asked | train.absent,
            not_drawn=tuple(sorted(not_drawn)),
            train=train,
            transcript=transcript_of(candidate.survivors, candidate.model.digest),
            rolled_back=rolled_back,
            tried=None if rolled_back is None else candidate.model,
            vote=None if evaluated is None else evaluated.vote,
            update_norm=candidate.update_norm,
            shortened=candidate.shortened,
            clipped=candidate.clipped,
            next_encoding=candidate.next_encoding if rolled_back is None else self.encoding,
            evaluate=None if evaluated is None else evaluated.decision,
            train_loss=candidate.train_loss,
            below=candidate.below,
            late=candidate.late,
            metrics=found if rolled_back is None else None,
            tried_metrics=None if rolled_back is None else found,
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
        if (control := self._server.control) is not None:
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

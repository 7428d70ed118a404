"""What is made of a round's masked sums: a model, its evaluation, the committed round; and what is summed beside them.

A candidate that was kept stays, a committed round stays applied. With the orders (`flows.round_orders`) and the cohort
that stay too, a round that was interrupted anywhere is simply gone on with.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
from sqlalchemy import Connection

from boundary.errors import BadTensors, BoundaryError, CallerFault
from boundary.messages import RoundCommitted
from boundary.names import COORDINATOR
from boundary.parties import trainers
from boundary.robustness import Median
from boundary.secagg.context import selection_key
from boundary.secagg.ring import next_encoding
from boundary.secagg.selection import spread
from boundary.tensors import Vector, pack
from compliance.events import SumOpened
from compliance.records import CohortDecision, RoundRecord
from flows import readings, verdict
from flows.aggregation import Mean
from flows.aggregation.memory import packed
from flows.collecting import CollectionFailed
from flows.describing import counts, description_in, normalisation_in
from flows.engine import Reason
from flows.masked_sum import MaskedSum
from flows.medians import read_round
from flows.personalisation import Personalised, figure_of, read_outcomes
from flows.records import Candidate, Evaluated, Measurement, Statistics
from flows.round_orders import RoundOrders
from flows.round_record import record_of
from flows.store import audit, holdings, measurements, rounds, studies, witnessed
from flows.store.database import writing
from flows.summing import Total, TrainSum, masked_total, openers, unmasked
from flows.trails import receipt_of
from models.errors import NoImages

_log = logging.getLogger("flows.round_work")


@dataclass(frozen=True, slots=True)
class Gathered:
    """A collection whose masks can be taken off: who is in, who is not and why, and how long it took."""

    opened: MaskedSum
    decision: CohortDecision
    working_seconds: float
    transport_seconds: float


class RoundWork(RoundOrders):
    """One round in this driver's hands, and what is made of its sums."""

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
        summed, median = self._read_train(gathered)
        mean = Mean(
            self._whole(summed.mean_delta, gathered),
            summed.mean_steps,
            share=len(masked.vectors) / len(trainers(plan)),
            local_rate=plan.training.learning_rate,
        )
        state = self.server.after(mean)
        update_norm = float(np.linalg.norm(summed.mean_delta))
        summed = replace(summed, mean_delta=np.empty(0, np.float32))
        del mean  # and the delta with it
        refused = verdict.of_sum(plan, update_norm, state.weights, median)
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
            median=median,
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

    def _read_train(self, gathered: Gathered) -> tuple[TrainSum, Median | None]:
        """The mean change of all, or the median of the groups'. Raises `CollectionFailed` for sums of no changes."""
        masked = gathered.opened
        try:
            return read_round(self.study.plan, self._totals(gathered), masked.vectors)
        except BadTensors as why:
            _log.warning("%s: %s", masked.watch.collection, why)
            raise CollectionFailed(masked.watch.collection, Reason.CANNOT_UNMASK) from why

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
            metrics = readings.metrics_in(total, plan)
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
        total = self._total(gathered)
        try:
            metrics = readings.metrics_in(total, self.study.plan)
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
        """The sum of a phase that has no groups."""
        (total,) = self._totals(gathered)
        return total

    def _totals(self, gathered: Gathered) -> Iterator[Total]:
        """The sum of each group, one after the other. Raises `CollectionFailed`."""
        masked = gathered.opened
        layout, encoding = masked.ordered.layout, masked.ordered.encoding
        try:
            for vectors, masks in masked.parts():
                digests = {silo: blob.digest for silo, blob in vectors.items()}
                total = masked_total(openers(digests, self.coordinator.blobs.open), layout, encoding.ring)
                yield unmasked(total, masks, layout, encoding)
        except BoundaryError as why:
            _log.warning("%s cannot be unmasked: %s", masked.watch.collection, why)
            raise CollectionFailed(masked.watch.collection, Reason.CANNOT_UNMASK) from why

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
            record = record_of(connection, self, candidate, evaluated, evaluation_seconds)
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

"""What is kept of a round for good: who was in it, what it made, how long it took and what crossed the wire."""

from itertools import product

from sqlalchemy import Connection

from boundary.messages import PHASES, MaskedVector
from boundary.parties import trainers
from boundary.secagg.context import transcript_of
from compliance.records import RoundRecord, Timing, Traffic
from flows.masked_sum import GROUP_TOO_SMALL
from flows.records import Candidate, Evaluated
from flows.round_orders import RoundOrders
from flows.store import holdings, rounds


def record_of(
    connection: Connection,
    work: RoundOrders,
    candidate: Candidate,
    evaluated: Evaluated | None,
    evaluation_seconds: float,
) -> RoundRecord:
    now = work.coordinator.now()
    train = candidate.train
    training = trainers(work.study.plan)
    asked = work.partakers("train")
    not_asked = {
        silo: GROUP_TOO_SMALL if silo in work.consenting else "NOT_APPROVED" for silo in training if silo not in asked
    }
    attempt = work.collection("train").model_copy(update={"attempt": train.attempt})
    closed = rounds.decided(connection, attempt) or train
    not_drawn = set(asked) - {*closed.members, *closed.absent}
    rolled_back = candidate.refused or (None if evaluated is None else evaluated.rolled_back)
    found = None if evaluated is None else evaluated.metrics
    return RoundRecord(
        study=work.study.study,
        round=work.number,
        model_in=work.model_in.digest,
        model_out=candidate.model if rolled_back is None else work.model_in,
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
        next_encoding=candidate.next_encoding if rolled_back is None else work.encoding,
        evaluate=None if evaluated is None else evaluated.decision,
        train_loss=candidate.train_loss,
        below=candidate.below,
        late=candidate.late,
        median=candidate.median,
        metrics=found if rolled_back is None else None,
        tried_metrics=None if rolled_back is None else found,
        timing=Timing(
            training=candidate.training_seconds,
            transport=candidate.transport_seconds,
            aggregation=candidate.aggregation_seconds,
            evaluation=evaluation_seconds,
            total=max(0.0, (now - work.opened.opened_at).total_seconds()),
        ),
        traffic=_traffic(connection, work, candidate),
        committed_at=now,
    )


def _traffic(connection: Connection, work: RoundOrders, candidate: Candidate) -> dict[str, Traffic]:
    """Blob bytes that crossed the wire for this round: vectors up, the new model (and at first the old) down."""
    models = [candidate.model.digest] + ([work.model_in.digest] if work.number == 1 else [])
    if work.number == 1 and work.study.model.base is not None:
        models.append(work.study.model.base.digest)
    if (control := work.server.control) is not None:
        models.append(control.digest)
    vectors: dict[str, list[str]] = {silo: [] for silo in work.study.plan.silos}
    for phase, attempt in product(PHASES, range(1, work.opened.facts.attempt + 1)):
        slot = str(work.collection(phase).model_copy(update={"attempt": attempt}))
        for silo, envelope in work.desk.heard(connection, MaskedVector.kind, slot).items():
            if isinstance(envelope.message, MaskedVector):
                vectors[silo].append(envelope.message.vector.digest)
    return {
        silo: Traffic(
            up=sum(holdings.bytes_moved(connection, silo, digest)[0] for digest in sent),
            down=sum(holdings.bytes_moved(connection, silo, digest)[1] for digest in models),
        )
        for silo, sent in vectors.items()
    }

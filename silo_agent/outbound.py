"""The only door out. Everything that leaves the hospital is made here, from an allow-listed schema.

Five kinds of message and a heartbeat exist. An error leaves as a code of `RELEASABLE_CODES` and a reference into
the hospital's own log, never as its text. A vector leaves only for an order whose cohort was closed with this
hospital in it, and only sealed. Nothing here sends: it stores parcels in the outbox, in the same transaction as
the audit entry and the step that allows them.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from boundary.api import Activity, Heartbeat
from boundary.approval import SignedApproval
from boundary.canonical import Digest
from boundary.contribution import contribution_context, seal_contribution, sealed_size
from boundary.envelope import seal_envelope
from boundary.identity import SigningIdentity
from boundary.layout import ITEM_BYTES, VectorLayout
from boundary.messages import (
    BlobRef,
    CohortClosed,
    Collection,
    Contribution,
    PlanApproved,
    PlanDeclined,
    Ready,
    Refused,
    slot_of,
    study_of,
)
from boundary.names import COORDINATOR
from boundary.protocol import Heard, Step
from boundary.sealing import FILE_KEY_BYTES, SealingKey
from boundary.version import ProtocolRange
from compliance.trail import ContributionReleased, PlanApprovalGiven, WorkDone, WorkRefused
from silo_agent.errors import EgressRefused
from silo_agent.journal import Journal, KeptOrder

_log = logging.getLogger("silo_agent.outbound")

MESSAGES_THAT_MAY_LEAVE = (PlanApproved, PlanDeclined, Ready, Contribution, Refused)
RELEASABLE_CODES = frozenset(
    {
        "ARCHIVE_DENIED", "ARCHIVE_MISSING", "BAD_TENSORS", "CACHE_MISSING", "CACHE_UNREADABLE", "CANCELLED",
        "CHILD_DIED", "COHORT_TOO_SMALL", "CONTRACT_NOT_MET", "DATASET_CHANGED", "DATASET_UNREADABLE",
        "DECLINED_BY_STEWARD", "DISK_FULL", "EXPIRED", "INPUT_TOO_SMALL", "INTERNAL", "MODEL_UNAVAILABLE",
        "NON_FINITE_LOGITS", "NON_FINITE_LOSS", "NOT_APPROVED", "NO_IMAGES", "OUT_OF_MEMORY", "OUT_OF_TURN", "STALE",
        "TOO_MANY_STARTS", "UNKNOWN_MEMBER", "UNKNOWN_MODEL", "UNSHARED_STATE", "UNSUITABLE_PLAN", "WRONG_TENSORS",
    }
)  # fmt: skip
Leaving = PlanApproved | PlanDeclined | Ready | Contribution | Refused


@dataclass(frozen=True, slots=True)
class Outbound:
    """The gate of one agent: who it is, its clock, its entropy, its journal."""

    silo: str
    key: SigningIdentity
    journal: Journal
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    agent_version: str

    def approve(self, study: str, approval: SignedApproval, reason: str) -> None:
        """The steward's approval; `reason` stays in the hospital."""
        with self.journal.transaction():
            self.journal.keep_approval(study, approval.model_dump_json().encode(), reason)
            said = approval.approval
            self.journal.record(
                PlanApprovalGiven(
                    study=study,
                    plan_digest=said.plan_digest,
                    silo=self.silo,
                    dataset_digest=said.dataset_digest,
                ),
                self.now(),
            )
            self._put(PlanApproved(study=study, approval=approval))

    def decline(self, study: str, plan_digest: str, code: str, reason: str) -> None:
        """We do not take part. `code` leaves, `reason` does not."""
        with self.journal.transaction():
            self.journal.set_plan(study, "declined", reason=reason)
            self._put(PlanDeclined(study=study, plan_digest=plan_digest, code=_releasable(code)))

    def ready(self, order: KeptOrder, collection: Collection, result: Path) -> None:
        """Store the result's place and say that it exists. Nothing of it leaves yet."""
        with self.journal.transaction():
            self.journal.advance(order.collection, Heard.DONE, result=str(result))
            self.journal.record(
                WorkDone(study=collection.study, round=collection.round, phase=collection.phase, order=order.digest),
                self.now(),
            )
            self._put(Ready(collection=collection, order=order.digest))

    def refuse(self, order: KeptOrder, collection: Collection, code: str, detail: str, *, retryable: bool) -> None:
        """Say no with a code. The detail goes to the hospital's own log under a reference."""
        reference = self.entropy(6).hex()
        _log.warning("order %s refused: %s [%s] %s", order.collection, code, reference, detail)
        released = _releasable(code)
        with self.journal.transaction():
            if order.step in {Step.WORKING, Step.READY}:
                self.journal.advance(order.collection, Heard.CANNOT)
            self.journal.record(
                WorkRefused(study=collection.study, round=collection.round, phase=collection.phase, code=released),
                self.now(),
            )
            self._put(
                Refused(
                    collection=collection,
                    order=order.digest,
                    code=released,
                    reference=reference,
                    retryable=retryable,
                )
            )

    def release(
        self, order: KeptOrder, closed: CohortClosed, vector: Path, layout: VectorLayout, coordinator: SealingKey
    ) -> None:
        """Seal the stored vector and put it in the outbox. Raises `EgressRefused` if it is not ours to send.

        Raises `OSError` when the disk fails; then nothing was promised and nothing is left behind.
        """
        if self.silo not in closed.members or closed.order != order.digest or order.step is not Step.READY:
            raise EgressRefused(f"{order.collection}: the cohort was not closed with us for this order")
        if vector.stat().st_size != layout.size * ITEM_BYTES:  # not what the child wrote, or cut by a crash
            raise EgressRefused(f"{order.collection}: the vector has another length than the plan's layout")
        sealed = vector.with_suffix(f".{closed.collection.attempt}.sealed")
        context = contribution_context(closed.collection, self.silo, order.digest)
        sealed_key, blob = self._seal(vector, sealed, coordinator, context)
        if blob.size != sealed_size(layout):
            sealed.unlink()
            raise EgressRefused(f"{order.collection}: {blob.size} sealed bytes, not {sealed_size(layout)}")
        collection = closed.collection
        with self.journal.transaction():
            self.journal.advance(order.collection, Heard.CLOSED_WITH_US)
            self.journal.record(
                ContributionReleased(
                    study=collection.study,
                    round=collection.round,
                    phase=collection.phase,
                    attempt=collection.attempt,
                    vector=blob.digest,
                    size=blob.size,
                ),
                self.now(),
            )
            message = Contribution(collection=collection, order=order.digest, vector=blob, sealed_key=sealed_key)
            self._put(message, blob_path=sealed, blob=blob)

    def _seal(self, vector: Path, sealed: Path, coordinator: SealingKey, context: bytes) -> tuple[bytes, BlobRef]:
        """Write the sealed file, on the disk for good before anything is promised about it; `OSError` leaves none."""
        hasher, size = hashlib.sha256(), 0
        try:
            with vector.open("rb") as source, sealed.open("wb") as target:
                sealed_key, chunks = seal_contribution(
                    source.read, coordinator=coordinator, context=context, file_key=self.entropy(FILE_KEY_BYTES)
                )
                for chunk in chunks:
                    hasher.update(chunk)
                    size += target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
        except OSError:
            sealed.unlink(missing_ok=True)
            raise
        return sealed_key, BlobRef(digest=Digest("sha256:" + hasher.hexdigest()), size=size)

    def heartbeat(self, activity: Activity | None, *, disk_low: bool, roster_version: int) -> Heartbeat:
        """A sign of life: version, step n of N, disk. No counts of patients or images."""
        return Heartbeat(
            agent_version=self.agent_version,
            protocol=ProtocolRange(),
            activity=activity,
            disk_low=disk_low,
            roster_version=roster_version,
        )

    def _put(self, message: Leaving, *, blob_path: Path | None = None, blob: BlobRef | None = None) -> None:
        if not isinstance(message, MESSAGES_THAT_MAY_LEAVE):
            raise EgressRefused(f"{type(message).__name__} may not leave the hospital")
        envelope = seal_envelope(message, sender=self.silo, recipient=COORDINATOR, sent_at=self.now(), key=self.key)
        self.journal.put_out(
            f"{message.kind}/{slot_of(message)}",
            study_of(message),
            message.kind,
            envelope.data,
            blob_path=None if blob_path is None else str(blob_path),
            blob_digest=None if blob is None else blob.digest,
            blob_size=None if blob is None else blob.size,
        )


def _releasable(code: str) -> str:
    return code if code in RELEASABLE_CODES else "INTERNAL"

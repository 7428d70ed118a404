"""The only door out. Everything that leaves the hospital is made here, from an allow-listed schema.

Eleven kinds of message and a heartbeat exist. An error leaves as a code of `RELEASABLE_CODES` and a reference into
the hospital's own log, never as its text. A vector leaves only under the masks of a sum this hospital is in: there is
no other way for it, and no setting that makes one. Nothing here sends: it stores parcels in the outbox, in the same
transaction as the audit entry and the step that allows them.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from boundary.api import Activity, Heartbeat
from boundary.approval import SignedApproval
from boundary.envelope import seal_envelope
from boundary.identity import SigningIdentity
from boundary.messages import (
    BlobRef,
    Collection,
    HeadsCosigned,
    LogDisputed,
    MaskedVector,
    PlanApproved,
    PlanDeclined,
    Ready,
    Refused,
    RevealedShare,
    Share,
    Shares,
    SharesRevealed,
    SurvivorsSeen,
    TrailShown,
    slot_of,
    study_of,
)
from boundary.names import COORDINATOR
from boundary.protocol import NEXT_STEP, Heard
from boundary.secagg.hospital import Dealt, Revealed
from boundary.secagg.secrets import Announcement
from boundary.version import ProtocolRange
from compliance.events import (
    AnyEvent,
    ContributionReleased,
    PlanApprovalGiven,
    PlanDeclineGiven,
    SecretsShared,
    SurvivorsAgreed,
    UnmaskingHelped,
    WorkDone,
    WorkRefused,
)
from silo_agent.errors import EgressRefused
from silo_agent.journal import Journal, KeptOrder
from silo_agent.policy.errors import TOLD_AS, PolicyCode

_log = logging.getLogger("silo_agent.outbound")

MESSAGES_THAT_MAY_LEAVE = (
    PlanApproved, PlanDeclined, Ready, Shares, MaskedVector, SurvivorsSeen, SharesRevealed, Refused, TrailShown,
    HeadsCosigned, LogDisputed,
)  # fmt: skip
RELEASABLE_CODES = frozenset(
    {
        "ARCHIVE_DENIED", "ARCHIVE_MISSING", "BAD_SHARES", "BAD_SIGNATURE", "BAD_TENSORS", "BUDGET_SPENT", "BUSY",
        "CACHE_MISSING", "CACHE_UNREADABLE", "CANCELLED", "CHILD_DIED", "COHORT_TOO_SMALL", "CONTRACT_NOT_MET",
        "DATASET_CHANGED", "DATASET_UNREADABLE", "DECLINED_BY_STEWARD", "DISK_FULL", "EXPIRED", "GRADIENTS_DIFFER",
        "INPUT_INDIVISIBLE", "INPUT_TOO_SMALL", "INTERNAL", "KEYS_LOST", "KEY_REUSED", "LOG_IN_DOUBT",
        "LOSS_MIXES_SAMPLES", "MALFORMED", "MODEL_UNAVAILABLE", "NON_FINITE_LOGITS", "NON_FINITE_LOSS", "NOT_APPROVED",
        "NO_IMAGES", "OUT_OF_MEMORY", "OUT_OF_TURN", "PRETRAINED_DIFFERS", "PRETRAINED_MISSING", "PRETRAINED_UNFIT",
        "RESULT_SPENT", "SAMPLES_MIX", "SPLIT_VIEW", "STALE", "TOO_MANY_STARTS", "UNFIT_ADAPTERS", "UNFIT_NETWORK",
        "UNKNOWN_MEMBER", "UNKNOWN_MODEL", "UNSEAL_FAILED", "UNSHARED_STATE", "UNSUITABLE_PLAN", "WITHOUT_GRADIENT",
        "WRONG_NETWORK", "WRONG_RECIPIENT", "WRONG_TENSORS", "COUNTED_BEFORE", "EVALUATED_BEFORE", "NOT_OUR_PART",
    }
) | {TOLD_AS.get(code, code.value) for code in PolicyCode}  # fmt: skip
OfLogs = TrailShown | HeadsCosigned | LogDisputed
Leaving = (
    PlanApproved | PlanDeclined | Ready | Shares | MaskedVector | SurvivorsSeen | SharesRevealed | Refused | OfLogs
)


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
        """We do not take part. `code` leaves, `reason` does not, nor what of the study's sums still waits to leave."""
        with self.journal.transaction():
            for order in self.journal.orders_of(study):
                self.journal.withdraw(order.collection, "DECLINED")
            self.journal.set_plan(study, "declined", reason=reason)
            event = PlanDeclineGiven(study=study, plan_digest=plan_digest, silo=self.silo, code=_releasable(code))
            self.journal.record(event, self.now())
            self._put(PlanDeclined(study=study, plan_digest=plan_digest, code=_releasable(code)))

    # --- the steps of a masked sum -------------------------------------------------------------------
    def ready(self, order: KeptOrder, collection: Collection, result: Path, announced: Announcement) -> None:
        """A1. Store the result's place, say that it exists and with which keys. Nothing of it leaves yet."""
        with self.journal.transaction():
            self.journal.advance(order.collection, Heard.DONE, result=str(result))
            self.journal.record(
                WorkDone(study=collection.study, round=collection.round, phase=collection.phase, order=order.digest),
                self.now(),
            )
            self._put(
                Ready(
                    collection=collection,
                    order=order.digest,
                    context=announced.context,
                    transport_key=announced.transport_key,
                    mask_key=announced.mask_key,
                    self_commitment=announced.self_commitment,
                )
            )

    def shared(self, order: KeptOrder, collection: Collection, dealt: Dealt) -> None:
        """B1. Each part is an envelope of its own, for the hospital that holds it."""
        parts = [
            self._sealed(
                Share(
                    collection=collection,
                    cohort=dealt.cohort,
                    sealed=part.sealed,
                    pair=part.pair,
                    self_digest=part.self_digest,
                    seed_digest=part.seed_digest,
                ),
                holder,
            )
            for holder, part in sorted(dealt.parts.items())
        ]
        message = Shares(
            collection=collection,
            order=order.digest,
            cohort=dealt.cohort,
            self_digest=dealt.self_digest,
            seed_digest=dealt.seed_digest,
            parts=tuple(parts),
        )
        self._step(order, Heard.COHORT_CLOSED, SecretsShared(**_about(collection), cohort=dealt.cohort), message)

    def released(self, order: KeptOrder, collection: Collection, sharers: str, masked: Path, blob: BlobRef) -> None:
        """C1. The masked vector goes into the outbox."""
        event = ContributionReleased(**_about(collection), sharers=sharers, vector=blob.digest, size=blob.size)
        message = MaskedVector(collection=collection, order=order.digest, sharers=sharers, vector=blob)
        self._step(order, Heard.SHARES_ROUTED, event, message, blob_path=masked, blob=blob)

    def agreed(self, order: KeptOrder, collection: Collection, survivors: str, silos: Iterable[str]) -> None:
        """D2. `silos` are the survivors, by name."""
        event = SurvivorsAgreed(**_about(collection), survivors=survivors)
        message = SurvivorsSeen(collection=collection, order=order.digest, survivors=survivors)
        with self.journal.transaction():
            self.journal.agree(order, survivors, silos)
            self._step(order, Heard.SURVIVORS_NAMED, event, message)

    def revealed(self, order: KeptOrder, collection: Collection, shares: Revealed) -> None:
        """E1. On the disk before it leaves: the outbox gives the same bytes for ever."""
        event = UnmaskingHelped(
            **_about(collection),
            survivors=shares.survivors,
            surviving=tuple(sorted(shares.of_survivors)),
            lost=tuple(sorted(shares.of_lost)),
        )
        message = SharesRevealed(
            collection=collection,
            order=order.digest,
            survivors=shares.survivors,
            of_survivors=_listed(shares.of_survivors),
            of_lost=_listed(shares.of_lost),
        )
        self._step(order, Heard.AGREEMENT_SHOWN, event, message)

    def left_out(self, order: KeptOrder) -> None:
        """The sum goes on without us; what of it has not left by now stays here."""
        with self.journal.transaction():
            self.journal.advance(order.collection, Heard.WITHOUT_US)
            self.journal.withdraw(order.collection)

    def _step(
        self, order: KeptOrder, heard: Heard, event: AnyEvent, message: Leaving, *,
        blob_path: Path | None = None, blob: BlobRef | None = None,
    ) -> None:  # fmt: skip
        with self.journal.transaction():
            self.journal.advance(order.collection, heard)
            self.journal.record(event, self.now())
            self._put(message, blob_path=blob_path, blob=blob)

    def refuse(self, order: KeptOrder, collection: Collection, code: str, detail: str, *, retryable: bool) -> None:
        """Say no with a code. The detail goes to the hospital's own log under a reference."""
        reference = self.entropy(6).hex()
        _log.warning("order %s refused: %s [%s] %s", order.collection, code, reference, detail)
        released = _releasable(code)
        with self.journal.transaction():
            if (order.step, Heard.CANNOT) in NEXT_STEP:
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

    def say(self, message: OfLogs) -> None:
        """What `silo_agent.witness` has to say of logs, in the transaction of what it stands on."""
        self._put(message)

    def heartbeat(self, activity: Activity | None, *, disk_low: bool, roster_version: int) -> Heartbeat:
        """A sign of life: version, tenths of the way, disk. No steps: they tell how many batches there are."""
        return Heartbeat(
            agent_version=self.agent_version,
            protocol=ProtocolRange(),
            activity=None if activity is None else activity.in_tenths(),
            disk_low=disk_low,
            roster_version=roster_version,
        )

    def _put(self, message: Leaving, *, blob_path: Path | None = None, blob: BlobRef | None = None) -> None:
        if not isinstance(message, MESSAGES_THAT_MAY_LEAVE):
            raise EgressRefused(f"{type(message).__name__} may not leave the hospital")
        self.journal.put_out(
            f"{message.kind}/{slot_of(message)}",
            study_of(message),
            message.kind,
            self._sealed(message, COORDINATOR),
            blob_path=None if blob_path is None else str(blob_path),
            blob_digest=None if blob is None else blob.digest,
            blob_size=None if blob is None else blob.size,
        )

    def _sealed(self, message: Leaving | Share, recipient: str) -> bytes:
        now = self.now()
        return seal_envelope(message, sender=self.silo, recipient=recipient, sent_at=now, key=self.key).data


def _about(collection: Collection) -> dict[str, Any]:
    return collection.model_dump()


def _listed(shares: Mapping[str, bytes]) -> tuple[RevealedShare, ...]:
    return tuple(RevealedShare(silo=silo, share=share) for silo, share in sorted(shares.items()))


def _releasable(code: str) -> str:
    return code if code in RELEASABLE_CODES else "INTERNAL"

"""Audit events: a closed set of frozen values, and the leaf they become.

A leaf is canonical JSON (RFC 8785), fixed for ever once written. Nothing in it is free text or names a patient.
This issue keeps leaves in order beside the state change they record, in the same transaction; the Merkle tree,
the checkpoints and the witnesses over exactly these leaves are the evidence issue's.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import MalformedMessage
from boundary.messages import Phase
from boundary.names import (
    Code,
    DigestStr,
    Frozen,
    PartyId,
    RoundNumber,
    SiloId,
    Silos,
    StudyId,
    parse_timestamp,
    timestamp,
)
from compliance.privacy import Delta, PrivacyEvent

LEAF_VERSION = 1


Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{4}( [0-9a-f]{4}){15}$")]
Epsilon = Annotated[float, Field(ge=0, lt=2**53)]


class Event(Frozen):
    """Base of all audit events."""

    event: ClassVar[str]


class HospitalInvited(Event):
    """The coordinator made a one-time invitation."""

    event: ClassVar[str] = "hospital-invited"
    silo: SiloId


class EnrolmentAsked(Event):
    """A hospital used its invitation; its key waits for a person to compare the fingerprint."""

    event: ClassVar[str] = "enrolment-asked"
    silo: SiloId
    fingerprint: Fingerprint


class HospitalAdmitted(Event):
    """A person compared the fingerprint; the hospital is on this roster."""

    event: ClassVar[str] = "hospital-admitted"
    silo: SiloId
    fingerprint: Fingerprint
    roster_version: Annotated[int, Field(ge=1)]


class RosterIssued(Event):
    """A roster version was signed."""

    event: ClassVar[str] = "roster-issued"
    roster_version: Annotated[int, Field(ge=1)]
    roster_digest: DigestStr


class PlanPublished(Event):
    """A plan was offered to the hospitals it names."""

    event: ClassVar[str] = "plan-published"
    study: StudyId
    plan_digest: DigestStr


class PlanApprovalGiven(Event):
    """A hospital's steward approved, or the coordinator received that approval."""

    event: ClassVar[str] = "plan-approval-given"
    study: StudyId
    plan_digest: DigestStr
    silo: SiloId
    dataset_digest: DigestStr


class StudyDriven(Event):
    """A flow run took over the driving of a study."""

    event: ClassVar[str] = "study-driven"
    study: StudyId
    fence: Annotated[int, Field(ge=1)]


class RoundOpened(Event):
    """Work on a round began, from this model."""

    event: ClassVar[str] = "round-opened"
    study: StudyId
    round: RoundNumber
    model: DigestStr


class CohortDecided(Event):
    """Who is in a sum and who is not."""

    event: ClassVar[str] = "cohort-decided"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    members: Silos
    absent: Silos
    reason: Code


class AttemptFailed(Event):
    """A collection did not reach its quorum, or a member's vector never came; another attempt follows."""

    event: ClassVar[str] = "attempt-failed"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    reason: Code


class RoundClosed(Event):
    """A round was committed: its model counts from here on."""

    event: ClassVar[str] = "round-closed"
    study: StudyId
    round: RoundNumber
    model_in: DigestStr
    model_out: DigestStr
    contributing: Silos
    absent: Silos


class StatisticsTaken(Event):
    """The hospitals' intensities were summed once, before round 1; `result` is the digest of what came out."""

    event: ClassVar[str] = "statistics-taken"
    study: StudyId
    survivors: DigestStr
    result: DigestStr


class StudyEnded(Event):
    """No more rounds."""

    event: ClassVar[str] = "study-ended"
    study: StudyId
    reason: Code


class WorkRefused(Event):
    """The hospital refused an order."""

    event: ClassVar[str] = "work-refused"
    study: StudyId
    round: RoundNumber
    phase: Phase
    code: Code


class WorkDone(Event):
    """The hospital finished the work of an order and keeps the result."""

    event: ClassVar[str] = "work-done"
    study: StudyId
    round: RoundNumber
    phase: Phase
    order: DigestStr


class SecretsShared(Event):
    """The hospital joined a masked sum over this cohort."""

    event: ClassVar[str] = "secrets-shared"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    cohort: DigestStr


class ContributionReleased(Event):
    """A masked vector left the hospital: for which sharers, how many bytes, and their digest."""

    event: ClassVar[str] = "contribution-released"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    sharers: DigestStr
    vector: DigestStr
    size: Annotated[int, Field(ge=1)]


class SurvivorsAgreed(Event):
    """The hospital signed the one set of survivors it will help to unmask in this attempt."""

    event: ClassVar[str] = "survivors-agreed"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    survivors: DigestStr


class UnmaskingHelped(Event):
    """The hospital revealed shares: of the self masks of `surviving`, of the key seeds of `lost`."""

    event: ClassVar[str] = "unmasking-helped"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    survivors: DigestStr
    surviving: Silos
    lost: Silos


class SumOpened(Event):
    """The coordinator unmasked the sum over these hospitals, and nothing else."""

    event: ClassVar[str] = "sum-opened"
    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    survivors: DigestStr
    surviving: Silos


class BudgetReserved(Event):
    """The hospital spent this release on its patients before training for it; the epsilons are those after it."""

    event: ClassVar[str] = "budget-reserved"
    study: StudyId
    round: RoundNumber
    release: PrivacyEvent
    epsilon_study: Epsilon
    delta_study: Delta
    epsilon_lifetime: Epsilon
    delta_lifetime: Delta


class BudgetCommitted(Event):
    """The noisy result of a reserved release is kept and may leave."""

    event: ClassVar[str] = "budget-committed"
    study: StudyId
    round: RoundNumber
    release: PrivacyEvent


class BudgetRefused(Event):
    """A release would have passed a cap: the epsilon it would have come to, and what the cap still held."""

    event: ClassVar[str] = "budget-refused"
    study: StudyId
    round: RoundNumber
    cap: Literal["study", "lifetime"]
    asked: Epsilon
    left: Epsilon


AnyEvent = (
    HospitalInvited
    | EnrolmentAsked
    | HospitalAdmitted
    | RosterIssued
    | PlanPublished
    | PlanApprovalGiven
    | StudyDriven
    | RoundOpened
    | CohortDecided
    | AttemptFailed
    | RoundClosed
    | StatisticsTaken
    | StudyEnded
    | WorkRefused
    | WorkDone
    | SecretsShared
    | ContributionReleased
    | SurvivorsAgreed
    | UnmaskingHelped
    | SumOpened
    | BudgetReserved
    | BudgetCommitted
    | BudgetRefused
)

EVENTS: dict[str, type[AnyEvent]] = {kind.event: kind for kind in AnyEvent.__args__}


class Leaf(Frozen):
    """One entry of a log as it is read back."""

    log: PartyId
    sequence: Annotated[int, Field(ge=1)]
    time: str
    actor: PartyId
    event: AnyEvent


def leaf_bytes(event: AnyEvent, *, log: str, sequence: int, time: datetime, actor: str) -> bytes:
    """The canonical bytes of an entry. `log` is whose log, `actor` who did it, `time` the log's own clock.

    Raises `ValueError` or `CallerFault` for what `read_leaf` would refuse: a log is for ever.
    """
    leaf = Leaf(log=log, sequence=sequence, time=timestamp(time), actor=actor, event=event)
    return canonical_bytes(
        {
            "v": LEAF_VERSION,
            "log": leaf.log,
            "seq": leaf.sequence,
            "time": leaf.time,
            "actor": leaf.actor,
            "event": event.event,
            "data": event.model_dump(mode="json"),
        }
    )


def read_leaf(data: bytes) -> Leaf:
    """Parse an entry; raises `MalformedMessage` for an unknown event or key, and for what we would not have written."""
    match parse_canonical(data):
        case {
            "v": 1,
            "log": str(log),
            "seq": int(sequence),
            "time": str(time),
            "actor": str(actor),
            "event": str(event),
            "data": dict(content),
            **rest,
        } if not rest and event in EVENTS:
            try:
                parsed = EVENTS[event].model_validate(content)
                written = leaf_bytes(parsed, log=log, sequence=sequence, time=parse_timestamp(time), actor=actor)
            except ValueError as why:
                raise MalformedMessage(f"audit entry {event}: {why}") from why
            if written != data:  # `true` for 1
                raise MalformedMessage("an audit entry in another form than its one")
            return Leaf(log=log, sequence=sequence, time=time, actor=actor, event=parsed)
        case _:
            raise MalformedMessage("not an audit entry")

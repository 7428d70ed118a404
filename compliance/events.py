"""What a log may say: a closed set of frozen values. Nothing in them is free text or names a patient.

Epsilons are those after the event. Counts of people and of their files are told in tens (`in_tens`).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from boundary.aggregation import MAX_HOSPITALS
from boundary.messages import Phase
from boundary.names import Code, DigestStr, Frozen, PartyId, RoundNumber, SiloId, Silos, StudyId, list_in
from compliance.privacy import Delta, PrivacyEvent

CELL = 10
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{4}( [0-9a-f]{4}){15}$")]
Epsilon = Annotated[float, Field(ge=0, lt=2**53)]
Gate = Annotated[str, Field(pattern=r"^[a-z]{3,20}$")]
Tens = Annotated[int, Field(ge=0, le=2**53 - 1, multiple_of=CELL)]


def in_tens(count: int) -> int:
    """0 for none, else the next ten upwards: no count of a few people is ever told."""
    return -(-count // CELL) * CELL


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


class PlanDeclineGiven(Event):
    """A hospital declined, or the coordinator received that; why in more words stays in the hospital."""

    event: ClassVar[str] = "plan-decline-given"
    study: StudyId
    plan_digest: DigestStr
    silo: SiloId
    code: Code


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


class HospitalsDrawn(Event):
    """Who was asked to train in a round: `boundary.drawing.drawn` of those that had approved, less who rests."""

    event: ClassVar[str] = "hospitals-drawn"
    study: StudyId
    round: RoundNumber
    attempt: Annotated[int, Field(ge=1)]
    consenting: Silos
    resting: Silos
    drawn: Silos


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
    """A round was committed: its model counts from here on. `record` is the digest of all that is kept of it.

    In a round that was rolled back that is the model it began with; `tried` came of the sum.
    """

    event: ClassVar[str] = "round-closed"
    study: StudyId
    round: RoundNumber
    model_in: DigestStr
    model_out: DigestStr
    tried: DigestStr | None
    contributing: Silos
    absent: Silos
    record: DigestStr


class StatisticsTaken(Event):
    """The hospitals' intensities were summed once, before round 1; `result` is the digest of what came out."""

    event: ClassVar[str] = "statistics-taken"
    study: StudyId
    survivors: DigestStr
    result: DigestStr


class PersonalisationSummed(Event):
    """The hospitals' comparisons of models on their own patients were summed; `result` is the digest of the counts."""

    event: ClassVar[str] = "personalisation-summed"
    study: StudyId
    survivors: DigestStr
    result: DigestStr


class ModelMeasured(Event):
    """A model was measured in a sum of its own; `result` is the digest of what came out."""

    event: ClassVar[str] = "model-measured"
    study: StudyId
    round: RoundNumber
    phase: Phase
    model: DigestStr
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


class HospitalEnrolled(Event):
    """The hospital is in: under which key, and which coordinator key its people compared."""

    event: ClassVar[str] = "hospital-enrolled"
    fingerprint: Fingerprint
    coordinator: Fingerprint


class RosterTrusted(Event):
    """The hospital took over a newer roster."""

    event: ClassVar[str] = "roster-trusted"
    roster_version: Annotated[int, Field(ge=1)]
    roster_digest: DigestStr


class PlanReceived(Event):
    """A plan arrived at the hospital. It binds nobody."""

    event: ClassVar[str] = "plan-received"
    study: StudyId
    plan_digest: DigestStr


class IntakeCounted(Event):
    """What of the hospital's archive a plan would use; `usable` is whether that meets the plan's contract.

    Counts are of files, and of patients where said, each told as the next ten upwards (`in_tens`): 20 is 11 to 20.
    """

    event: ClassVar[str] = "intake-counted"
    study: StudyId
    dataset_digest: DigestStr
    usable: bool
    patients: Tens
    used: Tens
    excluded: Annotated[dict[Code, Tens], Field(max_length=200)]


class TrainingStarted(Event):
    """The child process began the work of an order, for the `start`-th time."""

    event: ClassVar[str] = "training-started"
    study: StudyId
    round: RoundNumber
    phase: Phase
    order: DigestStr
    start: Annotated[int, Field(ge=1)]


class LateUpdateOffered(Event):
    """Instead of training for this order, the hospital offers what it made in an earlier round and came too late with.

    It goes into no other sum: of round `made_in` nothing had left, and from here on nothing can.
    """

    event: ClassVar[str] = "late-update-offered"
    study: StudyId
    round: RoundNumber
    made_in: RoundNumber
    order: DigestStr


class PolicyAdopted(Event):
    """The hospital's own policy with this digest came into force, as its `number`-th; who signed is in the hospital.

    A tightening takes one of the signatures, everything else all of them.
    """

    event: ClassVar[str] = "policy-adopted"
    number: Annotated[int, Field(ge=1)]
    policy: DigestStr
    how: Literal["signed", "tightened"]


class GatesPassed(Event):
    """The policy in force let the work of an order begin: every gate was asked, in this order, and none refused."""

    event: ClassVar[str] = "gates-passed"
    study: StudyId
    round: RoundNumber
    phase: Phase
    order: DigestStr
    policy: DigestStr
    gates: Annotated[tuple[Gate, ...], BeforeValidator(list_in), Field(min_length=1, max_length=50)]


class GateRefused(Event):
    """A gate of the policy in force refused the work of an order, or ended work that was under way."""

    event: ClassVar[str] = "gate-refused"
    study: StudyId
    round: RoundNumber
    phase: Phase
    order: DigestStr
    policy: DigestStr
    gate: Gate
    code: Code


class WorkPaused(Event):
    """Nothing is computed until `work-resumed`: the policy's hours ended, or a person of the hospital said so."""

    event: ClassVar[str] = "work-paused"
    code: Code


class WorkResumed(Event):
    """Work goes on."""

    event: ClassVar[str] = "work-resumed"


class RoundReceived(Event):
    """The hospital was told that a round is final, and which model came out of which sum.

    `tried` came out of it and was rolled back, to `model`.
    """

    event: ClassVar[str] = "round-received"
    study: StudyId
    round: RoundNumber
    model: DigestStr
    tried: DigestStr | None
    transcript: DigestStr
    contributing: Silos
    absent: Silos


class ReceiptSigned(Event):
    """The party put its name under a round's receipt."""

    event: ClassVar[str] = "receipt-signed"
    study: StudyId
    round: RoundNumber
    receipt: DigestStr


class SeenHead(Frozen):
    """Another party's log as it was verified: how many entries, and their root."""

    log: PartyId
    size: Annotated[int, Field(ge=1)]
    root: DigestStr


class HeadsWitnessed(Event):
    """The party verified that these logs go on from what it knew of them, and cosigned them."""

    event: ClassVar[str] = "heads-witnessed"
    study: StudyId
    round: Annotated[int, Field(ge=0, le=10_000)]
    heads: Annotated[tuple[SeenHead, ...], BeforeValidator(list_in), Field(max_length=MAX_HOSPITALS + 1)]


class IncidentOpened(Event):
    """Somebody's log is not what it was: both signed heads are kept, and no new round starts here."""

    event: ClassVar[str] = "incident-opened"
    incident: Annotated[int, Field(ge=1)]
    log: PartyId
    code: Code
    evidence: DigestStr


class IncidentClosed(Event):
    """A person looked into an incident and decided that rounds may go on."""

    event: ClassVar[str] = "incident-closed"
    incident: Annotated[int, Field(ge=1)]
    decision: Code


class PatientWithdrawn(Event):
    """Somebody withdrew consent. Who is in the hospital's private log only, whose entry has this hash."""

    event: ClassVar[str] = "patient-withdrawn"
    private: DigestStr


class WithdrawalEffective(Event):
    """From this round on the study does without the patient of that private entry. What was decided of the model."""

    event: ClassVar[str] = "withdrawal-effective"
    study: StudyId
    round: RoundNumber
    private: DigestStr
    decision: Literal["keep", "retrain", "retire"]


class EvidenceIssued(Event):
    """Evidence about a study was put together: `manifest` is the digest of the list of all its files."""

    event: ClassVar[str] = "evidence-issued"
    study: StudyId
    manifest: DigestStr


class ReleaseDecided(Event):
    """An officer decided, under their own signature and on the evidence with this manifest, about releasing a model."""

    event: ClassVar[str] = "release-decided"
    study: StudyId
    round: RoundNumber
    model: DigestStr
    manifest: DigestStr
    decision: Literal["release", "reject"]
    officer: Fingerprint


class DataPurged(Event):
    """What a study had kept and no longer needs was removed."""

    event: ClassVar[str] = "data-purged"
    study: StudyId
    what: Literal["blobs", "caches", "results", "sidecars"]
    files: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]


AnyEvent = (
    HospitalInvited
    | EnrolmentAsked
    | HospitalAdmitted
    | RosterIssued
    | PlanPublished
    | PlanApprovalGiven
    | PlanDeclineGiven
    | StudyDriven
    | RoundOpened
    | HospitalsDrawn
    | CohortDecided
    | AttemptFailed
    | RoundClosed
    | StatisticsTaken
    | ModelMeasured
    | PersonalisationSummed
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
    | HospitalEnrolled
    | RosterTrusted
    | PlanReceived
    | IntakeCounted
    | TrainingStarted
    | LateUpdateOffered
    | PolicyAdopted
    | GatesPassed
    | GateRefused
    | WorkPaused
    | WorkResumed
    | RoundReceived
    | ReceiptSigned
    | HeadsWitnessed
    | IncidentOpened
    | IncidentClosed
    | PatientWithdrawn
    | WithdrawalEffective
    | EvidenceIssued
    | ReleaseDecided
    | DataPurged
)

EVENTS: dict[str, type[AnyEvent]] = {kind.event: kind for kind in AnyEvent.__args__}

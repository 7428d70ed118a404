"""The closed registry of messages. What is not in this file cannot cross the boundary.

A message is a frozen value with a `kind`. `from_body` is the only way in, `to_body` the only way out. Nothing in
them is free text: names, numbers, digests, codes. Adding a field changes a golden vector in `tests/vectors/`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self, assert_never

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from boundary.aggregation import MAX_HOSPITALS
from boundary.approval import SignedApproval
from boundary.canonical import Digest, canonical_bytes, digest
from boundary.checkpoint import Checkpoint, Cosignature
from boundary.errors import MalformedMessage
from boundary.images import Normalisation
from boundary.names import (
    Base64Bytes,
    Code,
    DigestStr,
    Frozen,
    Moment,
    PartyId,
    RoundNumber,
    SiloId,
    Silos,
    StudyId,
    decode_base64,
    list_in,
)
from boundary.plan import StudyPlan
from boundary.receipt import ReceiptSignature
from boundary.secagg.ring import Encoding

MAX_ENTRY_BYTES = 256 * 1024  # the heads of 200 hospitals, witnessed in one entry, are 40 kB
MAX_SHOWN_ENTRIES = 4096
Phase = Literal["statistics", "train", "evaluate", "validate", "personalise"]
PHASES: tuple[Phase, ...] = ("statistics", "train", "evaluate", "validate", "personalise")
MEASURING: tuple[Phase, ...] = ("evaluate", "validate")  # the second in hospitals that only validate, if it is apart


def _one_form(key: str) -> str:
    decode_base64(key.partition(":")[2])  # stray bits would give one key two names
    return key


Quoted = Annotated[  # whole envelopes of other hospitals, as they signed them
    tuple[Annotated[Base64Bytes, Field(max_length=16 * 1024)], ...], BeforeValidator(list_in), Field(max_length=200)
]
HybridKey = Annotated[str, Field(pattern=r"^hpke-mlkem768-x25519:[A-Za-z0-9+/]{1622}==$"), AfterValidator(_one_form)]


class Collection(Frozen):
    """One sum over hospitals: a phase of a round of a study, and which try it is."""

    study: StudyId
    round: RoundNumber
    phase: Phase
    attempt: Annotated[int, Field(ge=1, le=1000)] = 1

    def __str__(self) -> str:
        return f"{self.study}/{self.round}/{self.phase}/{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote and nothing like it; raises `ValueError`."""
        study, number, phase, attempt = text.split("/")
        read = cls.model_validate({"study": study, "round": int(number), "phase": phase, "attempt": int(attempt)})
        if str(read) != text:
            raise ValueError(f"not the one form of a collection: {text!r:.80}")
        return read


class BlobRef(Frozen):
    """Content by its digest, with the size in bytes so that nobody downloads more than they agreed to."""

    digest: DigestStr
    size: Annotated[int, Field(ge=1, le=2**33)]


class Message(Frozen):
    """Base of all messages; `kind` is its name on the wire, `sender` the role that may say it."""

    kind: ClassVar[str]
    sender: ClassVar[Literal["coordinator", "silo"]]


class OfCollection(Message):
    """Base of all messages about one sum; there is one of each kind between two parties (`slot_of`)."""

    collection: Collection


class PlanProposed(Message):
    """The coordinator asks a hospital to consider a plan. It binds nobody."""

    kind: ClassVar[str] = "plan-proposed"
    sender = "coordinator"
    study: StudyId
    plan: StudyPlan


class PlanApproved(Message):
    """The steward approved exactly this digest, for the data set the keyed digest names."""

    kind: ClassVar[str] = "plan-approved"
    sender = "silo"
    study: StudyId
    approval: SignedApproval


class PlanDeclined(Message):
    """The hospital does not take part; `code` says why in general, the detail stays in the hospital."""

    kind: ClassVar[str] = "plan-declined"
    sender = "silo"
    study: StudyId
    plan_digest: DigestStr
    code: Code


class WorkOrder(OfCollection):
    """Count, train, evaluate or personalise with this model, and say when ready. Bound to the approved plan digest.

    `normalisation` is what the statistics of the plan's hospitals gave, if the plan asks for it. `heads` is what the
    parties' logs were like (`heads_digest`): a sum over hospitals that were shown different logs does not come about.
    `model` has the parameters that move (`boundary.parts`); where those are not all, `base` is the whole network as the
    study begins, the same in every order. `control` is the coordinator's control variate of SCAFFOLD, one tensor called
    "control" with as many weights as move; None before there is one. `before` is the model that the round began with,
    for an evaluation in which hospitals vote on the new one (`boundary.robustness`).
    """

    kind: ClassVar[str] = "work-order"
    sender = "coordinator"
    plan_digest: DigestStr
    roster_digest: DigestStr
    model: BlobRef
    base: BlobRef | None
    control: BlobRef | None
    before: BlobRef | None
    encoding: Encoding
    normalisation: Normalisation | None
    heads: DigestStr
    due: Moment

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """All that the hospital is to fetch for it."""
        return tuple(blob for blob in (self.model, self.base, self.control, self.before) if blob is not None)


class Ready(OfCollection):
    """The work is done and kept; nothing of it has left yet. With it come this attempt's fresh public keys.

    `context` is what the hospital took the order to mean (`boundary.secagg.context`): if two hospitals were given
    different models, the others see it here. `self_commitment` binds the hospital to its self mask.
    """

    kind: ClassVar[str] = "ready"
    sender = "silo"
    order: DigestStr
    context: DigestStr
    transport_key: HybridKey
    mask_key: HybridKey
    self_commitment: DigestStr


class CohortClosed(OfCollection):
    """Who is in this sum. Sent to every hospital that got the order, so that a drop is known to all.

    `ready` are the members' own signed envelopes, in the order of `members`; who is absent gets none.
    """

    kind: ClassVar[str] = "cohort-closed"
    sender = "coordinator"
    order: DigestStr
    members: Silos
    absent: Silos
    ready: Quoted


class Share(OfCollection):
    """One hospital's shares for one other. Travels quoted in `Shares` and `SharesRouted`, never by itself.

    `sealed` holds two Shamir shares (self mask, key seed; 33 bytes each), `pair` the secret of the mask the two have
    in common, if the sender is the one who chooses it. The digests make each share recognisable when it is revealed.
    """

    kind: ClassVar[str] = "share"
    sender = "silo"
    cohort: DigestStr
    sealed: Annotated[Base64Bytes, Field(min_length=1000, max_length=2000)]
    pair: Annotated[Base64Bytes, Field(min_length=1000, max_length=2000)] | None
    self_digest: DigestStr
    seed_digest: DigestStr


class Shares(OfCollection):
    """All shares of one hospital: the envelopes for the others, and the digests of those it keeps itself."""

    kind: ClassVar[str] = "shares"
    sender = "silo"
    order: DigestStr
    cohort: DigestStr
    self_digest: DigestStr
    seed_digest: DigestStr
    parts: Quoted


class SharesRouted(OfCollection):
    """Whose shares arrived in time, and those for this hospital."""

    kind: ClassVar[str] = "shares-routed"
    sender = "coordinator"
    order: DigestStr
    members: Silos
    parts: Quoted


class MaskedVector(OfCollection):
    """The hospital's vector under all its masks. `sharers` is the set it was masked for."""

    kind: ClassVar[str] = "masked-vector"
    sender = "silo"
    order: DigestStr
    sharers: DigestStr
    vector: BlobRef


class SurvivorsNamed(OfCollection):
    """Whose vectors arrived in time, proven by their own signed envelopes."""

    kind: ClassVar[str] = "survivors-named"
    sender = "coordinator"
    order: DigestStr
    vectors: Quoted


class SurvivorsSeen(OfCollection):
    """The one set of survivors this hospital will help to unmask in this attempt."""

    kind: ClassVar[str] = "survivors-seen"
    sender = "silo"
    order: DigestStr
    survivors: DigestStr


class AgreementShown(OfCollection):
    """What the hospitals said they saw; enough of them saw the same, or nothing is revealed."""

    kind: ClassVar[str] = "agreement-shown"
    sender = "coordinator"
    order: DigestStr
    seen: Quoted


class RevealedShare(Frozen):
    """One share, of the self mask of a survivor or of the key seed of a hospital that was lost."""

    silo: SiloId
    share: Annotated[Base64Bytes, Field(min_length=33, max_length=33)]


RevealedShares = Annotated[tuple[RevealedShare, ...], BeforeValidator(list_in), Field(max_length=200)]


class SharesRevealed(OfCollection):
    """For each hospital one kind of share: never both."""

    kind: ClassVar[str] = "shares-revealed"
    sender = "silo"
    order: DigestStr
    survivors: DigestStr
    of_survivors: RevealedShares
    of_lost: RevealedShares


class Refused(OfCollection):
    """The hospital will not, or could not, do this work. `reference` finds the detail in its own log."""

    kind: ClassVar[str] = "refused"
    sender = "silo"
    order: DigestStr
    code: Code
    reference: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    retryable: bool


class RoundCommitted(Message):
    """The round is final: which model came out and whose work is in it.

    `transcript` binds the model to the sum it was made from (`boundary.secagg.context`); `receipt` is the
    coordinator's signature under the round's receipt (`boundary.receipt`). In a round that was rolled back, `model` is
    the one it began with and `tried` the digest of what came of the sum.
    """

    kind: ClassVar[str] = "round-committed"
    sender = "coordinator"
    study: StudyId
    round: RoundNumber
    model: BlobRef
    tried: DigestStr | None
    transcript: DigestStr
    contributing: Silos
    absent: Silos
    receipt: ReceiptSignature


class TrailAsked(Message):
    """No round will be committed any more: show how your log goes on, as if after this one, which is behind the last.

    What hospitals did since the last round, or in a study of none, nobody else would see otherwise.
    """

    kind: ClassVar[str] = "trail-asked"
    sender = "coordinator"
    study: StudyId
    round: RoundNumber


class TrailShown(Message):
    """How a hospital's log goes on: its new entries after a round or when asked, and the head over all of them.

    An item of `entries` that has 32 bytes is the hash of an entry, a longer one the entry itself: the plan says what is
    shown (`compliance.disclosure`). The first is entry number `first`, counted from 1. `receipt` is the hospital's
    signature under the round's receipt, if its work is in the round.
    """

    kind: ClassVar[str] = "trail-shown"
    sender = "silo"
    study: StudyId
    round: RoundNumber
    checkpoint: Checkpoint
    first: Annotated[int, Field(ge=1)]
    entries: Annotated[
        tuple[Annotated[Base64Bytes, Field(min_length=32, max_length=MAX_ENTRY_BYTES)], ...],
        BeforeValidator(list_in),
        Field(max_length=MAX_SHOWN_ENTRIES),
    ]
    receipt: ReceiptSignature | None


class ShownHead(Frozen):
    """A party's signed head, and the proof that it goes on from the last one this hospital was told of."""

    checkpoint: Checkpoint
    proof: Annotated[
        tuple[Annotated[Base64Bytes, Field(min_length=32, max_length=32)], ...], BeforeValidator(list_in),
        Field(max_length=64),
    ]  # fmt: skip


def _one_of_each(heads: tuple[ShownHead, ...]) -> tuple[ShownHead, ...]:
    """Two heads of one log could be the two sides of a fork, and a witness would put its name under both."""
    if len({head.checkpoint.log for head in heads}) != len(heads):
        raise ValueError("names a log twice")
    return heads


class HeadsShown(Message):
    """The logs of all parties after a round, 0 for before the first, as far as they were shown by then."""

    kind: ClassVar[str] = "heads-shown"
    sender = "coordinator"
    study: StudyId
    round: Annotated[int, Field(ge=0, le=10_000)]
    heads: Annotated[
        tuple[ShownHead, ...], BeforeValidator(list_in), Field(max_length=MAX_HOSPITALS + 1),
        AfterValidator(_one_of_each),
    ]  # fmt: skip

    @property
    def digest(self) -> Digest:
        return heads_digest(head.checkpoint for head in self.heads)


class CosignedHead(Frozen):
    """One log's head, cosigned by the sender."""

    log: PartyId
    size: Annotated[int, Field(ge=1)]
    cosignature: Cosignature


class HeadsCosigned(Message):
    """The hospital has verified all these heads against what it knew. `heads` is their digest."""

    kind: ClassVar[str] = "heads-cosigned"
    sender = "silo"
    study: StudyId
    round: Annotated[int, Field(ge=0, le=10_000)]
    heads: DigestStr
    cosigned: Annotated[tuple[CosignedHead, ...], BeforeValidator(list_in), Field(max_length=MAX_HOSPITALS + 1)]


class LogDisputed(Message):
    """A log does not go on from what the hospital knew of it. Both heads are signed by the log's owner."""

    kind: ClassVar[str] = "log-disputed"
    sender = "silo"
    study: StudyId
    round: Annotated[int, Field(ge=0, le=10_000)]
    code: Code
    known: Checkpoint
    shown: Checkpoint


class StudyClosed(Message):
    """No more work will come for this study; caches may go."""

    kind: ClassVar[str] = "study-closed"
    sender = "coordinator"
    study: StudyId
    code: Code


AnyMessage = (
    PlanProposed
    | PlanApproved
    | PlanDeclined
    | WorkOrder
    | Ready
    | CohortClosed
    | Share
    | Shares
    | SharesRouted
    | MaskedVector
    | SurvivorsNamed
    | SurvivorsSeen
    | AgreementShown
    | SharesRevealed
    | Refused
    | RoundCommitted
    | TrailAsked
    | TrailShown
    | HeadsShown
    | HeadsCosigned
    | LogDisputed
    | StudyClosed
)

REGISTRY: dict[str, type[AnyMessage]] = {message.kind: message for message in AnyMessage.__args__}


def heads_digest(heads: Iterable[Checkpoint]) -> Digest:
    """What all hospitals of a round are to have been shown alike: whose log has how many entries, and which root."""
    said = sorted([head.log, head.size, head.root] for head in heads)
    return digest(canonical_bytes(["wardround heads v1", *said]))


def to_body(message: AnyMessage) -> dict[str, Any]:
    return message.model_dump(mode="json")


def from_body(kind: object, body: object) -> AnyMessage:
    """Parse one message; raises `MalformedMessage` for an unknown kind, key, type or range.

    One meaning has one body: what `to_body` would not have written, such as an omitted default, is refused.
    """
    if not isinstance(kind, str) or kind not in REGISTRY:
        raise MalformedMessage(f"unknown kind of message: {kind!r:.60}")
    try:
        message = REGISTRY[kind].model_validate(body)
    except ValidationError as why:
        first = why.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MalformedMessage(f"{kind}: {place}: {first['msg']}") from why
    if canonical_bytes(to_body(message)) != canonical_bytes(body):
        raise MalformedMessage(f"{kind}: the body is not in its one form")
    return message


def slot_of(message: AnyMessage) -> str:
    """The one place a message of its kind has between two parties. A second, different one is refused.

    This is what makes a retry harmless and a change of mind visible: the relay and the agent keep the first.
    """
    match message:
        case OfCollection():
            return str(message.collection)
        case RoundCommitted() | TrailAsked() | TrailShown() | HeadsShown() | HeadsCosigned() | LogDisputed():
            return f"{message.study}/{message.round}"
        case PlanProposed() | PlanApproved() | PlanDeclined() | StudyClosed():
            return message.study
        case _:
            assert_never(message)


def study_of(message: AnyMessage) -> str:
    match message:
        case OfCollection():
            return message.collection.study
        case RoundCommitted() | TrailAsked() | TrailShown() | HeadsShown() | HeadsCosigned() | LogDisputed():
            return message.study
        case PlanProposed() | PlanApproved() | PlanDeclined() | StudyClosed():
            return message.study
        case _:
            assert_never(message)

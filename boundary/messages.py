"""The closed registry of messages. What is not in this file cannot cross the boundary.

A message is a frozen value with a `kind`. `from_body` is the only way in, `to_body` the only way out. Nothing in
them is free text: names, numbers, digests, codes. Adding a field changes a golden vector in `tests/vectors/`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, assert_never

from pydantic import BeforeValidator, Field, ValidationError

from boundary.approval import SignedApproval
from boundary.canonical import canonical_bytes
from boundary.errors import MalformedMessage
from boundary.names import Base64Bytes, Code, DigestStr, Frozen, Moment, RoundNumber, SiloId, StudyId
from boundary.plan import StudyPlan

Phase = Literal["train", "evaluate"]
PHASES: tuple[Phase, ...] = ("train", "evaluate")


def _list_in(raw: Any) -> Any:
    return tuple(raw) if isinstance(raw, list) else raw


Silos = Annotated[tuple[SiloId, ...], BeforeValidator(_list_in)]


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


class PlanProposed(Message):
    """The coordinator asks a hospital to consider a plan. It binds nobody."""

    kind: ClassVar[str] = "plan-proposed"
    sender: ClassVar[Literal["coordinator", "silo"]] = "coordinator"
    study: StudyId
    plan: StudyPlan


class PlanApproved(Message):
    """The steward approved exactly this digest, for the data set the keyed digest names."""

    kind: ClassVar[str] = "plan-approved"
    sender: ClassVar[Literal["coordinator", "silo"]] = "silo"
    study: StudyId
    approval: SignedApproval


class PlanDeclined(Message):
    """The hospital does not take part; `code` says why in general, the detail stays in the hospital."""

    kind: ClassVar[str] = "plan-declined"
    sender: ClassVar[Literal["coordinator", "silo"]] = "silo"
    study: StudyId
    plan_digest: DigestStr
    code: Code


class WorkOrder(Message):
    """Train on, or evaluate, this model, and say when ready. Bound to the approved plan digest."""

    kind: ClassVar[str] = "work-order"
    sender: ClassVar[Literal["coordinator", "silo"]] = "coordinator"
    collection: Collection
    plan_digest: DigestStr
    roster_digest: DigestStr
    model: BlobRef
    due: Moment


class Ready(Message):
    """The work is done and kept; nothing of it has left yet."""

    kind: ClassVar[str] = "ready"
    sender: ClassVar[Literal["coordinator", "silo"]] = "silo"
    collection: Collection
    order: DigestStr


class CohortClosed(Message):
    """Who is in this sum. Sent to every hospital that got the order, so that a drop is known to all."""

    kind: ClassVar[str] = "cohort-closed"
    sender: ClassVar[Literal["coordinator", "silo"]] = "coordinator"
    collection: Collection
    order: DigestStr
    members: Silos
    absent: Silos


class Contribution(Message):
    """The hospital's vector, sealed for the coordinator. Replaced by a masked one in the next issue."""

    kind: ClassVar[str] = "contribution"
    sender: ClassVar[Literal["coordinator", "silo"]] = "silo"
    collection: Collection
    order: DigestStr
    vector: BlobRef
    sealed_key: Annotated[Base64Bytes, Field(min_length=64, max_length=4096)]


class Refused(Message):
    """The hospital will not, or could not, do this work. `reference` finds the detail in its own log."""

    kind: ClassVar[str] = "refused"
    sender: ClassVar[Literal["coordinator", "silo"]] = "silo"
    collection: Collection
    order: DigestStr
    code: Code
    reference: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    retryable: bool


class RoundCommitted(Message):
    """The round is final: which model came out and whose work is in it."""

    kind: ClassVar[str] = "round-committed"
    sender: ClassVar[Literal["coordinator", "silo"]] = "coordinator"
    study: StudyId
    round: RoundNumber
    model: BlobRef
    contributing: Silos
    absent: Silos


class StudyClosed(Message):
    """No more work will come for this study; caches may go."""

    kind: ClassVar[str] = "study-closed"
    sender: ClassVar[Literal["coordinator", "silo"]] = "coordinator"
    study: StudyId
    code: Code


AnyMessage = (
    PlanProposed
    | PlanApproved
    | PlanDeclined
    | WorkOrder
    | Ready
    | CohortClosed
    | Contribution
    | Refused
    | RoundCommitted
    | StudyClosed
)

REGISTRY: dict[str, type[AnyMessage]] = {
    message.kind: message
    for message in (
        PlanProposed,
        PlanApproved,
        PlanDeclined,
        WorkOrder,
        Ready,
        CohortClosed,
        Contribution,
        Refused,
        RoundCommitted,
        StudyClosed,
    )
}


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
        case WorkOrder() | Ready() | CohortClosed() | Contribution() | Refused():
            return str(message.collection)
        case RoundCommitted():
            return f"{message.study}/{message.round}"
        case PlanProposed() | PlanApproved() | PlanDeclined() | StudyClosed():
            return message.study
        case _:
            assert_never(message)


def study_of(message: AnyMessage) -> str:
    match message:
        case WorkOrder() | Ready() | CohortClosed() | Contribution() | Refused():
            return message.collection.study
        case RoundCommitted() | PlanProposed() | PlanApproved() | PlanDeclined() | StudyClosed():
            return message.study
        case _:
            assert_never(message)

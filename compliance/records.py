"""What is kept of a round when it is over: the values that tables, MLflow and the evidence are made from."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from boundary.canonical import canonical_bytes, parse_json
from boundary.messages import BlobRef, Phase
from boundary.names import Code, DigestStr, Frozen, Moment, RoundNumber, SiloId, Silos, StudyId, list_in
from boundary.robustness import Median, Reason, Vote
from boundary.secagg.ring import Encoding

Bands = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(list_in)]
Seconds = Annotated[float, Field(ge=0)]
LateCount = Annotated[int, Field(ge=0)] | None
NOT_NEEDED = "NOT_NEEDED"  # why a hospital is absent that was asked in addition: enough others were ready


class CohortDecision(Frozen):
    """How a collection was closed. `absent` gives silo -> why."""

    phase: Phase
    attempt: int
    reason: Code
    members: Silos
    absent: dict[SiloId, Code]
    closed_at: Moment


class GlobalMetrics(Frozen):
    """Of a classification: the held-back patients of all hospitals together. None where a class is absent."""

    count: int
    loss: float
    accuracy: float
    auroc: float | None
    balanced_accuracy: float | None
    confusion: Annotated[tuple[Annotated[tuple[int, ...], BeforeValidator(list_in)], ...], BeforeValidator(list_in)]


class ClassDice(Frozen):
    """One class: `images` show it; `mean` is over these of each one's Dice, `pooled` of all voxels together.

    None where no image shows it.
    """

    name: str
    images: int
    mean: float | None
    pooled: float | None


class SegmentationMetrics(Frozen):
    """Of a segmentation: the held-back patients of all hospitals together. `dice` is the mean of the classes' means.

    The background is not among `classes`.
    """

    count: int
    loss: float
    dice: float | None
    classes: Annotated[tuple[ClassDice, ...], BeforeValidator(list_in)]


AnyMetrics = GlobalMetrics | SegmentationMetrics


class Timing(Frozen):
    """Seconds of a round, by what they were spent on."""

    training: Seconds
    transport: Seconds
    aggregation: Seconds
    evaluation: Seconds
    total: Seconds


class Traffic(Frozen):
    """Blob bytes of one hospital in this round."""

    up: int
    down: int


class RoundRecord(Frozen):
    """A committed round. registered / ready / contributing are the three counts people see.

    `transcript` binds the model to the sum it was made from; `next_encoding` is fitted to that sum, and `update_norm`
    is the length of the mean change. With a guarantee per patient no training loss is known, and `below` says how many
    hospitals have spent less than each of `EPSILON_BANDS` on the study. `shortened` is how many changes were clipped to
    the plan's longest. A round that was rolled back has `model_in` as its `model_out`; `tried` came of its sum, and
    `tried_metrics` are what was found of that, where it was evaluated. The vote says why. `not_drawn` have approved the
    plan and were not asked to train in this round: they are not absent. `late` is how many updates of the sum were made
    in a round before; None where a plan has none such. `median` is there in a plan with groups.
    """

    study: StudyId
    round: RoundNumber
    model_in: DigestStr
    model_out: BlobRef
    registered: Silos
    ready: Silos
    contributing: Silos
    absent: dict[SiloId, Code]
    not_drawn: Silos = ()
    train: CohortDecision
    transcript: DigestStr
    rolled_back: Reason | None = None
    tried: BlobRef | None = None
    tried_metrics: AnyMetrics | None = None
    vote: Vote | None = None
    update_norm: Annotated[float, Field(ge=0)]
    shortened: Annotated[int, Field(ge=0)] | None = None
    clipped: Annotated[int, Field(ge=0)]
    below: Bands = ()
    late: LateCount = None
    median: Median | None = None
    next_encoding: Encoding
    evaluate: CohortDecision | None
    train_loss: float | None
    metrics: AnyMetrics | None
    timing: Timing
    traffic: dict[SiloId, Traffic]
    committed_at: Moment

    @property
    def missing(self) -> dict[str, str]:
        """Silo -> why, of those that were waited for in vain."""
        return {silo: code for silo, code in self.absent.items() if code != NOT_NEEDED}

    @property
    def is_partial(self) -> bool:
        return bool(self.missing)


def current(records: Sequence[RoundRecord]) -> AnyMetrics | None:
    """The metrics of the model that counts after these rounds: of the last one that was not rolled back."""
    return next((record.metrics for record in reversed(records) if record.rolled_back is None), None)


def to_bytes(value: Frozen) -> bytes:
    return canonical_bytes(value.model_dump(mode="json"))


def record_from(data: bytes) -> RoundRecord:
    return RoundRecord.model_validate(parse_json(data))

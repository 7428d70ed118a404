"""What the coordinator keeps of a study beside its committed rounds (`compliance.records`)."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from boundary.images import Normalisation
from boundary.messages import BlobRef, Phase
from boundary.names import DigestStr, Frozen, Moment, RoundNumber, StudyId, list_in
from boundary.robustness import Median, Reason, Vote
from boundary.secagg.ring import Encoding
from boundary.tensors import TensorManifest
from compliance.records import AnyMetrics, Bands, CohortDecision, LateCount, Seconds


class ModelStart(Frozen):
    """A study's model: its shape, and the weights every hospital starts from.

    Where not all of it moves, `moving` has the part of `initial` that does.
    """

    manifest: TensorManifest
    initial: BlobRef
    moving: BlobRef | None = None

    @property
    def first(self) -> BlobRef:
        """The model of the first round's orders."""
        return self.moving or self.initial

    @property
    def base(self) -> BlobRef | None:
        """What every order gives beside its model: the whole network, where not all of it moves."""
        return None if self.moving is None else self.initial


Counts = Annotated[tuple[int, ...], BeforeValidator(list_in)]


class Side(Frozen):
    """One side of the split, of all hospitals in the sum together. `classes` are images by class."""

    patients: int
    images: int
    classes: Counts


class Description(Frozen):
    """The cohort that a plan describes (`boundary.description`).

    `intensities` are shares of the model's inputs in each bin, which add up to 1; `per_patient` counts patients by how
    many of their images are used.
    """

    training: Side
    held_back: Side
    intensities: Annotated[tuple[float, ...], BeforeValidator(list_in)]
    per_patient: Counts


class Statistics(Frozen):
    """The training images of all hospitals together, counted before round 1. `labels` are counts by class.

    `normalisation` is None where there is no training image, in a plan that only describes.
    """

    images: int
    labels: Annotated[tuple[int, ...], BeforeValidator(list_in)]
    normalisation: Normalisation | None
    decision: CohortDecision
    survivors: DigestStr
    description: Description | None = None


class Measurement(Frozen):
    """A model measured in a sum that is part of no round's record.

    By hospitals that only validate ("validate", of the model that came out of `round`), or in a plan that trains
    nothing ("evaluate", where `round` is the model's place among the plan's).
    """

    study: StudyId
    round: RoundNumber
    phase: Phase
    model: DigestStr
    decision: CohortDecision
    survivors: DigestStr
    metrics: AnyMetrics
    taken_at: Moment


class Candidate(Frozen):
    """A round after its train sum, before its evaluation: what a restarted driver goes on from.

    `memory` is what the server strategy remembers for the next round, if it remembers anything
    (`flows.aggregation.memory`): it belongs to this model and no other, and no hospital may read it but SCAFFOLD's.
    `refused` is why nobody need vote on it. `update_norm`, `shortened` and `median` are as in `RoundRecord`.
    """

    model: BlobRef
    memory: BlobRef | None = None
    refused: Reason | None = None
    train_loss: float | None
    update_norm: Annotated[float, Field(ge=0)]
    shortened: Annotated[int, Field(ge=0)] | None = None
    weight: float
    clipped: Annotated[int, Field(ge=0)]
    below: Bands = ()
    late: LateCount = None
    median: Median | None = None
    train: CohortDecision
    survivors: DigestStr
    next_encoding: Encoding
    training_seconds: Seconds
    transport_seconds: Seconds
    aggregation_seconds: Seconds


class Evaluated(Frozen):
    """A candidate's evaluation: its metrics, None if it answers nothing, and what the hospitals' votes came to."""

    decision: CohortDecision
    metrics: AnyMetrics | None
    vote: Vote | None = None
    rolled_back: Reason | None = None

"""What the coordinator keeps of a study beside its committed rounds (`compliance.records`)."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from boundary.messages import BlobRef, Normalisation
from boundary.names import DigestStr, Frozen, list_in
from boundary.secagg.ring import Encoding
from boundary.tensors import TensorManifest
from compliance.records import Bands, CohortDecision, Seconds


class ModelStart(Frozen):
    """A study's model: its shape, and the weights every hospital starts from."""

    manifest: TensorManifest
    initial: BlobRef


class Statistics(Frozen):
    """The training images of all hospitals together, counted before round 1. `labels` are counts by class."""

    images: int
    labels: Annotated[tuple[int, ...], BeforeValidator(list_in)]
    normalisation: Normalisation
    decision: CohortDecision
    survivors: DigestStr


class Candidate(Frozen):
    """A round after its train sum, before its evaluation: what a restarted driver goes on from."""

    model: BlobRef
    train_loss: float | None
    weight: float
    clipped: Annotated[int, Field(ge=0)]
    below: Bands = ()
    train: CohortDecision
    survivors: DigestStr
    next_encoding: Encoding
    training_seconds: Seconds
    transport_seconds: Seconds
    aggregation_seconds: Seconds

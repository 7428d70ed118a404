"""How the masked sum of a round comes about: of how many hospitals, how long it waits, what of the model is in it."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from boundary.learning import Training
from boundary.names import Frozen, whole
from boundary.stored import Dtype

SMALLEST_COHORT = 3  # hospitals in one sum; two could subtract themselves from it (secure-aggregation.md)
MAX_HOSPITALS = 200
MAX_GROUPS = MAX_HOSPITALS // SMALLEST_COHORT
LARGEST_SUM = 2**39  # of the numbers of all hospitals (`boundary.secagg.encoding`)


class Aggregation(Frozen):
    """How many hospitals a sum needs, how long it waits, what is summed, how large an incoming model may be.

    `ready_minutes` is for the work itself, `step_minutes` for each step of the masked sum after it. A hospital's weight
    (images or patients) is at most `max_weight`; its change of a weight of the model, times its weight, is clipped to
    `delta_bound` times `max_weight`, in later rounds to 16 times the largest of the last sum. `ring` is how many bits
    that has in the sum. With `random_share` below 1 only that share of the weights, drawn anew for each round and the
    same for all hospitals, is in it; with `error_feedback` a hospital adds what it did not send to its next change.
    `downlink` is how the weights of a round's model come down: in `bfloat16` they are half the bytes, and rounded.
    """

    quorum: Annotated[int, Field(ge=SMALLEST_COHORT, le=MAX_HOSPITALS)] = SMALLEST_COHORT
    ready_minutes: Annotated[float, Field(gt=0, le=60 * 24 * 14)] = 120.0
    step_minutes: Annotated[float, Field(gt=0, le=60 * 24)] = 10.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    ring: Annotated[Literal[16, 32], BeforeValidator(whole)] = 32
    delta_bound: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    max_weight: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    random_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    error_feedback: bool = False
    downlink: Dtype = "float32"
    lost_after_seconds: Annotated[float, Field(ge=2, le=60 * 60 * 24)] = 120.0
    max_model_norm: Annotated[float, Field(gt=0, le=1e12)] = 1e4

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.error_feedback and self.random_share == 1:
            raise ValueError("error_feedback: nothing is left over when all weights are sent; lower random_share")
        return self

    def summed_weights(self, parameters: int) -> int:
        """How many of the model's weights are in a round's sum."""
        return max(1, round(self.random_share * parameters))

    def largest_weight(self, training: Training) -> int:
        """The largest weight one hospital can have in a sum."""
        return 1 if training.weighting == "equal" else self.max_weight

"""The guarantee per patient that a plan asks for, if any. What it costs, each hospital works out for itself."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from boundary.names import Frozen


class NoPrivacy(Frozen):
    """No guarantee per patient, in plain words."""

    mechanism: Literal["none"] = "none"


class PatientPrivacy(Frozen):
    """Differential privacy with the patient as its unit (DP-SGD), in every hospital by itself.

    A step takes each patient with probability q = `patients_per_step` / N, N being the most patients the hospital
    declares; of each at most `images_per_patient` images, whose mean gradient is clipped to `clip`. A round is `steps`
    steps. Either `noise_multiplier` is given, or `epsilon`: what the whole study may cost at delta = 1 / (10 N), from
    which each hospital works out its own multiplier.
    """

    mechanism: Literal["patient-dp"]
    epsilon: Annotated[float, Field(ge=0.01, le=100)] | None = None
    noise_multiplier: Annotated[float, Field(ge=0.1, le=60)] | None = None
    clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    patients_per_step: Annotated[int, Field(ge=1, le=4096)] = 32
    steps: Annotated[int, Field(ge=1, le=100_000)] = 10
    images_per_patient: Annotated[int, Field(ge=1, le=256)] = 4

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon or noise_multiplier, and not both: each follows from the other")
        return self


Privacy = Annotated[NoPrivacy | PatientPrivacy, Field(discriminator="mechanism")]
MECHANISMS = ("none", "patient-dp")
EPSILON_BANDS = (1, 2, 4, 8)  # a round's sum says how many hospitals have spent less than each on the study

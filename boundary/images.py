"""Which images of a hospital take part in a study, what they are called, and how each becomes a model's input."""

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from boundary.fields import Fraction, Millimetres, Names, Unit, Word
from boundary.names import Frozen, StudyName, list_in
from boundary.series import SeriesRule

SMALLEST_DEVIATION = 1e-3  # images without any contrast are not blown up
MOST_VOXELS = 2**24  # of one model input: 64 MB as float32


class Dataset(Frozen):
    """Which of a hospital's images take part. `name` is the data set in the hospital's own configuration.

    With `series` images are volumes, one of each imaging study, or their slices where the model is of two dimensions.
    With `described` the cohort is counted once, in a masked sum: patients, images and classes on each side, images per
    patient, intensities of the model's inputs (`boundary.description`).
    """

    name: StudyName
    modalities: Names
    max_images_per_patient: Annotated[int, Field(ge=1, le=1000)] = 8
    min_patients: Annotated[int, Field(ge=1, le=10_000_000)] = 2
    max_excluded_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    holdout_share: Fraction = 0.2
    series: SeriesRule | None = None
    described: bool = False

    @model_validator(mode="after")
    def _sane(self) -> Self:
        unknown = set(self.modalities) - {"CT", "CR", "DX", "US", "MR"}
        if unknown or not self.modalities:
            raise ValueError("modalities: some of CT, CR, DX, US, MR")
        if self.series is not None and self.modalities != (self.series.modality,):
            raise ValueError("series.modality: the one modality of the data set")
        return self


class Labels(Frozen):
    """The label contract, checked on the hospital's own table before approval is offered.

    `classes` lists the values of the column in the order of the model's outputs; for two classes the second
    is the positive one. Without `column` the table must have exactly one column that is not a UID. For segmentation the
    first class is the background, and the others are the Segment Labels of the masks; there is no table then, and an
    image counts for every class that it shows.
    """

    column: Word | None = None
    classes: Names
    minimum_per_class: Annotated[int, Field(ge=0, le=10_000_000)] = 1

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if not 2 <= len(self.classes) <= 100:
            raise ValueError("classes: two to one hundred")
        return self


class Normalisation(Frozen):
    """Mean and standard deviation of the training images of all hospitals, after their mapping to [0, 1]."""

    mean: Annotated[float, Field(ge=0, le=1)]
    deviation: Annotated[float, Field(gt=0, le=1)]


def _kind_of(value: object) -> str:
    """So that what is wrong is said about the one that was meant."""
    return "numbers" if isinstance(value, dict | Normalisation) else "word"


Normalise = Annotated[
    Annotated[Literal["none", "federated"], Tag("word")] | Annotated[Normalisation, Tag("numbers")],
    Discriminator(_kind_of),
]


class Preprocessing(Frozen):
    """How every hospital turns a stored image into the model's input: one channel, size (height, width) px.

    For a model of volumes size is (depth, height, width) in voxels and `spacing` their distances in mm, to which each
    volume is resampled; then it is cut or padded to size around its centre. So are slices for which `spacing` is given,
    (between rows, between columns); without it an image is fitted into size with its aspect ratio kept.

    `window` maps [low, high] of the modality's unit (HU for CT) to [0, 1]; `percentiles` does so with two
    percentiles of the image itself, for modalities whose values have no unit. With `normalise = "federated"` the mean
    over the training images of all hospitals is then taken off and the rest divided by their standard deviation; both
    come from a masked sum before round 1. So it is done with `{mean = 0.3, deviation = 0.2}`, without a sum: with what
    an earlier study found, whose model is evaluated or gone on from.
    """

    size: Annotated[tuple[int, ...], BeforeValidator(list_in)]
    spacing: Annotated[tuple[Millimetres, ...] | None, BeforeValidator(list_in)] = None
    intensity: Literal["window", "percentiles"]
    low: Unit
    high: Unit
    normalise: Normalise = "none"

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if len(self.size) not in (2, 3):
            raise ValueError("size: (height, width), or (depth, height, width) for volumes")
        if not all(16 <= side <= 1024 for side in self.size) or math.prod(self.size) > MOST_VOXELS:
            raise ValueError(f"size: each side has 16 to 1024 pixels, and all of it at most {MOST_VOXELS}")
        if self.spacing is None and len(self.size) == 3:
            raise ValueError("spacing: a volume is resampled, say to which distances in mm")
        if self.spacing is not None and len(self.spacing) != len(self.size):
            raise ValueError("spacing: one distance for each side of size, in the same order")
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.intensity == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        if self.given is not None and self.given.deviation < SMALLEST_DEVIATION:
            raise ValueError(
                f"normalise: a deviation of {SMALLEST_DEVIATION:g} at least, as those that are counted have"
            )
        return self

    @property
    def given(self) -> Normalisation | None:
        """What the plan itself normalises with."""
        return self.normalise if isinstance(self.normalise, Normalisation) else None

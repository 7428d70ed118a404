"""Which series of a study is meant: the part of a plan that speaks of volumes, in codes and never in free text.

Series Description, Protocol Name and Body Part are not asked: they differ between hospitals and hold names.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from boundary.names import Frozen, list_in

Orientation = Literal["axial", "coronal", "sagittal"]
# PS3.3 C.7.6.1.1.2: Code String, upper case letters, digits, space and underscore
ImageTypeValue = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{1,16}$")]
ImageTypes = Annotated[tuple[ImageTypeValue, ...], BeforeValidator(list_in), Field(max_length=16)]
Count = Annotated[int, Field(ge=2, le=4096)]


class SeriesRule(Frozen):
    """Which series of a study is meant; where several match, none is used.

    `take_secondary` accepts ImageType value 2 SECONDARY, as archives for research carry it after defacing; screen
    captures stay refused.
    """

    modality: Literal["CT", "MR"]
    image_type_includes: ImageTypes = ()  # all of them, in every slice
    image_type_excludes: ImageTypes = ()  # none of them, in any slice
    smallest_slices: Count = 2
    largest_slices: Count = 4096
    smallest_gap_mm: Annotated[float, Field(ge=0, le=100)] = 0.0  # between slices, centre to centre
    largest_gap_mm: Annotated[float, Field(gt=0, le=100)] = 100.0
    orientation: Literal[Orientation, "any"] = "any"
    take_secondary: bool = False

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> Self:
        if self.smallest_slices > self.largest_slices or self.smallest_gap_mm > self.largest_gap_mm:
            raise ValueError("the smallest is above the largest: swap them")
        if set(self.image_type_includes) & set(self.image_type_excludes):
            raise ValueError("an image type is both included and excluded: name it once")
        return self

"""Where things lie in the one vector a hospital reports: `[w * delta ..., losses, w]` or `[metrics ...]`.

Everything a hospital says about its patients is a coordinate of this vector, and the coordinator only ever needs
the sum of such vectors. That is why masking can take the place of sealing without anybody else noticing.
"""

from typing import Annotated, Any, Self, assert_never

from pydantic import BeforeValidator, Field, model_validator

from boundary.errors import CallerFault
from boundary.messages import Phase
from boundary.names import Frozen

ITEM_BYTES = 4  # little-endian float32


def _list_in(raw: Any) -> Any:
    return tuple(raw) if isinstance(raw, list) else raw


class Section(Frozen):
    """A named run of coordinates."""

    name: str
    size: Annotated[int, Field(ge=1)]


class VectorLayout(Frozen):
    """The sections in order. Both sides derive it from the plan; it is never sent."""

    sections: Annotated[tuple[Section, ...], BeforeValidator(_list_in)]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if len({section.name for section in self.sections}) != len(self.sections):
            raise ValueError("sections: a name appears twice")
        return self

    @property
    def size(self) -> int:
        """Coordinates in all."""
        return sum(section.size for section in self.sections)

    def where(self, name: str) -> slice:
        """The coordinates of a section; raises `CallerFault` if there is none of that name."""
        start = 0
        for section in self.sections:
            if section.name == name:
                return slice(start, start + section.size)
            start += section.size
        raise CallerFault(f"the vector has no section {name!r}")


def layout_for(phase: Phase, *, parameters: int, metrics: int) -> VectorLayout:
    """Give the layout of a phase, for a model with `parameters` weights and `metrics` additive metrics.

    train: the weighted delta, the summed training loss, the number of images it is over, the weight.
    evaluate: the additive metrics of `models.metrics`.
    """
    match phase:
        case "evaluate":
            return VectorLayout(sections=(Section(name="metrics", size=metrics),))
        case "train":
            return VectorLayout(
                sections=(
                    Section(name="delta", size=parameters),
                    Section(name="loss_sum", size=1),
                    Section(name="images", size=1),
                    Section(name="weight", size=1),
                )
            )
        case _:
            assert_never(phase)

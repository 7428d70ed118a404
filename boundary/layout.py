"""Where things lie in the one vector a hospital reports: numbers first, then the weights of the model's delta.

Everything a hospital says about its patients is a coordinate of this vector, and the coordinator only ever gets the
sum of such vectors. *Numbers* (losses, counts, the weight, histograms) are summed exactly in 64 bits, *weights* in the
plan's ring of 32 or 16 bits (`boundary.secagg.ring`). In the hospital the vector is a file of little-endian float64
numbers followed by float32 weights; what leaves has the same order, as masked words.
"""

from typing import Annotated, Self, assert_never

from pydantic import BeforeValidator, Field, model_validator

from boundary.description import sizes
from boundary.errors import CallerFault
from boundary.messages import Phase
from boundary.names import Frozen, list_in
from boundary.plan import StudyPlan

NUMBER_BYTES = 8  # float64 in the hospital, a 64-bit word in the sum
WEIGHT_BYTES = 4  # float32 in the hospital
COMPARED = (("federated", "local"), ("personal", "local"), ("personal", "federated"))  # each with the one it is held to
OUTCOMES = ("better", "same", "worse", "difference")  # of a comparison: one 1 and two 0, and the first less the second


class Section(Frozen):
    """A named run of numbers."""

    name: str
    size: Annotated[int, Field(ge=1)]


class VectorLayout(Frozen):
    """The sections of numbers in order, then `weights`. Both sides derive it from the plan; it is never sent."""

    sections: Annotated[tuple[Section, ...], BeforeValidator(list_in)]
    weights: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if len({section.name for section in self.sections}) != len(self.sections):
            raise ValueError("sections: a name appears twice")
        return self

    @property
    def numbers(self) -> int:
        """How many numbers in all."""
        return sum(section.size for section in self.sections)

    @property
    def numbers_bytes(self) -> int:
        return NUMBER_BYTES * self.numbers

    @property
    def plain_bytes(self) -> int:
        """The exact size of the vector's file in the hospital."""
        return self.numbers_bytes + WEIGHT_BYTES * self.weights

    def masked_bytes(self, ring: int) -> int:
        """The exact size of the masked vector: anything else is refused before it is read. `ring` is in bits."""
        return self.numbers_bytes + self.weights * ring // 8

    def where(self, name: str) -> slice:
        """The places of a section among the numbers; raises `CallerFault` if there is none of that name."""
        start = 0
        for section in self.sections:
            if section.name == name:
                return slice(start, start + section.size)
            start += section.size
        raise CallerFault(f"the vector has no section {name!r}")


def section_of(pair: tuple[str, str]) -> str:
    """`personal_federated`: where the outcome of a comparison lies."""
    return "_".join(pair)


def layout_in(plan: StudyPlan, phase: Phase, *, parameters: int, metrics: int) -> VectorLayout:
    """`layout_for` as the plan has it: both sides ask here. `parameters` are those that are in a sum."""
    return layout_for(
        phase,
        parameters=parameters,
        metrics=metrics,
        bands=plan.bands,
        steps=plan.counts_steps,
        clipping=plan.robustness.clip is not None,
        vote=plan.robustness.vote,
        late=plan.selection.keeps_late,
        described=plan.dataset.described,
    )


def layout_for(  # noqa: PLR0913 - one for each thing a plan may have reported
    phase: Phase, *, parameters: int, metrics: int, bands: int = 0, steps: bool = False, clipping: bool = False,
    vote: bool = False, late: bool = False, described: bool = False,
) -> VectorLayout:  # fmt: skip
    """Give the layout of a phase, for a model with `parameters` weights and `metrics` additive metrics.

    statistics: the number of training images, the sums of their mean intensities and of their mean squared ones, and
    (`metrics` counts) how many there are of each class or, with masks, show it; with `described` also the sections of
    `boundary.description`.

    train: the summed training loss, the number of images it is over, the weight, how many weights had to be clipped;
    then the weighted delta. With a guarantee per patient (`bands` is not 0) neither loss nor images, which no noise
    covers, but a 1 in each band of epsilon that the hospital has not reached (`boundary.guarantee.EPSILON_BANDS`). With
    `steps` (for FedNova) also how many it took times its weight, and the delta is divided by them. With `clipping` a 1
    for a change that had to be shortened (`boundary.robustness`). With `late` (a plan whose late updates go into a
    later round) also a 1 if the delta is one. Where a plan has other hospitals in each sum (`StudyPlan.varies`), the
    loss is the mean one times the weight and the images are the weight: true counts could be solved for.

    evaluate: the additive metrics of the plan's task, as `models.measuring.layout_of` lays them out; with `vote` then a
    1 for a vote against the model, one for a vote, and by how much its mean loss is above that of the model before.

    validate: the metrics alone.

    personalise: for each pair of `COMPARED` the four `OUTCOMES`, all 0 where the hospital cannot tell.
    """
    match phase:
        case "statistics":
            sections = (*(Section(name=name, size=1) for name in ("images", "intensity", "squares")),
                        Section(name="labels", size=metrics))  # fmt: skip
            more = [Section(name=name, size=size) for name, size in sizes(metrics).items()] if described else []
            return VectorLayout(sections=(*sections, *more), weights=0)
        case "evaluate" | "validate":
            said = ("against", "voted", "rise") if vote and phase == "evaluate" else ()
            votes = tuple(Section(name=name, size=1) for name in said)
            return VectorLayout(sections=(Section(name="metrics", size=metrics), *votes), weights=0)
        case "personalise":
            return VectorLayout(
                sections=tuple(Section(name=section_of(pair), size=len(OUTCOMES)) for pair in COMPARED), weights=0
            )
        case "train":
            names = ("weight", "clipped") if bands else ("loss_sum", "images", "weight", "clipped")
            names = (*names, "steps") if steps else names
            names = (*names, "shortened") if clipping else names
            names = (*names, "late") if late else names
            counted = (Section(name="bands", size=bands),) if bands else ()
            sections = (*(Section(name=name, size=1) for name in names), *counted)
            return VectorLayout(sections=sections, weights=parameters)
        case _:
            assert_never(phase)

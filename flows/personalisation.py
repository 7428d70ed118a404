"""After the last round: at how many hospitals which model is better, and by how much on average. Only sums are known.

What each hospital puts into the sum is in `boundary.layout.OUTCOMES`, by pair of `COMPARED`. A hospital that cannot
tell puts zeros. One that lies can move these figures; what no hospitals could have said is refused.
"""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from boundary.errors import BadTensors
from boundary.layout import COMPARED, OUTCOMES, section_of
from boundary.names import DigestStr, Frozen, list_in
from boundary.plan import StudyPlan
from compliance.records import CohortDecision
from flows.summing import Total

SLACK = 1e-3  # of a sum in fixed point, over at most 200 hospitals
NAMES = {
    "local": "what each would have trained alone",
    "federated": "the federated model",
    "personal": "each hospital's own model",
}
_SHORT = {"local": "alone", "federated": "federated", "personal": "own"}
Count = Annotated[int, Field(ge=0)]


class Compared(Frozen):
    """One pair: hospitals where `one` is better than, the same as and worse than `other`, by 95 % intervals.

    `difference` is the mean over these hospitals of the figure of `one` less that of `other`, None if none could tell.
    """

    one: str
    other: str
    better: Count
    same: Count
    worse: Count
    difference: Annotated[float, Field(ge=-1, le=1)] | None

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if (self.hospitals == 0) != (self.difference is None):
            raise ValueError("a mean difference of no hospital, or none of some")
        return self

    @property
    def hospitals(self) -> int:
        """How many could tell."""
        return self.better + self.same + self.worse

    @property
    def name(self) -> str:
        return f"{self.one}_vs_{self.other}"

    @property
    def sentence(self) -> str:
        """`4 of 5 hospitals: federated better than alone, 1: same; mean difference +0.021`."""
        if self.difference is None:
            return f"{_SHORT[self.one]} and {_SHORT[self.other]}: no hospital could tell"
        first, *others = [(self.better, "better than"), (self.same, "same as"), (self.worse, "worse than")]
        rest = "".join(f", {count}: {word.split()[0]}" for count, word in others if count)
        said = f"{first[0]} of {self.hospitals} hospitals: {_SHORT[self.one]} {first[1]} {_SHORT[self.other]}{rest}"
        return f"{said}; mean difference {self.difference:+.3f}"


class Personalised(Frozen):
    """What is kept of a study's personalisation. `decision` is who was in the sum."""

    figure: str
    compared: Annotated[tuple[Compared, ...], BeforeValidator(list_in)]
    decision: CohortDecision
    survivors: DigestStr

    @property
    def headline(self) -> str:
        """What a hospital asks first, whether it is worth it, as far as it can be told."""
        return next((one for one in self.compared if one.hospitals), self.compared[0]).sentence


def read_outcomes(total: Total, hospitals: int) -> tuple[Compared, ...]:
    """The pairs of a sum over so many hospitals. Raises `BadTensors` for what they cannot have said together."""
    found = []
    for pair in COMPARED:
        numbers = dict(zip(OUTCOMES, total.numbers[total.layout.where(section_of(pair))], strict=True))
        difference = float(numbers.pop("difference"))
        counts = {name: round(float(value)) for name, value in numbers.items()}
        told = sum(counts.values())
        is_sound = (
            all(abs(value - counts[name]) <= SLACK and counts[name] >= 0 for name, value in numbers.items())
            and told <= hospitals
            and abs(difference) <= told + SLACK
        )
        if not is_sound:
            raise BadTensors(f"{told} of {hospitals} hospitals cannot have said this of {section_of(pair)}")
        mean = max(-1.0, min(1.0, difference / told)) if told else None
        found.append(Compared(one=pair[0], other=pair[1], difference=mean, **counts))
    return tuple(found)


def figure_of(plan: StudyPlan) -> str:
    return "AUROC" if plan.task == "classification" else "mean Dice"


def lines(found: Personalised) -> list[str]:
    """Markdown: a sentence, and the table it is from."""
    rows = [
        f"| {NAMES[one.one]} | {NAMES[one.other]} | {one.better} | {one.same} | {one.worse} "
        f"| {signed(one.difference)} |"
        for one in found.compared
    ]
    return [
        f"**{found.headline}**",
        "",
        f"{found.figure} on each hospital's own held-back patients; better and worse where a 95 % interval of the "
        f"difference (bootstrap over patients) excludes 0. {len(found.decision.members)} hospitals were in the sum; "
        "which of them is better off, only they know themselves.",
        "",
        "| | compared with | better | same | worse | mean difference |",
        "|---|---|---:|---:|---:|---:|",
        *rows,
    ]


def signed(difference: float | None) -> str:
    return "–" if difference is None else f"{difference:+.4f}"  # noqa: RUF001 - how "no value" is printed


def points(found: Personalised) -> dict[str, float]:
    """For MLflow: `personalisation/federated_vs_local_better`, ..."""
    told: dict[str, float] = {}
    for one in found.compared:
        told |= {f"personalisation/{one.name}_{word}": float(getattr(one, word)) for word in OUTCOMES[:-1]}
        if one.difference is not None:
            told[f"personalisation/{one.name}_difference"] = round(one.difference, 6)
    return told

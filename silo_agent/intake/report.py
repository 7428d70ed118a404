"""What a scan found: counts for the hospital's own staff, and the two facts that may leave it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from boundary.names import DigestStr, Frozen
from boundary.plan import StudyPlan
from silo_agent.intake.cohort import Member
from silo_agent.intake.refusals import Refusal

TRAINING, HOLDOUT = "training", "holdout"

Count = Annotated[int, Field(ge=0)]


class PublishableIntake(Frozen):
    """All that the coordinator may be told. Counts of a small hospital would say too much."""

    dataset_digest: DigestStr
    contract_met: bool


class IntakeReport(Frozen):
    """Every file in one terminal state: `files == used + sum(refused.values())`.

    Of volumes it is every series, and every file that belongs to none; of their slices every slice, and every file that
    has none. `images` is split -> class -> count of the images that show it: one class each, unless they have masks,
    for which `labels_column` is empty and `label_rows_without_image` counts masks without a series. `patients` is
    split -> count. `problems` are sentences for the steward;
    none means that the plan's label contract is met. Stays in the hospital, except for `publishable()`.
    """

    plan_digest: DigestStr
    dataset_digest: DigestStr
    labels_digest: DigestStr
    labels_column: str
    label_rows_without_image: Count
    files: Count
    used: Count
    refused: dict[str, Count]
    images: dict[str, dict[str, Count]]
    patients: dict[str, Count]
    problems: tuple[str, ...]
    software: dict[str, str]

    @model_validator(mode="after")
    def _every_file_once(self) -> Self:
        if self.files != self.used + sum(self.refused.values()):
            raise ValueError("files in and terminal states out differ")
        shown = sum(sum(classes.values()) for classes in self.images.values())
        if shown < self.used or (shown > self.used and self.labels_column):
            raise ValueError("used images and images by class differ")
        return self

    @property
    def contract_met(self) -> bool:
        return not self.problems

    def publishable(self) -> PublishableIntake:
        """Return the digest and whether the contract is met; everything else stays here."""
        return PublishableIntake(dataset_digest=self.dataset_digest, contract_met=self.contract_met)


def images_by_class(members: Iterable[Member], classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    counts = Counter((member.holdout, shown) for member in members for shown in member.shows)
    return {
        side: {name: counts[holdout, index] for index, name in enumerate(classes)}
        for side, holdout in ((TRAINING, False), (HOLDOUT, True))
    }


def patients_by_split(members: Iterable[Member]) -> dict[str, int]:
    sides = {member.patient: member.holdout for member in members}
    return {TRAINING: sum(not held for held in sides.values()), HOLDOUT: sum(sides.values())}


def contract_problems(
    plan: StudyPlan,
    images: Mapping[str, Mapping[str, int]],
    patients: Mapping[str, int],
    refused: Mapping[str, int],
    used: int,
) -> tuple[str, ...]:
    """Hold the counts to the plan's contract; a sentence for each point that is not met. `used` images in all."""
    problems = []
    for name in plan.labels.classes:
        found = sum(classes[name] for classes in images.values())
        if found < plan.labels.minimum_per_class:
            problems.append(
                f"class '{name}' has {found} usable images, the plan asks for {plan.labels.minimum_per_class}"
            )
    people = sum(patients.values())
    if people < plan.dataset.min_patients:
        problems.append(f"{people} patients have usable images, the plan asks for {plan.dataset.min_patients}")
    excluded = sum(count for code, count in refused.items() if Refusal(code).counts_as_excluded)
    share = excluded / (used + excluded) if excluded else 0.0
    if share > plan.dataset.max_excluded_share:
        most = max(refused, key=lambda code: refused[code] if Refusal(code).counts_as_excluded else 0)
        problems.append(
            f"{excluded} of {used + excluded} candidate images had to be refused, the plan allows "
            f"{plan.dataset.max_excluded_share:.0%}; most often {most}"
        )
    if people and not patients[HOLDOUT]:
        problems.append(_nobody_held_out(people))
    return tuple(problems)


def _nobody_held_out(people: int) -> str:
    if people == 1:
        return "one patient alone cannot be split into training and holdout"
    return (
        f"the split held out none of {people} patients, and with a guarantee per patient nobody is moved for others' "
        "sake: too few patients for this plan"
    )

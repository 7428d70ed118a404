"""What a plan has this hospital do beside training, or in its place, as its steward reads it."""

from boundary.parties import trainers, validates_apart, validators
from boundary.plan import StudyPlan

Line = tuple[str, str]
UNSPENT: Line = (
    "Guarantee",
    "none is needed for training, there is none here and no budget is spent; what is measured on our patients is "
    "covered by no guarantee, and leaves in sums over hospitals only",
)


def part_lines(plan: StudyPlan, site: str) -> list[Line]:
    """(heading, text) pairs; none for a plan in which everybody trains and nothing is described."""
    return [*_roles(plan, site), *_finished(plan), *_description(plan)]


def _roles(plan: StudyPlan, site: str) -> list[Line]:
    validating = validators(plan)
    if not trainers(plan) or not validating:
        return []
    summed = (
        "in a sum of their own, apart from those that train"
        if validates_apart(plan)
        else "in the one sum of all hospitals, because they are too few for a sum of their own"
    )
    if site in validating:
        return [
            ("Our part", "we train nothing: all our patients are held back, and each round's model is measured on "
             f"them, {summed}. An order to train is refused (NOT_OUR_PART)"),
        ]  # fmt: skip
    return [("Who only validates", f"{', '.join(validating)}: the model is measured on their patients, {summed}")]


def _finished(plan: StudyPlan) -> list[Line]:
    models = plan.evaluation.models
    if not models:
        return []
    return [
        ("What is measured", "nothing is trained: these finished models are measured on all our patients, each once, "
         f"and none that we have measured in another study: {', '.join(models)}"),
    ]  # fmt: skip


def _description(plan: StudyPlan) -> list[Line]:
    if not plan.dataset.described:
        return []
    who = "the hospitals that train" if trainers(plan) else "the hospitals"
    return [
        ("Counted once", f"patients, images and classes on each side of the split, images per patient, and how bright "
         f"the images are, of all {who} together: under masks, only the sum can be read. No guarantee per patient "
         "covers it"),
    ]  # fmt: skip

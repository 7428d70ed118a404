"""Which hospitals of a plan do what. Both sides ask here: whom to order, and whether an order is ours.

Hospitals that train measure each round's model on the patients they hold back. Those that only validate measure it on
all of theirs. Where there are enough of them for a sum of their own (the plan's quorum), that is a phase of its own,
"validate", and the internal and the external result are told apart. Where there are fewer, a sum of theirs would show
single hospitals' numbers: they are in the one sum of all, and nobody can tell the two apart. Which of the two it is
follows from the plan, so it never changes within a study, and each hospital's numbers are in one sum of a model.

A plan of 0 rounds trains nothing: all its hospitals only validate, in one sum, one model in each round.
"""

from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from boundary.messages import Phase
    from boundary.plan import StudyPlan


def trainers(plan: "StudyPlan") -> tuple[str, ...]:
    """The hospitals that train, sorted; none in a plan of 0 rounds."""
    if plan.training.rounds == 0:
        return ()
    return tuple(sorted(hospital.silo for hospital in plan.hospitals if hospital.role == "train"))


def validators(plan: "StudyPlan") -> tuple[str, ...]:
    """The hospitals that hold all of their patients back, sorted."""
    training = set(trainers(plan))
    return tuple(silo for silo in plan.silos if silo not in training)


def validates_apart(plan: "StudyPlan") -> bool:
    """Whether the hospitals that only validate have a sum of their own."""
    return plan.training.rounds > 0 and len(validators(plan)) >= plan.aggregation.quorum


def taking_part(plan: "StudyPlan", phase: "Phase") -> tuple[str, ...]:
    """The hospitals whose numbers may be in a sum of this phase, sorted; none if the plan has no such sum."""
    match phase:
        case "train":
            return trainers(plan)
        case "statistics":
            return (trainers(plan) or plan.silos) if counts_images(plan) else ()
        case "evaluate":
            return trainers(plan) if validates_apart(plan) else plan.silos
        case "validate":
            return validators(plan) if validates_apart(plan) else ()
        case "personalise":
            return () if plan.personalisation is None else trainers(plan)
        case _:
            assert_never(phase)


def counts_images(plan: "StudyPlan") -> bool:
    """Whether the plan has one masked sum over images before round 1, to normalise by or to describe them."""
    return plan.preprocessing.normalise == "federated" or plan.dataset.described


def last_round(plan: "StudyPlan") -> int:
    """The last round that may be ordered: 1 at least, in which a plan that trains nothing counts images."""
    return plan.training.rounds or max(1, len(plan.evaluation.models))

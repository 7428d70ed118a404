"""What may be in one sum only, whatever study asks: two sums over nearly the same hospitals tell single ones apart.

Within a study `Journal.spent_on` sees to that. Here are the rules between studies, asked in the transaction that writes
down that a result was unmasked, before any share leaves.
"""

from collections.abc import Set as AbstractSet

from boundary.aggregation import SMALLEST_COHORT
from boundary.errors import PeerFault
from boundary.messages import MEASURING, Collection, WorkOrder
from boundary.plan import StudyPlan
from compliance.events import RoundReceived
from silo_agent.entries import entries
from silo_agent.journal import Journal


class EvaluatedBefore(PeerFault):
    """A model that this hospital has helped to measure, or to train, in another study."""

    code = "EVALUATED_BEFORE"


class CountedBefore(PeerFault):
    """The same data were counted in another study, over a few hospitals more or less."""

    code = "COUNTED_BEFORE"


def check_unmeasured(journal: Journal, order: WorkOrder) -> None:
    """One sum of a model with our numbers in it. Raises `EvaluatedBefore`.

    Where the model was trained with our patients, or chosen by them, they are no external validation of it either.
    """
    study, model = order.collection.study, order.model.digest
    if order.collection.phase not in MEASURING:
        return
    if other := journal.measured_elsewhere(study, model):
        raise EvaluatedBefore(f"this hospital has measured the model in {other}")
    if other := _trained_elsewhere(journal, study, model):
        raise EvaluatedBefore(f"the model comes of {other}, in which this hospital has trained")


def _trained_elsewhere(journal: Journal, study: str, model: str) -> str | None:
    """Another study of which a round gave this model, with our work in that round or in one before, as we were told."""
    ours = set[str]()
    for said in entries(journal, RoundReceived):
        if said.study == study:
            continue
        is_ours = journal.silo in said.contributing
        if is_ours and said.tried is None:
            ours.add(said.study)
        if (said.model == model and said.study in ours) or (said.tried == model and is_ours):
            return said.study
    return None


def check_uncounted(journal: Journal, plan: StudyPlan, collection: Collection, surviving: AbstractSet[str]) -> None:
    """A described cohort (`dataset.described`) is counted over the same hospitals again, or over three others at least.

    Raises `CountedBefore`. Of the data set as it is called here: archives grow, but what they hold stays in the counts.
    Plans that only normalise are held to this beside such that describe; among themselves they are not.
    """
    if collection.phase != "statistics":
        return
    for study, before in journal.counted_elsewhere(collection.study):
        kept = journal.plan(study)
        if kept is None:
            continue
        other = kept.parsed
        is_told = plan.dataset.described or other.dataset.described
        if is_told and other.dataset.name == plan.dataset.name and 0 < len(before ^ surviving) < SMALLEST_COHORT:
            raise CountedBefore(f"{study} counted the same data over {', '.join(sorted(before))}")

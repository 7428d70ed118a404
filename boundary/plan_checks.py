"""Which sections of a plan do not go together: what is unsafe or senseless is refused when the plan is parsed.

A section by itself is checked where it is defined, `[selection]` against the rest in
`boundary.drawing`, and groups of hospitals in `boundary.groups`.
"""

import math
from typing import TYPE_CHECKING

from boundary.aggregation import LARGEST_SUM, MAX_HOSPITALS, SMALLEST_COHORT
from boundary.drawing import check_selection
from boundary.groups import check_groups
from boundary.learning import MOST_ROUNDS
from boundary.parties import trainers

if TYPE_CHECKING:
    from boundary.plan import StudyPlan

MOST_IN_A_STEP = 2**27  # voxels of a segmentation's batch, or of one answer: 512 MB as float32


def check_sections(plan: "StudyPlan") -> None:
    """Raises `ValueError` with the place, the reason and the fix for the first thing that does not fit the rest."""
    count = len(plan.hospitals)
    if not SMALLEST_COHORT <= count <= MAX_HOSPITALS:
        raise ValueError(f"hospitals: {SMALLEST_COHORT} to {MAX_HOSPITALS}")
    if len(set(plan.silos)) != count or len({hospital.signing_key for hospital in plan.hospitals}) != count:
        raise ValueError("hospitals: a name or a key appears twice")
    _check_task(plan)
    if plan.privacy.mechanism != "none":
        _check_guarantee(plan)
    if plan.aggregation.quorum > count:
        raise ValueError("aggregation.quorum: more than there are hospitals")
    _check_roles(plan)
    _check_strategy(plan)
    if plan.training.strategy == "rfa":
        _check_rfa(plan)
    _check_robustness(plan)
    check_selection(plan)
    check_groups(plan)
    _check_personalisation(plan)


def _check_task(plan: "StudyPlan") -> None:
    if plan.task == "segmentation":
        if plan.dataset.series is None:
            raise ValueError("dataset.series: say which series of an imaging study is segmented")
        voxels = math.prod(plan.preprocessing.size)
        if voxels * len(plan.labels.classes) > MOST_IN_A_STEP:
            raise ValueError("labels.classes: too many, every voxel is answered for each of them")
        if voxels * plan.training.batch_size > MOST_IN_A_STEP and plan.privacy.mechanism == "none":
            raise ValueError(f"training.batch_size: at most {MOST_IN_A_STEP // voxels} inputs of this size")
        if plan.labels.column is not None:
            raise ValueError("labels.column: masks have no column; name their segments in labels.classes")
    elif plan.dataset.series is not None or plan.preprocessing.spacing is not None:
        raise ValueError("dataset.series, preprocessing.spacing: volumes are for the task segmentation so far")


def _check_guarantee(plan: "StudyPlan") -> None:
    """What a guarantee per patient does not cover, or does already."""
    if plan.aggregation.error_feedback:
        raise ValueError(
            "aggregation.error_feedback: what is carried from round to round is not covered by privacy noise"
        )
    if plan.preprocessing.normalise == "federated":
        raise ValueError("preprocessing.normalise: the sums before round 1 are not covered by privacy noise")
    if plan.training.weighting in {"images", "patients"}:
        raise ValueError("training.weighting: a true count is not covered by privacy noise; take equal or declared")
    if plan.training.strategy == "fednova":
        raise ValueError("training.strategy: with a guarantee per patient all hospitals take the same steps")
    if plan.training.strategy == "scaffold":
        raise ValueError("training.strategy: scaffold's control variates are not covered by privacy noise")
    if plan.dataset.described:
        raise ValueError("dataset.described: its counts are not covered by privacy noise; describe in another plan")
    if plan.robustness.clip is not None:
        raise ValueError("robustness.clip: with a guarantee per patient every patient's part is clipped already")


def _check_roles(plan: "StudyPlan") -> None:
    if plan.training.rounds == 0:
        _check_untrained(plan)
        return
    if plan.evaluation.models:
        raise ValueError(
            "evaluation.models: a plan that trains evaluates its own model; finished ones belong in another plan, "
            "with training.rounds = 0"
        )
    count, least = len(trainers(plan)), plan.aggregation.quorum
    if count < least:
        raise ValueError(f"hospitals: {count} train, {least} are needed in every sum (aggregation.quorum)")
    if count < len(plan.hospitals) and plan.model.home:
        raise ValueError("model.home: a hospital that only validates has trained no parameters of its own")


def _check_untrained(plan: "StudyPlan") -> None:
    if not plan.evaluation.models and not plan.dataset.described:
        raise ValueError("training.rounds: 0, and there is neither evaluation.models nor dataset.described")
    if plan.privacy.mechanism != "none":
        raise ValueError("privacy.mechanism: nothing is trained, so there is nothing to guarantee; take none")
    if plan.preprocessing.normalise == "federated":
        raise ValueError(
            "preprocessing.normalise: nothing is trained, so there are no training images; take none, or the mean and "
            "deviation that a model to be evaluated was trained with"
        )
    if plan.robustness.may_roll_back or plan.selection.varies:
        raise ValueError("robustness, selection: nothing is trained, so nothing to clip, to vote on or to draw for")
    if plan.model.pretrained is not None:
        raise ValueError("model.pretrained: nothing is trained, so nothing begins with it; name it in evaluation")
    if not plan.model.moves_whole:
        raise ValueError("model.trained, model.home: nothing is trained, and a finished model is whole")


def _check_strategy(plan: "StudyPlan") -> None:
    training = plan.training
    if training.strategy in {"fednova", "scaffold"} and (training.optimizer != "sgd" or training.proximal):
        raise ValueError(f"training.strategy: {training.strategy} counts on steps of plain sgd, without a pull")
    if plan.counts_steps:
        largest = plan.aggregation.largest_weight(training) * training.max_steps * len(plan.hospitals)
        if largest >= LARGEST_SUM:
            raise ValueError("training.max_steps: times aggregation.max_weight too large to be summed")
    if training.strategy == "scaffold":
        if plan.aggregation.random_share < 1:
            raise ValueError("aggregation.random_share: scaffold's control variates are made of whole changes")
        if training.weighting != "equal":
            raise ValueError("training.weighting: scaffold's control variates have to average out; take equal")
        if plan.aggregation.downlink != "float32":
            raise ValueError("aggregation.downlink: scaffold's control variates come down in float32; take that")
    if not plan.model.trained:
        raise ValueError("model.trained: nothing to train")


def _check_robustness(plan: "StudyPlan") -> None:
    if plan.robustness.leave_out and not plan.robustness.may_roll_back:
        raise ValueError("robustness.leave_out: nothing is ever rolled back; add vote or clip")
    if plan.robustness.clip is not None and plan.aggregation.ring == 16:
        raise ValueError(
            "robustness.clip: what 16 bits round off makes an honest sum longer than any change may be, and every "
            "round would be rolled back; take aggregation.ring = 32"
        )


def _check_rfa(plan: "StudyPlan") -> None:
    if plan.aggregation.error_feedback:
        raise ValueError("aggregation.error_feedback: rfa weighs a hospital by its whole change")
    if plan.aggregation.largest_weight(plan.training) / plan.server.smoothing * len(plan.hospitals) >= LARGEST_SUM:
        raise ValueError("server.smoothing: too small for aggregation.max_weight to be summed; raise it")


def _check_personalisation(plan: "StudyPlan") -> None:
    how = plan.personalisation
    if how is None:
        return
    if plan.training.rounds == 0:
        raise ValueError("personalisation: nothing is trained, so there is no model to go on from; leave it out")
    if not how.parameters:
        raise ValueError("personalisation.parameters: nothing to train")
    if plan.training.rounds >= MOST_ROUNDS:
        raise ValueError(f"training.rounds: at most {MOST_ROUNDS - 1}, hospitals personalise in the one after")
    if how.method == "ditto" and plan.privacy.mechanism != "none":
        raise ValueError(
            "personalisation.method: ditto trains twice in each round, and its half has no budget; take fine-tune"
        )
    if how.method == "ditto" and plan.model.home:
        raise ValueError("personalisation.method: what stays home is a hospital's own already; take fine-tune")

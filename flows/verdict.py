"""Whether a round's model counts from here on, as pure decisions over sums (`boundary.robustness`).

A sum is looked at before anybody votes: honest agents clip, so the mean of their changes is no longer than the plan's
longest. That shows a change that was made large to outweigh the others, and not whose it is; one that stays within the
limit, the vote is for.
"""

import numpy as np

from boundary.errors import BadTensors
from boundary.plan import StudyPlan
from boundary.robustness import Median, RolledBack, Vote, counted
from boundary.tensors import Vector, check_values
from flows.summing import Total


def of_sum(plan: StudyPlan, update_norm: float, weights: Vector, median: Median | None = None) -> RolledBack | None:
    """Why a new model, float32 [n], need not be voted on; None if it may be. `update_norm` is the mean change's length.

    Raises `BadTensors` for weights that are not finite, or too large where the plan rolls nothing back.
    """
    robustness = plan.robustness
    if robustness.is_too_long(update_norm, median):
        return RolledBack.TOO_LONG
    try:
        check_values(weights, plan.aggregation.max_model_norm)
    except BadTensors:
        if not (robustness.may_roll_back and np.isfinite(weights).all()):
            raise
        return RolledBack.MODEL_TOO_LARGE
    return None


def of_votes(plan: StudyPlan, total: Total, number: int, hospitals: int) -> tuple[Vote | None, RolledBack | None]:
    """What so many hospitals' votes add up to in round `number`, and what follows.

    Sums that no honest votes give bring a model down, in the first rounds as well: they show an agent that lies.
    """
    if not plan.robustness.vote:
        return None, None
    vote = counted(total.number("against"), total.number("voted"), total.number("rise"), hospitals)
    if vote is None:
        return None, RolledBack.VOTE_INVALID
    return vote, RolledBack.VOTED_DOWN if plan.robustness.is_down(vote, number) else None

"""What a hospital counts for in the sum of its change, where that depends on the change itself.

RFA, one step: Pillutla, Kakade, Harchaoui 2022, "Robust Aggregation for Federated Learning" (IEEE TSP 70). The smoothed
geometric median of changes d_k with weights alpha_k is looked for by Weiszfeld's steps, v <- sum b_k d_k / sum b_k with
b_k = alpha_k / max(nu, |v - d_k|). The first one, from v = 0, is taken in each round, by one sum. It never is followed
by a second over the same changes: docs/adr/0018 shows what two of them tell.
"""

from math import inf, sqrt

import numpy as np

from boundary.plan import StudyPlan
from boundary.tensors import Vector


def weight_beside(plan: StudyPlan, weight: float, change: Vector) -> float:
    """A hospital's weight in the sum of its `change`, float32 [n], given its weight by the plan.

    For RFA what it sends, weight times change, is then no longer than the plan's weight, whatever it has learned. The
    change is the one before `robustness.clip`, and is weighed by its length after it.
    """
    if plan.training.strategy != "rfa":
        return weight
    longest = inf if plan.robustness.clip is None else plan.robustness.clip
    return weight / max(plan.server.smoothing, min(length(change), longest))


def length(change: Vector) -> float:
    """The Euclidean norm of float32 [n], summed in float64; infinite only where the change is."""
    return sqrt(np.einsum("i,i->", change, change, dtype=np.float64))

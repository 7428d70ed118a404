"""SCAFFOLD, option II: Karimireddy et al. 2020, "Stochastic Controlled Averaging for Federated Learning" (ICML).

The server's control variate c is sent to the hospitals, who step along g - c_i + c with their own c_i. As in the paper
c moves by the mean change of the c_i. That change is -c - delta_i / (K_i * local rate), so it is worked out here from
one sum, of the changes divided by their steps K_i. Were both sent, the changes themselves and those of the c_i, two
sums with different factors over the same changes would tell those of single hospitals.

Every so often all begin anew with control variates of 0: a hospital that has lost its own (its state, or because
somebody withdrew) would otherwise leave c beside the mean of the c_i, and the model beside the optimum, for good.
"""

import numpy as np

from boundary.errors import CallerFault
from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.state import CONTROL, Mean, ServerState, ServerStrategy

ROUNDS_UNTIL_ANEW = 10


def begins_anew(number: int) -> bool:
    """Whether round `number`, from 1, is one in which every control variate is 0 again."""
    return (number - 1) % ROUNDS_UNTIL_ANEW == 0


def scaffold(rate: float, _: Server) -> ServerStrategy:
    """Move x by rate * (mean steps) * (mean of changes divided by steps), and c by share * (its mean change).

    With the same steps everywhere that is the paper's Algorithm 1; with others x moves as FedNova's. `share` is that
    of the plan's hospitals who are in the sum. `apply` raises `CallerFault` for a mean without steps or local rate.
    """

    def init(weights: Vector) -> ServerState:
        return ServerState(0, weights, {CONTROL: weights * 0})

    def apply(state: ServerState, mean: Mean) -> ServerState:
        if mean.steps is None or mean.local_rate is None:
            raise CallerFault("scaffold needs the mean of the hospitals' steps, and their learning rate")
        before = state.memory[CONTROL]
        gradient: Vector = -mean.delta / np.float32(mean.local_rate)
        control: Vector = before + np.float32(mean.share) * (gradient - before)
        return ServerState(state.round + 1, state.weights + rate * mean.steps * mean.delta, {CONTROL: control})

    return ServerStrategy(init, apply, begins_anew)

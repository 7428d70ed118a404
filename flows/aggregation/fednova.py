"""FedNova: hospitals that take more steps pull no further than others.

Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization" (NeurIPS), for
local SGD without momentum: there tau_i is a hospital's number of steps, and tau_eff their weighted mean.
"""

from boundary.errors import CallerFault
from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.state import Mean, ServerState, ServerStrategy


def fednova(rate: float, _: Server) -> ServerStrategy:
    """Move x by rate * tau_eff * (mean of every hospital's change divided by its own steps). Remembers nothing.

    With the same steps everywhere it is FedAvg. `apply` raises `CallerFault` for a mean without steps.
    """

    def init(weights: Vector) -> ServerState:
        return ServerState(0, weights)

    def apply(state: ServerState, mean: Mean) -> ServerState:
        if mean.steps is None:
            raise CallerFault("fednova needs the mean of the hospitals' steps")
        return ServerState(state.round + 1, state.weights + rate * mean.steps * mean.delta)

    return ServerStrategy(init, apply)

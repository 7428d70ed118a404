"""SCAFFOLD, option II: Karimireddy et al. 2020, "Stochastic Controlled Averaging for Federated Learning" (ICML).

The server's control variate c is sent to the hospitals, who step along g - c_i + c with their own c_i. What comes back
is the mean of their changes and the mean of the changes of their c_i (Algorithm 1, lines 16 and 17).
"""

from boundary.errors import CallerFault
from boundary.plan import Server
from boundary.tensors import Vector
from flows.aggregation.state import CONTROL, Mean, ServerState, ServerStrategy


def scaffold(rate: float, _: Server) -> ServerStrategy:
    """Move x by rate * delta, and c by (hospitals in the sum / hospitals of the plan) * mean change of the c_i.

    c begins at 0, as the c_i do, and stays their mean while all take part with the same weights. `apply` raises
    `CallerFault` for a mean without that of the control variates.
    """

    def init(weights: Vector) -> ServerState:
        return ServerState(0, weights, {CONTROL: weights * 0})

    def apply(state: ServerState, mean: Mean) -> ServerState:
        if mean.control is None:
            raise CallerFault("scaffold needs the mean change of the hospitals' control variates")
        control = state.memory[CONTROL] + mean.share * mean.control
        return ServerState(state.round + 1, state.weights + rate * mean.delta, {CONTROL: control})

    return ServerStrategy(init, apply)

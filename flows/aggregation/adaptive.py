"""What FedAdagrad, FedAdam and FedYogi share: Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 2.

They differ in one line, how the second moment v takes up the squared change. As in the paper there is no bias
correction, m begins at 0 and v at tau squared, the least the paper allows.
"""

from collections.abc import Callable

import numpy as np

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.state import MOMENTUM, SECOND_MOMENT, Mean, ServerState, ServerStrategy

SecondMoment = Callable[[Vector, Vector], Vector]
"""(v, delta squared) -> the next v, all float32 [n]."""


def adaptive(rate: float, server: Server, next_second: SecondMoment) -> ServerStrategy:
    """Give m = b1 * m + (1 - b1) * delta; v by `next_second`; x += rate * m / (sqrt(v) + tau)."""
    kept, tau = server.momentum, server.adaptivity

    def init(weights: Vector) -> ServerState:
        memory = {MOMENTUM: np.zeros_like(weights), SECOND_MOMENT: np.full_like(weights, tau**2)}
        return ServerState(0, weights, memory)

    def apply(state: ServerState, mean: Mean) -> ServerState:
        momentum = kept * state.memory[MOMENTUM] + (1 - kept) * mean.delta
        with np.errstate(over="ignore"):  # what becomes infinite is refused before it is kept (`memory.packed`)
            second = next_second(state.memory[SECOND_MOMENT], np.square(mean.delta))
        root: Vector = np.sqrt(second)
        weights = state.weights + rate * momentum / (root + tau)
        return ServerState(state.round + 1, weights, {MOMENTUM: momentum, SECOND_MOMENT: second})

    return ServerStrategy(init, apply)

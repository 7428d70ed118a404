"""FedAvgM: FedAvg with momentum on the server.

Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"
(arXiv:1909.06335).
"""

import numpy as np

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.state import MOMENTUM, Mean, ServerState, ServerStrategy


def fedavgm(rate: float, server: Server) -> ServerStrategy:
    """Move x by rate * v, where v = momentum * v + delta. A steady change ends up 1 / (1 - momentum) times as long."""

    def init(weights: Vector) -> ServerState:
        return ServerState(0, weights, {MOMENTUM: np.zeros_like(weights)})

    def apply(state: ServerState, mean: Mean) -> ServerState:
        velocity = server.momentum * state.memory[MOMENTUM] + mean.delta
        return ServerState(state.round + 1, state.weights + rate * velocity, {MOMENTUM: velocity})

    return ServerStrategy(init, apply)

"""FedAvg: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS).

In the delta form of Reddi et al. 2021, whose server has a learning rate; with rate 1 it is McMahan's.
"""

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.state import Mean, ServerState, ServerStrategy


def fedavg(rate: float, _: Server) -> ServerStrategy:
    """Move x by rate * delta. Remembers nothing."""

    def init(weights: Vector) -> ServerState:
        return ServerState(0, weights)

    def apply(state: ServerState, mean: Mean) -> ServerState:
        return ServerState(state.round + 1, state.weights + rate * mean.delta)

    return ServerStrategy(init, apply)

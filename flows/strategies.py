"""Server optimisers as values in, values out: `init` and `apply`. A checkpoint is the state; a round is replayable.

FedAvg: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", in the
delta form of Reddi et al. 2021, "Adaptive Federated Optimization", with server learning rate 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from boundary.plan import Training
from boundary.tensors import Vector


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """After `round` rounds: the global weights, float32 [n]."""

    round: int
    weights: Vector


Apply = Callable[[ServerState, NDArray[np.float32]], ServerState]


def init(weights: Vector) -> ServerState:
    return ServerState(0, weights)


def fedavg(state: ServerState, mean_delta: NDArray[np.float32]) -> ServerState:
    """Move the weights by the weighted mean of the hospitals' changes, float32 [n]."""
    return ServerState(state.round + 1, state.weights + mean_delta)


def strategy(training: Training) -> Apply:
    match training.strategy:
        case "fedavg":
            return fedavg
        case _:
            assert_never(training.strategy)

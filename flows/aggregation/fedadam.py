"""FedAdam: Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 2, its line for v."""

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.adaptive import adaptive
from flows.aggregation.state import ServerStrategy


def fedadam(rate: float, server: Server) -> ServerStrategy:
    """Take v = b2 * v + (1 - b2) * delta^2."""
    kept = server.second_moment

    def next_second(second: Vector, squared: Vector) -> Vector:
        return kept * second + (1 - kept) * squared

    return adaptive(rate, server, next_second)

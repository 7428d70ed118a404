"""FedAdagrad: Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 2, its line for v."""

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.adaptive import adaptive
from flows.aggregation.state import ServerStrategy


def fedadagrad(rate: float, server: Server) -> ServerStrategy:
    """Take v = v + delta^2: steps become shorter and never longer again."""

    def next_second(second: Vector, squared: Vector) -> Vector:
        return second + squared

    return adaptive(rate, server, next_second)

"""FedYogi: Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 2, its line for v.

After Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization" (NeurIPS).
"""

import numpy as np

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.adaptive import adaptive
from flows.aggregation.state import ServerStrategy


def fedyogi(rate: float, server: Server) -> ServerStrategy:
    """Take v = v - (1 - b2) * delta^2 * sign(v - delta^2): towards delta^2, but only by a part of delta^2."""
    kept = server.second_moment

    def next_second(second: Vector, squared: Vector) -> Vector:
        side: Vector = np.sign(second - squared)
        return second - (1 - kept) * squared * side

    return adaptive(rate, server, next_second)

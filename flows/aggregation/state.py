"""What a server strategy is: `init` and `apply`, values in and values out. A checkpoint is the state.

The form is that of Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 1: the mean change of the
hospitals is to the server what minus a gradient is to an optimiser.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from boundary.tensors import Vector

MOMENTUM, SECOND_MOMENT, CONTROL = "momentum", "second_moment", "control"  # in `ServerState.memory`, and in its file


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """After `round` rounds: the global weights, float32 [n], and what the strategy remembers, each float32 [n]."""

    round: int
    weights: Vector
    memory: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The weighted mean over the hospitals of one round.

    `delta` is of their changes, float32 [n]. With `steps`, the weighted mean of how many local steps they took, each
    change was divided by its hospital's own steps before it was summed. `share` is how many of the plan's hospitals are
    in it, of 1, and `local_rate` the learning rate of their steps.
    """

    delta: Vector
    steps: float | None = None
    share: float = 1.0
    local_rate: float | None = None


def only_first(number: int) -> bool:
    """Most strategies begin once."""
    return number == 1


@dataclass(frozen=True, slots=True)
class ServerStrategy:
    """`init` gives the state before round 1, `apply` the next one. Neither changes what it is given.

    `begins_anew` says of a round's number, from 1, whether nothing is remembered of the rounds before it.
    """

    init: Callable[[Vector], ServerState]
    apply: Callable[[ServerState, Mean], ServerState]
    begins_anew: Callable[[int], bool] = only_first

"""Any strategy, for a model that comes down in bfloat16 (`aggregation.downlink`).

Hospitals start from the rounded weights, so their changes are against those; they are applied to the coordinator's own
float32 weights, which are rounded anew for the next round and are never sent. Were the rounded ones gone on from, a
server step of less than half a unit of a weight's last place (2^-9 to 2^-8 of it) would be lost in every round and the
model would stand still; so it is only late, and adds up (master weights: Micikevicius et al. 2018, section 3.1). At all
times what is sent lies within 2^-8 of each weight of the coordinator's own. A study begins with rounded weights.
"""

from dataclasses import replace

from boundary.bfloat16 import rounded
from boundary.tensors import Vector
from flows.aggregation.state import Mean, ServerState, ServerStrategy

MASTER = "master"  # in `ServerState.memory`: the weights in float32, of which `ServerState.weights` are sent


def with_master(strategy: ServerStrategy) -> ServerStrategy:
    """The strategy on float32 weights that it remembers; the state's weights are theirs in bfloat16."""

    def init(weights: Vector) -> ServerState:
        return _sent(strategy.init(rounded(weights)))

    def apply(state: ServerState, mean: Mean) -> ServerState:
        own = {name: kept for name, kept in state.memory.items() if name != MASTER}
        return _sent(strategy.apply(replace(state, weights=state.memory[MASTER], memory=own), mean))

    return ServerStrategy(init, apply, strategy.begins_anew)


def _sent(state: ServerState) -> ServerState:
    return replace(state, weights=rounded(state.weights), memory={**state.memory, MASTER: state.weights})

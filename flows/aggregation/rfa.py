"""RFA, its one-step variant: Pillutla, Kakade, Harchaoui 2022, "Robust Aggregation for Federated Learning" (IEEE TSP).

Each hospital's weight in the sum is alpha_k / max(nu, |delta_k|) (`models.weiszfeld`), so the mean of the sum is the
first step of Weiszfeld's algorithm from 0 towards the geometric median of the changes. The model stands still exactly
where that median is 0, and rounds are the steps that lead there. More steps on the same changes would be more sums of
them with other factors, which tell single hospitals' changes apart (docs/adr/0018).
"""

from boundary.learning import Server
from boundary.tensors import Vector
from flows.aggregation.state import Mean, ServerState, ServerStrategy


def rfa(rate: float, _: Server) -> ServerStrategy:
    """Move x by rate * delta, as `fedavg`: what makes it robust was done by each hospital. Remembers nothing."""

    def init(weights: Vector) -> ServerState:
        return ServerState(0, weights)

    def apply(state: ServerState, mean: Mean) -> ServerState:
        return ServerState(state.round + 1, state.weights + rate * mean.delta)

    return ServerStrategy(init, apply)

"""RFA, its one-step variant: Pillutla, Kakade, Harchaoui 2022, "Robust Aggregation for Federated Learning" (IEEE TSP).

Each hospital's weight in the sum is alpha_k / max(nu, |delta_k|) (`models.weiszfeld`), so the mean of the sum is the
first step of Weiszfeld's algorithm from 0 towards the geometric median of the changes. The model stands still exactly
where that median is 0, and rounds are the steps that lead there. More steps on the same changes would be more sums of
them with other factors, which tell single hospitals' changes apart (docs/adr/0018).
"""

from boundary.learning import Server
from flows.aggregation.fedavg import fedavg
from flows.aggregation.state import ServerStrategy


def rfa(rate: float, server: Server) -> ServerStrategy:
    """Move x by rate * delta, as `fedavg`: what makes it robust was done by each hospital. Remembers nothing."""
    return fedavg(rate, server)

"""What the coordinator does with the mean change of a round: the server strategies a plan may name, one file each."""

from collections.abc import Callable, Mapping

from boundary.learning import Server
from boundary.plan import StudyPlan
from boundary.strategies import StrategyName
from flows.aggregation.fedadagrad import fedadagrad
from flows.aggregation.fedadam import fedadam
from flows.aggregation.fedavg import fedavg
from flows.aggregation.fedavgm import fedavgm
from flows.aggregation.fednova import fednova
from flows.aggregation.fedyogi import fedyogi
from flows.aggregation.rfa import rfa
from flows.aggregation.rounding import with_master
from flows.aggregation.scaffold import scaffold
from flows.aggregation.state import Mean, ServerState, ServerStrategy

__all__ = ["STRATEGIES", "Mean", "ServerState", "ServerStrategy", "strategy_of"]

STRATEGIES: Mapping[StrategyName, Callable[[float, Server], ServerStrategy]] = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fednova": fednova,
    "scaffold": scaffold,
    "rfa": rfa,
}
"""Name in the plan -> strategy, from the server's learning rate and the plan's section `server`."""


def strategy_of(plan: StudyPlan) -> ServerStrategy:
    """The plan's, on float32 weights of its own where the model comes down rounded."""
    strategy = STRATEGIES[plan.training.strategy](plan.server_learning_rate, plan.server)
    return strategy if plan.aggregation.downlink == "float32" else with_master(strategy)

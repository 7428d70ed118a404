"""The strategies that a plan may name, and why others that are well known cannot be named here."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

StrategyName = Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fednova", "scaffold", "rfa"]
ADAPTIVE = frozenset({"fedadagrad", "fedadam", "fedyogi"})
# What these make of a round follows from its change alone, whoever is in the sum and whatever it is a mean of; and they
# keep nothing of a hospital from round to round.
OF_THE_CHANGE_ALONE = frozenset({"fedavg", "fedavgm", *ADAPTIVE})

_INSTEAD = (
    'nobody sees one here, only sums. Take "rfa", which bounds how far a hospital with spoilt data pulls, or let '
    "hospitals vote on each model (robustness.vote)"
)
NOT_OF_SUMS = {
    "krum": "picks the one update that lies nearest to the others",
    "multi-krum": "picks the updates that lie nearest to each other",
    "bulyan": "picks updates, and trims each coordinate over them",
    "trimmed-mean": "drops the largest and smallest of all hospitals' values at each coordinate",
    "median": "takes the middle of all hospitals' values at each coordinate",
    "coordinate-median": "takes the middle of all hospitals' values at each coordinate",
    "geometric-median": "sums the same updates again with other weights, and two such sums tell single updates",
    "flame": "clusters the updates by their angles",
    "foolsgold": "compares the updates of each two hospitals over all rounds",
    "fltrust": "compares each update with one of the server's own",
}
"""Name -> what it does to single updates (Blanchard et al. 2017; El Mhamdi et al. 2018; Yin et al. 2018; Pillutla et
al. 2022; Nguyen et al. 2022; Fung et al. 2020; Cao et al. 2021)."""


def _of_sums(raw: Any) -> Any:
    name = raw.lower().replace("_", "-") if isinstance(raw, str) else ""
    if name in NOT_OF_SUMS:
        raise ValueError(f"{name} {NOT_OF_SUMS[name]}; {_INSTEAD} (docs/adr/0018)")
    return raw


Strategy = Annotated[StrategyName, BeforeValidator(_of_sums)]

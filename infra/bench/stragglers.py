"""A sample of the hospitals in each round, and one of five that is always one round late, beside all on time.

FedAvg on the same five hospitals that differ as in `infra.bench.strategies`, weighted by the most patients each of them
declares. The one that is late is that with the most images: what it knows is missed the most. With "refuse" its work is
in no sum, with "next-round" in every second one.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from statistics import fmean, median

import torch

from boundary.drawing import Selection, check_selection
from infra.bench.rows import Row
from infra.hospitals.noniid import ARCHIVES, Archive, NonIid, split
from infra.simulation.comparison import plan_of, scores
from infra.simulation.rounds import Simulation, Site
from infra.simulation.settings import RATES
from infra.simulation.stragglers import learned_with

ARCHIVE, SEEDS, PROCESSES = "breast", range(5), 2
ON_TIME = "all five, on time"


@dataclass(frozen=True, slots=True)
class Way:
    """How rounds are held. `late`: whether the largest hospital always is."""

    name: str
    selection: Selection
    late: bool = False


WAYS = (
    Way(ON_TIME, Selection()),
    Way("three of five drawn", Selection(hospitals=3)),
    Way("the largest always late, refuse", Selection(), late=True),
    *(
        Way(f"the largest always late, next-round, staleness {exponent:g}",
            Selection(late="next-round", staleness=exponent), late=True)
        for exponent in (0.0, 0.5, 1.0)
    ),
)  # fmt: skip


def stragglers() -> list[Row]:
    """Run all of it on two cores; about two minutes. Raises `FileNotFoundError` without the archive."""
    path = ARCHIVES[ARCHIVE]
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: the figures are of real images")
    tasks = [(way, seed) for way in WAYS for seed in SEEDS]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        found = list(pool.map(_auroc, *zip(*tasks, strict=True)))
    by_way: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for (way, _), value in zip(tasks, found, strict=True):
        by_way[way.name].append(value)
    return rows(by_way)


def _auroc(way: Way, seed: int) -> float:
    return auroc_of(way, split(_archive(), seed), seed)


def auroc_of(way: Way, federation: NonIid, seed: int) -> float:
    """On the common test. Raises `ValueError` for a selection that no plan may have."""
    chosen, hospitals = RATES[ARCHIVE], federation.hospitals
    arm = next(arm for arm in chosen.arms if arm.name == "fedavg")
    plan = plan_of(arm, [one.name for one in hospitals], seed)
    training = plan.training.model_copy(update={"weighting": "declared"})
    plan = plan.model_copy(update={"training": training, "selection": way.selection})
    check_selection(plan)
    largest = max(hospitals, key=lambda one: len(one.training)).name
    late = frozenset({largest}) if way.late else frozenset[str]()
    learned, _ = learned_with(
        Simulation(plan, [Site(one.training, one.most_patients) for one in hospitals], seed), late
    )
    return scores(plan, [learned.of(0)] * len(hospitals), federation).common


def rows(by_way: Mapping[str, Sequence[float]]) -> list[Row]:
    """The median of the seeds with all of them in the range behind it, beside all on time; and the mean difference."""
    usual = by_way[ON_TIME]
    return [
        Row(
            f"{ARCHIVE}: {name} ({min(found):.3f} to {max(found):.3f}; {fmean(found) - fmean(usual):+.3f} in the mean)",
            median(found), "AUROC", ON_TIME, median(usual),
        )
        for name, found in by_way.items()
    ]  # fmt: skip


@cache
def _archive() -> Archive:
    return Archive.read(ARCHIVES[ARCHIVE])

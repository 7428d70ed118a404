"""What one of five hospitals can do to a study by sending its change turned round and ten times as long.

On the federations of `infra.bench.strategies`, with equal weights; in each draw another hospital in turn spoils the
rounds. Compared is the AUROC of the last model on the common test with that of FedAvg in the same federation left in
peace, as the mean of the differences: what is lost. Limits (`clip`) were chosen on training images alone, near the
longest honest change of a late round. Of breast there are twenty draws: its test has 78 images, and the mean of five
scatters by as much as may be lost.

The median of groups wants many hospitals. Twenty are dealt from the pneumonia archive alone, the breast archive has too
few patients, with Dirichlet 1.0: with 0.3 no draw gives all of them both labels. They are in five groups of four.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from statistics import fmean

import torch

from boundary.robustness import Robustness
from boundary.strategies import StrategyName
from infra.bench.rows import Row, Target
from infra.hospitals.noniid import ARCHIVES, CONCENTRATION, HOSPITALS, Archive, split
from infra.simulation.alone import auroc, loaded
from infra.simulation.comparison import plan_of
from infra.simulation.rounds import Simulation, Site, Spoiler
from infra.simulation.settings import RATES

SEEDS = {"pneumonia": range(5), "breast": range(20)}
PROCESSES = 2
SCALE = -10.0
LOST = 0.02  # AUROC, at most
CLIP = {"pneumonia": 0.7, "breast": 0.25}


@dataclass(frozen=True, slots=True)
class Case:
    """A way of spoiling rounds, and what the plan has against it. `every` third round, or first; 0 never.

    With `hospitals` there are so many, and with `groups` they are in so many. With `is_gone` who spoils is not in it
    at all: what is lost then no defence gives back where that hospital spoils every round.
    """

    name: str
    every: int
    clipped: bool = False
    defended: bool = True
    leave_out: bool = False
    is_judged: bool = True
    strategy: StrategyName = "fedavg"
    hospitals: int = HOSPITALS
    groups: int = 0
    is_gone: bool = False


PEACE = Case("left in peace", 0, defended=False, is_judged=False)
CASES = (
    Case("left in peace, with clip and vote", 0),
    Case("a study without the one who spoils", 0, defended=False, is_judged=False, is_gone=True),
    Case("every third round, undefended", 3, defended=False, is_judged=False),
    Case("every third round, clip and vote", 3),
    Case("every round, through an agent that clips, leave out", 1, clipped=True, leave_out=True),
    Case("every round, undefended", 1, defended=False, is_judged=False),
    Case("every round, clip, vote and leave out", 1, leave_out=True),
    Case("nothing, with rfa", 0, defended=False, strategy="rfa"),
    Case("every third round, rfa, clip and vote", 3, strategy="rfa"),
    Case("every round, through an agent that clips, rfa and vote", 1, clipped=True, strategy="rfa"),
    Case("every round, rfa", 1, defended=False, strategy="rfa"),
)
MANY, GROUPS, MILDER = 20, 5, 1.0
CROWD = Case(f"{MANY} hospitals left in peace", 0, defended=False, is_judged=False, hospitals=MANY)
CROWDED = (
    replace(CROWD, name="nothing, with medians", is_judged=True, groups=GROUPS),
    replace(CROWD, name="every round, undefended", every=1),
    replace(CROWD, name="every round, with medians", every=1, is_judged=True, groups=GROUPS),
    replace(CROWD, name="every round, through an agent that clips, with medians", every=1, is_judged=True,
            groups=GROUPS, clipped=True, defended=True),
)  # fmt: skip


def robustness() -> list[Row]:
    """Run all of it on two cores; about forty minutes. Raises `FileNotFoundError` without the archives."""
    tasks = [(archive, case, seed) for archive in ARCHIVES for case in (PEACE, *CASES) for seed in SEEDS[archive]]
    tasks += [("pneumonia", case, seed) for case in (CROWD, *CROWDED) for seed in SEEDS["pneumonia"]]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = dict(zip(tasks, pool.map(run, *zip(*tasks, strict=True)), strict=True))
    made = [row for archive in ARCHIVES for row in rows(partial(_of, done, archive), archive)]
    return made + rows(partial(_of, done, "pneumonia"), "pneumonia", CROWD, CROWDED)


Outcome = tuple[float, int]  # AUROC, rounds that were rolled back


def _of(done: dict[tuple[str, Case, int], Outcome], archive: str, case: Case) -> list[Outcome]:
    return [done[archive, case, seed] for seed in SEEDS[archive]]


def run(archive: str, case: Case, seed: int) -> Outcome:
    """One study."""
    alike = MILDER if case.hospitals > HOSPITALS else CONCENTRATION
    federation = split(Archive.read(ARCHIVES[archive]), seed, case.hospitals, alike)
    arms = {arm.name: arm for arm in RATES[archive].arms}
    chosen = Robustness(clip=CLIP[archive], vote=True, leave_out=case.leave_out) if case.defended else Robustness()
    # what a hospital counts for by images or patients is its own word
    training = arms[case.strategy].training.model_copy(update={"weighting": "equal"})
    arm = replace(arms[case.strategy], training=training, robustness=chosen)
    who, spoiler = seed % case.hospitals, None
    there = [one for place, one in enumerate(federation.hospitals) if place != who or not case.is_gone]
    plan = plan_of(arm, [one.name for one in there], seed, case.groups)
    if case.every:
        spoiler = Spoiler(who, SCALE, partial(_is_due, case.every), case.clipped)
    sites = [Site(one.training, one.most_patients, one.held_back) for one in there]
    learned = Simulation(plan, sites, seed, spoiler=spoiler).run()
    return auroc(loaded(plan, learned.of(0)), federation.common_test), len(learned.rolled_back)


def _is_due(every: int, number: int) -> bool:
    return number % every == 0


def rows(
    found: Callable[[Case], Sequence[Outcome]], archive: str, in_peace: Case = PEACE, cases: Sequence[Case] = CASES
) -> list[Row]:
    """What each case loses against the federation left in peace, beside what it may lose."""
    peace = [auc for auc, _ in found(in_peace)]
    made = [Row(f"{archive}: {in_peace.name}", fmean(peace), "AUROC")]
    for case in cases:
        lost = [before - auc for before, (auc, _) in zip(peace, found(case), strict=True)]
        rolled_back = fmean(number for _, number in found(case))
        figure = f"{archive}: lost by {case.name} ({min(lost):+.3f} to {max(lost):+.3f}), {rolled_back:.1f} rolled back"
        target = Target("value", "at most", LOST) if case.is_judged else None
        made.append(Row(figure, fmean(lost), "AUROC", target=target))
    return made

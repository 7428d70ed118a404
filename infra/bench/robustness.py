"""What one of five hospitals can do to a study by sending its change turned round and ten times as long.

On the federations of `infra.bench.strategies`, with FedAvg and equal weights; in each of five draws another hospital
spoils the rounds. Compared is the AUROC of the last model on the common test with that of the same federation left in
peace, as the mean of the five differences: what is lost. Limits (`clip`) were chosen on training images alone, near the
longest honest change of a late round.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from statistics import fmean

import torch

from boundary.robustness import Robustness
from infra.bench.rows import Row, Target
from infra.hospitals.noniid import ARCHIVES, Archive, split
from infra.simulation.alone import auroc, loaded
from infra.simulation.comparison import plan_of
from infra.simulation.rounds import Simulation, Site, Spoiler
from infra.simulation.settings import RATES

SEEDS = range(5)
PROCESSES = 2
SCALE = -10.0
LOST = 0.02  # AUROC, at most
CLIP = {"pneumonia": 0.7, "breast": 0.25}


@dataclass(frozen=True, slots=True)
class Case:
    """A way of spoiling rounds, and what the plan has against it. `every` third round, or first; 0 never."""

    name: str
    every: int
    clipped: bool = False
    defended: bool = True
    leave_out: bool = False
    is_judged: bool = True


PEACE = Case("left in peace", 0, defended=False, is_judged=False)
CASES = (
    Case("left in peace, with clip and vote", 0),
    Case("every third round, undefended", 3, defended=False, is_judged=False),
    Case("every third round, clip and vote", 3),
    Case("every round, through an agent that clips, leave out", 1, clipped=True, leave_out=True),
    Case("every round, undefended", 1, defended=False, is_judged=False),
    Case("every round, clip, vote and leave out", 1, leave_out=True),
)


def robustness() -> list[Row]:
    """Run all of it on two cores; about nine minutes. Raises `FileNotFoundError` without the archives."""
    cases = (PEACE, *CASES)
    tasks = [(archive, case, seed) for archive in ARCHIVES for case in cases for seed in SEEDS]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = dict(zip(tasks, pool.map(run, *zip(*tasks, strict=True)), strict=True))
    return [row for archive in ARCHIVES for row in rows(partial(_of, done, archive), archive)]


Outcome = tuple[float, int]  # AUROC, rounds that were rolled back


def _of(done: dict[tuple[str, Case, int], Outcome], archive: str, case: Case) -> list[Outcome]:
    return [done[archive, case, seed] for seed in SEEDS]


def run(archive: str, case: Case, seed: int) -> Outcome:
    """One study."""
    federation, arms = split(Archive.read(ARCHIVES[archive]), seed), {arm.name: arm for arm in RATES[archive].arms}
    chosen = Robustness(clip=CLIP[archive], vote=True, leave_out=case.leave_out) if case.defended else Robustness()
    # what a hospital counts for by images or patients is its own word
    training = arms["fedavg"].training.model_copy(update={"weighting": "equal"})
    arm = replace(arms["fedavg"], training=training, robustness=chosen)
    plan = plan_of(arm, [one.name for one in federation.hospitals], seed)
    spoiler = None
    if case.every:
        spoiler = Spoiler(seed % len(federation.hospitals), SCALE, partial(_is_due, case.every), case.clipped)
    sites = [Site(one.training, one.most_patients, one.held_back) for one in federation.hospitals]
    learned = Simulation(plan, sites, seed, spoiler=spoiler).run()
    return auroc(loaded(plan, learned.of(0)), federation.common_test), len(learned.rolled_back)


def _is_due(every: int, number: int) -> bool:
    return number % every == 0


def rows(found: Callable[[Case], Sequence[Outcome]], archive: str) -> list[Row]:
    """What each case loses against the federation left in peace, beside what it may lose."""
    peace = [auc for auc, _ in found(PEACE)]
    made = [Row(f"{archive}: {PEACE.name}", fmean(peace), "AUROC")]
    for case in CASES:
        lost = [before - auc for before, (auc, _) in zip(peace, found(case), strict=True)]
        rolled_back = fmean(number for _, number in found(case))
        figure = f"{archive}: lost by {case.name} ({min(lost):+.3f} to {max(lost):+.3f}), {rolled_back:.1f} rolled back"
        target = Target("value", "at most", LOST) if case.is_judged else None
        made.append(Row(figure, fmean(lost), "AUROC", target=target))
    return made

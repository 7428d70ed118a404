"""The strategies of `flows.aggregation` on five hospitals that differ, between local-only and pooled training.

Two archives of real images, each dealt to hospitals five times (`infra.hospitals.noniid`); settings are those of
`infra.simulation.settings`, chosen without the test images. Whatever is learned without noise sees each training image
equally often: local-only, pooled and all rounds together.

Each figure is the median of five seeds, with all five in the range behind it. The seeds decide everything but which
images are tested, so they are five independent draws of a federation, and their range holds the median of all such
draws with probability 1 - 2 / 2^5 = 94 %. That asks nothing of the distribution, which a t-interval would: AUROCs near
1 are skewed. A bootstrap over test images would leave out what differs most from draw to draw, the hospitals.

The share of the gap is (sum over seeds of strategy - local-only) / (sum over seeds of pooled - local-only). What is a
hospital's own is measured on images as that hospital's devices show them, and so are then both ends of its gap.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from statistics import fmean, median
from typing import Literal

import torch

from infra.bench.rows import Row, Target
from infra.hospitals.noniid import ARCHIVES, Archive, NonIid, split
from infra.simulation.comparison import Arm, Scores, apart, fine_tuned, in_one_place, scores, together
from infra.simulation.settings import RATES

SEEDS = range(5)
PROCESSES = 2  # of one thread each: networks this small gain nothing from a second one
SMALLEST_GAP = 0.005  # AUROC; a share of less would be a share of the test's own scatter
ENOUGH = 0.9  # of the gap
LOCAL, POOLED = "local-only", "pooled"
TUNED = ", fine-tuned"
Measure = Literal["common", "own", "held_back"]
JUDGED: tuple[Measure, ...] = ("common", "own")  # of a network that is shared, of one that is a hospital's own
SAID: dict[Measure, str] = {"common": "", "own": " (own images)", "held_back": " (held-back patients)"}


@dataclass(frozen=True, slots=True)
class Task:
    """One arm on one federation; `arm` None stands for local-only and pooled."""

    archive: str
    arm: Arm | None
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """How one method did on one federation. `private` is one with a guarantee per patient."""

    archive: str
    method: str
    measure: Measure
    seed: int
    scores: Scores
    private: bool = False


def strategies() -> list[Row]:
    """Run all of it on two cores; about ten minutes. Raises `FileNotFoundError` without the archives."""
    for path in ARCHIVES.values():
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: the figures are of real images")
    tasks = [Task(archive, arm, seed) for archive in ARCHIVES for arm in (None, *RATES[archive].arms) for seed in SEEDS]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        results = [result for some in pool.map(run, tasks) for result in some]
    return [row for archive in ARCHIVES for row in rows(archive, [one for one in results if one.archive == archive])]


def run(task: Task) -> list[Result]:
    """Learn, fine-tune and measure."""
    federation, chosen = split(_archive(task.archive), task.seed), RATES[task.archive]
    if task.arm is None:
        ends = {
            LOCAL: apart(chosen.local_arm, federation, task.seed),
            POOLED: in_one_place(chosen.pooled_arm, federation, task.seed),
        }
        return [
            Result(task.archive, method, "common", task.seed, scores(plan, weights, federation))
            for method, (plan, weights) in ends.items()
        ]
    return _learned(task, task.arm, federation)


def _learned(task: Task, arm: Arm, federation: NonIid) -> list[Result]:
    plan, weights = together(arm, federation, task.seed)
    private = plan.privacy.mechanism != "none"
    measure: Measure = "own" if arm.home or arm.ditto else "common"
    found = [Result(task.archive, arm.name, measure, task.seed, scores(plan, weights, federation), private)]
    if not private and arm.ditto is None:
        mine = fine_tuned(plan, weights, federation, task.seed, RATES[task.archive].fine_tuning)
        scored = scores(plan, mine, federation)
        found.append(Result(task.archive, f"{arm.name}{TUNED}", "own", task.seed, scored))
    return found


@cache
def _archive(name: str) -> Archive:
    return Archive.read(ARCHIVES[name])


@dataclass(frozen=True, slots=True)
class Gap:
    """Between local-only and pooled, AUROC by seed, of one measure."""

    local: Sequence[float]
    pooled: Sequence[float]

    @property
    def mean(self) -> float:
        return fmean(self.pooled) - fmean(self.local)

    @property
    def is_large(self) -> bool:
        """Large enough to be divided by: in the mean, and pooled is better in every federation."""
        return self.mean >= SMALLEST_GAP and all(
            better > worse for better, worse in zip(self.pooled, self.local, strict=True)
        )

    def share(self, found: Sequence[float]) -> float:
        return (fmean(found) - fmean(self.local)) / self.mean


def rows(archive: str, results: Iterable[Result]) -> list[Row]:
    """One archive's table: the two ends, each method between them, and what the best one closes."""
    methods: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        methods[result.method].append(result)
    local, pooled = methods.pop(LOCAL), methods.pop(POOLED)
    gaps = {measure: Gap(_values(local, measure), _values(pooled, measure)) for measure in SAID}
    made = [row for measure, gap in gaps.items() for row in _ends(archive, measure, gap)]
    for name, some in methods.items():
        without = methods.get(name.removesuffix(TUNED), ())
        made += _tuned(archive, some, without, gaps) if name.endswith(TUNED) else [_row(archive, some, gaps)]
    return [*made, *[_best(archive, measure, methods, gaps[measure]) for measure in JUDGED]]


def _ends(archive: str, measure: Measure, gap: Gap) -> list[Row]:
    pooled = median(gap.pooled)
    return [
        Row(f"{archive}: {LOCAL}{SAID[measure]} {_range(gap.local)}", median(gap.local), "AUROC", POOLED, pooled),
        Row(f"{archive}: {POOLED}{SAID[measure]} {_range(gap.pooled)}", pooled, "AUROC"),
    ]


def _row(archive: str, some: Sequence[Result], gaps: Mapping[Measure, Gap]) -> Row:
    measure = some[0].measure
    figure, value = _figure(archive, some, measure, gaps[measure]), median(_values(some, measure))
    return Row(figure, value, "AUROC", POOLED, median(gaps[measure].pooled))


def _tuned(archive: str, some: Sequence[Result], before: Sequence[Result], gaps: Mapping[Measure, Gap]) -> list[Row]:
    """What fine-tuning made of a strategy's result, on each hospital's own images and its own patients."""
    measures: tuple[Measure, ...] = ("own", "held_back")
    return [
        Row(_figure(archive, some, measure, gaps[measure]), median(_values(some, measure)), "AUROC",
            "not fine-tuned", median(_values(before, measure)))
        for measure in measures
    ]  # fmt: skip


def _figure(archive: str, some: Sequence[Result], measure: Measure, gap: Gap) -> str:
    found = _values(some, measure)
    share = f"{gap.share(found):.0%} of the gap" if gap.is_large else "the gap is too small for a share"
    return f"{archive}: {some[0].method}{SAID[measure]} {_range(found)}, {share}"


def _best(archive: str, measure: Measure, methods: Mapping[str, Sequence[Result]], gap: Gap) -> Row:
    """The largest share without noise. To be the best of many flatters it, so it is said how many reach as far."""
    found = {name: _values(some, measure) for name, some in methods.items()
             if some[0].measure == measure and not some[0].private}  # fmt: skip
    where = f"{archive}{SAID[measure]}"
    if not (found and gap.is_large):
        return Row(f"{where}: pooled is above local-only by too little for a share", gap.mean, "AUROC")
    best = max(found, key=lambda name: gap.share(found[name]))
    enough = sum(gap.share(values) >= ENOUGH for values in found.values())
    figure = f"{where}: share of the gap that the best, {best}, closes; {enough} of {len(found)} close {ENOUGH:.0%}"
    return Row(figure, gap.share(found[best]), "", target=Target("value", "at least", ENOUGH))


def _values(results: Sequence[Result], measure: Measure) -> list[float]:
    """By seed."""
    return [getattr(one.scores, measure) for one in sorted(results, key=lambda one: one.seed)]


def _range(values: Sequence[float]) -> str:
    return f"({min(values):.3f} to {max(values):.3f})"

"""For tests and benchmarks: hospitals with known sums, and a driver that behaves as the flow does, without Prefect."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boundary.messages import MEASURING, Collection
from boundary.tensors import unpack
from compliance.records import RoundRecord
from compliance.trail import read_leaf
from flows.collecting import CollectionFailed
from flows.driver import StudyDriver, driving
from flows.masked_sum import MaskedSum
from flows.publication import propose
from flows.round_work import Gathered, RoundWork
from flows.store import audit
from flows.store.database import reading
from infra.federation import SimulatedFederation, Work
from models.dice import DiceLayout
from models.measuring import measure
from models.metrics import MetricLayout

PARAMETERS = 10
METRICS, DICE = MetricLayout(2), DiceLayout(3)
EXACT = 1e-3  # relative: one step of the first round's encoding


def work_of(number: int) -> Work:
    """Hospital `number` moves every weight by `number`, with weight `number`."""

    def work(collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        if collection.phase == "statistics":  # `number` images of intensity 0.1 * number, half of each class
            mean = 0.1 * number
            return np.array([number, number * mean, number * mean**2, number // 2, number - number // 2]), None
        if collection.phase == "personalise":  # together better than alone but in the first, which has 0.1 * number
            better, difference = float(number > 1), 0.1 * number
            same = [0.0, 1.0, 0.0, 0.0]
            return np.array([better, 1 - better, 0.0, difference, *same, *same]), None
        if collection.phase in MEASURING:
            logits = np.array([[0.0, 1.0], [1.0, 0.0]] * number, dtype=np.float32)
            return measure(logits, np.array([1, 0] * number), METRICS), None
        return np.array([2.0 * number, number, number, 0]), np.full(PARAMETERS, number * number, np.float32)

    return work


def masks_work_of(number: int) -> Work:
    """The same with masks of two classes in `number` images of 4 x 4: of the first class half is found."""
    others = work_of(number)
    masks = np.zeros((number, 4, 4), np.uint8)
    masks[:, 0], masks[:, 1, :number] = 1, 2  # the second is larger in each hospital, and found
    found = masks.copy()
    found[:, 0, :2] = 0
    logits = np.moveaxis(9.0 * np.eye(3, dtype=np.float32)[found], -1, 1)

    def work(collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        if collection.phase in MEASURING:
            return measure(logits, masks, DICE), None
        numbers, weights = others(collection)
        if collection.phase == "statistics":  # each image shows the background and both classes
            numbers = np.array([*numbers[:3], *[number] * DICE.classes])
        return numbers, weights

    return work


def mean_of(*numbers: int) -> float:
    """What the model moves by when these hospitals are in the sum."""
    return sum(n * n for n in numbers) / sum(numbers)


def run(
    federation: SimulatedFederation,
    story: Callable[[StudyDriver], Awaitable[Any]],
    driver: str = "test",
    *,
    seconds: float = 90,
) -> Any:
    """Drive the study with the hospitals answering beside it; raises `TimeoutError` after `seconds`."""

    async def together() -> Any:
        turning = asyncio.create_task(federation.keep_turning())
        try:
            async with driving(federation.coordinator, federation.plan.label, driver) as one:
                propose(federation.coordinator, federation.study)
                await asyncio.gather(*(one.consent_of(silo) for silo in answering(federation)))
                return await story(one)
        finally:
            turning.cancel()
            with suppress(asyncio.CancelledError):
                await turning

    return asyncio.run(asyncio.wait_for(together(), seconds))


def answering(federation: SimulatedFederation) -> list[str]:
    return [silo for silo, hospital in federation.hospitals.items() if not hospital.is_silent]


async def collect(work: RoundWork, phase: Any, model: Any) -> Gathered:
    async with work.collecting(phase, model) as masked:
        await masked.close_cohort()
        for act in masked.steps.values():
            await act()
    return gathered(masked)


def gathered(masked: MaskedSum) -> Gathered:
    """What the flow makes of a collection whose steps are through."""
    if masked.decision is None:
        raise RuntimeError("the cohort was not closed")
    return Gathered(masked, masked.decision, 0.0, 0.0)


async def attempts(work: RoundWork, phase: Any, model: Any, use: Callable[[RoundWork, Gathered], Any]) -> Any:
    """As the flow does it: (the round with its last attempt, what `use` made of the sum)."""
    for _ in range(work.study.plan.aggregation.attempts):
        try:
            return work, use(work, await collect(work, phase, model))
        except CollectionFailed as failed:
            work = work.give_up(failed)
    raise AssertionError("no attempt went through")


async def one_round(driver: StudyDriver, number: int = 1) -> RoundRecord:
    work = driver.open_round(number)
    candidate = work.opened.candidate
    if candidate is None:
        work, candidate = await attempts(work, "train", work.model_in, RoundWork.aggregate)
    work, evaluated = await attempts(work, "evaluate", candidate.model, RoundWork.measure)
    return work.commit(candidate, evaluated, 0.0)


async def train_only(driver: StudyDriver, number: int = 1) -> RoundRecord:
    work = driver.open_round(number)
    work, candidate = await attempts(work, "train", work.model_in, RoundWork.aggregate)
    return work.commit(candidate, None, 0.0)


def weights(federation: SimulatedFederation, record: RoundRecord) -> NDArray[np.float32]:
    with federation.coordinator.blobs.open(record.model_out.digest) as source:
        return unpack(source.read(), federation.study.parts.moving, federation.plan.aggregation.downlink)


def trail(federation: SimulatedFederation) -> list[Any]:
    with reading(federation.coordinator.store) as connection:
        return [read_leaf(leaf).event for leaf in audit.leaves(connection)]

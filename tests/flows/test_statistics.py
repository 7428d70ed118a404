"""All hospitals' images are counted once, in a masked sum before round 1, and every order carries what came out."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.images import SMALLEST_DEVIATION, Normalisation
from boundary.messages import WorkOrder
from boundary.plan import parse_plan
from compliance.events import StatisticsTaken, SumOpened
from flows.driver import StudyDriver
from flows.pages import statistics_page
from flows.records import Statistics
from flows.round_work import RoundWork
from flows.store import studies
from flows.store.database import reading
from infra.driving import PARAMETERS, attempts, one_round, run, trail, work_of
from infra.federation import SimulatedFederation, Work, make_federation

Make = Callable[..., SimulatedFederation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SimulatedFederation] = []

    def make(work: Callable[[int], Work] = work_of, **options: Any) -> SimulatedFederation:
        works = {f"h{n}": work(n) for n in (1, 2, 3)}
        made.append(make_federation(tmp_path / "home", works, parameters=PARAMETERS, **options))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


async def count(driver: StudyDriver) -> Statistics:
    work = driver.open_round(1)
    _, found = await attempts(work, "statistics", work.model_in, RoundWork.count)
    driver.learn(found)
    return found  # type: ignore[no-any-return]


def test_the_sums_give_mean_and_deviation_of_all_images_together(make: Make) -> None:
    federation = make(normalise="federated")
    found = run(federation, count)
    intensities = np.repeat([0.1, 0.2, 0.3], [1, 2, 3])
    assert (found.images, found.labels) == (6, (2, 4))
    assert found.normalisation.mean == pytest.approx(intensities.mean())
    assert found.normalisation.deviation == pytest.approx(intensities.std())
    page = statistics_page(federation.study, found)
    assert "fewer than 10 training images of 3 hospitals" in page
    assert "| 1 | not told |" in page
    line = next(line for line in page.splitlines() if "normalise = " in line)
    given = parse_plan(federation.plan.model_dump(mode="json") | {
        "preprocessing": federation.plan.preprocessing.model_dump(mode="json") | tomllib.loads(line.strip()),
    })  # fmt: skip
    assert given.preprocessing.given == found.normalisation, "to the last digit"
    more = found.model_copy(update={"images": 60, "labels": (20, 40)})
    assert "60 training images of 3 hospitals" in statistics_page(federation.study, more)
    assert "| 1 | 40 |" in statistics_page(federation.study, more)


def test_what_a_plan_gives_is_not_counted_and_in_every_order(make: Make) -> None:
    given = {"mean": 0.3, "deviation": 0.2}
    federation = make(normalise=given)

    async def story(driver: StudyDriver) -> None:
        assert not driver.lacks_statistics
        await one_round(driver)

    run(federation, story)
    orders = federation.hospitals["h1"].heard(WorkOrder)
    assert [(order.collection.phase, order.normalisation) for order in orders] == [
        (phase, Normalisation.model_validate(given)) for phase in ("train", "evaluate")
    ]


def test_every_later_order_carries_what_came_out(make: Make) -> None:
    federation = make(normalise="federated")

    async def story(driver: StudyDriver) -> Statistics:
        assert driver.lacks_statistics
        found = await count(driver)
        assert not driver.lacks_statistics
        for number in (1, 2):
            await one_round(driver, number)
        return found

    found = run(federation, story)
    orders = federation.hospitals["h1"].heard(WorkOrder)
    assert [order.collection.phase for order in orders] == ["statistics", *["train", "evaluate"] * 2]
    assert [order.normalisation for order in orders] == [None, *[found.normalisation] * 4]
    events = trail(federation)
    assert [event.phase for event in events if isinstance(event, SumOpened)] == [
        "statistics",
        *["train", "evaluate"] * 2,
    ]
    assert [event.survivors for event in events if isinstance(event, StatisticsTaken)] == [found.survivors]


def test_what_was_counted_first_stays_for_the_whole_study(make: Make) -> None:
    federation = make(normalise="federated")
    found = run(federation, count, "first driver")

    async def story(driver: StudyDriver) -> None:
        assert driver.study.statistics == found
        assert not driver.lacks_statistics

    run(federation, story, "second driver")
    with reading(federation.coordinator.store) as connection:
        assert studies.find(connection, federation.plan.label).statistics == found


def test_images_without_contrast_are_not_blown_up(make: Make) -> None:
    def work(_number: int) -> Work:
        return lambda _: (np.array([4.0, 2.0, 1.0, 2.0, 2.0]), None)

    found = run(make(work, normalise="federated"), count)
    assert (found.normalisation.mean, found.normalisation.deviation) == (0.5, SMALLEST_DEVIATION)


def test_a_plan_that_does_not_ask_for_it_has_none_and_hospitals_refuse_to_count(make: Make) -> None:
    federation = make(attempts=1)

    async def story(driver: StudyDriver) -> None:
        assert not driver.lacks_statistics
        with pytest.raises(AssertionError, match="no attempt went through"):
            await count(driver)

    run(federation, story)
    assert all(hospital.worked == [] for hospital in federation.hospitals.values())

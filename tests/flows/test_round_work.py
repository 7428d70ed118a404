"""Rounds with hospitals that speak the production messages: what is applied, what is refused, what a crash costs."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compliance.events import AttemptFailed, CohortDecided, RoundClosed, StudyDriven
from compliance.records import RoundRecord
from flows.collecting import CollectionFailed
from flows.driver import StudyDriver, driving
from flows.store import rounds, studies
from flows.store.database import reading, writing
from infra.driving import (
    EXACT,
    PARAMETERS,
    collect,
    gathered,
    mean_of,
    one_round,
    run,
    trail,
    weights,
    work_of,
)
from infra.federation import SimulatedFederation, make_federation


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., SimulatedFederation]]:
    made: list[SimulatedFederation] = []

    def make(hospitals: int = 4, **options: Any) -> SimulatedFederation:
        works = {f"h{n}": work_of(n) for n in range(1, hospitals + 1)}
        made.append(make_federation(tmp_path / f"home-{len(made)}", works, parameters=PARAMETERS, **options))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


@pytest.fixture
def federation(make: Callable[..., SimulatedFederation]) -> SimulatedFederation:
    return make()


def test_a_round_moves_the_model_by_the_weighted_mean(federation: SimulatedFederation) -> None:
    record = run(federation, one_round)
    assert weights(federation, record) == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3, 4)), rel=EXACT)
    assert record.train_loss == pytest.approx(2.0)
    assert record.contributing == ("h1", "h2", "h3", "h4")
    assert record.metrics is not None
    assert (record.metrics.count, record.metrics.accuracy, record.metrics.auroc) == (20, 1.0, 1.0)
    assert all(traffic.up > 0 for traffic in record.traffic.values())


def test_a_silent_hospital_is_left_out_by_name_and_joins_the_next_round(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> tuple[RoundRecord, RoundRecord]:
        federation.hospitals["h4"].silence()
        first = await one_round(driver, 1)
        federation.hospitals["h4"].speak()
        return first, await one_round(driver, 2)

    first, second = run(federation, story)
    assert first.contributing == ("h1", "h2", "h3")
    assert first.absent == {"h4": "SILENT"}
    assert first.train.reason == "REST_SILENT"
    assert weights(federation, first) == pytest.approx(np.full(PARAMETERS, 14 / 6), rel=EXACT)
    assert second.absent == {}
    assert second.model_in == first.model_out.digest


def test_a_refusing_hospital_is_left_out_with_its_code(federation: SimulatedFederation) -> None:
    federation.hospitals["h2"].refuse("train", "NO_IMAGES")
    record = run(federation, one_round)
    assert record.absent == {"h2": "NO_IMAGES"}
    assert record.train.reason == "REST_REFUSED"


def test_too_many_refusals_fail_the_attempt_and_the_next_one_may_go_through(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> RoundRecord:
        for silo in ("h1", "h2"):
            federation.hospitals[silo].refuse("train")
        work = driver.open_round(1)
        with pytest.raises(CollectionFailed) as failed:
            await collect(work, "train", work.model_in)
        for silo in ("h1", "h2"):
            federation.hospitals[silo].relent()
        again = work.give_up(failed.value)
        candidate = again.aggregate(await collect(again, "train", again.model_in))
        return again.commit(candidate, None, 0.0)

    record = run(federation, story)
    assert record.train.attempt == 2
    assert record.metrics is None
    failures = [event for event in trail(federation) if isinstance(event, AttemptFailed)]
    assert [(event.attempt, event.reason) for event in failures] == [(1, "TOO_MANY_REFUSED")]


def test_a_hospital_that_declined_is_never_asked_to_work(federation: SimulatedFederation) -> None:
    federation.hospitals["h3"].declines = True
    record = run(federation, one_round)
    assert record.absent == {"h3": "NOT_APPROVED"}
    assert federation.hospitals["h3"].orders == {}


def test_an_approval_that_was_taken_back_is_none(federation: SimulatedFederation) -> None:
    """Between two rounds: the steward says no to what was approved, and the study goes on with the others."""

    async def story(driver: StudyDriver) -> Any:
        await one_round(driver)
        h3 = federation.hospitals["h3"]
        h3.outbound.decline(driver.study.study, driver.study.plan_digest, "DECLINED_BY_STEWARD", "a test")
        while driver.consents()["h3"].code is None:  # noqa: ASYNC110 - it turns in this same loop
            await asyncio.sleep(0.02)
        return await one_round(driver, 2)

    record = run(federation, story)
    assert record.absent == {"h3": "NOT_APPROVED"}
    asked = [collection for collection in federation.hospitals["h3"].orders if "/2/" in collection]
    assert asked == [], "nobody asks it for work any more"


STOPS = (
    "after the orders", "after the cohort was closed", "after keys shared", "after masked vectors",
    "after same survivors seen", "after shares revealed", "after the sum", "after the evaluation",
)  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_a_driver_that_died_is_continued_by_the_next_one(stop: str, federation: SimulatedFederation) -> None:
    async def die(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        async with work.collecting("train", work.model_in) as masked:
            if stop == "after the orders":
                return
            await masked.close_cohort()
            if stop == "after the cohort was closed":
                return
            for name, act in masked.steps.items():
                await act()
                if stop == f"after {name}":
                    return
        candidate = work.aggregate(gathered(masked))
        if stop == "after the evaluation":
            work.measure(await collect(work, "evaluate", candidate.model))

    run(federation, die, "first driver")
    record = run(federation, one_round, "second driver")
    assert weights(federation, record) == pytest.approx(np.full(PARAMETERS, 3.0), rel=EXACT)
    assert record.train.attempt == 1
    for hospital in federation.hospitals.values():
        assert len(hospital.sent) == len(set(hospital.sent)) == 2, "nobody was asked twice for one sum"
    closed = [event for event in trail(federation) if isinstance(event, RoundClosed)]
    decided = [event for event in trail(federation) if isinstance(event, CohortDecided)]
    assert len(closed) == 1
    assert len(decided) == 2
    assert [event.fence for event in trail(federation) if isinstance(event, StudyDriven)] == [1, 2]


def test_committing_twice_changes_nothing(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> tuple[RoundRecord, RoundRecord]:
        work = driver.open_round(1)
        candidate = work.aggregate(await collect(work, "train", work.model_in))
        return work.commit(candidate, None, 0.0), work.commit(candidate, None, 5.0)

    first, _ = run(federation, story)
    with reading(federation.coordinator.store) as connection:
        assert rounds.committed(connection, federation.study.study) == [first]
    assert len([event for event in trail(federation) if isinstance(event, RoundClosed)]) == 1


def test_a_driver_that_lost_the_reins_cannot_write(federation: SimulatedFederation) -> None:
    coordinator = federation.coordinator

    async def story(driver: StudyDriver) -> None:
        with writing(coordinator.store) as connection:
            connection.execute(studies.studies.update().values(driver_until=coordinator.now()))
            studies.take_reins(connection, driver.study.study, "another", coordinator.now(), studies_lease())
        with pytest.raises(studies.NoLongerDriver):
            driver.open_round(1)

    run(federation, story)


def test_a_study_that_is_driven_is_not_taken_over_while_its_lease_is_renewed(federation: SimulatedFederation) -> None:
    coordinator = federation.coordinator

    async def story(driver: StudyDriver) -> None:
        async def renew() -> None:
            while True:
                await asyncio.sleep(0.2)
                with writing(coordinator.store) as connection:
                    studies.hold(connection, driver.reins, coordinator.now(), studies_lease())

        renewing = asyncio.create_task(renew())
        with pytest.raises(studies.DrivenElsewhere, match="is being run by first"):
            async with driving(coordinator, federation.plan.label, "second"):
                pass
        renewing.cancel()

    run(federation, story, "first")


def studies_lease() -> Any:
    from flows.coordinator import DRIVER_LEASE

    return DRIVER_LEASE

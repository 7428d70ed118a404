"""Rounds of a plan with a guarantee per patient: bands instead of losses, and hospitals whose budget is spent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.guarantee import EPSILON_BANDS
from boundary.messages import Collection, MaskedVector, Refused
from compliance.events import AttemptFailed
from compliance.records import RoundRecord
from flows.collecting import CollectionFailed
from flows.driver import StudyDriver
from flows.engine import Reason
from flows.pages import round_page
from flows.store import rounds
from flows.store.database import reading
from infra.driving import (
    EXACT,
    PARAMETERS,
    collect,
    mean_of,
    one_round,
    run,
    trail,
    train_only,
    weights,
    work_of,
)
from infra.federation import SimulatedFederation, Work, make_federation

Make = Callable[..., SimulatedFederation]
PRIVACY = {"mechanism": "patient-dp", "epsilon": 8.0, "steps": 4}


def private(number: int) -> Work:
    """Hospital `number` has spent 0.9 times its number on the study in each round, and reports what a plan asks for."""
    plain = work_of(number)

    def work(collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        numbers, change = plain(collection)
        if collection.phase != "train":
            return numbers, change
        spent = 0.9 * number * collection.round
        _, _, weight, clipped = numbers
        return np.array([weight, clipped, *(float(spent < band) for band in EPSILON_BANDS)]), change

    return work


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SimulatedFederation] = []

    def make(hospitals: int = 4, **options: Any) -> SimulatedFederation:
        works = {f"h{n}": private(n) for n in range(1, hospitals + 1)}
        options = {"privacy": PRIVACY} | options
        made.append(make_federation(tmp_path / f"home-{len(made)}", works, parameters=PARAMETERS, **options))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


def by_hand(number: int, *hospitals: int) -> tuple[int, ...]:
    return tuple(sum(0.9 * n * number < band for n in hospitals) for band in EPSILON_BANDS)


def test_the_sum_says_how_many_hospitals_are_below_each_band_and_no_loss(make: Make) -> None:
    federation = make()

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        return [await one_round(driver, number) for number in (1, 2)]

    first, second = run(federation, story)
    assert (first.below, second.below) == ((1, 2, 4, 4), (0, 1, 2, 4))
    assert (first.below, second.below) == (by_hand(1, 1, 2, 3, 4), by_hand(2, 1, 2, 3, 4))
    assert (first.train_loss, second.train_loss) == (None, None)
    assert weights(federation, first) == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3, 4)), rel=EXACT)
    assert second.metrics is not None
    with reading(federation.coordinator.store) as connection:
        assert rounds.committed(connection, federation.study.study) == [first, second]
    assert "of 4 hospitals: 0 below 1, 1 below 2, 2 below 4, 4 below 8." in round_page(federation.study, second)


def test_what_is_sent_has_room_for_the_bands_and_for_neither_loss_nor_images(make: Make) -> None:
    federation = make(3)
    run(federation, train_only)
    (said,) = federation.hospitals["h1"].said(MaskedVector)
    assert said.vector.size == (2 + len(EPSILON_BANDS)) * 8 + PARAMETERS * 4


def test_half_of_the_weights_and_short_words_leave_the_counts_exact(make: Make) -> None:
    federation = make(ring=16, random_share=0.5, max_weight=20)
    record = run(federation, train_only)
    assert record.below == (1, 2, 4, 4)
    assert np.count_nonzero(weights(federation, record)) == PARAMETERS // 2


def test_who_is_not_in_the_sum_is_not_counted(make: Make) -> None:
    federation = make()
    federation.hospitals["h1"].fall_silent_before(MaskedVector.kind)
    record = run(federation, train_only)
    assert record.absent == {"h1": "SILENT"}
    assert record.below == by_hand(1, 2, 3, 4) == (0, 1, 3, 3)


def test_the_counts_survive_a_driver_that_died_after_the_sum(make: Make) -> None:
    federation = make(3)

    async def die(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        work.aggregate(await collect(work, "train", work.model_in))

    run(federation, die, "first driver")
    record = run(federation, one_round, "second driver")
    assert (record.below, record.train_loss) == ((1, 2, 3, 3), None)
    assert [len(hospital.sent) for hospital in federation.hospitals.values()] == [2, 2, 2], "nobody trained twice"


# --- a budget that is spent ---------------------------------------------------------------------------
def test_a_hospital_whose_budget_is_spent_leaves_and_the_others_go_on(make: Make) -> None:
    """It still evaluates: held-back patients are never trained on, so that spends nothing."""
    federation = make()

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        first = await one_round(driver, 1)
        federation.hospitals["h4"].refuse("train", "BUDGET_SPENT")
        return [first, await one_round(driver, 2), await one_round(driver, 3)]

    first, second, third = run(federation, story)
    assert first.contributing == ("h1", "h2", "h3", "h4")
    for record in (second, third):
        assert record.contributing == ("h1", "h2", "h3")
        assert record.absent == {"h4": "BUDGET_SPENT"}
        assert (record.train.reason, record.train.attempt) == ("REST_REFUSED", 1)
        assert record.below == by_hand(record.round, 1, 2, 3)
        assert record.metrics is not None
        assert record.metrics.count == 2 * (1 + 2 + 3 + 4)
    step = weights(federation, second) - weights(federation, first)
    assert step == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3)), rel=EXACT)
    assert "| h4 | no: BUDGET_SPENT |" in round_page(federation.study, second)


def test_of_a_spent_budget_only_the_code_leaves(make: Make) -> None:
    federation = make()
    federation.hospitals["h4"].refuse("train", "BUDGET_SPENT")
    run(federation, train_only)
    (said,) = federation.hospitals["h4"].said(Refused)
    assert said.code == "BUDGET_SPENT"
    assert "a test" not in said.model_dump_json(), "why is for the hospital's own log"
    assert said.model_dump().keys() == {"collection", "order", "code", "reference", "retryable"}
    assert federation.hospitals["h4"].worked == []


def test_with_too_few_budgets_left_there_is_no_round(make: Make) -> None:
    federation = make(3)
    federation.hospitals["h2"].refuse("train", "BUDGET_SPENT")

    async def story(driver: StudyDriver) -> CollectionFailed:
        work = driver.open_round(1)
        with pytest.raises(CollectionFailed) as failed:
            await collect(work, "train", work.model_in)
        work.give_up(failed.value)
        return failed.value

    assert run(federation, story).reason is Reason.TOO_MANY_REFUSED
    assert [event.reason for event in trail(federation) if isinstance(event, AttemptFailed)] == ["TOO_MANY_REFUSED"]
    with reading(federation.coordinator.store) as connection:
        assert rounds.committed(connection, federation.study.study) == []

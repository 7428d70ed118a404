"""After the last round hospitals compare models, under masks: what is kept, what is refused, what can be done again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.errors import BadTensors
from boundary.layout import layout_for
from boundary.messages import BlobRef, Collection, HeadsCosigned, Ready, Refused, TrailShown, WorkOrder
from boundary.secagg.ring import Encoding
from compliance.events import PersonalisationSummed, RoundOpened
from flows import personalisation
from flows.collecting import CollectionFailed
from flows.driver import StudyDriver
from flows.pages import personalised_page, study_page
from flows.personalisation import Personalised, read_outcomes
from flows.round_work import RoundWork
from flows.store import studies
from flows.store.database import reading
from flows.summing import Total
from infra.driving import PARAMETERS, attempts, collect, run, trail, train_only, work_of
from infra.federation import SimulatedFederation, Work, make_federation

Make = Callable[..., SimulatedFederation]
PLAN = {"personalisation": {"epochs": 2}}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SimulatedFederation] = []

    def make(hospitals: int = 4, works: dict[str, Work] | None = None, **options: Any) -> SimulatedFederation:
        works = {f"h{n}": work_of(n) for n in range(1, hospitals + 1)} | (works or {})
        options = {"rounds": 1, "changes": PLAN} | options
        made.append(make_federation(tmp_path / f"home-{len(made)}", works, parameters=PARAMETERS, **options))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


async def compare(driver: StudyDriver) -> Personalised:
    """As the flow does it, behind the last round."""
    work = driver.open_round(driver.study.plan.rounds_in_all)
    _, found = await attempts(work, "personalise", work.model_in, RoundWork.compare)
    driver.learn_personalised(found)
    await driver.witness_end()
    return found  # type: ignore[no-any-return]


async def whole(driver: StudyDriver) -> Personalised:
    await train_only(driver)
    return await compare(driver)


def test_counts_add_up_and_only_their_sum_is_known(make: Make) -> None:
    federation = make()
    found = run(federation, whole)
    first, second, third = found.compared
    assert (first.one, first.other) == ("federated", "local")
    assert (first.better, first.same, first.worse, first.hospitals) == (3, 1, 0, 4)
    assert first.difference == pytest.approx(np.mean([0.1, 0.2, 0.3, 0.4]), abs=1e-6)
    assert {(one.better, one.same, one.worse, one.difference) for one in (second, third)} == {(0, 4, 0, 0.0)}
    assert found.headline == "3 of 4 hospitals: federated better than alone, 1: same; mean difference +0.250"
    with reading(federation.coordinator.store) as connection:
        kept = studies.find(connection, federation.plan.label)
    assert kept.personalised == found
    for page in (personalised_page(kept, found), study_page(kept, [], None)):
        assert found.headline in page
        assert "| the federated model | what each would have trained alone | 3 | 1 | 0 | +0.2500 |" in page
    summed = [event for event in trail(federation) if isinstance(event, PersonalisationSummed)]
    assert [event.survivors for event in summed] == [found.survivors]
    told = personalisation.points(found)
    assert told["personalisation/federated_vs_local_better"] == 3
    assert told["personalisation/personal_vs_federated_difference"] == 0
    hospital = federation.hospitals["h1"]
    order = hospital.heard(WorkOrder)[-1]
    assert (order.collection.round, order.collection.phase) == (2, "personalise")
    assert order.model.digest == hospital.journal.committed_model(federation.study.study)
    assert [said.round for said in hospital.said(TrailShown)] == [1, 2], "logs go on behind it, and are cosigned"
    assert [said.round for said in hospital.said(HeadsCosigned)] == [0, 1, 2]


def liar(*numbers: float) -> Work:
    honest = work_of(2)

    def work(collection: Collection) -> tuple[NDArray[np.float64], Any]:
        return (np.array(numbers * 3), None) if collection.phase == "personalise" else honest(collection)

    return work


LIES = {
    "better at more hospitals than there are": (5.0, 0.0, 0.0, 0.1),
    "worse at fewer than none": (0.0, 0.0, -1.0, 0.0),
    "half a hospital": (0.5, 0.5, 0.0, 0.1),
    "a difference that no area can have": (1.0, 0.0, 0.0, 9.0),
}


def test_what_no_hospitals_can_have_said_together_is_not_told(make: Make) -> None:
    federation = make(works={"h2": liar(*LIES["a difference that no area can have"])}, attempts=1)

    async def story(driver: StudyDriver) -> None:
        await train_only(driver)
        work = driver.open_round(2)
        with pytest.raises(CollectionFailed):
            work.compare(await collect(work, "personalise", work.model_in))

    run(federation, story)
    assert not [event for event in trail(federation) if isinstance(event, PersonalisationSummed)]


def test_too_small_a_sum_spoils_nothing_and_the_next_run_goes_on_with_what_was_computed(make: Make) -> None:
    federation = make(attempts=1)

    async def fails(driver: StudyDriver) -> None:
        await train_only(driver)
        for silo in ("h1", "h2"):
            federation.hospitals[silo].refuse("personalise")
        work = driver.open_round(2)
        with pytest.raises(CollectionFailed) as failed:
            await collect(work, "personalise", work.model_in)
        work.give_up(failed.value)
        for silo in ("h1", "h2"):
            federation.hospitals[silo].relent()

    run(federation, fails)
    found = run(federation, compare, "the next run")
    assert found.decision.attempt == 2
    assert found.compared[0].hospitals == 4
    worked = [one for one in federation.hospitals["h3"].worked if "personalise" in one]
    assert len(worked) == 1, "not computed twice: what it says stays what it said"
    assert [said.round for said in federation.hospitals["h3"].said(TrailShown)] == [1, 2]


def test_it_is_summed_once_and_kept_whoever_drives(make: Make) -> None:
    federation = make()
    found = run(federation, whole)

    async def again(driver: StudyDriver) -> Personalised:
        assert not driver.lacks_personalisation
        work = driver.open_round(2)
        return work.compare(await collect(work, "personalise", work.model_in))

    assert run(federation, again, "another driver") == found
    events = trail(federation)
    assert len([event for event in events if isinstance(event, PersonalisationSummed)]) == 1
    assert len([event for event in events if isinstance(event, RoundOpened) and event.round == 2]) == 1


def test_hospitals_refuse_another_model_than_the_last_round_gave(make: Make) -> None:
    federation = make(attempts=1)

    async def story(driver: StudyDriver) -> None:
        await train_only(driver)
        work = driver.open_round(2)
        crafted = federation.coordinator.blobs.put_bytes(b"made to tell patients apart")
        with pytest.raises(CollectionFailed):
            await collect(work, "personalise", BlobRef(digest=crafted.digest, size=crafted.size))

    run(federation, story)
    assert {said.code for one in federation.hospitals.values() for said in one.said(Refused)} == {"OUT_OF_TURN"}


def test_hospitals_refuse_to_personalise_before_the_last_round_is_over(make: Make) -> None:
    federation = make(attempts=1)

    async def story(driver: StudyDriver) -> None:
        work = driver.open_round(2)
        with pytest.raises(CollectionFailed):
            await collect(work, "personalise", work.model_in)

    run(federation, story)
    for hospital in federation.hospitals.values():
        assert [said.code for said in hospital.said(Refused)] == ["NOT_APPROVED"]
        assert not hospital.said(Ready)


def total(*numbers: float) -> Total:
    layout = layout_for("personalise", parameters=0, metrics=0)
    return Total(layout, Encoding(exponent=0, most=3), np.array(numbers * 3), np.empty(0, np.uint32))


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_one_lie_spoils_the_sum_and_is_seen_in_it(lie: tuple[float, ...]) -> None:
    with pytest.raises(BadTensors):
        read_outcomes(total(*lie), 3)


def test_a_hospital_that_cannot_tell_is_counted_nowhere() -> None:
    (found, *_) = read_outcomes(total(1.0, 0.0, 1.0, 0.3), 3)
    assert (found.hospitals, found.difference) == (2, pytest.approx(0.15))
    (none, *_) = read_outcomes(total(0.0, 0.0, 0.0, 0.0), 3)
    assert (none.hospitals, none.difference) == (0, None)
    assert none.sentence == "federated and alone: no hospital could tell"


def test_fixed_point_does_not_spoil_a_count() -> None:
    (found, *_) = read_outcomes(total(2.0000002, 1.0, -0.0000001, 0.3), 3)
    assert (found.better, found.same, found.worse, found.difference) == (2, 1, 0, pytest.approx(0.1))
    with pytest.raises(BadTensors):
        read_outcomes(total(2.0, 1.0, 0.0, 0.3), 2)

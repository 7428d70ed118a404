"""A study in which not all of the model moves: what is sent, what is applied, what is released."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from boundary.errors import InvalidPlan
from boundary.learning import ModelChoice
from boundary.messages import WorkOrder
from boundary.tensors import unpack
from compliance.records import RoundRecord
from flows.cli import app
from flows.desk import Desk
from flows.driver import StudyDriver
from flows.publication import publish
from flows.release import final_weights
from flows.retention import purge
from flows.store import holdings, studies
from flows.store.database import reading
from infra.driving import EXACT, PARAMETERS, mean_of, one_round, run, weights, work_of
from infra.federation import SimulatedFederation, make_federation

FROZEN = 1000
PARTLY = {"model": {"name": "cnn-small", "version": 1, "trained": ["w"]}}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[SimulatedFederation]:
    works = {f"h{n}": work_of(n) for n in range(1, 4)}
    made = make_federation(tmp_path, works, parameters=PARAMETERS, frozen=FROZEN, changes=PARTLY, rounds=2)
    yield made
    made.close()


async def two_rounds(driver: StudyDriver) -> tuple[RoundRecord, RoundRecord]:
    rounds = await one_round(driver, 1), await one_round(driver, 2)
    driver.finish("DONE")
    return rounds


def test_only_what_moves_is_sent_and_the_rest_once(federation: SimulatedFederation) -> None:
    first, second = run(federation, two_rounds)
    assert weights(federation, first) == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3)), rel=EXACT)
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, 2 * mean_of(1, 2, 3)), rel=2 * EXACT)
    start, blobs = federation.study.model, federation.coordinator.blobs
    assert start.base == start.initial != start.first
    assert first.model_in == start.first.digest
    for one in (start.first, first.model_out, second.model_out):
        assert one.size < start.initial.size - 4 * FROZEN + 200
    for silo, hospital in federation.hospitals.items():
        orders = [order.envelope for order in hospital.journal.orders_of(federation.study.study)]
        assert len(orders) == 4
        with reading(federation.coordinator.store) as connection:
            assert holdings.may_read(connection, start.initial.digest, silo)
    with blobs.open(second.model_out.digest) as source:
        assert unpack(source.read(), federation.study.parts.moving).shape == (PARAMETERS,)


def test_every_order_names_the_same_base(federation: SimulatedFederation) -> None:
    run(federation, two_rounds)
    desk = Desk(federation.coordinator.key, federation.coordinator.now, federation.plan)
    slots = [f"{federation.study.study}/{number}/{phase}/1" for number in (1, 2) for phase in ("train", "evaluate")]
    with reading(federation.coordinator.store) as connection:
        told = [desk.told(connection, silo, WorkOrder.kind, slot) for slot in slots for silo in federation.hospitals]
    assert len(told) == 12
    assert {one.base for one in told if isinstance(one, WorkOrder)} == {federation.study.model.initial}


def test_the_released_model_is_whole_and_its_base_is_kept(federation: SimulatedFederation) -> None:
    _, second = run(federation, two_rounds)
    purge(federation.coordinator)
    whole = final_weights(federation.study, second, federation.coordinator.blobs.open)
    assert whole.shape == (FROZEN + PARAMETERS,)
    np.testing.assert_array_equal(whole[:FROZEN], 1)
    np.testing.assert_array_equal(whole[FROZEN:], weights(federation, second))


def test_a_pattern_that_fits_nothing_is_refused_before_anything_is_published(federation: SimulatedFederation) -> None:
    wrong = federation.plan.model_copy(update={"model": ModelChoice(name="cnn-small", version=1, trained=("v*",))})
    with pytest.raises(InvalidPlan, match=r"model.trained: 'v\*' fits no parameter of cnn-small@1"):
        publish(federation.coordinator, wrong.model_copy(update={"name": "another"}))
    with reading(federation.coordinator.store) as connection:
        assert [study.label for study in studies.every(connection)] == [federation.plan.label]


def test_a_person_finds_the_names_of_parameters() -> None:
    done = CliRunner().invoke(app, ["plan", "models", "densenet121"])
    assert done.exit_code == 0
    listed = dict(line.split()[::-1] for line in done.stdout.splitlines())
    assert listed["class_layers.out.weight"] == "2,048"
    assert sum(int(size.replace(",", "")) for size in listed.values()) == 6_949_634

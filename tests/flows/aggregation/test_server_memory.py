"""What the server remembers, in rounds with hospitals: kept with its model, taken up by the next driver, never anew."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from boundary.messages import BlobRef, Collection, WorkOrder
from boundary.names import COORDINATOR
from compliance.records import RoundRecord, to_bytes
from flows import retention
from flows.aggregation.memory import MemoryUnusable
from flows.aggregation.scaffold import begins_anew
from flows.desk import Desk
from flows.driver import StudyDriver
from flows.records import Candidate
from flows.store import holdings, rounds
from flows.store.database import reading, writing
from flows.store.schema import blobs
from flows.store.schema import rounds as table
from infra.driving import EXACT, PARAMETERS, collect, mean_of, run, train_only, weights, work_of
from infra.federation import SimulatedFederation, Work, make_federation

DELTA = mean_of(1, 2, 3)  # in every round
MOMENTUM = 0.5
AFTER = (DELTA, 2.5 * DELTA, 4.25 * DELTA)  # v = d, 1.5 d, 1.75 d, each added up
Make = Callable[..., SimulatedFederation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SimulatedFederation] = []

    def make(strategy: str = "fedavgm", name: str = "simulated") -> SimulatedFederation:
        changes = {
            "training": {"rounds": 3, "weighting": "images", "strategy": strategy},
            "server": {"momentum": MOMENTUM},
        }
        works = {f"h{n}": work_of(n) for n in (1, 2, 3)}
        made.append(make_federation(tmp_path / name, works, parameters=PARAMETERS, name=name, changes=changes))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


@pytest.fixture
def federation(make: Make) -> SimulatedFederation:
    return make()


async def train_without_commit(driver: StudyDriver) -> Candidate:
    work = driver.open_round(rounds_done(driver) + 1)
    return work.aggregate(await collect(work, "train", work.model_in))


def rounds_done(driver: StudyDriver) -> int:
    return len(driver.records())


async def go_on(driver: StudyDriver) -> RoundRecord:
    """As the flow does: a candidate that is there is committed, not made again."""
    work = driver.open_round(rounds_done(driver) + 1)
    if work.opened.candidate is None:
        return await train_only(driver, work.number)
    return work.commit(work.opened.candidate, None, 0.0)


def candidate_of(federation: SimulatedFederation, number: int) -> Candidate | None:
    with reading(federation.coordinator.store) as connection:
        return rounds.candidate_of(connection, federation.study.study, number)


def memory_of(federation: SimulatedFederation, number: int) -> BlobRef:
    candidate = candidate_of(federation, number)
    assert candidate is not None
    assert candidate.memory is not None
    return candidate.memory


def stored(federation: SimulatedFederation) -> set[str]:
    with reading(federation.coordinator.store) as connection:
        return set(connection.execute(blobs.select()).scalars())


def test_momentum_goes_from_round_to_round(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> list[RoundRecord]:
        return [await train_only(driver, number) for number in (1, 2, 3)]

    for number, record in enumerate(run(federation, story), start=1):
        expected = np.full(PARAMETERS, AFTER[number - 1])
        assert weights(federation, record) == pytest.approx(expected, rel=EXACT)
        candidate = candidate_of(federation, number)
        assert candidate is not None
        assert candidate.model == record.model_out, "what a round was committed from stays with it"
    assert len({memory_of(federation, number).digest for number in (1, 2, 3)}) == 3


def test_no_hospital_may_read_what_the_server_remembers(federation: SimulatedFederation) -> None:
    run(federation, train_only)
    memory = memory_of(federation, 1)
    with reading(federation.coordinator.store) as connection:
        assert holdings.may_read(connection, memory.digest, COORDINATOR)
        assert not any(holdings.may_read(connection, memory.digest, silo) for silo in federation.hospitals)


def test_a_driver_that_died_before_the_commit_leaves_one_model_and_one_memory(federation: SimulatedFederation) -> None:
    run(federation, train_only, "first driver")
    kept = run(federation, train_without_commit, "second driver")
    assert candidate_of(federation, 2) is None, "not committed yet"
    before = stored(federation)
    second = run(federation, go_on, "third driver")
    assert second.model_out == kept.model
    assert candidate_of(federation, 2) == kept
    assert stored(federation) - before == {kept.model.digest}, "the commit records the model; nothing was made again"
    third = run(federation, go_on, "fourth driver")
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, AFTER[1]), rel=EXACT)
    assert weights(federation, third) == pytest.approx(np.full(PARAMETERS, AFTER[2]), rel=EXACT)


def test_a_driver_that_died_before_it_kept_the_candidate_is_followed_by_one_that_makes_the_same(
    federation: SimulatedFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Candidate] = []

    def die(*arguments: Any) -> None:
        made.append(arguments[-1])
        raise ConnectionError("the database is gone")

    run(federation, train_only, "first driver")
    before = stored(federation)
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "keep_candidate", die)
        with pytest.raises(ConnectionError):
            run(federation, train_without_commit, "second driver")
    assert candidate_of(federation, 2) is None
    second = run(federation, go_on, "third driver")
    assert (second.model_out, memory_of(federation, 2)) == (made[0].model, made[0].memory)
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, AFTER[1]), rel=EXACT)
    assert memory_of(federation, 2).digest in stored(federation) - before


def test_a_sum_that_is_applied_again_gives_the_same_model_and_the_same_memory(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> tuple[Candidate, Candidate]:
        await train_only(driver, 1)
        work = driver.open_round(2)
        gathered = await collect(work, "train", work.model_in)
        return work.aggregate(gathered), work.aggregate(gathered)

    first, again = run(federation, story)
    assert (first.model, first.memory) == (again.model, again.memory)


def lose(federation: SimulatedFederation, memory: BlobRef) -> None:
    federation.coordinator.blobs.remove(memory.digest)


def damage(federation: SimulatedFederation, memory: BlobRef) -> None:
    path = federation.coordinator.blobs.path_of(memory.digest)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def forget(federation: SimulatedFederation, memory: BlobRef) -> None:
    change(federation, memory=None)


def swap(federation: SimulatedFederation, memory: BlobRef) -> None:
    change(federation, model=federation.study.model.initial)


def change(federation: SimulatedFederation, **values: Any) -> None:
    candidate = candidate_of(federation, 1)
    assert candidate is not None
    with writing(federation.coordinator.store) as connection:
        data = to_bytes(candidate.model_copy(update=values))
        connection.execute(table.update().where(table.c.round == 1).values(candidate=data))


HARM = {
    "its blob is gone": (lose, "not among the blobs"),
    "its blob is another": (damage, "is damaged"),
    "nothing was kept": (forget, "was not kept together with its model"),
    "it is of another model": (swap, "was not kept together with its model"),
}


@pytest.mark.parametrize(("harm", "why"), HARM.values(), ids=HARM)
def test_without_its_memory_a_round_stops_and_goes_on_when_it_is_back(
    harm: Callable[[SimulatedFederation, BlobRef], None], why: str, federation: SimulatedFederation
) -> None:
    run(federation, train_only)
    candidate, memory = candidate_of(federation, 1), memory_of(federation, 1)
    assert candidate is not None
    with federation.coordinator.blobs.open(memory.digest) as source:
        data = source.read()
    harm(federation, memory)
    with pytest.raises(MemoryUnusable, match=why):
        run(federation, train_without_commit)
    with reading(federation.coordinator.store) as connection:
        assert rounds.last_committed(connection, federation.study.study) == 1
    lose(federation, memory)
    federation.coordinator.blobs.put_bytes(data)
    change(federation, memory=memory, model=candidate.model)
    second = run(federation, go_on)
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, AFTER[1]), rel=EXACT)


def test_a_strategy_that_remembers_nothing_keeps_nothing(make: Make) -> None:
    federation = make("fedavg")
    run(federation, train_only)
    second = run(federation, go_on)
    assert [getattr(candidate_of(federation, number), "memory", 0) for number in (1, 2)] == [None, None]
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, 2 * DELTA), rel=EXACT)


def test_an_adaptive_strategy_takes_up_both_of_its_vectors(make: Make) -> None:
    federation = make("fedadam")
    run(federation, train_only)
    second = run(federation, go_on)
    momentum, moment, x = 0.0, 1e-6, 0.0
    for _ in range(2):
        momentum, moment = MOMENTUM * momentum + (1 - MOMENTUM) * DELTA, 0.99 * moment + 0.01 * DELTA**2
        x += 0.01 * momentum / (moment**0.5 + 1e-3)
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, x), rel=EXACT)


def test_scaffold_tells_the_hospitals_its_control_variate_and_begins_anew_every_tenth_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four hospitals one is silent: three quarters of the mean change are taken up."""
    monkeypatch.setattr(sys.modules[begins_anew.__module__], "ROUNDS_UNTIL_ANEW", 2)
    last_kept, looked = rounds.last_kept, []
    monkeypatch.setattr(rounds, "last_kept", lambda *asked: looked.append(asked) or last_kept(*asked))
    training = {
        "rounds": 3, "weighting": "equal", "strategy": "scaffold", "optimizer": "sgd", "learning_rate": 0.5,
    }  # fmt: skip
    federation = make_federation(
        tmp_path,
        {f"h{n}": stepping(n) for n in (1, 2, 3, 4)},
        parameters=PARAMETERS,
        changes={"training": training},
        delta_bound=10,
    )
    try:
        federation.hospitals["h4"].silence()
        made = [run(federation, train_only), run(federation, go_on), run(federation, go_on)]
        mean, steps = 2.0, 4.0  # of 1, 2, 3 and of twice as many steps
        for number, record in enumerate(made, start=1):
            expected = np.full(PARAMETERS, number * mean * steps)
            assert weights(federation, record) == pytest.approx(expected, rel=EXACT)
        first = -0.75 * mean / 0.5
        told, kept = [], []
        desk = Desk(federation.coordinator.key, federation.coordinator.now, federation.plan)
        for number in (1, 2, 3):
            with federation.coordinator.blobs.open(memory_of(federation, number).digest) as source:
                kept.append(safetensors.numpy.load(source.read())["control"])
            with reading(federation.coordinator.store) as connection:
                order = desk.told(connection, "h1", WorkOrder.kind, f"{federation.study.study}/{number}/train/1")
            assert isinstance(order, WorkOrder)
            told.append(order.control)
        second = first - 0.75 * (first + mean / 0.5)
        for control, expected in zip(kept, (first, second, first), strict=True):
            assert control == pytest.approx(np.full(PARAMETERS, expected), rel=EXACT)
        assert told == [None, memory_of(federation, 1), None]
        assert len(looked) == 1, "for the orders, the strategy and the traffic of round 2 together"
        with reading(federation.coordinator.store) as connection:
            assert holdings.may_read(connection, memory_of(federation, 1).digest, "h1")
            assert not holdings.may_read(connection, memory_of(federation, 2).digest, "h1"), "nobody was told of it"
    finally:
        federation.close()


def stepping(number: int) -> Work:
    """Hospital `number` takes twice as many steps, and moves by `number` in each, with weight 1."""

    def work(_: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        return np.array([2.0, 1.0, 1.0, 0.0, 2.0 * number]), np.full(PARAMETERS, number, np.float32)

    return work


def test_memories_go_when_the_study_is_over_and_not_before(federation: SimulatedFederation) -> None:
    async def story(driver: StudyDriver) -> list[RoundRecord]:
        records = [await train_only(driver, number) for number in (1, 2, 3)]
        assert retention.purge(federation.coordinator) == []
        driver.finish("COMPLETED")
        return records

    records = run(federation, story)
    memories = [memory_of(federation, number).digest for number in (1, 2, 3)]
    size = federation.coordinator.blobs.size
    assert all(size(digest) for digest in memories)
    retention.purge(federation.coordinator)
    assert [size(digest) for digest in memories] == [None] * 3
    assert not stored(federation) & set(memories)
    assert size(records[-1].model_out.digest), "the last model stays"

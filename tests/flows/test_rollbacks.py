"""Rounds that are rolled back: by the hospitals' votes or because the sum is too long. Real masks, real journals."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.errors import CallerFault
from boundary.messages import Collection, RoundCommitted, WorkOrder
from boundary.robustness import RolledBack, Vote
from boundary.rotation import resting
from compliance.events import HospitalsDrawn, RoundClosed
from compliance.records import RoundRecord, current
from flows import pages
from flows.driver import StudyDriver
from flows.store import rounds, witnessed
from flows.store.database import reading, writing
from flows.trails import receipt_of
from infra.driving import PARAMETERS, collect, mean_of, one_round, run, trail, weights, work_of
from infra.federation import SimulatedFederation, Work, make_federation
from models.errors import NoImages
from models.metrics import MetricLayout
from silo_agent.results import RESIDUAL, carried

Votes = Callable[[Collection], tuple[float, float, float]]
EXACT = 1e-3
VOTE = {"vote": True, "warm_up": 0}
MOMENTUM = {"training": {"rounds": 3, "strategy": "fedavgm"}, "server": {"momentum": 0.5}}


def voting(number: int, votes: Votes, scale: float = 1.0) -> Work:
    """Hospital `number` of `infra.driving`, with a vote; its change is `scale` times as long."""
    plain = work_of(number)

    def work(collection: Collection) -> tuple[np.ndarray, np.ndarray | None]:
        numbers, moved = plain(collection)
        if collection.phase == "evaluate":
            return np.array([*numbers, *votes(collection)]), None
        return numbers, None if moved is None else scale * moved

    return work


def clipping(plain: Work) -> Work:
    """It says of itself that it did not have to shorten anything."""

    def work(collection: Collection) -> tuple[np.ndarray, np.ndarray | None]:
        numbers, moved = plain(collection)
        return (numbers if moved is None else np.array([*numbers, 0.0])), moved

    return work


def yes(_: Collection) -> tuple[float, float, float]:
    return 0.0, 1.0, -0.5


def no_in(*numbers: int) -> Votes:
    return lambda collection: (1.0, 1.0, 2.0) if collection.round in numbers else (0.0, 1.0, -2.0)


@dataclass
class Told:
    """A study of three rounds, of which two of three hospitals found the second worse."""

    federation: SimulatedFederation
    records: list[RoundRecord]
    left: list[bytes]  # what h1 carries on after each round
    signed: dict[str, bytes]  # under the second round


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    works = {f"h{n}": voting(n, no_in(2) if n < 3 else yes) for n in (1, 2, 3)}
    changes = {"robustness": VOTE} | MOMENTUM
    made = make_federation(tmp_path_factory.mktemp("told"), works, parameters=PARAMETERS, changes=changes, rounds=3)
    records, left = [], []

    async def story(driver: StudyDriver) -> dict[str, bytes]:
        for number in (1, 2, 3):
            work = driver.open_round(number)
            gathered = await collect(work, "train", work.model_in)
            hospital, study = made.hospitals["h1"], made.study.study
            (folder,) = (hospital.folder.work / study).glob(f"{number:04d}-train-*")
            (folder / f"vector{RESIDUAL}").write_bytes(b"of round %d" % number)
            candidate = work.aggregate(gathered)
            records.append(work.commit(candidate, work.measure(await collect(work, "evaluate", candidate.model)), 0.0))
            while {one.journal.committed_round(study) for one in made.hospitals.values()} != {number}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # they turn in this loop
            left.append(carried(hospital.folder, study, RESIDUAL).read_bytes())
        with writing(made.coordinator.store) as connection:
            driver.trails.take_in(connection)
            return witnessed.receipts_of(connection, study)[2]

    yield Told(made, records, left, run(made, story))
    made.close()


Made = Callable[..., SimulatedFederation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Made]:
    made: list[SimulatedFederation] = []

    def build(*works: Work, robustness: Mapping[str, Any] = VOTE, **changes: Any) -> SimulatedFederation:
        named, changes = {f"h{n}": one for n, one in enumerate(works, 1)}, {"robustness": robustness} | changes
        made.append(make_federation(tmp_path, named, parameters=PARAMETERS, changes=changes, rounds=3))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_a_model_that_most_hospitals_find_worse_does_not_count(told: Told) -> None:
    first, second, third = told.records
    assert (first.rolled_back, second.rolled_back, third.rolled_back) == (None, RolledBack.VOTED_DOWN, None)
    assert (first.vote, second.vote) == (Vote(against=0, voted=3, rise=-4.5), Vote(against=2, voted=3, rise=3.5))
    assert second.model_out == first.model_out
    assert second.tried not in (None, first.model_out)
    assert (second.metrics, second.tried_metrics is None) == (None, False)
    assert third.model_in == first.model_out.digest
    assert current([first, second]) == first.metrics
    assert second.next_encoding == first.next_encoding, "no scale is fitted to a sum that does not count"


def test_the_servers_memory_goes_on_behind_it(told: Told) -> None:
    (first, _, third), step = told.records, mean_of(1, 2, 3)
    assert weights(told.federation, first) == pytest.approx(np.full(PARAMETERS, step), rel=EXACT)
    assert weights(told.federation, third) == pytest.approx(np.full(PARAMETERS, 2.5 * step), rel=4 * EXACT)
    with reading(told.federation.coordinator.store) as connection:
        number, kept = rounds.last_kept(connection, told.federation.study.study) or (0, None)
    assert kept is not None
    assert (number, kept.model) == (3, third.model_out)


def test_hospitals_are_asked_to_compare_with_the_model_that_the_round_began_with(told: Told) -> None:
    first, second, _ = told.records
    orders = told.federation.hospitals["h1"].heard(WorkOrder)
    asked = {(order.collection.round, order.collection.phase): order for order in orders}
    assert asked[1, "train"].before is None
    assert asked[1, "evaluate"].before == told.federation.study.model.first
    assert asked[2, "evaluate"].before == first.model_out == asked[3, "evaluate"].before
    assert asked[2, "evaluate"].model == second.tried


def test_everybody_is_told_and_signs_it(told: Told) -> None:
    federation, second = told.federation, told.records[1]
    closed = [event for event in trail(federation) if isinstance(event, RoundClosed)]
    assert second.tried is not None
    assert [event.tried for event in closed] == [None, second.tried.digest, None]
    said = receipt_of(second, federation.study.plan_digest)
    for silo, hospital in federation.hospitals.items():
        heard = {one.round: one for one in hospital.heard(RoundCommitted)}
        assert (heard[2].model, heard[2].tried) == (second.model_out, second.tried.digest)
        said.check(told.signed[silo], hospital.key.public)


def test_people_read_why_and_not_whose_change_it_was(told: Told) -> None:
    page = pages.round_page(told.federation.study, told.records[1])
    assert "rolled back to the model it began with: 2 of 3 hospitals found the new model worse" in page
    study = pages.study_page(told.federation.study, told.records[:2], None)
    assert "Rolled back: round 2." in study
    assert "Now: AUROC 1.000" in study, "of the model that counts"


def test_what_hospitals_carry_from_round_to_round_stays_as_it_was(told: Told) -> None:
    assert told.left == [b"of round 1", b"of round 1", b"of round 3"]


def test_one_hospital_against_it_is_not_enough(make: Made) -> None:
    first = run(make(voting(1, no_in(1)), voting(2, yes), voting(3, yes)), one_round)
    assert (first.rolled_back, first.vote) == (None, Vote(against=1, voted=3, rise=1.0))


def test_what_is_worse_for_most_and_better_for_all_together_counts(make: Made) -> None:
    works = voting(1, no_in(1)), voting(2, no_in(1)), voting(3, lambda _: (0.0, 1.0, -4.25))
    first = run(make(*works), one_round)
    assert (first.rolled_back, first.vote) == (None, Vote(against=2, voted=3, rise=-0.25))


def test_a_young_model_counts_whatever_the_votes_say(make: Made) -> None:
    against = [voting(n, no_in(1)) for n in (1, 2, 3)]
    first = run(make(*against, robustness=VOTE | {"warm_up": 1}), one_round)
    assert (first.rolled_back, first.vote) == (None, Vote(against=3, voted=3, rise=6.0))


def test_votes_that_cannot_be_bring_a_model_down(make: Made) -> None:
    """One agent that is not ours may stop a model so; it cannot have one counted against all others' votes unseen.

    Not in the first rounds either: those count whatever honest votes say.
    """
    works = voting(1, lambda _: (-5.0, 1.0, 0.0)), voting(2, yes), voting(3, yes)
    first = run(make(*works, robustness=VOTE | {"warm_up": 1}), one_round)
    assert (first.rolled_back, first.vote) == (RolledBack.VOTE_INVALID, None)


def test_nonsense_for_metrics_does_not_stop_a_study_that_votes(make: Made) -> None:
    def work(collection: Collection) -> tuple[np.ndarray, np.ndarray | None]:
        numbers, moved = voting(1, yes)(collection)
        return (np.array([-1e6] * MetricLayout(2).size + [0.0, 1.0, 0.0]), None) if moved is None else (numbers, moved)

    federation = make(work, voting(2, yes), voting(3, yes))
    first = run(federation, one_round)
    assert (first.metrics, first.rolled_back, first.vote) == (None, None, Vote(against=0, voted=3, rise=-1.0))
    assert "has no metrics" in pages.round_page(federation.study, first)


def test_rounds_that_are_all_rolled_back_begin_with_no_memory(make: Made) -> None:
    federation = make(voting(1, no_in(1)), voting(2, no_in(1)), voting(3, yes), **MOMENTUM)

    async def story(driver: StudyDriver) -> RoundRecord:
        await one_round(driver, 1)
        return await one_round(driver, 2)

    second = run(federation, story)
    assert weights(federation, second) == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3)), rel=EXACT)


def test_a_sum_longer_than_any_change_may_be_is_not_put_to_the_vote(make: Made) -> None:
    """Changes are at most 9 * sqrt(10) = 28.5 long; that of h2, which says it is -100 times as long, is in the sum."""
    works = [voting(1, yes), voting(2, yes, -100.0), voting(3, yes)]
    sums = {"quorum": 3, "delta_bound": 1000.0, "ready_minutes": 1.0}
    federation = make(*map(clipping, works), robustness=VOTE | {"clip": 30.0}, aggregation=sums)

    async def story(driver: StudyDriver) -> RoundRecord:
        work = driver.open_round(1)
        candidate = work.aggregate(await collect(work, "train", work.model_in))
        assert candidate.refused is RolledBack.TOO_LONG
        return work.commit(candidate, None, 0.0)

    record = run(federation, story)
    assert (record.rolled_back, record.vote, record.shortened) == (RolledBack.TOO_LONG, None, 0)
    assert record.update_norm == pytest.approx(np.sqrt(PARAMETERS) * abs(1 - 400 + 9) / 6, rel=EXACT)
    orders = federation.hospitals["h1"].heard(WorkOrder)
    assert [order.collection.phase for order in orders] == ["train"]
    assert "longer than the plan lets any hospital's be" in pages.round_page(federation.study, record)


def test_a_model_to_be_voted_on_is_not_committed_without_the_vote(make: Made) -> None:
    async def story(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        candidate = work.aggregate(await collect(work, "train", work.model_in))
        with pytest.raises(CallerFault, match="before it counts"):
            work.commit(candidate, None, 0.0)
        assert driver.records() == []

    run(make(*(voting(n, yes) for n in (1, 2, 3))), story)


def test_a_driver_that_died_between_vote_and_commit_comes_to_the_same(make: Made) -> None:
    federation = make(voting(1, no_in(1)), voting(2, no_in(1)), voting(3, yes))

    async def dies(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        candidate = work.aggregate(await collect(work, "train", work.model_in))
        work.measure(await collect(work, "evaluate", candidate.model))

    run(federation, dies)
    record = run(federation, one_round, driver="another")
    assert (record.rolled_back, record.vote) == (RolledBack.VOTED_DOWN, Vote(against=2, voted=3, rise=3.5))


def test_without_a_vote_numbers_that_are_no_metrics_are_an_error(make: Made) -> None:
    def blind(number: int) -> Work:
        def work(collection: Collection) -> tuple[np.ndarray, np.ndarray | None]:
            numbers, moved = work_of(number)(collection)
            return (numbers, moved) if moved is not None else (np.zeros(MetricLayout(2).size), None)

        return work

    with pytest.raises(NoImages):
        run(make(*(blind(n) for n in (1, 2, 3)), robustness={}), one_round)


def test_after_a_rollback_a_hospital_rests_and_all_are_told_of_it(tmp_path: Path) -> None:
    works = {f"h{n}": voting(n, no_in(1)) for n in range(1, 5)}
    changes = {"robustness": VOTE | {"leave_out": True}, "training": {"rounds": 3, "weighting": "equal"}}
    federation = make_federation(tmp_path, works, parameters=PARAMETERS, changes=changes, rounds=3)

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        return [await one_round(driver, 1), await one_round(driver, 2)]

    first, second = run(federation, story)
    assert (first.rolled_back, first.not_drawn) == (RolledBack.VOTED_DOWN, ())
    out = resting(federation.plan, [True])
    assert (set(second.not_drawn), len(out)) == (out, 1)
    assert second.rolled_back is None
    assert not set(second.contributing) & out
    assert second.evaluate is not None
    assert set(second.evaluate.members) == set(works), "who rests still votes"
    events = [event for event in trail(federation) if isinstance(event, HospitalsDrawn)]
    assert [(event.round, set(event.resting)) for event in events] == [(2, out)]
    federation.close()

"""Rounds with a sample of the hospitals, and with updates that come too late, through real masks and journals."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.drawing import drawn
from compliance.events import HospitalsDrawn
from compliance.records import RoundRecord
from compliance.trail import read_leaf
from flows import pages
from flows.driver import StudyDriver
from infra.driving import EXACT, PARAMETERS, attempts, collect, one_round, run, trail, train_only, weights, work_of
from infra.federation import SimulatedFederation, make_federation

SOON = 0.02  # minutes of grace: 1.2 s, in which all that are there are ready


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., SimulatedFederation]]:
    made: list[SimulatedFederation] = []

    def make(of: int, rounds: int = 3, **selection: Any) -> SimulatedFederation:
        works = {f"h{n}": work_of(n) for n in range(1, of + 1)}
        training = {"rounds": rounds, "weighting": "declared"}
        changes = {"selection": selection, "training": training}
        made.append(make_federation(tmp_path / f"home-{len(made)}", works, parameters=PARAMETERS, changes=changes))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


def draw_of(federation: SimulatedFederation, number: int, count: int = 3, **how: Any) -> tuple[str, ...]:
    return drawn(federation.study.plan_digest, number, federation.hospitals, count, **how)


def trained(federation: SimulatedFederation, silo: str) -> list[int]:
    return [int(one.split("/")[1]) for one in federation.hospitals[silo].worked if "/train/" in one]


def moved(change: np.ndarray[Any, Any]) -> Any:
    return pytest.approx(np.full(PARAMETERS, change), rel=EXACT)


def mean(*parts: tuple[int, float]) -> float:
    """Hospital n with weight n times a factor moves by n."""
    return sum(n * n * factor for n, factor in parts) / sum(n * factor for n, factor in parts)


# --- a sample ----------------------------------------------------------------------------------------
def test_only_those_that_are_drawn_train_all_evaluate_and_the_others_are_not_absent(make: Any) -> None:
    federation = make(5, hospitals=3)

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        return [await one_round(driver, 1), await train_only(driver, 2)]

    before, evaluated = 0.0, list[int]()
    for record in run(federation, story):
        chosen = draw_of(federation, record.round)
        assert record.contributing == chosen
        assert (record.absent, record.is_partial) == ({}, False)
        assert record.not_drawn == tuple(sorted(set(federation.hospitals) - set(chosen)))
        before += mean(*((int(silo[1:]), 1.0) for silo in chosen))
        assert weights(federation, record) == moved(before)
        if record.metrics is not None:
            evaluated.append(record.metrics.count)
        page = pages.round_page(federation.study, record)
        assert f"| {record.not_drawn[0]} | not drawn |" in page
        assert pages.counts(record) == "5 registered, 2 not drawn, 3 ready, 3 contributing"
    assert evaluated == [2 * (1 + 2 + 3 + 4 + 5)], "drawn or not, everybody evaluates"
    for silo in federation.hospitals:
        assert trained(federation, silo) == [number for number in (1, 2) if silo in draw_of(federation, number)]
    said = [event for event in trail(federation) if isinstance(event, HospitalsDrawn)]
    assert [event.drawn for event in said] == [draw_of(federation, 1), draw_of(federation, 2)]


def test_a_driver_that_takes_over_asks_those_who_were_asked_whoever_has_approved_since(make: Any) -> None:
    federation = make(5, hospitals=3)
    latecomer = draw_of(federation, 1)[0]  # would displace somebody
    federation.hospitals[latecomer].silence()
    others = [silo for silo in federation.hospitals if silo != latecomer]
    first = drawn(federation.study.plan_digest, 1, others, 3)

    async def order(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        async with work.collecting("train", work.model_in):
            federation.hospitals[latecomer].speak()
            await driver.consent_of(latecomer)

    async def two(driver: StudyDriver) -> tuple[RoundRecord, RoundRecord]:
        return await train_only(driver, 1), await train_only(driver, 2)

    run(federation, order, "first driver")
    one, second = run(federation, two, "second driver")
    assert one.contributing == first
    assert one.not_drawn == tuple(sorted(set(federation.hospitals) - set(first)))
    assert second.contributing == draw_of(federation, 2)
    said = [event for event in trail(federation) if isinstance(event, HospitalsDrawn)]
    assert [(event.round, latecomer in event.consenting) for event in said] == [(1, False), (2, True)]


def test_who_is_to_rest_is_left_out_while_a_quorum_of_others_remains(make: Any) -> None:
    federation = make(4)
    resting = frozenset({"h1"})

    async def story(driver: StudyDriver) -> RoundRecord:
        work = replace(driver.open_round(1), without=resting)
        work, candidate = await attempts(work, "train", work.model_in, type(work).aggregate)
        return work.commit(candidate, None, 0.0)

    record = run(federation, story)
    assert (record.contributing, record.not_drawn) == (("h2", "h3", "h4"), ("h1",))
    assert next(event for event in trail(federation) if isinstance(event, HospitalsDrawn)).resting == ("h1",)


# --- too late ----------------------------------------------------------------------------------------
def test_what_comes_too_late_is_in_the_next_sum_once_and_weighs_less(make: Any) -> None:
    """The hospital is killed between the two rounds, and the second one is tried twice."""
    federation = make(4, hospitals=3, over=1, grace_minutes=SOON, late="next-round", staleness=1.0)
    federation.hospitals["h4"].dawdle(1)

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        first = await train_only(driver, 1)
        federation.hospitals["h4"].restart()
        lost = {"h1", "h2"}
        for silo in lost:
            federation.hospitals[silo].fall_silent_before("shares")
        federation.when_silent(lost, lambda hospital: hospital.restart())
        return [first, await train_only(driver, 2), await train_only(driver, 3)]

    first, second, third = run(federation, story)
    assert (first.train.reason, first.absent) == ("WANTED_THERE", {"h4": "NOT_NEEDED"})
    assert not first.is_partial
    assert [record.late for record in (first, second, third)] == [0, 1, 0]
    assert [record.train.attempt for record in (first, second, third)] == [1, 2, 1]
    assert second.contributing == third.contributing == ("h1", "h2", "h3", "h4")
    after = [mean((1, 1), (2, 1), (3, 1)), mean((1, 1), (2, 1), (3, 1), (4, 0.5)), mean((1, 1), (2, 1), (3, 1), (4, 1))]
    for record, change in zip((first, second, third), np.cumsum(after), strict=True):
        assert weights(federation, record) == moved(change)
    assert second.train_loss == pytest.approx(2.0)
    assert trained(federation, "h4") == [1, 3], "nothing was trained for the round that got the late one"
    assert "1 of the 4 changes is of an earlier round" in pages.round_page(federation.study, second)
    said = [read_leaf(leaf).event for leaf in federation.hospitals["h4"].journal.trail()]
    offered = [(event.made_in, event.round) for event in said if event.event == "late-update-offered"]
    assert offered == [(1, 2)]


def test_a_late_one_may_still_go_into_another_attempt_of_its_own_round_and_then_into_no_other(make: Any) -> None:
    federation = make(4, rounds=2, hospitals=3, over=1, grace_minutes=SOON, late="next-round", staleness=1.0)
    slow = federation.hospitals["h4"]
    slow.dawdle(1)

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        work = driver.open_round(1)
        async with work.collecting("train", work.model_in) as masked:
            await masked.close_cohort()
            decision = masked.decision
        assert decision is not None
        assert "h4" not in decision.members
        slow.slow_in.clear()
        failed = replace(work, opened=work.opened).give_up(_failed(work))
        candidate = failed.aggregate(await collect(failed, "train", failed.model_in))
        return [failed.commit(candidate, None, 0.0), await train_only(driver, 2)]

    first, second = run(federation, story)
    assert (first.train.attempt, first.late, first.contributing) == (2, 0, ("h1", "h2", "h3", "h4"))
    assert (second.late, second.contributing) == (0, ("h1", "h2", "h3", "h4"))
    assert trained(federation, "h4") == [1, 2]


def _failed(work: Any) -> Any:
    from flows.collecting import CollectionFailed
    from flows.engine import Reason

    return CollectionFailed(work.collection("train"), Reason.CANNOT_UNMASK)

"""Who is left out after rounds that were rolled back."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.plan import StudyPlan, parse_plan, study_id
from boundary.rotation import left_out, resting, resting_in_each
from infra import golden

SILOS = ("a", "b", "c", "d", "e")
STUDY = "study-00000000"


class Past(NamedTuple):
    rolled_back: bool
    without: frozenset[str]


def next_out(study: str, silos: Sequence[str], quorum: int, rolled_back: Sequence[bool]) -> frozenset[str]:
    each = list(left_out(study, silos, len(silos) - quorum, rolled_back))
    assert len(each) == len(rolled_back) + 1, "of every round so far, and of the next"
    return each[-1]


def played(rounds: int, spoilers: frozenset[str]) -> list[Past]:
    """Rounds that are rolled back unless all who spoil them are left out."""
    history: list[Past] = []
    for _ in range(rounds):
        without = next_out(STUDY, SILOS, 3, [past.rolled_back for past in history])
        history.append(Past(not spoilers <= without, without))
    return history


def test_nobody_is_left_out_before_a_round_was_rolled_back() -> None:
    assert next_out(STUDY, SILOS, 3, []) == frozenset()
    assert next_out(STUDY, SILOS, 3, [False] * 9) == frozenset()


@pytest.mark.parametrize("spoiler", SILOS)
def test_one_hospital_that_spoils_every_round_is_soon_out_and_asked_again_now_and_then(spoiler: str) -> None:
    history = played(40, frozenset({spoiler}))
    lost = [number for number, past in enumerate(history) if past.rolled_back]
    assert lost[0] == 0
    assert len([number for number in lost if number < 6]) <= 6
    found = next(number for number, past in enumerate(history) if past.without == {spoiler})
    assert found <= 5
    later = history[found:]
    assert sum(past.rolled_back for past in later) <= 1 + len(later) // len(SILOS)
    assert {past.without for past in later} == {frozenset({spoiler}), frozenset()}, "nobody else is left out any more"


def test_whoever_spoils_again_when_asked_again_is_out_for_twice_as_long() -> None:
    history = played(60, frozenset({SILOS[0]}))
    found = next(number for number, past in enumerate(history) if past.without == {SILOS[0]})
    asked = [number - found for number, past in enumerate(history) if number > found and not past.without]
    assert asked == [5, 5 + 1 + 10, 5 + 1 + 10 + 1 + 20]
    assert [history[found + place].rolled_back for place in asked] == [True] * 3


@pytest.mark.parametrize("spoilers", list(combinations(SILOS, 2)))
def test_so_are_two(spoilers: tuple[str, str]) -> None:
    history = played(40, frozenset(spoilers))
    assert frozenset(spoilers) in {past.without for past in history[:17]}
    assert sum(past.rolled_back for past in history[17:]) <= 6


@given(
    count=st.integers(3, 12),
    spare=st.integers(0, 9),
    outcomes=st.lists(st.booleans(), max_size=60),
)
def test_the_quorum_is_always_left_and_the_same_past_gives_the_same_turn(
    count: int, spare: int, outcomes: list[bool]
) -> None:
    silos = tuple(f"h{n}" for n in range(count))
    quorum = max(3, count - spare)
    for end in range(len(outcomes)):
        without = next_out(STUDY, silos, quorum, outcomes[:end])
        assert without == next_out(STUDY, tuple(reversed(silos)), quorum, outcomes[:end])
        assert without <= set(silos)
        assert count - len(without) >= quorum
        assert len(without) <= 2


def test_another_study_has_another_order() -> None:
    assert len({next_out(f"study-{n}", SILOS, 3, [True]) for n in range(40)}) == len(SILOS)


def plan_of(*, leave_out: bool) -> StudyPlan:
    """Five hospitals, of which the last only validates."""
    said = golden.plan().model_dump(mode="json")
    said["hospitals"] = [
        {"silo": silo, "signing_key": golden.key(silo).public.text, "role": "validate" if silo == "e" else "train"}
        for silo in SILOS
    ]
    said["model"] |= {"home": []}
    said["training"]["weighting"] = "equal"
    return parse_plan(said | {"robustness": {"vote": True, "leave_out": leave_out}})


def test_a_plan_leaves_out_hospitals_that_train_if_it_says_so_and_as_many_as_its_quorum_can_spare() -> None:
    assert resting(plan_of(leave_out=False), [True] * 9) == frozenset()
    plan, undone = plan_of(leave_out=True), [True, True, False, True]
    each = list(resting_in_each(plan, undone))
    assert each == list(left_out(study_id(plan), ("d", "c", "b", "a"), 1, undone))
    assert [len(one) for one in each] == [0, 1, 1, 1, 1]
    assert resting(plan, undone) == each[-1]
    assert {silo for number in range(1, 9) for silo in resting(plan, [True] * number)} == {"a", "b", "c", "d"}

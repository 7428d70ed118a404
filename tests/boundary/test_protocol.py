"""A hospital's half of a collection: the table, and every pair that is not in it."""

from itertools import product

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import sampled_from

from boundary.errors import OutOfTurn
from boundary.protocol import FINAL, NEXT_STEP, Heard, Step, diagram, next_step

PAIRS = list(product(Step, Heard))
REFUSED = [pair for pair in PAIRS if pair not in NEXT_STEP]


@pytest.mark.parametrize(("step", "heard"), REFUSED)
def test_what_is_not_in_the_table_is_out_of_turn(step: Step, heard: Heard) -> None:
    with pytest.raises(OutOfTurn, match=f"{heard.value} while {step.value}"):
        next_step(step, heard)


@pytest.mark.parametrize(("step", "heard"), NEXT_STEP)
def test_what_is_in_the_table_leads_on(step: Step, heard: Heard) -> None:
    assert next_step(step, heard) is NEXT_STEP[step, heard] is not step


def test_the_refused_pairs_are_the_rest() -> None:
    assert len(NEXT_STEP) + len(REFUSED) == len(PAIRS) == 30
    assert len(REFUSED) == 18


def test_nothing_is_released_unless_the_cohort_closed_with_us_while_ready() -> None:
    roads = [pair for pair, step in NEXT_STEP.items() if step is Step.RELEASED]
    assert roads == [(Step.READY, Heard.CLOSED_WITH_US)]


def test_a_final_step_never_leads_back_to_work() -> None:
    for (step, _), to in NEXT_STEP.items():
        assert step not in FINAL or to in FINAL
    assert not [heard for step, heard in NEXT_STEP if step is Step.OVER]


def test_every_step_is_reached_and_ends() -> None:
    reached = {Step.WORKING} | set(NEXT_STEP.values())
    assert reached == set(Step)
    assert all((step, Heard.ROUND_OVER) in NEXT_STEP for step in set(Step) - {Step.OVER})


def test_the_diagram_is_drawn_from_the_table() -> None:
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> working: order accepted"]
    assert len(lines) == len(NEXT_STEP) + 2
    assert "    ready --> released: closed-with-us" in lines


class Hospital(RuleBasedStateMachine):
    """Whatever it hears, in whatever order, it releases at most once, and only after it was ready."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [Step.WORKING]

    @rule(heard=sampled_from(Heard))
    def hear(self, heard: Heard) -> None:
        try:
            self.path.append(next_step(self.path[-1], heard))
        except OutOfTurn:
            assert (self.path[-1], heard) not in NEXT_STEP

    @invariant()
    def released_once_and_after_ready(self) -> None:
        if Step.RELEASED in self.path:
            assert self.path[: self.path.index(Step.RELEASED) + 1] == [Step.WORKING, Step.READY, Step.RELEASED]
            assert self.path.count(Step.RELEASED) == 1


TestHospital = Hospital.TestCase
TestHospital.settings = settings(stateful_step_count=12)

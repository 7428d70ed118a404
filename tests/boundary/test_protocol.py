"""A hospital's half of a collection: the table, and every pair that is not in it."""

from itertools import pairwise, product

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import sampled_from

from boundary.errors import OutOfTurn
from boundary.protocol import FINAL, IN_MEMORY, NEXT_STEP, Heard, Step, diagram, next_step

PAIRS = list(product(Step, Heard))
ROAD = [Step.WORKING, Step.READY, Step.SHARED, Step.MASKED, Step.AGREED, Step.REVEALED]
ANSWERS = [
    Heard.DONE,
    Heard.COHORT_CLOSED,
    Heard.SHARES_ROUTED,
    Heard.SURVIVORS_NAMED,
    Heard.AGREEMENT_SHOWN,
]
TABLE = {  # what each step may hear, and where that leads: written out, not computed
    Step.WORKING: {Heard.DONE: "ready", Heard.CANNOT: "refused", Heard.WITHOUT_US: "left-out"},
    Step.READY: {Heard.COHORT_CLOSED: "shared", Heard.CANNOT: "refused", Heard.WITHOUT_US: "left-out"},
    Step.SHARED: {Heard.SHARES_ROUTED: "masked", Heard.CANNOT: "refused", Heard.WITHOUT_US: "left-out"},
    Step.MASKED: {Heard.SURVIVORS_NAMED: "agreed", Heard.CANNOT: "refused", Heard.WITHOUT_US: "left-out"},
    Step.AGREED: {Heard.AGREEMENT_SHOWN: "revealed", Heard.CANNOT: "refused"},
    Step.REVEALED: {},
    Step.LEFT_OUT: {},
    Step.REFUSED: {Heard.WITHOUT_US: "left-out"},
    Step.OVER: {},
}


@pytest.mark.parametrize(("step", "heard"), PAIRS)
def test_each_pair_leads_where_the_table_says_or_is_out_of_turn(step: Step, heard: Heard) -> None:
    after = TABLE[step].get(heard)
    if heard is Heard.ROUND_OVER and step is not Step.OVER:
        after = "over"
    if after is None:
        with pytest.raises(OutOfTurn, match=f"^{heard.value} while {step.value}$"):
            next_step(step, heard)
    else:
        assert next_step(step, heard) is Step(after) is not step


def test_nothing_is_in_the_table_twice_or_nowhere() -> None:
    assert len(PAIRS) == 9 * 8
    assert len(NEXT_STEP) == sum(map(len, TABLE.values())) + len(Step) - 1 == 23


@pytest.mark.parametrize(("before", "after"), list(pairwise(ROAD)))
def test_there_is_one_way_to_each_step_of_a_sum(before: Step, after: Step) -> None:
    """So no vector leaves before its shares are dealt, and no share is revealed before we agreed on survivors."""
    assert [pair for pair, step in NEXT_STEP.items() if step is after] == [(before, ANSWERS[ROAD.index(before)])]


def test_who_agreed_on_survivors_cannot_be_left_out_any_more() -> None:
    with pytest.raises(OutOfTurn):
        next_step(Step.AGREED, Heard.WITHOUT_US)


def test_a_restart_forgets_the_secrets_of_the_steps_between_ready_and_revealed() -> None:
    assert set(ROAD[1:-1]) == IN_MEMORY
    assert not IN_MEMORY & FINAL


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
    assert len(lines) == sum(map(len, TABLE.values())) + 3
    assert "    ready --> shared: cohort closed with us" in lines
    assert lines[-1] == "    note right of over: from every step, when the round is over"
    assert not [line for line in lines if "--> over" in line]


class Hospital(RuleBasedStateMachine):
    """Whatever it hears, in whatever order, it goes the one road, without leaving out or repeating a step."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [Step.WORKING]

    @rule(heard=sampled_from([*ANSWERS, *ANSWERS, *Heard]))
    def hear(self, heard: Heard) -> None:
        try:
            self.path.append(next_step(self.path[-1], heard))
        except OutOfTurn:
            assert (self.path[-1], heard) not in NEXT_STEP

    @rule()
    def hear_what_leads_on(self) -> None:
        if self.path[-1] in ROAD[:-1]:
            self.hear(ANSWERS[ROAD.index(self.path[-1])])

    @invariant()
    def the_road_is_gone_step_by_step(self) -> None:
        gone = [step for step in self.path if step not in FINAL]
        assert gone == ROAD[: len(gone)]
        assert self.path[: len(gone)] == gone


TestHospital = Hospital.TestCase
TestHospital.settings = settings(stateful_step_count=12)

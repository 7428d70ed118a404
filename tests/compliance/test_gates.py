"""The law of the gates, over lists of entries: what it lets pass, what it does not, and what it leaves open."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance.events import (
    ContributionReleased,
    Event,
    GateRefused,
    GatesPassed,
    LateUpdateOffered,
    PolicyAdopted,
    TrainingStarted,
    WorkDone,
)
from compliance.gates import GATES, Passage, adoption_faults, passages
from infra.golden import sha
from silo_agent.policy import gates as asked_by_the_agent

STUDY = "ct-contrast-01234567"


def about(number: int = 1, phase: str = "train", order: str = "first") -> dict[str, Any]:
    return {"study": STUDY, "round": number, "phase": phase, "order": sha(order)}


def adopted(number: int = 1, policy: str = "policy", how: str = "signed") -> PolicyAdopted:
    return PolicyAdopted.model_validate({"number": number, "policy": sha(policy), "how": how})


def passed(policy: str = "policy", gates: tuple[str, ...] = GATES, **work: Any) -> GatesPassed:
    return GatesPassed(**about(**work), policy=sha(policy), gates=gates)


def refused(**work: Any) -> GateRefused:
    return GateRefused(**about(**work), policy=sha("policy"), gate="hours", code="OUT_OF_HOURS")


def started(**work: Any) -> TrainingStarted:
    return TrainingStarted(**about(**work), start=1)


def done(**work: Any) -> WorkDone:
    return WorkDone(**about(**work))


def sent(number: int = 1) -> ContributionReleased:
    return ContributionReleased(
        study=STUDY, round=number, phase="train", attempt=1, sharers=sha("sharers"), vector=sha("vector"), size=9
    )


def judged(events: Iterable[Event], hidden: Iterable[int] = ()) -> list[Passage]:
    """The log with some of its entries, from 1, as hashes."""
    away = sorted(hidden)
    return list(passages([one for one in enumerate(events, start=1) if one[0] not in away], away))


def faults(events: Iterable[Event], hidden: Iterable[int] = ()) -> list[str | None]:
    return [one.fault for one in judged(events, hidden)]


def test_the_gates_are_those_that_the_agent_asks() -> None:
    assert tuple(name for name, _ in asked_by_the_agent.GATES) == GATES


# --- one start ---------------------------------------------------------------------------------------
GOOD: dict[str, list[Event]] = {
    "asked and begun": [adopted(), passed(), started(), done(), sent()],
    "asked twice: the agent was killed before it began": [adopted(), passed(), passed(), started()],
    "refused, then allowed": [adopted(), refused(), passed(), started()],
    "refused after it began": [adopted(), passed(), started(), refused()],
    "another work was refused between": [adopted(), passed(), refused(phase="evaluate"), refused(number=2), started()],
    "begun again": [adopted(), passed(), started(), passed(), started()],
    "another attempt": [adopted(), passed(), started(), passed(order="second"), started(order="second"), done()],
    "under a newer policy": [adopted(), adopted(2, "tighter", "tightened"), passed("tighter"), started()],
    "a result that is kept, for another attempt": [adopted(), passed(), started(), done(), done(order="second")],
    "all phases": [
        adopted(), *(one(number=1, phase=phase) for phase in ("statistics", "train", "evaluate") for one in
                     (passed, started, done)),
    ],
}  # fmt: skip

NONE = "no gates were passed for this start"
POLICY = "its gates were passed under a policy that was not the one adopted last"
ORDER = "its gates were passed for another order"
NOT_ALL = "its gates are not all there are, in their order"
NO_START = "it was done, and no start of it is told"
BAD: dict[str, tuple[list[Event], str]] = {
    "a training without gates": ([adopted(), started()], NONE),
    "gates after the start": ([adopted(), started(), passed()], NONE),
    "gates of another round": ([adopted(), passed(number=2), started()], NONE),
    "gates of another phase": ([adopted(), passed(phase="evaluate"), started()], NONE),
    "gates of another order": ([adopted(), passed(order="second"), started()], ORDER),
    "gates of the start before": ([adopted(), passed(), started(), started()], NONE),
    "one gate missing": ([adopted(), passed(gates=GATES[1:]), started()], NOT_ALL),
    "another order of gates": (
        [adopted(), passed(gates=(*GATES[1:], GATES[0])), started()], NOT_ALL,
    ),
    "a gate twice": ([adopted(), passed(gates=(*GATES, "hours")), started()], NOT_ALL),
    "a refusal between": ([adopted(), passed(), refused(), started()], "the gate hours had refused it"),
    "a refusal of another attempt between": (
        [adopted(), passed(), refused(order="second"), started()], "the gate hours had refused it",
    ),
    "an older policy": ([adopted(), adopted(2, "tighter"), passed(), started()], POLICY),
    "a policy adopted meanwhile": ([adopted(), passed(), adopted(2, "tighter"), started()], POLICY),
    "a policy adopted after it was asked": ([passed(), adopted(), started()], POLICY),
    "no policy adopted": ([passed(), started()], POLICY),
    "done and never begun": ([adopted(), passed(), done(), sent()], NO_START),
    "sent and never begun": ([adopted(), sent()], NO_START),
}  # fmt: skip


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD)
def test_what_was_asked_in_time_may_begin(events: list[Event]) -> None:
    found = judged(events)
    assert found
    assert all(one.fault is None and one.is_sure for one in found)


@pytest.mark.parametrize(("events", "fault"), BAD.values(), ids=BAD)
def test_what_was_not_asked_is_found(events: list[Event], fault: str) -> None:
    *_, found = judged(events)
    assert (found.fault, found.is_sure) == (fault, True)


def offered(order: str = "first") -> LateUpdateOffered:
    return LateUpdateOffered(study=STUDY, round=2, made_in=1, order=sha(order))


def test_what_an_earlier_round_made_is_offered_behind_gates_of_its_own() -> None:
    begun = [adopted(), passed(), started()]
    asked = [*begun, passed(number=2), offered(), done(number=2), sent(number=2)]
    assert faults(asked) == [None, None]
    assert faults([*begun, offered(), done(number=2)]) == [None, "no gates were passed for this start"]
    another = [*begun, passed(number=2), offered("another")]
    assert faults(another) == [None, "its gates were passed for another order"]


def test_work_that_never_began_is_told_once() -> None:
    assert [one.number for one in judged([adopted(), done(), sent(), sent(number=2), done()])] == [2, 4]


def test_a_passage_names_the_entries_that_it_rests_on() -> None:
    (found,) = judged([adopted(), refused(phase="evaluate"), passed(), started(), done()])
    assert (found.number, found.round, found.phase, found.rests_on) == (4, 1, "train", (1, 3))
    assert judged([started()])[0].rests_on == judged([done()])[0].rests_on == ()


def test_the_entries_may_be_handed_over_in_any_order() -> None:
    events: list[tuple[int, Event]] = [(3, started()), (1, adopted()), (2, passed())]
    assert [one.fault for one in passages(events, ())] == [None]


# --- what is not shown -------------------------------------------------------------------------------
def test_a_hidden_entry_leaves_open_only_what_it_may_change() -> None:
    log = [adopted(), done(number=9), passed(), done(number=9), started()]
    assert (faults(log, [1])[-1], judged(log, [1])[-1].is_sure) == (POLICY, False)
    assert (faults(log, [3])[-1], judged(log, [3])[-1].is_sure) == (NONE, False)
    assert faults(log, [4])[-1] == "an entry between its gates and its start is not shown"
    assert judged(log, [2])[-1] == judged(log)[-1], "what stands before the gates does not count"


def test_a_hidden_entry_before_a_refusal_changes_nothing() -> None:
    log: list[Event] = [adopted(), passed(), refused(), started()]
    assert judged(log, [2])[0].is_sure
    assert judged([done(number=9), refused(), started()], [1])[0].is_sure
    assert not judged([*log[:3], passed(), started()], [4])[0].is_sure


def test_a_hidden_entry_before_the_last_start_changes_nothing_for_the_next() -> None:
    log: list[Event] = [adopted(), passed(), started(), started()]
    assert [one.is_sure for one in judged([adopted(), done(number=9), *log[1:]], [2])] == [True, True]


def test_a_start_may_be_among_what_is_hidden_before_its_result() -> None:
    log: list[Event] = [adopted(), passed(), started(), done()]
    assert [(one.fault, one.is_sure) for one in judged(log, [3])] == [(NO_START, False)]
    assert [(one.fault, one.is_sure) for one in judged([done(), started()], [2])] == [(NO_START, True)]


# --- the law -----------------------------------------------------------------------------------------
POLICIES, ORDERS, ROUNDS = ("policy", "tighter"), ("first", "second"), (1, 2)
WORK = st.fixed_dictionaries({"number": st.sampled_from(ROUNDS), "order": st.sampled_from(ORDERS)})
ANY_EVENT = st.one_of(
    st.builds(adopted, st.integers(1, 9), st.sampled_from(POLICIES)),
    st.builds(
        lambda policy, gates, work: passed(policy, gates, **work),
        st.sampled_from(POLICIES), st.sampled_from((GATES, GATES, GATES[1:])), WORK,
    ),
    WORK.map(lambda work: refused(**work)),
    WORK.map(lambda work: started(**work)),
)  # fmt: skip


def is_lawful(log: list[Event], at: int) -> bool:
    """The law as a sentence: some gates of this very order hold from their entry up to the start."""
    start = log[at]
    assert isinstance(start, TrainingStarted)

    def holds(asked: int) -> bool:
        gates, between = log[asked], log[asked + 1 : at]
        force = [one for one in log[:asked] if isinstance(one, PolicyAdopted)][-1:]
        return (
            isinstance(gates, GatesPassed)
            and (gates.round, gates.order, gates.gates) == (start.round, start.order, GATES)
            and [one.policy for one in force] == [gates.policy]
            and not any(isinstance(one, PolicyAdopted) for one in between)
            and not any(getattr(one, "round", None) == start.round for one in between)
        )

    return any(holds(asked) for asked in range(at))


@given(st.lists(ANY_EVENT, max_size=14))
def test_a_start_passes_exactly_if_the_law_says_so(log: list[Event]) -> None:
    found = {one.number: one.fault is None for one in judged(log)}
    assert found == {at + 1: is_lawful(log, at) for at, one in enumerate(log) if isinstance(one, TrainingStarted)}


@given(st.lists(ANY_EVENT, max_size=14), st.sets(st.integers(1, 14)))
def test_what_is_hidden_neither_mends_nor_breaks_a_start(log: list[Event], hidden: set[int]) -> None:
    """No start that was not asked about passes, and none that was is told to be wrong for sure."""
    away = {number for number in hidden if number <= len(log) and not isinstance(log[number - 1], PolicyAdopted)}
    whole = {one.number: one.fault is None for one in judged(log)}
    for one in judged(log, away):
        if one.fault is None:
            assert whole[one.number]
        elif one.is_sure:
            assert not whole[one.number]


# --- policies ----------------------------------------------------------------------------------------
ADOPTED: dict[str, tuple[list[PolicyAdopted], list[int]]] = {
    "one after the other": ([adopted(), adopted(2, "b", "tightened"), adopted(3, "c")], []),
    "numbers that the agent did not see": ([adopted(4, "d", "tightened"), adopted(7, "g")], []),
    "an older one came back": ([adopted(), adopted(3, "c"), adopted(2, "b"), adopted(4, "d")], [3]),
    "an older one came back, and the newest again": (
        [adopted(), adopted(3, "c"), adopted(2, "b"), adopted(3, "c")],
        [3, 4],
    ),
    "a number twice": ([adopted(), adopted(1, "b")], [2]),
    "the first by one signature": ([adopted(how="tightened")], [1]),
}


@pytest.mark.parametrize(("log", "expected"), ADOPTED.values(), ids=ADOPTED)
def test_policies_replace_each_other_upwards(log: list[PolicyAdopted], expected: list[int]) -> None:
    assert [number for number, _ in adoption_faults(enumerate(log, start=1))] == expected

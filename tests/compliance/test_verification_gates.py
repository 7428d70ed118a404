"""The gates in a bundle: what is broken, what is incomplete, and what only the hospital can look at."""

from collections.abc import Callable

import pytest

from boundary.names import COORDINATOR
from compliance.events import AnyEvent, GatesPassed, PolicyAdopted, RoundClosed, TrainingStarted
from compliance.verification.findings import Severity
from compliance.verification.gates import gates
from infra.golden import sha
from tests.compliance.made_study import made_bundle, made_plan, plain_plan, policy_of
from tests.compliance.verification_cases import changed, clean_bundle, dropped, finds, hidden, retold, unlogged

BROKEN, INCOMPLETE, NOTE = Severity


def of_training(event: GatesPassed) -> bool:
    return (event.round, event.phase) == (4, "train")


FORGED: dict[str, tuple[Callable[..., list[AnyEvent]], str]] = {
    "a training without gates": (dropped(GatesPassed, of_training), "no gates were passed for this start"),
    "gates of another round": (changed(GatesPassed, of_training, round=5), "no gates were passed for this start"),
    "gates under an older policy": (
        changed(GatesPassed, of_training, policy=policy_of("ucl", 1)), "a policy that was not the one adopted last",
    ),
    "one gate missing": (changed(GatesPassed, of_training, gates=("signature",)), "its gates are not all there are"),
    "gates of another order": (changed(GatesPassed, of_training, order=sha("x")), "passed for another order"),
    "work without a start": (dropped(TrainingStarted, of_training), "it was done, and no start of it is told"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "said"), FORGED.values(), ids=FORGED)
def test_a_work_that_the_policy_was_not_asked_about_is_broken(edit: Callable[..., list[AnyEvent]], said: str) -> None:
    found = finds(gates, retold("ucl", edit))
    assert list(found) == [BROKEN]
    (line,) = found[BROKEN]
    assert line.startswith("ucl, entry ")
    assert said in line.partition("round 4, train: ")[2]


def test_a_study_whose_policies_were_asked_is_as_it_should_be() -> None:
    assert finds(gates, clean_bundle()) == finds(gates, made_bundle(plain_plan())) == {}
    assert finds(gates, unlogged(clean_bundle(), "ucl")) == {}, "a log that is missing is told with the entries"


def test_an_old_policy_that_came_back_is_broken_even_where_gates_are_not_shown() -> None:
    back = retold("ucl", changed(PolicyAdopted, number=2), made_bundle(made_plan(disclose=())))
    assert "policy number 2 was adopted after number 2" in finds(gates, back)[BROKEN][0]


def test_what_may_be_among_the_entries_that_are_not_shown_is_incomplete() -> None:
    found = finds(gates, hidden(clean_bundle(), "ucl", GatesPassed))
    assert list(found) == [INCOMPLETE]
    assert len(found[INCOMPLETE]) == 9, "five trainings, and four evaluations: ucl dropped out of round 2"


def test_what_the_plan_does_not_show_is_noted_for_those_that_worked() -> None:
    bundle = made_bundle(made_plan(disclose=()))
    assert len(finds(gates, bundle)[NOTE]) == 5
    assert "ucl: its gates are not shown by the plan" in finds(gates, bundle)[NOTE]
    assert finds(gates, retold(COORDINATOR, dropped(RoundClosed), bundle)) == {}

"""What an agent says of who was asked to train: held against the plan's draw, and whose turn it is to rest."""

import logging
from typing import Any

import pytest

from boundary.canonical import digest
from boundary.drawing import drawn
from boundary.messages import CohortClosed, Collection
from boundary.parties import trainers
from boundary.plan import StudyPlan, digest_of, study_id
from boundary.rotation import resting
from compliance.events import RoundReceived
from silo_agent.draw import resting_in, sentences, tell_draw

VOTES = {"vote": True, "leave_out": True}


@pytest.fixture
def plan(site: Any, make_plan_for: Any) -> StudyPlan:
    made: StudyPlan = make_plan_for(site.cards, robustness=VOTES, training__weighting="equal")
    return made


def told(site: Any, plan: StudyPlan, *undone: bool, first: int = 1) -> None:
    """Rounds from `first` on, of which these were rolled back."""
    for number, was in enumerate(undone, first):
        said = RoundReceived(
            study=study_id(plan), round=number, model=digest(b"model"), tried=digest(b"tried") if was else None,
            transcript=digest(b"sum"), contributing=trainers(plan), absent=(),
        )  # fmt: skip
        with site.journal.transaction():
            site.journal.record(said, site.now)


def test_whose_turn_it_is_follows_from_what_we_were_told(site: Any, plan: StudyPlan, make_plan_for: Any) -> None:
    assert resting_in(site.journal, plan, 1) == frozenset()
    told(site, plan, False, True)
    assert resting_in(site.journal, plan, 2) == frozenset()
    assert resting_in(site.journal, plan, 3) == resting(plan, [False, True]) != frozenset()
    assert resting_in(site.journal, plan, 4) is None, "nobody told us of round 3"
    assert resting_in(site.journal, make_plan_for(site.cards, revision=2), 4) == frozenset()


def test_who_approves_late_was_not_told_of_all_rounds(site: Any, plan: StudyPlan) -> None:
    told(site, plan, True, first=2)
    assert resting_in(site.journal, plan, 3) is None
    assert sentences(plan, 3, trainers(plan)[1:], None) == [
        f"was drawn without {trainers(plan)[0]}: not approved there, or resting"
    ]


def test_all_as_the_plan_has_it_is_nothing_to_speak_of(plan: StudyPlan) -> None:
    assert sentences(plan, 3, trainers(plan), frozenset()) == []


def test_who_is_not_asked_is_named_with_the_reason(plan: StudyPlan) -> None:
    first, second, *others = trainers(plan)
    rests = frozenset({first})
    assert sentences(plan, 3, (second, *others), rests) == [
        f"goes without {first}, whose turn it is to rest after a rollback"
    ]
    assert sentences(plan, 3, trainers(plan), rests) == [
        f"asks {first}, whose turn it is to rest: that is not what the plan says"
    ]
    assert sentences(plan, 3, (first, *others), rests) == [f"was drawn without {second}: not approved there"], (
        "a quorum has to be left"
    )


def test_a_draw_names_those_whose_lot_came_first(site: Any, make_plan_for: Any) -> None:
    plan = make_plan_for(site.cards, selection={"hospitals": 3}, training__weighting="equal")
    rightly = drawn(digest_of(plan), 2, trainers(plan), 3)
    assert sentences(plan, 2, rightly, frozenset()) == []
    (left,) = set(trainers(plan)) - set(rightly)
    assert any(sentences(plan, 2, {left, *rightly} - {silo}, frozenset()) for silo in rightly)


def test_the_log_has_it_of_a_training_and_of_nothing_else(
    site: Any, plan: StudyPlan, caplog: pytest.LogCaptureFixture
) -> None:
    told(site, plan, True)
    (out,) = resting(plan, [True])
    members = tuple(silo for silo in trainers(plan) if silo != out)
    with caplog.at_level(logging.INFO, "silo_agent.draw"):
        for phase in ("evaluate", "train"):
            closed = CohortClosed.model_construct(
                collection=Collection(study=study_id(plan), round=2, phase=phase), order=digest(b"order"),
                members=members, absent=(), ready=(),
            )  # fmt: skip
            tell_draw(site.journal, closed, plan)
    assert [record.message.partition(" ")[2] for record in caplog.records] == [
        f"goes without {out}, whose turn it is to rest after a rollback"
    ]

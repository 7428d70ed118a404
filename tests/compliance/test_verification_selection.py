"""Checks of who was drawn and of late updates: what the plan's draw and its lateness allow, and ways around them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from boundary.canonical import digest
from boundary.drawing import drawn
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, parse_plan, study_id, to_json
from boundary.rotation import resting
from compliance.bundle import Bundle, LogCopy
from compliance.events import (
    AnyEvent,
    CohortDecided,
    ContributionReleased,
    HospitalsDrawn,
    LateUpdateOffered,
    PlanApprovalGiven,
    PlanDeclineGiven,
    RosterTrusted,
    RoundClosed,
    WorkDone,
)
from compliance.verification import selection
from compliance.verification.case import Check
from compliance.verification.findings import Severity
from infra.golden import sha
from tests.compliance.made_study import SILOS, plain_plan
from tests.compliance.verification_cases import appended, clean_bundle, finds, unlogged

BROKEN, INCOMPLETE, NOTE = Severity
DRAWS, LATE = {"hospitals": 3, "over": 1}, {"late": "next-round", "most_stale": 2}


@cache
def plan_of(**section: Any) -> StudyPlan:
    said = json.loads(to_json(plain_plan()))
    said["training"] |= {"strategy": "fedavg", "weighting": "equal"}
    return parse_plan(said | {"selection": section})


def told(plan: StudyPlan, **logs: list[AnyEvent]) -> Bundle:
    """A bundle about this plan whose logs say exactly this."""
    clean = clean_bundle()
    empty = {party: LogCopy(party=party, entries=(), heads=(), cosignatures={}) for party in (COORDINATOR, *SILOS)}
    trusted = RosterTrusted(roster_version=1, roster_digest=sha("roster"))
    copies = {party: appended(log, trusted, *logs.get(party, [])) for party, log in empty.items()}
    return replace(clean, study=study_id(plan), plan=plan, logs=copies, receipts={}, rounds=())


def story(plan: StudyPlan, **changes: Any) -> list[AnyEvent]:
    """An honest coordinator: approvals, the draw of round 5, its cohort."""
    study, plan_digest = study_id(plan), digest_of(plan)
    given = [
        PlanApprovalGiven(study=study, plan_digest=plan_digest, silo=silo, dataset_digest=sha(silo)) for silo in SILOS
    ]
    chosen = drawn(plan_digest, 5, SILOS, plan.selection.most_asked)
    draw: dict[str, Any] = {"study": study, "round": 5, "attempt": 1, "consenting": SILOS, "resting": ()}
    draw |= {"drawn": chosen} | changes
    cohort = CohortDecided(
        study=study, round=5, phase="train", attempt=1, members=chosen[1:], absent=chosen[:1], reason="WANTED_THERE"
    )
    evaluated = cohort.model_copy(update={"phase": "evaluate", "members": SILOS, "absent": ()})
    return [*given, HospitalsDrawn(**draw), cohort, evaluated]


def only(check: Check, bundle: Bundle, severity: Severity, said: str) -> None:
    found = finds(check, bundle)
    assert list(found) == [severity], found
    assert any(said in line for line in found[severity]), found


# --- the draw ----------------------------------------------------------------------------------------
def test_an_honest_draw_has_nothing_to_find() -> None:
    plan = plan_of(**DRAWS)
    assert finds(selection.draws, told(plan, coordinator=story(plan))) == {}
    assert finds(selection.draws, unlogged(told(plan), COORDINATOR)) == {}
    assert finds(selection.draws, told(plan_of(), coordinator=story(plan_of())[:-3] + story(plan_of())[-2:])) == {}


def leaving_out(*, leave_out: bool = True) -> StudyPlan:
    said = json.loads(to_json(plan_of(**DRAWS)))
    return parse_plan(said | {"robustness": {"vote": True, "leave_out": leave_out}})


def closed(plan: StudyPlan, *undone: int, numbers: Iterable[int] = range(1, 5)) -> list[AnyEvent]:
    """Rounds that are over, of which these were rolled back."""
    return [
        RoundClosed(
            study=study_id(plan), round=number, model_in=sha("m"), model_out=sha("m"),
            tried=sha("t") if number in undone else None, contributing=SILOS, absent=(), record=sha("r"),
        )
        for number in numbers
    ]  # fmt: skip


def rested(plan: StudyPlan, *names: str) -> list[AnyEvent]:
    """Round 5 drawn without these."""
    chosen = drawn(digest_of(plan), 5, SILOS, 4, without=frozenset(names), least=3)
    events = story(plan, resting=tuple(sorted(names)), drawn=chosen)
    events[-2] = events[-2].model_copy(update={"members": chosen, "absent": ()})
    return events


def test_who_rests_after_a_rollback_is_whose_turn_it_is() -> None:
    plan = leaving_out()
    (out,) = resting(plan, [False, False, False, True])
    other = next(silo for silo in SILOS if silo != out)
    undone = closed(plan, 4)
    assert finds(selection.draws, told(plan, coordinator=[*undone, *rested(plan, out)])) == {}
    for names, said in {
        (other,): f"was drawn without {other}, to rest",
        (): f"was drawn with {out}, whose turn it was to rest",
        (out, other): f"was drawn without {other}, to rest",
    }.items():
        only(selection.draws, told(plan, coordinator=[*undone, *rested(plan, *names)]), BROKEN, said)
    untold = [event for event in rested(plan, out) if not isinstance(event, HospitalsDrawn)]
    only(selection.draws, told(plan, coordinator=[*undone, *untold]), BROKEN, "nothing tells whom the draw gave")


def test_nobody_rests_without_a_rollback_or_where_the_plan_leaves_nobody_out() -> None:
    for plan, undone in ((leaving_out(), ()), (leaving_out(leave_out=False), (4,))):
        assert finds(selection.draws, told(plan, coordinator=[*closed(plan, *undone), *rested(plan)])) == {}
        bundle = told(plan, coordinator=[*closed(plan, *undone), *rested(plan, SILOS[0])])
        only(selection.draws, bundle, BROKEN, f"was drawn without {SILOS[0]}, to rest")


def test_without_a_draw_of_its_own_a_plan_that_leaves_out_tells_who_rested() -> None:
    """All train in every round but whose turn it is: a round in which somebody rests has its entry."""
    plan = parse_plan(json.loads(to_json(plan_of())) | {"robustness": {"vote": True, "leave_out": True}})
    untold = [event for event in story(plan) if not isinstance(event, HospitalsDrawn)]
    assert finds(selection.draws, told(plan, coordinator=[*closed(plan), *untold])) == {}
    lie = told(plan, coordinator=[*closed(plan, 4), *untold])
    only(selection.draws, lie, BROKEN, "nothing tells whom the draw gave")


def test_whose_turn_it_was_to_rest_nobody_can_tell_behind_a_round_that_is_missing() -> None:
    plan = leaving_out()
    bundle = told(plan, coordinator=[*closed(plan, 4, numbers=(1, 3, 4)), *rested(plan)])
    only(selection.draws, bundle, INCOMPLETE, "whose turn it was to rest in round 5 cannot be worked out")


def _favourites(plan: StudyPlan) -> tuple[str, ...]:
    chosen = drawn(digest_of(plan), 5, SILOS, 4)
    left = next(silo for silo in SILOS if silo not in chosen)
    return tuple(sorted((*chosen[1:], left)))


def favourites(plan: StudyPlan) -> list[AnyEvent]:
    events = story(plan, drawn=_favourites(plan))
    events[-2] = events[-2].model_copy(update={"members": _favourites(plan), "absent": ()})
    return events


def others_in_the_cohort(plan: StudyPlan) -> list[AnyEvent]:
    events = story(plan)
    events[-2] = events[-2].model_copy(update={"members": _favourites(plan), "absent": ()})
    return events


def not_told(plan: StudyPlan) -> list[AnyEvent]:
    return [event for event in story(plan) if not isinstance(event, HospitalsDrawn)]


def one_forgotten(plan: StudyPlan) -> list[AnyEvent]:
    rest = SILOS[1:]
    events = story(plan, consenting=rest, drawn=drawn(digest_of(plan), 5, rest, 4))
    chosen = drawn(digest_of(plan), 5, rest, 4)
    events[-2] = events[-2].model_copy(update={"members": chosen, "absent": ()})
    return events


def one_invented(plan: StudyPlan) -> list[AnyEvent]:
    return story(plan)[1:]


LIES: dict[str, tuple[Callable[[StudyPlan], list[AnyEvent]], str]] = {
    "others were drawn than the draw gives": (favourites, "instead of"),
    "the cohort is of others than were drawn": (others_in_the_cohort, "the cohort is not of those that were drawn"),
    "nobody was told to be drawn": (not_told, "nothing tells whom the draw gave"),
    "one that had approved was forgotten": (one_forgotten, f"was drawn without {SILOS[0]}, which had approved"),
    "one that had not approved was drawn from": (one_invented, f"{SILOS[0]} had not approved the plan"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_coordinator_that_chooses_is_found(lie: str) -> None:
    plan, (events, said) = plan_of(**DRAWS), LIES[lie]
    only(selection.draws, told(plan, coordinator=events(plan)), BROKEN, said)


def test_who_was_asked_beside_the_draw_says_so_itself() -> None:
    plan = plan_of(**DRAWS)
    chosen = drawn(digest_of(plan), 5, SILOS, 4)
    beside = next(silo for silo in SILOS if silo not in chosen)
    about: dict[str, Any] = {"study": study_id(plan), "order": sha("order")}
    done = [WorkDone(**about, round=5, phase="train")]
    rightly = [WorkDone(**about, round=5, phase="evaluate"), WorkDone(**about, round=4, phase="train")]
    events = story(plan)
    assert finds(selection.draws, told(plan, coordinator=events, **{chosen[0]: done, beside: rightly})) == {}
    lie = told(plan, coordinator=events, **{beside: done})
    only(selection.draws, lie, BROKEN, "trained in round 5, and was not drawn")


def test_who_has_said_no_since_is_rightly_left_out() -> None:
    plan = plan_of(**DRAWS)
    declined = PlanDeclineGiven(
        study=study_id(plan), plan_digest=digest_of(plan), silo=SILOS[0], code="DECLINED_BY_STEWARD"
    )
    bundle = told(plan, coordinator=one_forgotten(plan), **{SILOS[0]: [declined]})
    assert finds(selection.draws, bundle) == {}
    only(selection.draws, unlogged(bundle, SILOS[0]), INCOMPLETE, f"was drawn without {SILOS[0]}")


# --- late updates ------------------------------------------------------------------------------------
def offer(plan: StudyPlan, number: int, made_in: int) -> LateUpdateOffered:
    return LateUpdateOffered(study=study_id(plan), round=number, made_in=made_in, order=digest(b"an order"))


def sent(plan: StudyPlan, number: int, phase: Any = "train") -> ContributionReleased:
    return ContributionReleased(
        study=study_id(plan), round=number, phase=phase, attempt=1, sharers=sha("s"), vector=sha("v"), size=640
    )


def test_a_late_update_in_one_sum_has_nothing_to_find() -> None:
    plan = plan_of(**LATE)
    said = [offer(plan, 2, 1), offer(plan, 3, 1), offer(plan, 3, 1), sent(plan, 3), sent(plan, 1, "evaluate")]
    assert finds(selection.late, told(plan, **{SILOS[0]: said})) == {}


TWICE: dict[str, tuple[Any, Any, str]] = {
    "not in this plan": ({}, lambda plan: [offer(plan, 2, 1)], "later than the plan lets it"),
    "later than the plan allows": (LATE, lambda plan: [offer(plan, 4, 1)], "later than the plan lets it"),
    "before it was made": (LATE, lambda plan: [offer(plan, 1, 2)], "later than the plan lets it"),
    "also in its own round": (LATE, lambda plan: [sent(plan, 1), offer(plan, 2, 1)], "had been given to its own"),
    "in two later rounds": (
        LATE,
        lambda plan: [offer(plan, 2, 1), sent(plan, 2), offer(plan, 3, 1), sent(plan, 3)],
        "had been given to another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_a_late_update_that_is_too_late_or_in_two_sums_is_found(case: str) -> None:
    section, events, said = TWICE[case]
    plan = plan_of(**section)
    only(selection.late, told(plan, **{SILOS[0]: events(plan)}), BROKEN, said)

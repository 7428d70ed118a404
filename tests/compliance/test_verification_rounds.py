"""Checks of rounds and sums, one by one."""

from dataclasses import replace
from typing import Any

import pytest

from boundary.learning import Evaluation, Personalisation
from boundary.messages import BlobRef, Phase
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.robustness import Robustness, RolledBack, Vote
from compliance.bundle import Bundle
from compliance.events import (
    AnyEvent,
    CohortDecided,
    ContributionReleased,
    ModelMeasured,
    PersonalisationSummed,
    ReceiptSigned,
    RoundClosed,
    RoundOpened,
    RoundReceived,
    StatisticsTaken,
    StudyEnded,
    SumOpened,
    UnmaskingHelped,
)
from compliance.verification import budgets, rounds, sums
from compliance.verification.case import Check
from compliance.verification.findings import Severity
from infra.golden import key, sha
from tests.compliance.made_study import SILOS
from tests.compliance.verification_cases import (
    Events,
    appended,
    changed,
    clean_bundle,
    dropped,
    finds,
    hidden,
    retold,
    unlogged,
)

BROKEN, INCOMPLETE, NOTE = Severity


def of_round(number: int) -> Any:
    return lambda event: event.round == number


def train(number: int) -> Any:
    return lambda event: (event.round, event.phase) == (number, "train")


def only(check: Check, bundle: Bundle, severity: Severity, said: str) -> None:
    """The check finds exactly this."""
    found = finds(check, bundle)
    assert list(found) == [severity]
    assert len(found[severity]) == 1
    assert said in found[severity][0]


def any_of(check: Check, bundle: Bundle, said: str) -> None:
    found = finds(check, bundle).get(BROKEN, [])
    assert any(said in line for line in found), found


ALL: tuple[Check, ...] = (
    rounds.chain, rounds.records, rounds.receipts, rounds.received, sums.cohorts, sums.models, sums.hospitals,
    budgets.budgets,
)  # fmt: skip


@pytest.mark.parametrize("check", ALL)
def test_a_clean_study_has_nothing_to_find(check: Check) -> None:
    assert finds(check, clean_bundle()) == {}


@pytest.mark.parametrize("check", ALL[:-1])
def test_without_the_coordinators_log_nothing_is_claimed(check: Check) -> None:
    assert finds(check, unlogged(clean_bundle(), COORDINATOR)) == {}


# --- the chain ---------------------------------------------------------------------------------------
def test_a_round_is_missing_or_there_twice() -> None:
    only(rounds.chain, retold(COORDINATOR, dropped(RoundClosed, of_round(2))), BROKEN, "round 3 closed as number 2")
    again = retold(COORDINATOR, lambda events: [*events, next(e for e in events if isinstance(e, RoundClosed))])
    only(rounds.chain, again, BROKEN, "round 1 closed as number 6")


def test_a_round_begins_with_the_model_of_the_one_before() -> None:
    other = changed(RoundClosed, of_round(3), model_in=sha("another"))
    found = finds(rounds.chain, retold(COORDINATOR, other))[BROKEN]
    assert "round 3 closed, and not opened once before it with the model" in found[0]
    assert "round 3 is not made from the model of the one before" in found[1]


def test_a_round_is_opened_once_and_before_it_is_closed() -> None:
    not_opened = "not opened once before"
    only(rounds.chain, retold(COORDINATOR, dropped(RoundOpened, of_round(3))), BROKEN, not_opened)
    opened = RoundOpened(study=clean_bundle().study, round=3, model=sha("model 2"))
    only(rounds.chain, retold(COORDINATOR, lambda events: [opened, *events]), BROKEN, not_opened)
    early = retold(COORDINATOR, lambda events: [opened, *dropped(RoundOpened, of_round(3))(events)])
    only(rounds.chain, early, BROKEN, not_opened)


def test_no_round_comes_after_the_end_or_beyond_the_plan() -> None:
    ended = StudyEnded(study=clean_bundle().study, reason="ALL_ROUNDS_DONE")

    def before_the_last(events: Events) -> Events:
        at = next(n for n, e in enumerate(events) if isinstance(e, RoundClosed) and e.round == 5)
        return [*events[:at], ended, *events[at:]]

    only(rounds.chain, retold(COORDINATOR, before_the_last), BROKEN, "round 5 closed after the study had ended")
    plan = clean_bundle().plan
    fewer = plan.model_copy(update={"training": plan.training.model_copy(update={"rounds": 4})})
    only(rounds.chain, replace(clean_bundle(), plan=fewer), BROKEN, "5 rounds, the plan has 4")


def test_a_round_that_was_not_closed_is_a_note() -> None:
    opened = RoundOpened(study=clean_bundle().study, round=6, model=sha("model 5"))
    found = retold(COORDINATOR, lambda events: [*events, opened])
    only(rounds.chain, found, NOTE, "round 6 was opened and not closed")
    assert finds(rounds.chain, replace(found, plan=with_plan(personalisation=Personalisation()))) == {}, "it never is"


# --- records -----------------------------------------------------------------------------------------
def recorded(number: int, **changes: Any) -> Bundle:
    bundle = clean_bundle()
    return replace(
        bundle,
        rounds=tuple(one.model_copy(update=changes) if one.round == number else one for one in bundle.rounds),
    )


def test_a_record_is_the_one_that_was_logged() -> None:
    only(rounds.records, recorded(2, clipped=7), BROKEN, "rounds/0002.json: not what coordinator, entry")
    any_of(rounds.records, recorded(2, model_in=sha("x")), "rounds/0002.json: contradicts coordinator, entry")
    any_of(rounds.records, recorded(2, ready=("charite",)), "names others in its sum")
    fewer = replace(clean_bundle(), rounds=clean_bundle().rounds[1:])
    only(rounds.records, fewer, INCOMPLETE, "rounds/0001.json: not readable here")


TRIED = BlobRef(digest=sha("tried"), size=9)
ROLLED_BACK: dict[str, tuple[dict[str, Any], str]] = {
    "half": ({"tried": TRIED}, "says half that it was rolled back"),
    "and the plan knows nothing of it": (
        {"tried": TRIED, "rolled_back": RolledBack.TOO_LONG}, "rounds/0005.json: was rolled back (TOO_LONG)",
    ),
    "to another model": ({"tried": TRIED, "rolled_back": RolledBack.TOO_LONG}, "to a model it did not begin with"),
    "without having been voted down": (
        {"tried": TRIED, "rolled_back": RolledBack.VOTED_DOWN, "vote": Vote(against=1, voted=3, rise=1.0)}, "votes say",
    ),
    "it was voted down, and was not": ({"vote": Vote(against=2, voted=3, rise=1.0)}, "votes say"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), ROLLED_BACK.values(), ids=ROLLED_BACK)
def test_a_round_is_rolled_back_as_plan_and_votes_say(changes: dict[str, Any], said: str) -> None:
    any_of(rounds.records, recorded(5, **changes), said)


def robust(bundle: Bundle, **said: Any) -> Bundle:
    """The same study under a plan with this section."""
    return replace(bundle, plan=bundle.plan.model_copy(update={"robustness": Robustness(**said)}))


def test_a_model_that_was_to_be_voted_on_does_not_count_without() -> None:
    any_of(rounds.records, robust(clean_bundle(), vote=True), "counts without a vote")


BOTH: dict[str, Any] = {"vote": True, "clip": 1.0, "warm_up": 0}
FOR = Vote(against=0, voted=3, rise=-1.0)
MADE_UP: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "too long, where nothing is limited": (
        {"vote": True},
        {"rolled_back": RolledBack.TOO_LONG},
        "was rolled back (TOO_LONG)",
    ),
    "by a vote, where nobody votes": (
        {"clip": 1.0},
        {"rolled_back": RolledBack.VOTE_INVALID},
        "was rolled back (VOTE_INVALID)",
    ),
    "too long, and was not": (BOTH, {"rolled_back": RolledBack.TOO_LONG}, "what the length of its sum says"),
    "not, and was too long": (BOTH, {"vote": FOR, "update_norm": 1.5}, "what the length of its sum says"),
    "votes that nobody was asked for": ({"clip": 1.0}, {"vote": FOR}, "tells of 3 votes"),
    "more votes than hospitals": (BOTH, {"vote": Vote(against=0, voted=9, rise=0.0)}, "tells of 9 votes"),
}


@pytest.mark.parametrize(("plan", "changes", "said"), MADE_UP.values(), ids=MADE_UP)
def test_what_a_round_is_said_to_be_rolled_back_for_is_held_against_plan_and_record(
    plan: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    changes = changes | ({"tried": TRIED} if "rolled_back" in changes else {})
    any_of(rounds.records, robust(recorded(5, **changes), **plan), said)


def test_a_round_that_was_too_long_is_rightly_rolled_back() -> None:
    begun = next(one.model_in for one in clean_bundle().rounds if one.round == 5)
    changes = {"rolled_back": RolledBack.TOO_LONG, "tried": TRIED, "update_norm": 1.5}
    back = recorded(5, **changes, model_out=BlobRef(digest=begun, size=9))
    found = finds(rounds.records, robust(back, clip=1.0))[BROKEN]
    assert {line.partition(": ")[2].partition(" coord")[0] for line in found} == {"not what", "contradicts"}, found


def test_a_record_of_no_round_is_broken() -> None:
    only(rounds.records, retold(COORDINATOR, dropped(RoundClosed, of_round(5))), BROKEN, "rounds/0005.json: no entry")


# --- receipts ----------------------------------------------------------------------------------------
def signed(number: int, **signatures: Any) -> Bundle:
    bundle = clean_bundle()
    one = bundle.receipts[number]
    kept = {party: said for party, said in (one.signatures | signatures).items() if said is not None}
    return replace(bundle, receipts=bundle.receipts | {number: replace(one, signatures=kept)})


def test_a_receipt_has_the_names_of_all_that_worked() -> None:
    only(rounds.receipts, signed(2, charite=None, leuven=None), INCOMPLETE, "round 2: not signed by charite, leuven")
    only(rounds.receipts, signed(2, coordinator=None), INCOMPLETE, "round 2: not signed by coordinator")
    only(rounds.receipts, signed(2, charite=b"x" * 64), BROKEN, "the signature of charite does not verify")
    only(rounds.receipts, signed(2, ucl=b"x" * 64), BROKEN, "the signature of ucl does not verify")
    receipt = clean_bundle().receipts[2].receipt
    only(rounds.receipts, signed(2, mayo=receipt.sign(key("mayo"))), BROKEN, "the signature of mayo does not verify")
    assert finds(rounds.receipts, signed(2, ucl=receipt.sign(key("ucl")))) == {}


def test_a_receipt_says_what_the_log_says() -> None:
    bundle = clean_bundle()
    other = retold(COORDINATOR, changed(RoundClosed, of_round(2), absent=()))
    any_of(rounds.receipts, other, "round 2: says something else than coordinator, entry")
    none = replace(bundle, receipts={number: one for number, one in bundle.receipts.items() if number != 2})
    only(rounds.receipts, none, INCOMPLETE, "round 2: no receipt")
    unread = replace(bundle, rounds=bundle.rounds[1:])
    assert finds(rounds.receipts, unread) == {}
    only(rounds.receipts, retold(COORDINATOR, dropped(RoundClosed, of_round(5))), BROKEN, "round that is not closed")


def test_nobody_signed_another_receipt() -> None:
    other = retold("ucl", changed(ReceiptSigned, of_round(3), receipt=sha("another")))
    only(rounds.receipts, other, BROKEN, "signed another receipt than the one here")


def test_the_hospitals_were_told_what_was_logged() -> None:
    other = retold("ucl", changed(RoundReceived, of_round(3), model=sha("another")))
    only(rounds.received, other, BROKEN, "was told something else of round 3")
    fewer = retold(COORDINATOR, dropped(RoundClosed, of_round(5)))
    found = finds(rounds.received, fewer)[BROKEN]
    assert len(found) == 5
    assert all("was told of round 5, which is not closed" in line for line in found)
    assert finds(rounds.received, replace(clean_bundle(), rounds=())) == {}


# --- cohorts -----------------------------------------------------------------------------------------
TWO = ("charite", "leuven")


def test_no_sum_is_over_too_few() -> None:
    bundle = retold(COORDINATOR, changed(SumOpened, train(5), surviving=TWO))
    any_of(sums.cohorts, bundle, "the train sum of round 5, attempt 1 is over 2 hospitals, 3 are needed")
    doubled = retold(COORDINATOR, changed(SumOpened, train(5), surviving=(*TWO, "leuven")))
    any_of(sums.cohorts, doubled, "is over 2 hospitals")


def test_a_quorum_of_the_plan_counts_as_well() -> None:
    plan = clean_bundle().plan
    more = plan.model_copy(update={"aggregation": plan.aggregation.model_copy(update={"quorum": 5})})
    any_of(sums.cohorts, replace(clean_bundle(), plan=more), "is over 4 hospitals, 5 are needed")


def test_a_sum_is_over_those_that_were_ready() -> None:
    strangers = retold(COORDINATOR, changed(CohortDecided, train(5), members=SILOS[:4]))
    only(sums.cohorts, strangers, BROKEN, "the train sum of round 5, attempt 1 is over others than were ready")
    undecided = retold(COORDINATOR, dropped(CohortDecided, train(5)))
    only(sums.cohorts, undecided, BROKEN, "is over others than were ready")


def test_no_two_sums_of_a_phase_are_over_different_hospitals() -> None:
    first = SumOpened(
        study=clean_bundle().study, round=5, phase="train", attempt=1, survivors=sha("s"), surviving=SILOS[:4]
    )

    def twice(events: Events) -> Events:
        at = next(n for n, e in enumerate(events) if isinstance(e, SumOpened) and train(5)(e))
        return [*events[:at], first, *events[at:]]

    only(sums.cohorts, retold(COORDINATOR, twice), BROKEN, "was opened after another of the same round and phase")

    def again(events: Events) -> Events:
        return [one for event in events for one in ([event] * 2 if isinstance(event, SumOpened) else [event])]

    assert finds(sums.cohorts, retold(COORDINATOR, again)) == {}  # a driver that was restarted between


def telling(plan: StudyPlan, *events: AnyEvent) -> Bundle:
    """The study under this plan, of which the coordinator's log says exactly this."""
    log = replace(clean_bundle().logs[COORDINATOR], entries=(), heads=(), cosignatures={})
    return replace(clean_bundle(), plan=plan, logs={COORDINATOR: appended(log, *events)}, receipts={}, rounds=())


def sum_of(phase: Phase, number: int, silos: tuple[str, ...] = SILOS) -> tuple[CohortDecided, SumOpened]:
    about: dict[str, Any] = {"study": clean_bundle().study, "round": number, "phase": phase, "attempt": 1}
    decided = CohortDecided(**about, members=silos, absent=(), reason="ALL_THERE")
    return decided, SumOpened(**about, survivors=sha("s"), surviving=silos)


def with_plan(**changes: Any) -> StudyPlan:
    return clean_bundle().plan.model_copy(update=changes)


def test_statistics_come_out_of_a_sum() -> None:
    plan = with_plan(preprocessing=clean_bundle().plan.preprocessing.model_copy(update={"normalise": "federated"}))
    taken = StatisticsTaken(study=clean_bundle().study, survivors=sha("s"), result=sha("r"))
    only(sums.cohorts, telling(plan, taken), BROKEN, "statistics of no sum that was opened")
    assert finds(sums.cohorts, telling(plan, *sum_of("statistics", 1), taken)) == {}


def validating(*silos: str) -> StudyPlan:
    return with_plan(
        hospitals=tuple(
            one.model_copy(update={"role": "validate" if one.silo in silos else "train"})
            for one in clean_bundle().plan.hospitals
        )
    )


def measured(phase: Phase, number: int, model: str = "m") -> ModelMeasured:
    about: dict[str, Any] = {"study": clean_bundle().study, "round": number, "phase": phase}
    return ModelMeasured(**about, model=sha(model), survivors=sha("s"), result=sha("r"))


def closed_with(tried: str | None) -> RoundClosed:
    return RoundClosed(
        study=clean_bundle().study, round=5, model_in=sha("in"), model_out=sha("m" if tried is None else "in"),
        tried=None if tried is None else sha(tried), contributing=SILOS, absent=(), record=sha("r"),
    )  # fmt: skip


def test_a_model_that_was_measured_apart_was_measured_in_an_opened_sum() -> None:
    plan, of_them = validating(*SILOS[:3]), sum_of("validate", 5, SILOS[:3])
    said = measured("validate", 5)
    only(sums.cohorts, telling(plan, said), BROKEN, "round 5: a model measured in no opened sum")
    assert finds(sums.cohorts, telling(plan, *of_them, said)) == {}
    for tried in (None, "m"):
        assert finds(sums.cohorts, telling(plan, *of_them, said, closed_with(tried))) == {}
    other = telling(plan, *of_them, measured("validate", 5, "other"), closed_with(None))
    only(sums.cohorts, other, BROKEN, "round 5: validate is said to be of another model than the round's")


def test_a_finished_model_is_the_one_that_the_plan_names_for_its_round() -> None:
    old = clean_bundle().plan
    plan = with_plan(
        training=old.training.model_copy(update={"rounds": 0}), evaluation=Evaluation(models=(sha("m"), sha("n")))
    )
    assert finds(sums.cohorts, telling(plan, *sum_of("evaluate", 1), measured("evaluate", 1))) == {}
    other = telling(plan, *sum_of("evaluate", 2), measured("evaluate", 2))
    only(sums.cohorts, other, BROKEN, "round 2: evaluate is said to be of another model than the round's")


def test_a_sum_is_over_those_whom_the_plan_has_in_it() -> None:
    plan = validating(*SILOS[:1])
    assert finds(sums.cohorts, telling(plan, *sum_of("train", 5, SILOS[1:]))) == {}
    too_many = telling(plan, *sum_of("train", 5))
    only(sums.cohorts, too_many, BROKEN, f"attempt 1: {SILOS[0]} have no part in it by the plan")


def test_a_hospital_that_only_validates_is_in_no_model() -> None:
    plan = clean_bundle().plan
    last = plan.hospitals[-1].model_copy(update={"role": "validate"})
    changed_roles = plan.model_copy(update={"hospitals": (*plan.hospitals[:-1], last)})
    any_of(sums.models, replace(clean_bundle(), plan=changed_roles), f"{last.silo} are not in the plan to train")


def test_comparisons_of_models_come_out_of_a_sum() -> None:
    plan = with_plan(personalisation=Personalisation())
    summed = PersonalisationSummed(study=clean_bundle().study, survivors=sha("s"), result=sha("r"))
    only(sums.cohorts, telling(plan, summed), BROKEN, "comparisons of no sum that was opened")
    assert finds(sums.cohorts, telling(plan, *sum_of("personalise", 6), summed)) == {}


# --- models ------------------------------------------------------------------------------------------
def test_a_model_comes_out_of_the_sum_that_was_opened() -> None:
    only(sums.models, retold(COORDINATOR, dropped(SumOpened, train(5))), BROKEN, "round 5: the log opened no such sum")
    fewer = retold(COORDINATOR, changed(SumOpened, train(5), surviving=SILOS[:4]))
    only(sums.models, fewer, BROKEN, "the sum is over charite, karolinska, leuven, st-olavs, not over those it names")
    other = retold(COORDINATOR, changed(SumOpened, train(5), survivors=sha("others")))
    only(sums.models, other, BROKEN, "rounds/0005.json: the transcript is not of that sum and this model")
    assert finds(sums.models, replace(clean_bundle(), rounds=())) == {}


def test_a_round_is_the_work_of_enough_and_of_nobody_else() -> None:
    few = retold(COORDINATOR, changed(RoundClosed, of_round(5), contributing=TWO))
    any_of(sums.models, few, "round 5 is over 2 hospitals, 3 are needed")
    more = retold(COORDINATOR, changed(RoundClosed, of_round(5), contributing=(*SILOS, "mayo")))
    any_of(sums.models, more, "round 5: mayo are not in the plan")


# --- hospitals ---------------------------------------------------------------------------------------
def test_what_a_hospital_helped_with_was_told() -> None:
    other = retold("ucl", changed(UnmaskingHelped, train(5), survivors=sha("others")))
    only(sums.hospitals, other, BROKEN, "helped to unmask the train sum of round 5, attempt 1 over")
    secret = UnmaskingHelped(
        study=clean_bundle().study, round=5, phase="train", attempt=7, survivors=sha("s"), surviving=SILOS, lost=()
    )
    untold = retold("ucl", lambda events: [*events, secret])
    only(sums.hospitals, untold, BROKEN, "helped to unmask the train sum of round 5, attempt 7")
    small = retold("ucl", lambda events: [*events, secret.model_copy(update={"round": 6, "surviving": TWO})])
    only(sums.hospitals, small, BROKEN, "round 6, attempt 7 over 2 hospitals")
    under_way = retold("ucl", lambda events: [*events, secret.model_copy(update={"round": 6})])
    assert finds(sums.hospitals, under_way) == {}
    given_up = retold("ucl", lambda events: [*events, secret.model_copy(update={"round": 4, "attempt": 1})])
    assert finds(sums.hospitals, given_up) == {}


def test_a_hospital_gave_what_it_is_said_to_have_given() -> None:
    gone = dropped(ContributionReleased, train(5))
    only(sums.hospitals, retold("ucl", gone), BROKEN, "ucl: its log has no contribution to round 5")
    covered = hidden(retold("ucl", gone), "ucl")
    only(sums.hospitals, covered, INCOMPLETE, "ucl: its log has no contribution to round 5")
    shorter = retold("ucl", lambda events: dropped(RoundReceived, of_round(5))(gone(events)))
    only(sums.hospitals, shorter, INCOMPLETE, "no contribution to round 5")


def test_a_sum_that_too_few_helped_to_open_is_broken_where_all_is_shown() -> None:
    bundle = clean_bundle()
    for silo in TWO:
        bundle = retold(silo, dropped(UnmaskingHelped, train(5)), bundle)
    only(sums.hospitals, bundle, BROKEN, "round 5: 3 hospitals helped to unmask its sum, 4 are needed")
    only(sums.hospitals, hidden(bundle, "leuven"), NOTE, "round 5: 3 hospitals helped")
    undecided = retold(COORDINATOR, dropped(CohortDecided, train(5)), bundle)
    assert finds(sums.hospitals, undecided) == {}

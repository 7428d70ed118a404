"""What is read from the logs of a study, and that numbers are computed anew."""

from dataclasses import replace

import pytest

from boundary.names import COORDINATOR
from compliance.bundle import SignedReceipt
from compliance.events import (
    BudgetReserved,
    EnrolmentAsked,
    IncidentClosed,
    IncidentOpened,
    PlanApprovalGiven,
    PlanDeclineGiven,
    RoundOpened,
    StudyEnded,
    TrainingStarted,
)
from compliance.evidence.facts import Facts, facts_of, refusals
from compliance.evidence.reading import Pointer, read_log
from compliance.evidence.spending import spending_of
from compliance.trail import leaf_bytes
from infra.golden import NOW, key, sha
from tests.compliance.made_study import (
    MOST_PATIENTS,
    ROUNDS,
    SILOS,
    both,
    instead,
    made_bundle,
    made_plan,
    more,
    plain_plan,
    without,
)


@pytest.fixture(scope="module")
def facts() -> Facts:
    return facts_of(made_bundle())


def test_the_rounds_are_those_of_the_story(facts: Facts) -> None:
    assert [one.number for one in facts.rounds] == [1, 2, 3, 4, 5]
    assert {one.number: one.absent for one in facts.rounds if one.absent} == {
        2: {"ucl": "LOST"},
        3: {"leuven": "DISK_FULL"},
    }
    assert {one.number: one.dropouts for one in facts.rounds if one.dropouts} == {2: ("ucl",)}
    assert [(one.number, each.event.reason) for one in facts.rounds for each in one.failed] == [(4, "CANNOT_UNMASK")]
    assert [(entry.at.log, entry.event.code) for entry in refusals(facts)] == [("leuven", "DISK_FULL")]


def test_every_fact_points_at_an_entry_that_says_so(facts: Facts) -> None:
    bundle = made_bundle()
    for one in facts.rounds:
        for entry in one.sums:
            log = read_log(bundle.logs[entry.at.log], bundle.study, frozenset())
            assert next(each for each in log.everything() if each.at == entry.at).event == entry.event
    assert str(Pointer("ucl", 3)) == "ucl #3"


def test_epsilon_is_what_another_accountant_finds(facts: Facts) -> None:
    """dp-accounting composes the same events by another method; ours bounds from above and is near."""
    dp = pytest.importorskip("dp_accounting")
    for hospital in facts.hospitals:
        last = hospital.spending.last
        assert last is not None
        assert last.round == ROUNDS
        accountant = dp.rdp.RdpAccountant(list(range(2, 65)))
        for release in hospital.spending.releases:
            step = dp.PoissonSampledDpEvent(release.sampling_rate, dp.GaussianDpEvent(release.noise_multiplier))
            accountant.compose(step, release.steps)
        other = accountant.get_epsilon(1 / (10 * MOST_PATIENTS[hospital.silo]))
        assert last.epsilon == pytest.approx(other, rel=0.01)
        assert last.agrees


def test_epsilon_is_not_copied_from_the_log() -> None:
    told = facts_of(made_bundle(edit=instead(BudgetReserved, log="ucl", epsilon_study=0.25))).hospital("ucl").spending
    assert told.last is not None
    assert told.last.told == 0.25
    assert told.last.epsilon > 7
    assert told.understated
    assert not told.overstated


def test_a_missing_log_is_a_fact() -> None:
    bundle = made_bundle()
    found = facts_of(replace(bundle, logs={COORDINATOR: bundle.logs[COORDINATOR]}))
    assert all(hospital.hides and not hospital.log.is_there for hospital in found.hospitals)
    assert facts_of(replace(bundle, logs={})).as_of is None


def test_withheld_and_foreign_entries_are_counted() -> None:
    bundle = made_bundle(withhold=lambda party, event: party == "ucl" and isinstance(event, BudgetReserved))
    log = facts_of(bundle).hospital("ucl").log
    assert len(log.withheld) == ROUNDS
    other = more(StudyEnded(study="other-01234567", reason="DONE"), log="ucl")
    assert facts_of(made_bundle(edit=other)).hospital("ucl").log.others == 1


def test_what_is_no_entry_at_its_place_is_broken() -> None:
    bundle = made_bundle()
    copy = bundle.logs["ucl"]
    foreign = bundle.logs["charite"].entries[0]
    log = read_log(
        replace(copy, entries=(b"no entry at all, and it is not 32 bytes long", foreign, *copy.entries[2:])),
        bundle.study,
        frozenset(),
    )
    assert log.broken == (1, 2)


def test_a_training_without_a_reservation_shows() -> None:
    bundle = made_bundle(edit=without(BudgetReserved, log="ucl", round=3))
    spending = facts_of(bundle).hospital("ucl").spending
    assert spending.unpaid == (3,)
    assert not spending.is_whole
    assert spending_of(facts_of(made_bundle(plain_plan())).hospital("ucl").log).last is None


def test_a_withheld_entry_after_the_end_of_the_study_hides_nothing() -> None:
    late = more(PlanDeclineGiven(study="other-01234567", plan_digest=sha("x"), silo="ucl", code="NO"), log="ucl")
    bundle = made_bundle(edit=late, withhold=lambda _party, event: isinstance(event, PlanDeclineGiven))
    assert not facts_of(bundle).hospital("ucl").spending.is_hidden


def test_the_clock_is_the_coordinators_last_entry(facts: Facts) -> None:
    assert facts.as_of == "2026-11-20T14:29:45.123456Z"


def test_an_approval_that_does_not_hold_says_why() -> None:
    bundle = made_bundle()
    swapped = {**bundle.approvals, "ucl": bundle.approvals["leuven"]}
    assert "leuven" in (facts_of(replace(bundle, approvals=swapped)).hospital("ucl").approval_problem or "")
    unlogged = made_bundle(edit=without(PlanApprovalGiven, log="ucl"))
    assert "log" in (facts_of(unlogged).hospital("ucl").approval_problem or "")


def test_signatures_under_a_receipt_are_sorted_into_valid_missing_and_wrong() -> None:
    bundle = made_bundle()
    first = bundle.receipts[1]
    signatures = {**first.signatures, "ucl": first.signatures["leuven"]}
    del signatures["charite"]
    found = (
        facts_of(replace(bundle, receipts={**bundle.receipts, 1: SignedReceipt(first.receipt, signatures)}))
        .rounds[0]
        .receipt
    )
    assert found is not None
    assert (found.absent, found.invalid) == (("charite",), ("ucl",))
    stranger = first.receipt.model_copy(update={"contributing": ("stranger",)})
    signed = SignedReceipt(stranger, {"stranger": stranger.sign(key("stranger"))})
    found = facts_of(replace(bundle, receipts={1: signed})).rounds[0].receipt
    assert found is not None
    assert found.invalid == ("stranger",)


def test_incidents_are_open_until_they_are_closed() -> None:
    opened = [
        IncidentOpened(incident=number, log="ucl", code="LOG_FORKED", evidence=sha("two heads")) for number in (1, 2)
    ]
    closed = IncidentClosed(incident=1, decision="ACCEPTED")
    found = facts_of(made_bundle(edit=more(*opened, closed, log="leuven"))).incidents
    assert [one.closed is None for one in found] == [False, True]


def test_a_round_that_was_only_opened_has_no_contributors() -> None:
    opened = more(RoundOpened(study=made_bundle().study, round=6, model=sha("model 5")), log=COORDINATOR)
    last = facts_of(made_bundle(edit=opened)).rounds[-1]
    assert (last.number, last.contributing, last.absent, last.record) == (6, (), {}, None)


def test_hospitals_are_those_of_the_plan(facts: Facts) -> None:
    assert tuple(hospital.silo for hospital in facts.hospitals) == SILOS
    assert facts.is_private
    assert not facts_of(made_bundle(plain_plan())).is_private


def test_a_record_tells_of_a_round_whose_closing_is_not_shown(facts: Facts) -> None:
    bundle = made_bundle(withhold=lambda party, event: party == COORDINATOR and event.event == "round-closed")
    found = facts_of(bundle).rounds[1]
    assert found.contributing == facts.rounds[1].contributing
    assert found.absent == {"ucl": "LOST"}


def test_entries_of_this_study_and_of_none_are_read() -> None:
    asked = EnrolmentAsked(silo="ucl", fingerprint=key("ucl").public.fingerprint)
    leaf = leaf_bytes(asked, log="ucl", sequence=1, time=NOW, actor="ucl", salt=bytes(16))
    copy = replace(made_bundle().logs["ucl"], entries=(leaf,))
    assert [entry.event for entry in read_log(copy, "other-01234567", frozenset()).everything()] == [asked]


def test_a_start_that_never_sent_has_to_be_paid_too() -> None:
    about = {"study": made_bundle().study, "phase": "train", "order": sha("order"), "start": 1}
    extra = more(TrainingStarted(round=6, **about), log="ucl", before=StudyEnded)  # type: ignore[arg-type]
    evaluated = more(TrainingStarted(round=7, **about | {"phase": "evaluate"}), log="ucl", before=StudyEnded)  # type: ignore[arg-type]
    assert facts_of(made_bundle(made_plan(), edit=both(extra, evaluated))).hospital("ucl").spending.unpaid == (6,)

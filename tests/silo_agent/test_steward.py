"""The steward's decision: on the exact plan, for the data as they were checked, with nothing hidden."""

import io
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from boundary.identity import SigningIdentity
from boundary.messages import Collection, PlanApproved, PlanDeclined, StudyClosed
from boundary.plan import digest_of, parse_plan, study_id
from silo_agent import status
from silo_agent.budget import terms_of
from silo_agent.cost import TIGHT, question_of
from silo_agent.errors import ConfigError, ContractNotMet
from silo_agent.releases import reserve
from silo_agent.steward import approve, decline, difference, dossier, find_plan, forget_scan, lines, wait_for_scan


def say_yes(site: Any, wanted: str | None = None) -> Any:
    return approve(site.journal, site.folder, site.outbound, wanted or site.study, "data_steward", "we agreed")


def test_an_approval_is_for_this_digest_and_this_data(site: Any) -> None:
    site.approve()
    (said,) = site.outbox()
    assert isinstance(said, PlanApproved)
    assert said.approval.steward == site.folder.steward.public.text
    assert said.approval.approval.plan_digest == digest_of(site.plan)
    kept = site.journal.plan(site.study)
    assert (kept.state, kept.reason) == ("approved", "a test")


def test_approving_twice_is_one_approval(site: Any) -> None:
    site.approve()
    say_yes(site)
    assert len(site.outbox()) == 1
    assert site.events() == ["plan-received", "plan-approval-given"]


def _unchecked(site: Any) -> None:
    site.propose()


def _unsuitable(site: Any) -> None:
    site.propose()
    site.scanned("class '1' has no patient")


def _declined(site: Any) -> None:
    site.propose()
    decline(site.journal, site.outbound, site.study, "no")


def _closed(site: Any) -> None:
    site.propose()
    site.scanned()
    site.hear(StudyClosed(study=site.study, code="COMPLETED"))


def _expired(site: Any) -> None:
    site.propose()
    site.scanned()
    site.now += timedelta(days=5 * 365)


UNAPPROVABLE = {
    "before our data were checked": (_unchecked, "still checking our data"),
    "when our data do not meet the contract": (_unsuitable, "class '1' has no patient"),
    "after it was declined": (_declined, "the plan is declined"),
    "after the study was closed": (_closed, "the plan is closed"),
    "after the plan expired": (_expired, "the plan expired on 2030-01-01"),
}


@pytest.mark.parametrize(("prepare", "says"), UNAPPROVABLE.values(), ids=UNAPPROVABLE)
def test_a_plan_cannot_be_approved(site: Any, prepare: Any, says: str) -> None:
    prepare(site)
    with pytest.raises(ContractNotMet, match=says):
        say_yes(site)
    assert not any(isinstance(message, PlanApproved) for message in site.outbox())


def test_no_message_advises_to_delete_data(site: Any) -> None:
    _unsuitable(site)
    with pytest.raises(ContractNotMet, match="Nothing was deleted or changed; correct the label table"):
        say_yes(site)


def test_the_steward_reads_who_trains_and_what_becomes_of_what_is_late(make_site: Any) -> None:
    section = {"hospitals": 3, "over": 1, "late": "next-round", "most_stale": 2}
    site = make_site(changes={"selection": section, "training__weighting": "equal"})
    site.propose()
    said = dict(lines(dossier(site.journal, site.folder, find_plan(site.journal, site.study), site.now)))
    assert said["Who trains"].startswith("in each round 3 of the 4 hospitals are drawn and 1 more are asked")
    assert "one of the next 2 round(s) that ask us, once, counted at 71%, 58% of its weight" in said["If we are late"]


def test_declining_is_possible_before_and_after_an_approval(site: Any) -> None:
    site.approve()
    decline(site.journal, site.outbound, site.study, "we changed our mind")
    decline(site.journal, site.outbound, site.study, "again")
    assert [type(message) for message in site.outbox()] == [PlanApproved, PlanDeclined]
    assert site.journal.plan(site.study).reason == "we changed our mind"


def test_what_waits_to_leave_of_a_study_that_is_declined_does_not_leave(site: Any) -> None:
    """A masked vector was made and lies in the outbox: after "stop" it stays there."""
    site.approve()
    site.masked(1)
    assert "masked-vector" in {parcel.kind for parcel in site.journal.waiting()}
    decline(site.journal, site.outbound, site.study, "stop")
    assert [parcel.kind for parcel in site.journal.waiting()][-1] == "plan-declined"
    assert not {"ready", "shares", "masked-vector"} & {parcel.kind for parcel in site.journal.waiting()}


def test_a_closed_study_is_not_declined(site: Any) -> None:
    _closed(site)
    with pytest.raises(ConfigError, match="is closed"):
        decline(site.journal, site.outbound, site.study, "no")


# --- finding -----------------------------------------------------------------------------------------
def test_a_plan_is_found_by_study_digest_or_label(site: Any) -> None:
    site.propose()
    for wanted in (site.study, digest_of(site.plan), "ct-contrast@1"):
        assert find_plan(site.journal, wanted).study == site.study


def test_an_unknown_plan_is_answered_with_those_there_are(site: Any) -> None:
    with pytest.raises(ConfigError, match="none has arrived yet: is `silo-agent run` running"):
        find_plan(site.journal, "x")
    site.propose()
    with pytest.raises(ConfigError, match=f"known: {site.study}"):
        find_plan(site.journal, "x")


def test_two_plans_of_one_name_are_both_listed_and_none_is_first(site: Any, make_plan_for: Any) -> None:
    """An attack: show NAME@1, and have another NAME@1 approved."""
    site.propose()
    site.plan = make_plan_for(site.cards, training__rounds=1000)
    site.study = study_id(site.plan)
    site.propose()
    with pytest.raises(ConfigError, match=r"fits several plans: ct-contrast-.*, ct-contrast-"):
        find_plan(site.journal, "ct-contrast@1")
    assert find_plan(site.journal, site.study).digest == digest_of(site.plan)


def test_waiting_for_a_scan_ends_with_it_or_with_patience(site: Any) -> None:
    wait_for_scan(site.journal, site.study, 0.1)
    site.propose()
    wait_for_scan(site.journal, site.study, 0.1)
    site.scanned()
    wait_for_scan(site.journal, site.study, 60)


def test_another_look_at_the_data_is_for_plans_that_wait(site: Any) -> None:
    _unsuitable(site)
    forget_scan(site.journal, site.study)
    assert site.journal.plan(site.study).state == "received"
    with pytest.raises(ConfigError, match="the plan is received"):
        forget_scan(site.journal, site.study)


# --- the dossier -------------------------------------------------------------------------------------
REPORT = {
    "dataset_digest": "sha256:1", "files": 12, "used": 10, "refused": {"NOT_DICOM": 2}, "problems": [],
    "patients": {"training": 4, "holdout": 2}, "images": {"training": {"0": 3, "1": 4}, "holdout": {"0": 1, "1": 2}},
}  # fmt: skip


def read(site: Any) -> str:
    file = dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)
    return "\n".join(f"{heading}: {text}" for heading, text in lines(file))


def test_the_dossier_says_what_leaves_and_what_stays(site: Any) -> None:
    site.propose()
    text = read(site)
    assert "Our data: not checked yet" in text
    assert "No image, no identifier, no path, no error text" in text
    assert "NONE: this plan gives no mathematical guarantee per patient" in text
    assert digest_of(site.plan) in text


def test_the_dossier_tells_our_own_numbers(site: Any) -> None:
    site.propose()
    report = site.folder.cache / site.study / "report.json"
    report.parent.mkdir()
    report.write_text(json.dumps(REPORT))
    assert "Our data: 10 of 12 files used (training: 4 patients, 3 x 0, 4 x 1; holdout: 2 patients" in read(site)
    assert "Not used: NOT_DICOM 2" in read(site)
    report.write_text("{half a rep")
    assert "Our data: not checked yet" in read(site)


def test_what_changed_since_the_last_approved_plan_is_shown(site: Any, make_plan_for: Any) -> None:
    site.approve()
    site.plan = make_plan_for(site.cards, revision=2, training__rounds=1000)
    site.study = study_id(site.plan)
    site.propose()
    changes = difference(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now))
    assert [line for line in changes if line.startswith("+ ")] == ['+ "revision": 2,', '+  "rounds": 1000,']


def test_the_dossier_says_what_is_done_against_bad_changes(site: Any, make_plan_for: Any) -> None:
    site.propose()
    assert "Against bad changes" not in headed(site)
    robustness = {"clip": 2.5, "vote": True, "tolerance": 0.1, "leave_out": True}
    site.plan = make_plan_for(site.cards, revision=2, robustness=robustness, training__weighting="equal")
    site.study = study_id(site.plan)
    site.propose()
    said = headed(site)["Against bad changes"]
    assert "longer than 2.5 is shortened" in said
    assert "more than 10% above that of the model before" in said
    assert "without having done anything wrong; from two such rounds the coordinator can estimate" in said


def test_the_dossier_says_what_the_plan_normalises_by(site: Any, make_plan_for: Any) -> None:
    site.plan = make_plan_for(site.cards, preprocessing__normalise={"mean": 0.25, "deviation": 0.5})
    site.study = study_id(site.plan)
    site.propose()
    said = headed(site)
    assert "0.25 is taken off, and the rest divided by 0.5" in said["Intensities"]
    assert "Before round 1" not in said


def test_the_dossier_says_with_whom_alone_our_change_is_summed(site: Any, make_plan_for: Any) -> None:
    site.propose()
    assert "Our group" not in headed(site)
    file = dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)
    plan = site.plan.model_dump(mode="json")
    ours = [hospital for hospital in plan["hospitals"] if hospital["silo"] == file.site]
    others = [{"silo": f"x{n}", "signing_key": SigningIdentity.generate().public.text} for n in range(11)]
    plan["hospitals"] = [
        hospital | {"group": place // 4 + 1} for place, hospital in enumerate([*others[:1], *ours, *others[1:]])
    ]
    said = dict(lines(replace(file, plan=parse_plan(plan))))["Our group"]
    assert "summed with those of x0, x1, x2 only" in said


def test_what_leaves_for_rfa_is_said_to_count_the_less_the_longer_it_is(site: Any, make_plan_for: Any) -> None:
    site.propose()
    assert "the longer" not in headed(site)["What leaves"]
    site.plan = make_plan_for(site.cards, revision=2, training__strategy="rfa")
    site.study = study_id(site.plan)
    site.propose()
    assert "weights (the longer the change, the less it counts), the training loss" in headed(site)["What leaves"]


# --- a guarantee, in words ---------------------------------------------------------------------------
def headed(site: Any) -> dict[str, str]:
    file = dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)
    return dict(lines(file))


def test_the_dossier_says_what_a_guarantee_costs_and_what_it_does_not_cover(private_site: Any) -> None:
    private_site.propose()
    said = headed(private_site)
    assert "All 3 rounds together cost epsilon 0.68, at delta 1.0e-03" in said["Guarantee"]
    assert "with or without any one patient, all images included" in said["Guarantee"]
    assert "closer estimate" not in said["Guarantee"]
    assert "each of 5 steps a round takes patients by chance, 10 on average, and at most 4 images" in said["How"]
    assert "noise of 2 times that is added, before anything leaves" in said["How"]
    assert "in a step with probability 0.1: 100 patients are declared" in said["How"]
    assert "of this study 0.00 of 8 is spent" in said["Budget"]
    assert "of all studies on 'everybody' 0.00 of 16 is spent" in said["Budget"]
    assert "There is room for 3 of 3 rounds" in said["Budget"]
    assert said["Not covered"] == (
        "the counts of right and wrong answers on held-back patients, on whom this study never trains"
    )
    assert said["How often"] == "3 rounds"
    assert "below which of a few epsilons we are" in said["What leaves"]
    assert "training loss" not in said["What leaves"]


def test_the_dossier_counts_what_was_spent_before(private_site: Any) -> None:
    """The steward is asked again when the plan has begun, or another on the same people."""
    private_site.allow(study_epsilon=0.6, lifetime_epsilon=0.6)
    private_site.propose()
    assert "There is room for 2 of 3 rounds; then we stop taking part" in headed(private_site)["Budget"]
    spend_round(private_site, private_site.study)
    said = headed(private_site)["Budget"]
    assert "of this study 0.42 of 0.6 is spent" in said
    assert "of all studies on 'everybody' 0.42 of 0.6 is spent" in said
    assert "There is room for 1 more; then we stop" in said
    spend_round(private_site, "mr-knee-4567cdef")
    said = headed(private_site)["Budget"]
    assert "of this study 0.42 of 0.6 is spent; of all studies on 'everybody' 0.56 of 0.6" in said
    assert "There is room for 0 more" in said


def spend_round(site: Any, study: str) -> None:
    terms = terms_of(site.plan, site.permission().dataset(site.plan))
    assert terms is not None
    reserve(site.journal, terms, Collection(study=study, round=1, phase="train", attempt=1), 1, site.now)


def test_the_closer_estimate_is_shown_for_the_numbers_it_was_made_for(private_site: Any) -> None:
    """Found by reading: one from before the policy was changed was shown beside the new epsilon."""
    private_site.propose()
    terms = terms_of(private_site.plan, private_site.permission().dataset(private_site.plan))
    assert terms is not None
    path = private_site.folder.cache / private_site.study / TIGHT
    path.parent.mkdir()
    path.write_text(json.dumps({"epsilon": 0.6112, "upper": 0.62} | question_of(terms)))
    assert "cost epsilon 0.68, 0.61 by the closer estimate, at" in headed(private_site)["Guarantee"]
    private_site.allow(most_patients=50)
    assert "closer estimate" not in headed(private_site)["Guarantee"]
    private_site.allow(most_patients=100)
    for useless in ('{"epsilon": null, "why": "no"}', "[]", "7", "{half a", '{"epsilon": 0.6}'):
        path.write_text(useless)
        assert "closer estimate" not in headed(private_site)["Guarantee"], useless


LEFT_OUT: dict[str, tuple[int | None, bool, dict[str, Any], str, str]] = {
    "we have not this data set": (
        100, True, {"dataset": {"name": "mr", "modalities": ["MR"]}}, "Guarantee", "not here: the policy names no",
    ),
    "no noise is enough": (
        100, True, {"privacy": {"mechanism": "patient-dp", "epsilon": 0.01, "steps": 100_000}}, "Guarantee",
        "not here: epsilon 0.01",
    ),
    "we take part with a guarantee only": (
        100, False, {}, "Not possible", "the policy asks for a guarantee per patient, and the plan gives",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("most", "guaranteed", "changes", "heading", "says"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_the_dossier_says_why_this_hospital_cannot_take_part(
    make_site: Any,
    private: Any,
    most: int | None,
    guaranteed: bool,
    changes: dict[str, Any],
    heading: str,
    says: str,
) -> None:
    site = make_site(most_patients=most, changes=(private() if guaranteed else {}) | changes)
    site.propose()
    said = headed(site)
    assert says in said[heading]
    if guaranteed:
        assert "Budget" not in said
        assert "patients by chance" in said["How"], "what was asked for is told all the same"
    else:
        assert said["Guarantee"] == "NONE: this plan gives no mathematical guarantee per patient"


def test_a_ledger_that_cannot_be_read_is_said_in_the_dossier(private_site: Any) -> None:
    """Found by reading: `plan show` ended with a traceback."""
    private_site.propose()
    spend_round(private_site, private_site.study)
    for statement in ("DROP TRIGGER budget_is_never_refunded", "DELETE FROM budget"):
        private_site.journal._db.execute(statement)
    assert "per patient, but not here: the privacy ledger has 0 entries of 1" in headed(private_site)["Guarantee"]


def test_a_plan_cannot_hide_text_from_the_steward(
    site: Any, make_plan_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack by the coordinator: markup in the texts that a steward reads. (Escapes are refused with the plan.)"""
    purpose = {
        "title": "harmless[black on black] 1000 rounds[/]",
        "statement": "x [/nonsense] y",
        "legal_basis": "a test",
        "ethics_reference": "a test",
        "expires": "2030-01-01",
    }
    site.plan = make_plan_for(site.cards, purpose=purpose)
    site.study = study_id(site.plan)
    site.propose()
    page = io.StringIO()
    monkeypatch.setattr(status, "Console", lambda **_: Console(file=page, width=300, color_system="truecolor"))
    status.print_dossier(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now))
    assert "harmless[black on black] 1000 rounds[/]" in page.getvalue()
    assert "x [/nonsense] y" in page.getvalue()


def test_a_reason_from_the_archive_is_shown_with_its_escapes(site: Any) -> None:
    _unsuitable(site)
    site.scanned("\x1b[2Jlabel")
    assert "unsuitable: \\x1b[2Jlabel" in read(site)

"""The steward's decision: on the exact plan, for the data as they were checked, with nothing hidden."""

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from boundary.messages import PlanApproved, PlanDeclined, StudyClosed
from boundary.plan import digest_of, study_id
from silo_agent import status
from silo_agent.errors import ConfigError, ContractNotMet
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
    assert len(site.journal.trail()) == 1


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


def test_declining_is_possible_before_and_after_an_approval(site: Any) -> None:
    site.approve()
    decline(site.journal, site.outbound, site.study, "we changed our mind")
    decline(site.journal, site.outbound, site.study, "again")
    assert [type(message) for message in site.outbox()] == [PlanApproved, PlanDeclined]
    assert site.journal.plan(site.study).reason == "we changed our mind"


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
    file = dossier(site.journal, site.folder, site.journal.plan(site.study))
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
    changes = difference(dossier(site.journal, site.folder, site.journal.plan(site.study)))
    assert [line for line in changes if line.startswith("+ ")] == ['+ "revision": 2,', '+  "rounds": 1000,']


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
    status.print_dossier(dossier(site.journal, site.folder, site.journal.plan(site.study)))
    assert "harmless[black on black] 1000 rounds[/]" in page.getvalue()
    assert "x [/nonsense] y" in page.getvalue()


def test_a_reason_from_the_archive_is_shown_with_its_escapes(site: Any) -> None:
    _unsuitable(site)
    site.scanned("\x1b[2Jlabel")
    assert "unsuitable: \\x1b[2Jlabel" in read(site)

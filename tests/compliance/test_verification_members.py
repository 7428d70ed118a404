"""Who was in the study, and whether each of them had approved it before."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from boundary.names import COORDINATOR
from boundary.roster import sign_roster
from compliance.bundle import Bundle
from compliance.events import (
    PlanApprovalGiven,
    PlanPublished,
    RosterIssued,
    RoundOpened,
)
from compliance.verification import members
from compliance.verification.findings import Severity, names
from infra.golden import card, key, roster, sha
from tests.compliance import made_study
from tests.compliance.made_study import SILOS, approval_of, made_plan, trust
from tests.compliance.verification_cases import (
    changed,
    clean_bundle,
    dropped,
    finds,
    hidden,
    retold,
    unlogged,
)

BROKEN, INCOMPLETE, NOTE = Severity
BROKEN, INCOMPLETE, NOTE = Severity


# --- members -----------------------------------------------------------------------------------------
def rosters(**changes: Any) -> Bundle:
    return replace(clean_bundle(), roster=roster(**changes).data)


def test_the_roster_is_the_one_that_was_issued() -> None:
    bundle = retold(COORDINATOR, dropped(RosterIssued))
    assert finds(members.members, bundle) == {BROKEN: ["roster.json: no entry of the coordinator's log has its digest"]}
    assert finds(members.members, unlogged(bundle, COORDINATOR)) == {}
    assert finds(members.members, replace(clean_bundle(), roster=b"")) == {}


def test_a_roster_of_another_coordinator_is_broken() -> None:
    found = finds(members.members, clean_bundle(), replace(trust(), coordinator=key("mallory").public))
    assert "roster.json: the roster is not signed by" in found[BROKEN][0]


def test_a_roster_with_another_member_or_none_is_broken() -> None:
    others = [card(silo) for silo in SILOS if silo != "ucl"]
    for some in (others, [*others, card("ucl", owner="mallory")]):
        found = finds(members.members, rosters(members=tuple(some)))
        assert "ucl: not on the roster with the key of the plan" in found[BROKEN]


def test_a_coordinator_that_changed_its_key_is_told() -> None:
    new = roster(members=tuple(card(silo) for silo in SILOS), coordinator="new").roster
    introduced = sign_roster(new, key(COORDINATOR), key("new")).data
    found = finds(members.members, replace(clean_bundle(), roster=introduced))
    assert "roster.json: names another key of the coordinator than keys.toml" in found[BROKEN]


# --- approvals ---------------------------------------------------------------------------------------
def approvals(**changes: Any) -> Bundle:
    bundle = clean_bundle()
    return replace(bundle, approvals={s: one for s, one in (bundle.approvals | changes).items() if one is not None})


def test_an_approval_that_is_not_here_is_incomplete() -> None:
    assert finds(members.approvals, approvals(ucl=None)) == {INCOMPLETE: ["approvals.json: no approval of ucl"]}


def test_an_approval_of_another_plan_or_hospital_or_steward_is_broken() -> None:
    other, plan = approval_of(made_plan(title="Another"), "ucl"), clean_bundle().plan
    late = approval_of(plan, "ucl", datetime(2026, 12, 1, tzinfo=UTC))
    forged = approval_of(plan, "ucl").model_copy(update={"steward": key("mallory").public.text})
    for signed, why in (
        (other, "another plan digest"), (approval_of(plan, "leuven"), "leuven's, not"), (late, "in the future"),
        (forged, "not by this hospital's steward"),
        (approval_of(plan, "ucl").model_copy(update={"signature": b"x" * 64}), "does not verify"),
    ):  # fmt: skip
        found = finds(members.approvals, approvals(ucl=signed))
        assert any(why in line for line in found[BROKEN]), found


def test_a_steward_that_nobody_knows_must_have_signed_all_the_same() -> None:
    nobody = replace(trust(), stewards={})
    assert len(finds(members.approvals, clean_bundle(), nobody)[NOTE]) == 5
    forged = approval_of(clean_bundle().plan, "ucl").model_copy(update={"signature": b"x" * 64})
    assert any("does not verify" in line for line in finds(members.approvals, approvals(ucl=forged), nobody)[BROKEN])


def test_the_coordinator_had_the_approval_before_the_round() -> None:
    bundle = retold(COORDINATOR, dropped(PlanApprovalGiven, lambda event: event.silo == "ucl"))
    found = finds(members.approvals, bundle)[BROKEN]
    assert len(found) == 1
    assert "round 1 opened, ucl had not approved by then" in found[0]
    other = retold(COORDINATOR, changed(PlanApprovalGiven, lambda e: e.silo == "ucl", dataset_digest=sha("other")))
    assert "round 1 opened, ucl had not approved by then" in finds(members.approvals, other)[BROKEN][0]


def test_the_hospital_had_logged_it_before_its_work() -> None:
    bundle = retold("ucl", dropped(PlanApprovalGiven))
    assert finds(members.approvals, bundle) == {
        BROKEN: ["ucl: its own log has no such approval before its first contribution"]
    }
    assert list(finds(members.approvals, hidden(clean_bundle(), "ucl", PlanApprovalGiven))) == [INCOMPLETE]
    assert finds(members.approvals, unlogged(clean_bundle(), "ucl")) == {}


def test_a_plan_is_published_before_its_rounds_and_ends_on_its_day() -> None:
    found = finds(members.approvals, retold(COORDINATOR, dropped(PlanPublished)))[BROKEN]
    assert "round 1 of a plan that was not published" in found[0]
    plan = clean_bundle().plan
    until = plan.purpose.model_copy(update={"expires": made_study.NOW.date() - timedelta(days=1)})
    over = replace(clean_bundle(), plan=plan.model_copy(update={"purpose": until}))
    assert any("closed after the plan's last day" in line for line in finds(members.approvals, over)[BROKEN])


def test_without_the_coordinators_log_nothing_is_said_of_approvals() -> None:
    assert finds(members.approvals, unlogged(clean_bundle(), COORDINATOR)) == {}
    assert finds(members.approvals, retold(COORDINATOR, dropped(RoundOpened))) == {}


def test_findings_name_people_or_nobody() -> None:
    assert (names(()), names(("ucl", "charite"))) == ("nobody", "charite, ucl")

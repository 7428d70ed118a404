"""What is decided on the pages is what would be decided in the terminal: the same entries, the same messages."""

from typing import Any

from boundary.approval import check_approval
from boundary.messages import PlanApproved, PlanDeclined, Refused
from silo_agent.permission import holds_still
from silo_agent.steward import approve


def _path(site: Any, verb: str = "") -> str:
    return f"/plans/{site.study}{verb}"


def test_an_approval_is_signed_for_the_plan_and_the_data_that_were_read(
    waiting: Any, steward: Any, approval_of: Any
) -> None:  # fmt: skip
    form = approval_of(steward.get(_path(waiting)), role="principal_investigator", reason=" vote\r\n2025/118 ")
    done = steward.post(_path(waiting, "/approve"), form)
    assert (done.status, done.headers["location"]) == (303, _path(waiting) + "?done=approved")
    (said,) = waiting.outbox()
    assert isinstance(said, PlanApproved)
    kept = waiting.journal.plan(waiting.study)
    assert (kept.state, kept.reason) == ("approved", "vote 2025/118")
    assert said.approval.approval.role == "principal_investigator"
    check_approval(
        said.approval, plan=waiting.plan, silo="st-olavs", steward=waiting.folder.steward.public,
        dataset_digest=kept.dataset_digest, now=waiting.now,
    )  # fmt: skip
    assert waiting.events() == ["plan-received", "plan-approval-given"]
    assert "Approved and signed." in steward.get(done.headers["location"]).text


def test_approving_twice_is_one_approval(waiting: Any, steward: Any, approval_of: Any) -> None:
    form = approval_of(steward.get(_path(waiting)))
    for _ in range(2):
        assert steward.post(_path(waiting, "/approve"), form).status == 303
    assert len(waiting.outbox()) == 1


def test_what_was_typed_is_still_there_after_a_mistake(waiting: Any, steward: Any, approval_of: Any) -> None:
    form = approval_of(steward.get(_path(waiting)), label="ct-contrast", reason="a long\r\n<reason>")
    page = steward.post(_path(waiting, "/approve"), form)
    assert page.status == 422
    assert "type the plan's label exactly as it stands above: ct-contrast@1" in page.text
    assert ">a long\r\n&lt;reason&gt;</textarea>" in page.html
    assert 'value="ct-contrast"' in page.html


def test_a_plan_that_became_unsuitable_while_it_was_read_is_not_approved(
    waiting: Any, steward: Any, approval_of: Any
) -> None:
    form = approval_of(steward.get(_path(waiting)))
    waiting.journal.set_plan(waiting.study, "unsuitable", reason="class '1' has no patient")
    page = steward.post(_path(waiting, "/approve"), form)
    assert page.status == 409
    assert "class '1' has no patient. Nothing was deleted or changed; correct the label table" in page.text
    assert not waiting.outbox()


def test_data_that_were_scanned_again_while_one_read_are_not_approved(
    waiting: Any, steward: Any, approval_of: Any
) -> None:  # fmt: skip
    form = approval_of(steward.get(_path(waiting)))
    waiting.journal.set_plan(waiting.study, "scanned", dataset_digest="sha256:" + "1" * 64)
    page = steward.post(_path(waiting, "/approve"), form)
    assert page.status == 409
    assert "Read the page again first" in page.text
    assert not waiting.outbox()


def test_a_plan_is_declined_with_a_reason_that_stays_here(waiting: Any, steward: Any) -> None:
    form = {"token": steward.get(_path(waiting)).token, "no": "no ethics vote"}
    assert steward.post(_path(waiting, "/decline"), form).status == 303
    (said,) = waiting.outbox()
    assert isinstance(said, PlanDeclined)
    assert "ethics" not in said.model_dump_json()
    assert waiting.journal.plan(waiting.study).reason == "no ethics vote"


def test_stop_now_ends_an_approved_study_and_nothing_more_is_trained(waiting: Any, steward: Any) -> None:
    approve(waiting.journal, waiting.folder, waiting.outbound, waiting.study, "data_steward", "yes")
    page = steward.get(_path(waiting))
    assert "Stop now" in page.text
    assert "Approve and sign" not in page.text
    form = {"token": page.token, "no": "a complaint"}
    assert steward.post(_path(waiting, "/decline"), form).status == 303
    assert waiting.journal.plan(waiting.study).state == "declined"
    waiting.ordered()
    assert [type(said) for said in waiting.outbox() if said.kind != "heads-cosigned"][-1] is Refused


def test_a_study_that_is_over_is_not_declined(waiting: Any, steward: Any, everything: Any) -> None:
    token = steward.get(_path(waiting)).token
    waiting.journal.set_plan(waiting.study, "closed")
    before = everything(waiting)
    page = steward.post(_path(waiting, "/decline"), {"token": token, "no": "too late"})
    assert page.status == 409
    assert "is closed: nothing is done for it any more" in page.text
    assert everything(waiting) == before


def test_our_data_are_checked_again_when_asked(waiting: Any, steward: Any) -> None:
    form = {"token": steward.get(_path(waiting)).token}
    assert steward.post(_path(waiting, "/check-again"), form).status == 303
    assert waiting.journal.plan(waiting.study).state == "received"
    assert steward.post(_path(waiting, "/check-again"), form).status == 409


def test_all_work_is_paused_and_goes_on_each_once_in_the_log(waiting: Any, steward: Any) -> None:
    form = {"token": steward.get("/").token}
    for _ in range(2):
        assert steward.post("/pause", form).status == 303
    assert holds_still(waiting.journal)
    page = steward.get("/?done=paused")
    assert "holds still after its step" in page.text
    assert "/resume" in page.html
    assert "/pause" not in page.html
    for _ in range(2):
        assert steward.post("/resume", form).status == 303
    assert not holds_still(waiting.journal)
    assert waiting.events()[-2:] == ["work-paused", "work-resumed"]


# --- incidents ---------------------------------------------------------------------------------------
def test_an_incident_is_closed_only_by_its_number(site: Any, steward: Any, everything: Any) -> None:
    with site.journal.transaction():
        number = site.journal.open_incident("coordinator", "LOG_SHRUNK", b'{"known":null,"shown":null}', site.now)
    page = steward.get("/incidents")
    assert "fewer entries than it had" in page.text
    before = everything(site)
    form = {"token": page.token, "number": "7"}
    assert steward.post(f"/incidents/{number}/close", form).status == 422
    assert steward.post("/incidents/7/close", form).status == 404
    assert everything(site) == before
    assert steward.post(f"/incidents/{number}/close", form | {"number": str(number)}).status == 303
    assert site.journal.incidents(only_open=True) == []
    assert site.events()[-1] == "incident-closed"
    again = steward.post(f"/incidents/{number}/close", form | {"number": str(number)})
    assert (again.status, "no incident 1 is open" in again.text) == (409, True)

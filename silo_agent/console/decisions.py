"""What a person decides on these pages. Each is a step of `silo_agent.steward` or `silo_agent.witness`, no other.

Who decides has read a page. What they sign is what stood there: the form carries the digests of the plan and of the
data, and if the journal has others by now, nothing is decided.
"""

import re
from collections.abc import Mapping

from silo_agent.console.errors import Declined, not_found, out_of_date
from silo_agent.console.exchange import Response, see_other
from silo_agent.console.pages import plan_page, the_plan, trail_page
from silo_agent.console.visit import Visit
from silo_agent.errors import AgentError
from silo_agent.permission import pause
from silo_agent.steward import approve, decline, forget_scan
from silo_agent.trail_view import sentence
from silo_agent.witness import close_incident

MOST_REASON = 1000  # characters
_ROLE = re.compile(r"[a-z][a-z_]{1,30}")  # as boundary.approval.Approval has it
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def approve_plan(visit: Visit, study: str) -> Response:
    kept, form = the_plan(visit.journal, study), visit.form
    problem = approval_problem(form, kept.parsed.label)
    if problem:
        return plan_page(visit, kept, problem, 422)
    try:
        with visit.journal.transaction():
            kept = the_plan(visit.journal, study)
            if (form.get("plan"), form.get("data")) != (kept.digest, kept.dataset_digest or ""):
                raise out_of_date("The plan or our data")
            approve(visit.journal, visit.world.folder, visit.outbound, study, form["role"], one_line(form["reason"]))
    except AgentError as why:
        return plan_page(visit, the_plan(visit.journal, study), str(why), 409)
    return see_other(f"/plans/{study}?done=approved")


def approval_problem(form: Mapping[str, str], label: str) -> str:
    """What is wrong with a typed approval, in a sentence that says how it is right; empty if nothing is."""
    if form.get("label", "").strip() != label:
        return f"To approve, type the plan's label exactly as it stands above: {label}"
    if not _ROLE.fullmatch(form.get("role", "")):
        return "A role has 2 to 31 small letters and underscores, like data_steward"
    return reason_problem(form.get("reason", ""))


def reason_problem(reason: str) -> str:
    if not reason.strip():
        return "Give a reason, for the hospital's own records; it does not leave"
    if len(reason) > MOST_REASON:
        return f"Shorten the reason to {MOST_REASON} characters"
    return ""


def one_line(reason: str) -> str:
    """Browsers send what was typed into several lines with CR and LF; the records have one."""
    return " ".join(reason.split())


def decline_plan(visit: Visit, study: str) -> Response:
    """Say no, also to a plan that was approved: the running agent stops the work for it."""
    kept, reason = the_plan(visit.journal, study), visit.form.get("no", "")
    problem = reason_problem(reason)
    if problem:
        return plan_page(visit, kept, problem, 422)
    try:
        decline(visit.journal, visit.outbound, study, one_line(reason))
    except AgentError as why:
        return plan_page(visit, the_plan(visit.journal, study), str(why), 409)
    return see_other(f"/plans/{study}?done=declined")


def check_again(visit: Visit, study: str) -> Response:
    the_plan(visit.journal, study)
    try:
        forget_scan(visit.journal, study)
    except AgentError as why:
        return plan_page(visit, the_plan(visit.journal, study), str(why), 409)
    return see_other(f"/plans/{study}?done=rescan")


def close(visit: Visit, number: str) -> Response:
    """The number is typed again, so that nobody closes by a slip what keeps the agent from working."""
    if not _NUMBER.fullmatch(number) or int(number) not in {one.incident for one in visit.journal.incidents()}:
        raise not_found("incident")
    if visit.form.get("number", "").strip() != number:
        raise Declined(422, "The incident is still open", f"To close it, type its number into the field: {number}")
    close_incident(visit.journal, int(number), visit.world.now())
    return see_other("/incidents?done=closed")


def hold(visit: Visit) -> Response:
    """Have everything hold still; asked twice, it is paused once."""
    pause(visit.journal, is_paused=True, now=visit.world.now())
    return see_other("/?done=paused")


def go_on(visit: Visit) -> Response:
    pause(visit.journal, is_paused=False, now=visit.world.now())
    return see_other("/?done=resumed")


def verify_trail(visit: Visit) -> Response:
    """Nothing changes, but it may take seconds: therefore a button, not a link that something follows."""
    return trail_page(visit, None, sentence(visit.journal))

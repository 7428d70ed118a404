"""What the console shows. Nothing in here changes anything."""

import json
from typing import Any

from boundary.errors import BoundaryError
from compliance.trail import read_leaf
from compliance.witnessing import MEANS, NO_MEANING, Contradiction
from silo_agent.console.budget_view import budget_view, cost_chart
from silo_agent.console.departures import departures, totals
from silo_agent.console.errors import Declined, not_found
from silo_agent.console.exchange import Response
from silo_agent.console.intake_view import intake_view
from silo_agent.console.notices import notice
from silo_agent.console.visit import Visit
from silo_agent.cost import Cost, accounts
from silo_agent.journal import Journal, KeptPlan
from silo_agent.permission import holds_still
from silo_agent.personal import lines as own_lines
from silo_agent.personal import own_row
from silo_agent.policy.files import load_policy
from silo_agent.status import summary
from silo_agent.steward import difference, dossier, lines

ON_A_PAGE = 50  # entries of the trail
MOST_LEFT = 100  # parcels shown
MOST_ORDERS = 50
WAITING, APPROVED, OVER = ("received", "scanned", "unsuitable"), ("approved",), ("declined", "closed")
TO_DO = {
    "received": "Nothing yet: the agent is checking our data against it",
    "scanned": "Read it, then approve or decline",
    "unsuitable": "Our data do not fit: read why, correct it, have them checked again",
    "approved": "Nothing: the agent takes part. It can be stopped at any time",
    "declined": "Nothing: we take no part",
    "closed": "Nothing: the study is over",
}
_GROUPS = (("Waiting", WAITING), ("Approved", APPROVED), ("Over", OVER))


def overview(visit: Visit) -> Response:
    journal, folder = visit.journal, visit.world.folder
    said = summary(journal, folder, visit.world.now())
    return visit.page(
        "overview.html",
        "Overview",
        summary=[line for line in said if not _is_alarm(line)],
        alarms=[line for line in said if _is_alarm(line)],
        plans=[row for row in _rows(journal) if row["state"] in {"scanned", "unsuitable"}],
        incidents=journal.incidents(only_open=True),
        totals=totals(folder.journal),
        withdrawals=len(journal.private.withdrawals()),
        is_paused=holds_still(journal),
        notice=notice(visit.request.asked("done")),
    )


def _is_alarm(line: tuple[str, str]) -> bool:
    return line[0].startswith(("TROUBLE", "INCIDENT")) or line[1].startswith("TROUBLE")


def plans(visit: Visit) -> Response:
    rows = _rows(visit.journal)
    groups = [(title, [row for row in rows if row["state"] in states]) for title, states in _GROUPS]
    return visit.page("plans.html", "Plans", groups=groups)


def _rows(journal: Journal) -> list[dict[str, str]]:
    return [
        {
            "study": kept.study,
            "label": kept.parsed.label,
            "state": kept.state,
            "received": kept.received_at,
            "to_do": TO_DO[kept.state],
        }
        for kept in journal.plans()
    ]


def plan(visit: Visit, study: str) -> Response:
    return plan_page(visit, the_plan(visit.journal, study))


def the_plan(journal: Journal, study: str) -> KeptPlan:
    kept = journal.plan(study)
    if kept is None:
        raise not_found("plan")
    return kept


def plan_page(visit: Visit, kept: KeptPlan, problem: str = "", status: int = 200) -> Response:
    """With `problem` the forms keep what was typed."""
    file = dossier(visit.journal, visit.world.folder, kept, visit.world.now())
    own = own_row(visit.world.folder, kept.study)
    return visit.page(
        "plan.html",
        file.plan.label,
        status=status,
        kept=kept,
        label=file.plan.label,
        to_do=TO_DO[kept.state],
        lines=lines(file) + ([] if own is None else own_lines(own)),
        intake=None if file.report is None else intake_view(file.report),
        cost=cost_chart(file.cost) if isinstance(file.cost, Cost) else None,
        before=file.before.label if file.before else None,
        changes=difference(file),
        orders=visit.journal.orders_of(kept.study)[-MOST_ORDERS:],
        committed=visit.journal.committed_round(kept.study),
        typed={"role": "data_steward", "reason": "", "label": "", "no": ""} | visit.form,
        problem=problem,
        notice=notice(visit.request.asked("done")),
    )


def budget(visit: Visit) -> Response:
    found = accounts(load_policy(visit.world.folder.root).policy, visit.journal, visit.world.folder)
    return visit.page("budget.html", "Privacy budget", budget=budget_view(found))


def rounds(visit: Visit) -> Response:
    journal = visit.journal
    kept = [order for one in journal.plans() for order in journal.orders_of(one.study)]
    file = visit.world.folder.journal
    return visit.page(
        "rounds.html",
        "Rounds and what left",
        orders=kept[-MOST_ORDERS:],
        left=departures(file, MOST_LEFT),
        totals=totals(file),
        most=MOST_LEFT,
    )


def incidents(visit: Visit) -> Response:
    found = [
        {"one": one, "means": MEANS.get(one.code, NO_MEANING), "lines": _evidence(one.evidence)}
        for one in sorted(visit.journal.incidents(), key=lambda one: (one.closed_at is not None, one.incident))
    ]
    return visit.page("incidents.html", "Incidents", found=found, notice=notice(visit.request.asked("done")))


def _evidence(data: bytes) -> tuple[str, ...]:
    return Contradiction.model_validate_json(data).lines


def trail(visit: Visit) -> Response:
    return trail_page(visit, _page_number(visit))


def trail_page(visit: Visit, number: int | None, verdict: str | None = None) -> Response:
    """Page `number`, from 1; without one the last, which has the newest entries."""
    last = max(1, -(-visit.journal.trail_size // ON_A_PAGE))
    number = last if number is None else number
    if not 1 <= number <= last:
        raise not_found("page of the trail")
    before = (number - 1) * ON_A_PAGE
    leaves = visit.journal.trail(after=before)[:ON_A_PAGE]
    entries = [_entry(at, leaf) for at, leaf in enumerate(leaves, before + 1)]
    return visit.page("trail.html", "Trail", entries=entries, number=number, last=last, verdict=verdict)


def _page_number(visit: Visit) -> int | None:
    said = visit.request.asked("page")
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise Declined(400, "That is not the number of a page", "Use the links below the trail.")
    return int(said)


def _entry(number: int, data: bytes) -> dict[str, Any]:
    try:
        leaf = read_leaf(data)
    except (BoundaryError, AttributeError):  # bytes, or no bytes: the rest can be read, the button says what it means
        return {"number": number, "time": "", "event": "cannot be read: verify the log", "about": []}
    about = leaf.event.model_dump(mode="json")
    said = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in about.items()]
    return {"number": leaf.sequence, "time": leaf.time, "event": leaf.event.event, "about": said}

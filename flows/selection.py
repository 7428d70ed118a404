"""Who is asked in a collection: everybody who approved, or for a round's training the hospitals that were drawn.

The draw itself is `boundary.drawing`, for hospitals and reviewers to repeat. Orders that were posted stay the orders:
a driver that takes an attempt over asks those whom the first one asked, whoever has approved since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from boundary.drawing import drawn
from boundary.messages import Collection, WorkOrder
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from compliance.events import HospitalsDrawn
from flows.desk import Desk
from flows.store import audit


@dataclass(frozen=True, slots=True)
class Pace:
    """How many answers a collection waits for, None for all, and the grace behind that or behind its deadline."""

    wanted: int | None
    grace: timedelta


def pace_of(plan: StudyPlan, collection: Collection) -> Pace:
    """Only a training asks more hospitals than it wants."""
    selection = plan.selection
    wanted = selection.hospitals if collection.phase == "train" and selection.over else None
    return Pace(wanted, timedelta(minutes=selection.grace_minutes))


def asked(
    connection: Connection,
    desk: Desk,
    plan_digest: str,
    collection: Collection,
    consenting: Sequence[str],
    without: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Whom to order to do the work of this attempt, by name; to be called in the transaction that posts the orders.

    `without` rest this time if a quorum of others remains. A draw is in the log before anybody is told of it, and once.
    """
    selection, is_training = desk.plan.selection, collection.phase == "train"
    if not is_training or (selection.most_asked is None and not without):
        return tuple(consenting)
    slot = str(collection)
    told = tuple(silo for silo in desk.plan.silos if desk.told(connection, silo, WorkOrder.kind, slot) is not None)
    if told:
        return told
    chosen = drawn(
        plan_digest,
        collection.round,
        consenting,
        selection.most_asked,
        without=without,
        least=desk.plan.aggregation.quorum,
    )
    event = HospitalsDrawn(
        study=collection.study,
        round=collection.round,
        attempt=collection.attempt,
        consenting=tuple(sorted(consenting)),
        resting=tuple(sorted(without & set(consenting))),
        drawn=chosen,
    )
    audit.append(connection, event, actor=COORDINATOR, now=desk.now())
    return chosen

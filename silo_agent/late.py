"""A training that came too late for its round, and goes into a later one instead, once, if the plan says so.

The rules it keeps. Only what has not left under masks in any attempt of its own round or of those since is offered, so
it is in one sum ever: an order for a newer round ends all older ones for good, and the result is moved, not copied, to
where the newer round's work is kept. Not once it is older than the plan allows. Not once somebody has withdrawn consent
since it began: it is thrown away. The policy's gates are asked as for a training, and the log says what was offered.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from boundary.messages import Collection
from boundary.plan import StudyPlan
from boundary.protocol import FINAL
from compliance.events import LateUpdateOffered
from silo_agent.errors import StoredFileLost
from silo_agent.journal import Journal, KeptOrder
from silo_agent.results import StoredResult, result_folder
from silo_agent.state import StateFolder


@dataclass(frozen=True, slots=True)
class Late:
    """A finished training of a round before, and its folder."""

    folder: Path
    made_in: int


def most_stale(journal: Journal, study: str) -> int:
    """By how many rounds a training of this study may come late; 0 if that is not for a later round."""
    plan = _plan(journal, study)
    return plan.selection.most_stale if plan is not None and plan.selection.keeps_late else 0


def goes_on(journal: Journal, order: KeptOrder, number: int) -> bool:
    """Whether the training of `order` is let be finished, because round `number` may still take it.

    Not behind the last round: it would only keep the hospital from personalising.
    """
    plan = _plan(journal, order.study)
    if plan is None or order.phase != "train" or number > plan.training.rounds:
        return False
    return plan.selection.keeps_late and number - order.round <= plan.selection.most_stale


def outdated(journal: Journal, study: str, number: int) -> list[KeptOrder]:
    """Orders whose training was let go on, and which round `number` and all that follow would not take any more."""
    plan = _plan(journal, study)
    if plan is None or not plan.selection.keeps_late:
        return []
    allowed, is_over = plan.selection.most_stale, number > plan.training.rounds
    return [
        order
        for order in journal.orders_of(study)
        if order.phase == "train" and order.step in FINAL and order.result is None
        and (is_over or number - order.round == allowed + 1)
    ]  # fmt: skip


def spared(journal: Journal, study: str, committed: int) -> frozenset[int]:
    """Of which rounds that are over the trainings are kept on the disk."""
    first = max(1, committed + 1 - most_stale(journal, study))
    return frozenset(number for number in range(first, committed + 1) if not _has_left(journal, study, number))


def find(journal: Journal, folder: StateFolder, study: str, number: int) -> Late | None:
    """Give the newest training that may go into round `number`; what may not any more, for a withdrawal, is removed."""
    found = []
    for place in sorted((folder.work / study).glob("*-train-*")):
        kept = _kept(place)
        if kept is None or not int(place.name.partition("-")[0]) < number:
            continue
        if kept.made_in < journal.private.effective_from(study):
            shutil.rmtree(place, ignore_errors=True)  # of somebody who has withdrawn
        elif (
            number - kept.made_in <= most_stale(journal, study)
            and journal.spent_on(kept.identity) is None
            and not any(_has_left(journal, study, old) for old in range(kept.made_in, number))
        ):
            found.append(Late(place, kept.made_in))
    return max(found, key=lambda one: one.made_in, default=None)


def forget_waiting(journal: Journal, folder: StateFolder, study: str) -> None:
    """Somebody has withdrawn: of rounds that are over nothing waits for a later one any more. Again is harmless."""
    for place in (folder.work / study).glob("*-train-*"):
        number = place.name.partition("-")[0]
        if number.isdecimal() and int(number) <= journal.committed_round(study):
            shutil.rmtree(place, ignore_errors=True)


def offer(
    journal: Journal, folder: StateFolder, order: KeptOrder, model: str, begin: Callable[[], None], now: datetime
) -> bool:
    """Make a late training the result of this order, if there is one; whether there was.

    `begin` asks the gates and makes their entry, in the same transaction: no withdrawal comes between. A kill after it
    leaves the training where it was: it is found once more, unless somebody has withdrawn, and the log says so twice.
    """
    if order.phase != "train" or not most_stale(journal, order.study):
        return False
    with journal.transaction():
        found = find(journal, folder, order.study, order.round)
        if found is None:
            return False
        begin()
        said = LateUpdateOffered(study=order.study, round=order.round, made_in=found.made_in, order=order.digest)
        journal.record(said, now)
    target = result_folder(folder, order.study, order.round, order.phase, model)
    shutil.rmtree(target, ignore_errors=True)  # of a start that was not finished
    found.folder.rename(target)
    return True


def staleness(plan: StudyPlan, collection: Collection, result: StoredResult) -> int:
    """How many rounds later than made a training is summed. Raises `StoredFileLost` if that is none it may be."""
    if collection.phase != "train" or not plan.selection.keeps_late:
        return 0
    stale = collection.round - result.made_in
    if not 0 <= stale <= plan.selection.most_stale:
        raise StoredFileLost(f"the result is of round {result.made_in}: it may not go into round {collection.round}")
    return stale


def _plan(journal: Journal, study: str) -> StudyPlan | None:
    kept = journal.plan(study)
    return None if kept is None else kept.parsed


def _kept(place: Path) -> StoredResult | None:
    try:
        kept = StoredResult.load(place)
    except StoredFileLost:
        return None
    return kept if kept.made_in and kept.vector.exists() else None


def _has_left(journal: Journal, study: str, number: int) -> bool:
    """Whether a vector was given out, or is about to be, for the training of this round, in any attempt."""
    return journal.has_put_out(f"masked-vector/{study}/{number}/train/")

"""Who is asked to train, held against the plan's draw and its turns, for our people to read in the agent's log.

Nothing is refused for it: an agent cannot know who else has approved, and `wardround verify` repeats both with the
coordinator's log. How many may be asked at most is checked where the cohort is closed (`silo_agent.inbound`).
"""

import logging
from collections.abc import Iterable

from boundary.drawing import passed_over
from boundary.messages import CohortClosed
from boundary.parties import trainers
from boundary.plan import StudyPlan, digest_of, study_id
from boundary.rotation import resting
from compliance.events import RoundReceived
from silo_agent.entries import entries
from silo_agent.journal import Journal

_log = logging.getLogger("silo_agent.draw")


def tell_draw(journal: Journal, closed: CohortClosed, plan: StudyPlan) -> None:
    """Log who was not asked to train, and why as far as it follows from the plan and what we were told of rounds."""
    selects = plan.selection.most_asked is not None or plan.robustness.leave_out
    if closed.collection.phase != "train" or not selects:
        return
    number, asked = closed.collection.round, (*closed.members, *closed.absent)
    for sentence in sentences(plan, number, asked, resting_in(journal, plan, number)):
        _log.info("%s %s", closed.collection, sentence)


def resting_in(journal: Journal, plan: StudyPlan, number: int) -> frozenset[str] | None:
    """Whose turn it is to rest in round `number`; None if we were not told of every round before it."""
    if not plan.robustness.leave_out:
        return frozenset()
    told = {one.round: one.tried is not None for one in entries(journal, RoundReceived, study_id(plan))}
    if not all(before in told for before in range(1, number)):
        return None
    return resting(plan, [told[before] for before in range(1, number)])


def sentences(plan: StudyPlan, number: int, asked: Iterable[str], rests: frozenset[str] | None) -> list[str]:
    """What there is to say of those who were asked and of those who were not; nothing if all are as the plan has it."""
    there, said = set(asked), []
    is_drawn = plan.selection.most_asked is not None
    skipped = set(passed_over(digest_of(plan), number, trainers(plan), there) if is_drawn else trainers(plan)) - there
    turn = rests or frozenset()
    if skipped & turn:
        said.append(f"goes without {_names(skipped & turn)}, whose turn it is to rest after a rollback")
    if skipped - turn:
        why = "not approved there, or resting" if rests is None else "not approved there"
        said.append(f"was drawn without {_names(skipped - turn)}: {why}")
    if there & turn and len(there - turn) >= plan.aggregation.quorum:
        said.append(f"asks {_names(there & turn)}, whose turn it is to rest: that is not what the plan says")
    return said


def _names(silos: Iterable[str]) -> str:
    return ", ".join(sorted(silos))

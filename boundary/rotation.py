"""Whom a round does without after others were rolled back, so that a study goes on in which one hospital spoils sums.

Nobody can see whose change it was. So hospitals are left out in turn, in an order that the study's name fixes: first
each alone, then each pair, as many as the quorum allows. Whoever was out when a round counted stays out for a while and
is then asked again; if that goes wrong, the same ones are left out at once, for twice as long. A hospital whose
patients are unlike all others' can be among them without having done anything.

All of it follows from the plan and from which rounds were rolled back: hospitals and reviewers work it out themselves.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations

from boundary.parties import trainers
from boundary.plan import StudyPlan, study_id


def resting(plan: StudyPlan, rolled_back: Iterable[bool]) -> frozenset[str]:
    """Whom the next round of a plan does without; `rolled_back` says of each round so far whether it was."""
    *_, last = resting_in_each(plan, rolled_back)
    return last


def resting_in_each(plan: StudyPlan, rolled_back: Iterable[bool]) -> Iterator[frozenset[str]]:
    """The same of round 1, 2 and so on, up to the next one. Nobody where the plan leaves out nobody."""
    spare = len(trainers(plan)) - plan.aggregation.quorum if plan.robustness.leave_out else 0
    return left_out(study_id(plan), trainers(plan), spare, rolled_back)


def left_out(
    study: str, silos: Sequence[str], spare: int, rolled_back: Iterable[bool]
) -> Iterator[frozenset[str]]:  # fmt: skip
    """Whom each round is to do without; nobody where a quorum can spare nobody (`spare`).

    As many rounds as there are hospitals have to count before those left out are asked again, and twice as many each
    time that this went wrong.
    """
    turns = _turns(study, silos, spare)
    turn, calm, out, patience = -1, 0, False, len(silos)
    yield frozenset()
    for was in rolled_back:
        calm = 0 if was else calm + 1
        if was and (out or turn < 0) and turns:
            turn = (turn + 1) % len(turns)
        elif was:
            patience *= 2
        out = bool(turns) and (was or (out and calm < patience))
        yield turns[turn] if out else frozenset()


def _turns(study: str, silos: Sequence[str], most: int) -> list[frozenset[str]]:
    drawn = sorted(silos, key=lambda silo: hashlib.sha256(f"{study}/{silo}".encode()).digest())
    sets = chain.from_iterable(combinations(drawn, size) for size in range(1, min(2, most) + 1))
    return [frozenset(one) for one in sets]

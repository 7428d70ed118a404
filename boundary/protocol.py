"""A hospital's half of a collection as a table. Code only looks it up; every pair not in it is refused.

Training comes first. The vector leaves only under masks, after the cohort is closed and its shares are dealt; the
shares that help to unmask leave last, once, and only for a set of survivors that enough hospitals saw alike.
"""

from enum import StrEnum

from boundary.errors import OutOfTurn


class Step(StrEnum):
    """Where a hospital stands with one order. Each says what has been put on its way."""

    WORKING = "working"  # the order was checked and is being worked on
    READY = "ready"  # A1: the result is stored, our keys for this attempt are announced
    SHARED = "shared"  # B1: our secrets are shared among the cohort
    MASKED = "masked"  # C1: our vector, under all its masks
    AGREED = "agreed"  # D2: we signed the one set of survivors we will help to unmask
    REVEALED = "revealed"  # E1: one share for each hospital
    LEFT_OUT = "left-out"  # it goes on without us; the result is kept for another attempt
    REFUSED = "refused"  # we said no; the code is on its way
    OVER = "over"  # the round was committed or the study closed


class Heard(StrEnum):
    """What can happen to an order."""

    DONE = "done"
    CANNOT = "cannot"
    COHORT_CLOSED = "cohort closed with us"
    SHARES_ROUTED = "shares routed, ours among them"
    SURVIVORS_NAMED = "survivors named, we among them"
    AGREEMENT_SHOWN = "agreement shown"
    WITHOUT_US = "went on without us"
    ROUND_OVER = "round over"


_FORWARD = (
    (Step.WORKING, Heard.DONE, Step.READY),
    (Step.READY, Heard.COHORT_CLOSED, Step.SHARED),
    (Step.SHARED, Heard.SHARES_ROUTED, Step.MASKED),
    (Step.MASKED, Heard.SURVIVORS_NAMED, Step.AGREED),
    (Step.AGREED, Heard.AGREEMENT_SHOWN, Step.REVEALED),
)
NEXT_STEP: dict[tuple[Step, Heard], Step] = {
    **{(step, heard): after for step, heard, after in _FORWARD},
    **{(step, Heard.CANNOT): Step.REFUSED for step, _, _ in _FORWARD},
    **{(step, Heard.WITHOUT_US): Step.LEFT_OUT for step, _, _ in _FORWARD[:-1]},
    (Step.REFUSED, Heard.WITHOUT_US): Step.LEFT_OUT,
    **{(step, Heard.ROUND_OVER): Step.OVER for step in Step if step is not Step.OVER},
}

FINAL = frozenset({Step.LEFT_OUT, Step.REFUSED, Step.OVER})
IN_MEMORY = frozenset({Step.READY, Step.SHARED, Step.MASKED, Step.AGREED})
"""Steps that need secrets which a restart forgets, on purpose."""


def next_step(step: Step, heard: Heard) -> Step:
    """Raises `OutOfTurn` for every pair that is not in the table."""
    try:
        return NEXT_STEP[step, heard]
    except KeyError:
        raise OutOfTurn(f"{heard.value} while {step.value}") from None


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for docs/protocol.md. What ends everything alike is drawn once."""
    rows = [
        f"    {before.value} --> {after.value}: {heard.value}"
        for (before, heard), after in NEXT_STEP.items()
        if heard is not Heard.ROUND_OVER
    ]
    note = f"    note right of {Step.OVER.value}: from every step, when the round is over"
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Step.WORKING.value}: order accepted", *rows, note])

"""A hospital's half of a collection as a table. Code only looks it up; every pair not in it is refused.

Training comes first and release last: nothing leaves before the cohort is closed with this hospital in it.
"""

from enum import StrEnum

from boundary.errors import OutOfTurn


class Step(StrEnum):
    """Where a hospital stands with one order."""

    WORKING = "working"  # the order was checked and is being worked on
    READY = "ready"  # the result is stored; "ready" is on its way
    RELEASED = "released"  # the cohort closed with us; the contribution is on its way
    LEFT_OUT = "left-out"  # the cohort closed without us; the result is discarded
    REFUSED = "refused"  # we said no; the code is on its way
    OVER = "over"  # the round was committed or the study closed


class Heard(StrEnum):
    """What can happen to an order."""

    DONE = "done"
    CANNOT = "cannot"
    CLOSED_WITH_US = "closed-with-us"
    CLOSED_WITHOUT_US = "closed-without-us"
    ROUND_OVER = "round-over"


NEXT_STEP: dict[tuple[Step, Heard], Step] = {
    (Step.WORKING, Heard.DONE): Step.READY,
    (Step.WORKING, Heard.CANNOT): Step.REFUSED,
    (Step.WORKING, Heard.CLOSED_WITHOUT_US): Step.LEFT_OUT,
    (Step.WORKING, Heard.ROUND_OVER): Step.OVER,
    (Step.READY, Heard.CLOSED_WITH_US): Step.RELEASED,
    (Step.READY, Heard.CANNOT): Step.REFUSED,  # the cohort is smaller than this hospital accepts
    (Step.READY, Heard.CLOSED_WITHOUT_US): Step.LEFT_OUT,
    (Step.READY, Heard.ROUND_OVER): Step.OVER,
    (Step.RELEASED, Heard.ROUND_OVER): Step.OVER,
    (Step.LEFT_OUT, Heard.ROUND_OVER): Step.OVER,
    (Step.REFUSED, Heard.CLOSED_WITHOUT_US): Step.LEFT_OUT,
    (Step.REFUSED, Heard.ROUND_OVER): Step.OVER,
}

FINAL = frozenset({Step.LEFT_OUT, Step.REFUSED, Step.OVER})


def next_step(step: Step, heard: Heard) -> Step:
    """Raises `OutOfTurn` for every pair that is not in the table."""
    try:
        return NEXT_STEP[step, heard]
    except KeyError:
        raise OutOfTurn(f"{heard.value} while {step.value}") from None


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for docs/protocol.md."""
    rows = [f"    {a.value} --> {b.value}: {heard.value}" for (a, heard), b in NEXT_STEP.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Step.WORKING.value}: order accepted", *rows])

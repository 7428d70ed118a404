"""Which hospitals train in a round, drawn so that neither side can choose, and what is done with those that are late.

The draw follows from the digest of the plan and the number of the round: whoever has the plan works it out, today or
in ten years, and nobody can change it once the first steward has approved. Nothing of the rounds is in it. Heads of
logs would be: but the coordinator's own log is among them, with salts that it chooses, and who may try a million of
them draws whom it likes (docs/adr/0021).
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from boundary.canonical import canonical_bytes
from boundary.names import Frozen
from boundary.parties import trainers
from boundary.strategies import OF_THE_CHANGE_ALONE

if TYPE_CHECKING:
    from boundary.plan import StudyPlan


class Selection(Frozen):
    """Who is asked to train, how long a round waits for them, and what becomes of an update that is late.

    Without `hospitals` all train in every round; else so many, drawn anew for each, and `over` of them more: the round
    goes on when as many as `hospitals` are ready, `grace_minutes` after that. So long it waits too when the deadline
    passes before that. Every hospital evaluates, drawn or not.

    With `late = "next-round"` a training that comes too late goes into one of the next `most_stale` rounds that ask
    its hospital, with its weight times (1 + s)^-`staleness`, s being how many rounds later that is (Xie et al. 2019,
    "Asynchronous Federated Optimization", polynomial; FedBuff, Nguyen et al. 2022, has the exponent 0.5).
    """

    hospitals: Annotated[int, Field(ge=1, le=200)] | None = None
    over: Annotated[int, Field(ge=0, le=200)] = 0
    grace_minutes: Annotated[float, Field(ge=0, le=60 * 24)] = 0.0
    late: Literal["refuse", "next-round"] = "refuse"
    staleness: Annotated[float, Field(ge=0, le=10)] = 0.5
    most_stale: Annotated[int, Field(ge=1, le=20)] = 1

    @property
    def keeps_late(self) -> bool:
        """Whether a late update goes into a later round."""
        return self.late == "next-round"

    @property
    def varies(self) -> bool:
        """Whether it is the plan's own wish that other hospitals are in each sum."""
        return self.hospitals is not None or self.keeps_late

    @property
    def most_asked(self) -> int | None:
        """How many may be asked to train in one round; None for all."""
        return None if self.hospitals is None else self.hospitals + self.over

    def factor(self, stale: int) -> float:
        """By what an update is multiplied that comes `stale` rounds late; 1 for none."""
        return float((1 + stale) ** -self.staleness)


def ranked(plan_digest: str, number: int, silos: Iterable[str]) -> tuple[str, ...]:
    """Put hospitals in the order in which round `number` of a plan draws them: SHA-256 as a shuffle."""

    def lot(silo: str) -> bytes:
        return hashlib.sha256(canonical_bytes(["wardround draw v1", plan_digest, number, silo])).digest()

    return tuple(sorted(silos, key=lot))


def drawn(
    plan_digest: str,
    number: int,
    consenting: Iterable[str],
    count: int | None,
    *,
    without: frozenset[str] = frozenset(),
    least: int = 0,
) -> tuple[str, ...]:
    """Draw `count` of the consenting hospitals, None for all, by name.

    Those in `without` rest this time, as far as `least` others remain: then the first of them are drawn after all.
    """
    order = ranked(plan_digest, number, consenting)
    others = tuple(silo for silo in order if silo not in without)
    resting = tuple(silo for silo in order if silo in without)
    chosen = others[:count]
    return tuple(sorted(chosen + resting[: max(0, least - len(chosen))]))


def passed_over(plan_digest: str, number: int, silos: Iterable[str], asked: Iterable[str]) -> tuple[str, ...]:
    """Name those whose lot was before that of somebody who was asked, and who were not: each needs a reason.

    There are two: the hospital has not approved the plan, or it rests.
    """
    wanted, order = set(asked), ranked(plan_digest, number, silos)
    last = max((place for place, silo in enumerate(order) if silo in wanted), default=0)
    return tuple(sorted(silo for silo in order[:last] if silo not in wanted))


def check_selection(plan: "StudyPlan") -> None:
    """Raises `ValueError` for a selection that is unsafe or senseless with the rest of the plan."""
    selection, count = plan.selection, len(trainers(plan))
    if selection.hospitals is None:
        if selection.over:
            raise ValueError("selection.over: asks more than a sample, and there is none; say selection.hospitals")
    elif selection.hospitals < plan.aggregation.quorum:
        raise ValueError("selection.hospitals: fewer than aggregation.quorum, which every sum needs")
    elif selection.hospitals + selection.over > count:
        raise ValueError("selection: hospitals and over come to more than there are hospitals that train")
    if not plan.varies:
        return
    if plan.training.weighting in {"images", "patients"}:
        raise ValueError(
            "training.weighting: sums over other hospitals in each round would tell how many images or patients each "
            "of them has; take equal or declared"
        )
    if selection.varies and plan.training.strategy not in OF_THE_CHANGE_ALONE:
        raise ValueError(
            f"training.strategy: {plan.training.strategy} needs the same hospitals in every round, and [selection] "
            f"gives others; take one of {', '.join(sorted(OF_THE_CHANGE_ALONE))}"
        )
    if plan.counts_steps:
        raise ValueError(
            f"robustness.leave_out: sums of {plan.training.strategy}'s steps over other hospitals would tell how many "
            f"images each of them has; take one of {', '.join(sorted(OF_THE_CHANGE_ALONE))}"
        )
    if selection.keeps_late:
        _check_late(plan)


def _check_late(plan: "StudyPlan") -> None:
    """What a late training has made beside its change would have to come late as well: not what the next one needs."""
    if plan.privacy.mechanism != "none":
        raise ValueError(
            "selection.late: what a private training cost is accounted for in the round it is made in, and checked "
            "there by everybody; take refuse with a guarantee per patient"
        )
    if plan.model.home:
        raise ValueError("selection.late: what stays home would be that of another round; take refuse with model.home")
    if plan.aggregation.random_share < 1:
        raise ValueError("selection.late: each round sends other weights; take refuse with aggregation.random_share")

"""What the agent accepts from outside, as pure decisions. Unknown means refuse.

Order of the checks for a work order: the study is known and its plan is the exact one; our own steward approved it, for
the data as it was scanned; the roster is the one we trust, alive, and its keys are the plan's; the work is ours to do
(`boundary.parties`); the round is one the plan allows, not an old one and not committed; every attempt of it is about
one model; there is time left.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from boundary.approval import SignedApproval, check_approval
from boundary.canonical import canonical_bytes, parse_json
from boundary.errors import NotApproved, OutOfTurn, PeerFault, Stale, UnknownMember
from boundary.identity import PublicIdentity
from boundary.messages import CohortClosed, WorkOrder, to_body
from boundary.parties import counts_images, last_round, taking_part
from boundary.plan import StudyPlan, digest_of, study_id
from boundary.protocol import Step
from boundary.roster import TrustedRoster
from boundary.secagg.ring import check_encoding
from silo_agent.journal import KeptOrder, KeptPlan


class NotOurPart(PeerFault):
    """Work that the approved plan has for other hospitals, not for this one."""

    code = "NOT_OUR_PART"


@dataclass(frozen=True, slots=True)
class OwnSide:
    """What this hospital holds true when it judges a message."""

    silo: str
    steward: PublicIdentity
    roster: TrustedRoster
    now: datetime


def check_proposal(plan: StudyPlan, study: str, own: OwnSide) -> None:
    """Raises `PeerFault` for a plan that is misnamed, does not name us with our key, or has expired."""
    if study != study_id(plan):
        raise OutOfTurn("the proposal's study is not its plan's")
    own.roster.check_plan(plan)
    if own.silo not in plan.silos:
        raise UnknownMember("the plan does not name this hospital")
    if own.now.date() > plan.purpose.expires:
        raise Stale(f"the plan expired on {plan.purpose.expires}")


def check_order(
    order: WorkOrder,
    kept: KeptPlan | None,
    earlier: list[KeptOrder],
    own: OwnSide,
    *,
    committed: int = 0,
    final: str | None = None,
) -> StudyPlan:
    """The plan to work by; raises `PeerFault` for every reason not to.

    `committed` is the last round that is over, `final` the digest of the model that came out of it.
    """
    plan = approved_plan(kept, own)
    if order.plan_digest != digest_of(plan) or order.collection.study != study_id(plan):
        raise NotApproved("the order is for another plan than the approved one")
    own.roster.alive(own.now).check_plan(plan)
    if order.roster_digest != own.roster.signed.digest:
        raise UnknownMember("the order is bound to another roster than the one this hospital trusts")
    collection = order.collection
    _check_number(order, plan, committed, final)
    _check_part(order, plan, own)
    newest = max((kept_order.round for kept_order in earlier), default=0)
    if collection.round < newest or collection.round <= committed:
        raise Stale(f"an order for round {collection.round}; round {max(newest, committed)} was begun or is over")
    check_encoding(order.encoding, plan)
    body, before = to_body(order), [(kept_order, parse_json(kept_order.envelope)["body"]) for kept_order in earlier]
    _check_normalisation(order, plan, [old["normalisation"] for _, old in before])
    _check_beside(order, plan, [old["base"] for _, old in before])
    begun = [old["model"]["digest"] for one, old in before if (one.round, one.phase) == (collection.round, "train")]
    _check_voted_on(order, begun or [final] * (collection.round == committed + 1))
    same = [old for one, old in before if (one.round, one.phase) == (collection.round, collection.phase)]
    if any(_question(old) != _question(body) for old in same):  # a second question to the same data
        raise OutOfTurn(
            f"another model or encoding for round {collection.round}, {collection.phase}, than in an earlier attempt"
        )
    if order.due <= own.now:
        raise Stale("the order was due before it arrived")
    return plan


def _check_part(order: WorkOrder, plan: StudyPlan, own: OwnSide) -> None:
    """Only the work that the approved plan has for this hospital, and of finished models only those it names."""
    collection, finished = order.collection, plan.evaluation.models
    taking = taking_part(plan, collection.phase)
    if not taking:
        raise NotApproved(f"the approved plan has no {collection.phase} at all")
    if own.silo not in taking:
        raise NotOurPart(f"the approved plan has no {collection.phase} for this hospital")
    if collection.phase == "evaluate" and plan.training.rounds == 0:
        named = finished[collection.round - 1 : collection.round]
        if order.model.digest not in named:
            raise NotApproved(f"round {collection.round} is to evaluate another model than the plan names for it")


def _check_number(order: WorkOrder, plan: StudyPlan, committed: int, final: str | None) -> None:
    """A round of the plan's; to personalise the one after the last, once all are over, with the model they gave."""
    number, rounds = order.collection.round, plan.training.rounds
    if order.collection.phase != "personalise":
        if number > last_round(plan):
            raise NotApproved(f"round {number} of a plan for {last_round(plan)} rounds")
        return
    if plan.personalisation is None:
        raise NotApproved("the plan has no personalisation")
    if (number, committed) != (rounds + 1, rounds):
        raise NotApproved(f"hospitals personalise once, after round {rounds} and as round {rounds + 1}")
    if order.model.digest != final:
        raise OutOfTurn("to be personalised is another model than the last round is said to have given")


def _check_normalisation(order: WorkOrder, plan: StudyPlan, before: list[Any]) -> None:
    """The statistics are taken once, before round 1, if the plan says so; what they gave holds for the whole study."""
    wanted, is_counting = plan.preprocessing.normalise != "none", order.collection.phase == "statistics"
    if is_counting and (not counts_images(plan) or order.collection.round != 1):
        raise NotApproved("the plan asks for no statistics, or not in this round")
    if (order.normalisation is not None) != (wanted and not is_counting):
        raise NotApproved("a normalisation that the plan does not ask for, or none where it does")
    if order.normalisation is not None and plan.preprocessing.given not in {None, order.normalisation}:
        raise NotApproved("another normalisation than the plan gives")
    now = to_body(order)["normalisation"]
    if now is not None and any(one not in (None, now) for one in before):
        raise OutOfTurn("another normalisation than in an earlier round of this study")


def _check_beside(order: WorkOrder, plan: StudyPlan, before: list[Any]) -> None:
    """What comes beside the model only as the plan has it, and a base that is the same for the whole study."""
    if (order.base is None) != plan.model.moves_whole:
        raise NotApproved("a base that the plan does not ask for, or none where it does")
    if order.control is not None and not (plan.has_controls and order.collection.phase == "train"):
        raise NotApproved("a control variate that the plan does not ask for")
    if (order.before is not None) != (plan.robustness.vote and order.collection.phase == "evaluate"):
        raise NotApproved("a vote that the plan does not ask for, or none where it does")
    base = to_body(order)["base"]
    if any(one != base for one in before):
        raise OutOfTurn("another base than in an earlier order of this study")


def _check_voted_on(order: WorkOrder, begun: list[str | None]) -> None:
    """A new model is held to the one that its round began with: another of the coordinator's would be measured too.

    `begun` is what we know of that one: what we were ordered to train from, else what the last round gave.
    """
    if order.before is not None and any(one not in (None, order.before.digest) for one in begun):
        raise OutOfTurn("the vote is to hold the new model to another one than the round began with")


def _question(body: dict[str, Any]) -> bytes:
    return canonical_bytes([body[name] for name in ("model", "base", "control", "before", "encoding")])


def approved_plan(kept: KeptPlan | None, own: OwnSide) -> StudyPlan:
    """The plan our steward approved; raises `NotApproved`."""
    if kept is None:
        raise NotApproved("this study was never proposed here")
    if kept.state != "approved" or kept.approval is None:
        raise NotApproved(f"the steward has not approved this plan (it is {kept.state})")
    plan = kept.parsed
    check_approval(
        SignedApproval.model_validate_json(kept.approval),
        plan=plan,
        silo=own.silo,
        steward=own.steward,
        dataset_digest=kept.dataset_digest,
        now=own.now,
    )
    return plan


def check_closing(closed: CohortClosed, order: KeptOrder, plan: StudyPlan, own: OwnSide) -> bool:
    """Whether we are in the sum; raises `PeerFault` for a closing that contradicts itself, the plan or our order."""
    if closed.order != order.digest:
        raise OutOfTurn("the cohort was closed for another order")
    named, may = (*closed.members, *closed.absent), set(taking_part(plan, closed.collection.phase))
    if set(named) - may or len(set(named)) != len(named):
        raise UnknownMember("the cohort names a hospital twice or one that has no part in this sum by the plan")
    most = plan.selection.most_asked
    if closed.collection.phase == "train" and most is not None and len(named) > most:
        raise NotApproved(f"{len(named)} hospitals were asked to train, the plan has at most {most} of them drawn")
    if own.silo not in closed.members:
        return False
    own.roster.alive(own.now)
    if order.step is not Step.READY:
        raise OutOfTurn(f"the cohort was closed with us while we are {order.step.value}")
    return True

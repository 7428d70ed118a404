"""What a hospital accepts from outside. Each attack is a row with a sentence for a name."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from boundary.approval import Approval, sign_approval
from boundary.canonical import digest
from boundary.errors import Expired, NotApproved, OutOfTurn, PeerFault, RolledBack, Stale, UnknownMember
from boundary.identity import SigningIdentity
from boundary.images import Normalisation
from boundary.messages import BlobRef, WorkOrder
from boundary.plan import digest_of, study_id
from boundary.protocol import Step
from boundary.roster import TrustedRoster
from boundary.secagg.ring import Encoding, first_encoding
from silo_agent.inbound import check_closing, check_order, check_proposal

ANOTHER = BlobRef(digest=digest(b"another model"), size=9)


def judge(site: Any, order: WorkOrder, *, committed: int = 0) -> None:
    earlier = site.journal.orders_of(site.study)
    check_order(order, site.journal.plan(site.study), earlier, site.own(), committed=committed)


def test_an_order_for_the_approved_plan_is_accepted(site: Any) -> None:
    site.approve()
    assert check_order(site.order(), site.journal.plan(site.study), [], site.own()) == site.plan, (
        "the plan to work by is the approved one"
    )


# --- orders before there is an approval --------------------------------------------------------------
def _nothing(site: Any) -> None:
    pass


def _proposed(site: Any) -> None:
    site.propose()


def _scanned(site: Any) -> None:
    site.propose()
    site.scanned()


def _unsuitable(site: Any) -> None:
    site.propose()
    site.scanned("a class is missing")


def _declined(site: Any) -> None:
    site.approve()
    site.outbound.decline(site.study, digest_of(site.plan), "DECLINED_BY_STEWARD", "no")


def _closed(site: Any) -> None:
    site.approve()
    site.journal.set_plan(site.study, "closed")


def _approval(site: Any, *, steward: Any = None, **changes: Any) -> None:
    """Put an approval into the journal that our steward did not give like this."""
    site.propose()
    site.scanned()
    said = {
        "silo": "st-olavs",
        "plan_digest": digest_of(site.plan),
        "dataset_digest": digest(b"our data"),
        "role": "data_steward",
        "approved_at": site.now,
    }
    signed = sign_approval(Approval(**(said | changes)), steward or site.folder.steward)
    site.journal.keep_approval(site.study, signed.model_dump_json().encode(), "reason")


NOT_APPROVED: dict[str, Callable[[Any], None]] = {
    "the plan was never proposed": _nothing,
    "the plan was proposed and nobody looked at it yet": _proposed,
    "our data were checked but nobody approved": _scanned,
    "our data do not meet the plan's contract": _unsuitable,
    "the steward declined after approving": _declined,
    "the study was closed": _closed,
    "the approval is for another digest": lambda site: _approval(site, plan_digest=digest(b"another plan")),
    "the approval is by another key": lambda site: _approval(site, steward=SigningIdentity.generate()),
    "the approval is another hospital's": lambda site: _approval(site, silo="charite"),
    "the data are not those that were approved": lambda site: _approval(site, dataset_digest=digest(b"more data")),
}


@pytest.mark.parametrize("prepare", NOT_APPROVED.values(), ids=NOT_APPROVED)
def test_no_work_without_our_own_stewards_approval_of_this_digest(site: Any, prepare: Callable[[Any], None]) -> None:
    prepare(site)
    with pytest.raises(NotApproved):
        judge(site, site.order())


def test_an_approval_whose_signature_was_made_for_other_words_is_refused(site: Any) -> None:
    site.approve()
    kept = site.journal.plan(site.study)
    forged = kept.approval.replace(b"data_steward", b"it_security")
    site.journal.keep_approval(site.study, forged, "reason")
    with pytest.raises(PeerFault, match="does not verify"):
        judge(site, site.order())


def test_an_approval_ends_with_the_plan(site: Any) -> None:
    site.approve()
    site.now += timedelta(days=5 * 365)
    site.roster = TrustedRoster(site.coordinator.roster(*site.cards, expires=site.now + timedelta(days=9)))
    with pytest.raises(NotApproved, match="the plan expired"):
        judge(site, site.order())


# --- orders under an approval ------------------------------------------------------------------------
def _other_plan(site: Any) -> WorkOrder:
    return site.order(plan_digest=digest(b"another plan"))


def _other_study(site: Any) -> WorkOrder:
    order = site.order()
    return order.model_copy(
        update={"collection": order.collection.model_copy(update={"study": "ct-contrast-00000000"})}
    )


def _after_a_newer_round(site: Any) -> WorkOrder:
    site.ordered(2)
    return site.order(1)


def _second_model(site: Any) -> WorkOrder:
    site.ordered(1)
    return site.order(1, attempt=2, model=ANOTHER)


def finer(site: Any) -> Encoding:
    before = first_encoding(site.plan)
    return before.model_copy(update={"exponent": before.exponent + 1})


def _encoded(site: Any, **changes: Any) -> WorkOrder:
    return site.order(encoding=first_encoding(site.plan).model_copy(update=changes))


def _second_encoding(site: Any) -> WorkOrder:
    site.ordered(1)
    return site.order(1, attempt=2, encoding=finer(site))


def _under_an_expired_roster(site: Any) -> WorkOrder:
    order = site.order(due=site.now + timedelta(days=200))
    site.now += timedelta(days=91)
    return order


def _key_swapped(site: Any) -> WorkOrder:
    site.cards[1] = site.coordinator_card = site.folder.card("charite")
    site.roster = TrustedRoster(site.coordinator.roster(*site.cards, version=2))
    return site.order()


def _member_gone(site: Any) -> WorkOrder:
    site.roster = TrustedRoster(site.coordinator.roster(*site.cards[:-1], version=2))
    return site.order()


ORDERS: dict[str, tuple[Callable[[Any], WorkOrder], type[PeerFault]]] = {
    "another plan digest": (_other_plan, NotApproved),
    "another study than its plan's": (_other_study, NotApproved),
    "bound to a roster we do not hold": (
        lambda site: site.order(roster_digest=digest(b"another roster")),
        UnknownMember,
    ),
    "under a roster that has expired": (_under_an_expired_roster, Expired),
    "a hospital of the plan has another key on the roster": (_key_swapped, UnknownMember),
    "a hospital of the plan has left the roster": (_member_gone, UnknownMember),
    "a round beyond the plan": (lambda site: site.order(4), NotApproved),
    "an older round after a newer one": (_after_a_newer_round, Stale),
    "a second model for a round, under the cover of another attempt": (_second_model, OutOfTurn),
    "a second encoding for a round, under the cover of another attempt": (_second_encoding, OutOfTurn),
    "weights coarser than the plan's": (
        lambda site: _encoded(site, exponent=first_encoding(site.plan).exponent - 1),
        NotApproved,
    ),
    "another ring than the plan's": (lambda site: _encoded(site, ring=16), NotApproved),
    "room for fewer hospitals than the plan's": (lambda site: _encoded(site, most=3), NotApproved),
    "due before it arrived": (lambda site: site.order(due=site.now), Stale),
    "due yesterday": (lambda site: site.order(due=site.now - timedelta(days=1)), Stale),
}


@pytest.mark.parametrize(("attack", "refusal"), ORDERS.values(), ids=ORDERS)
def test_orders_that_are_refused(site: Any, attack: Callable[[Any], WorkOrder], refusal: type[PeerFault]) -> None:
    site.approve()
    order = attack(site)
    with pytest.raises(refusal):
        judge(site, order)


SCALE = Normalisation(mean=0.25, deviation=0.5)
NORMALISED: dict[str, tuple[str | Normalisation, dict[str, Any], type[PeerFault] | None]] = {
    "statistics before round 1": ("federated", {"phase": "statistics"}, None),
    "training with what they gave": ("federated", {"normalisation": SCALE}, None),
    "evaluation with what they gave": ("federated", {"phase": "evaluate", "normalisation": SCALE}, None),
    "statistics that the plan does not ask for": ("none", {"phase": "statistics"}, NotApproved),
    "statistics in round 2": ("federated", {"phase": "statistics", "number": 2}, NotApproved),
    "statistics of normalised images": ("federated", {"phase": "statistics", "normalisation": SCALE}, NotApproved),
    "training without them where the plan asks for them": ("federated", {}, NotApproved),
    "training with them where it does not": ("none", {"normalisation": SCALE}, NotApproved),
    "training with what the plan gives": (SCALE, {"normalisation": SCALE}, None),
    "training without what the plan gives": (SCALE, {}, NotApproved),
    "training with others than the plan gives": (
        SCALE, {"normalisation": Normalisation(mean=0.25, deviation=0.4)}, NotApproved,
    ),
    "statistics where the plan gives them": (SCALE, {"phase": "statistics"}, NotApproved),
}  # fmt: skip


@pytest.mark.parametrize(("normalise", "order", "refusal"), NORMALISED.values(), ids=NORMALISED)
def test_images_are_normalised_as_the_plan_says(
    make_site: Callable[..., Any],
    normalise: str | Normalisation,
    order: dict[str, Any],
    refusal: type[PeerFault] | None,
) -> None:
    value = normalise if isinstance(normalise, str) else normalise.model_dump()
    site = make_site(changes={"preprocessing__normalise": value})
    site.approve()
    if refusal is None:
        judge(site, site.order(**order))
    else:
        with pytest.raises(refusal):
            judge(site, site.order(**order))


def test_another_normalisation_than_in_an_earlier_round_is_refused(make_site: Callable[..., Any]) -> None:
    """It would be another question to the same data."""
    site = make_site(changes={"preprocessing__normalise": "federated"})
    site.approve()
    site.ordered(phase="statistics")
    site.ordered(normalisation=SCALE)
    judge(site, site.order(2, normalisation=SCALE))
    with pytest.raises(OutOfTurn, match="another normalisation"):
        judge(site, site.order(2, normalisation=Normalisation(mean=0.25, deviation=0.25)))


BLOBS = [BlobRef(digest=digest(name), size=9) for name in (b"one", b"another")]
PARTLY = {"model": {"name": "cnn-small", "version": 1, "trained": ["5.*"]}}
CORRECTED = {"training": {"rounds": 5, "strategy": "scaffold", "optimizer": "sgd", "weighting": "equal"}}
VOTING = {"robustness": {"vote": True}}
BESIDE: dict[str, tuple[dict[str, Any], list[dict[str, Any]], type[PeerFault] | None]] = {
    "a base where all of the model moves": ({}, [{"base": BLOBS[0]}], NotApproved),
    "no base where not all of it moves": (PARTLY, [{}], NotApproved),
    "the base that the plan asks for": (PARTLY, [{"base": BLOBS[0]}], None),
    "another base in a later round": (PARTLY, [{"base": BLOBS[0]}, {"number": 2, "base": BLOBS[1]}], OutOfTurn),
    "a control variate for a plan without": ({}, [{"control": BLOBS[0]}], NotApproved),
    "one for a training": (CORRECTED, [{"control": BLOBS[0]}], None),
    "one for a measurement": (CORRECTED, [{"phase": "evaluate", "control": BLOBS[0]}], NotApproved),
    "a vote for a plan without": ({}, [{"phase": "evaluate", "before": BLOBS[0]}], NotApproved),
    "a vote in a training": (VOTING, [{"before": BLOBS[0]}], NotApproved),
    "no vote on a new model": (VOTING, [{"phase": "evaluate"}], NotApproved),
    "a vote on a new model": (VOTING, [{"phase": "evaluate", "before": BLOBS[0]}], None),
    "another model to compare with in a second attempt": (
        VOTING, [{"phase": "evaluate", "before": BLOBS[0]}, {"phase": "evaluate", "attempt": 2, "before": BLOBS[1]}],
        OutOfTurn,
    ),
    "a vote against the model that the round began with": (
        VOTING, [{"model": BLOBS[0]}, {"phase": "evaluate", "before": BLOBS[0]}], None,
    ),
    "a vote against another model than the round began with": (
        VOTING, [{"model": BLOBS[0]}, {"phase": "evaluate", "before": BLOBS[1]}], OutOfTurn,
    ),
    "another one in a second attempt": (
        CORRECTED, [{"control": BLOBS[0]}, {"attempt": 2, "control": BLOBS[1]}], OutOfTurn,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "orders", "refusal"), BESIDE.values(), ids=BESIDE)
def test_what_comes_beside_the_model_is_what_the_plan_has(
    make_site: Callable[..., Any],
    changes: dict[str, Any],
    orders: list[dict[str, Any]],
    refusal: type[PeerFault] | None,
) -> None:
    site = make_site(changes=changes)
    site.approve()
    for order in orders[:-1]:
        site.ordered(**order)
    if refusal is None:
        judge(site, site.order(**orders[-1]))
        return
    with pytest.raises(refusal):
        judge(site, site.order(**orders[-1]))


def test_who_was_not_asked_to_train_votes_against_what_the_last_round_gave(make_site: Callable[..., Any]) -> None:
    site = make_site(changes=VOTING)
    site.approve()

    def ask(number: int, before: BlobRef) -> None:
        order, kept = site.order(number, "evaluate", before=before), site.journal.plan(site.study)
        check_order(order, kept, [], site.own(), committed=1, final=BLOBS[0].digest)

    ask(2, BLOBS[0])
    with pytest.raises(OutOfTurn, match="another one than the round began with"):
        ask(2, BLOBS[1])
    ask(3, BLOBS[1])  # of round 2 we were not told yet: nobody here knows


def test_a_round_that_was_committed_is_not_worked_on_again(site: Any) -> None:
    site.approve()
    judge(site, site.order(2), committed=1)
    with pytest.raises(Stale, match="round 2 was begun or is over"):
        judge(site, site.order(2, attempt=2), committed=2)


def test_a_further_attempt_on_the_same_model_is_fine(site: Any) -> None:
    site.approve()
    site.ordered(1)
    judge(site, site.order(1, attempt=2))
    judge(site, site.order(1, phase="evaluate", model=ANOTHER))


def test_finer_weights_than_the_plans_are_fine(site: Any) -> None:
    site.approve()
    judge(site, site.order(encoding=finer(site)))


def test_the_coordinators_clock_decides_nothing(site: Any) -> None:
    site.approve()
    for moment in (site.now - timedelta(days=20_000), site.now + timedelta(days=20_000)):
        site.hear(site.order(1 if moment < site.now else 2), at=moment)
    assert [kept.step for kept in site.journal.orders_of(site.study)] == [Step.OVER, Step.WORKING]


# --- proposals ---------------------------------------------------------------------------------------
def test_a_proposal_that_names_us_with_our_key_is_considered(site: Any) -> None:
    check_proposal(site.plan, site.study, site.own())


def new_key_for_us(site: Any) -> Any:
    return site.stranger.model_copy(update={"party": "st-olavs"})


PURPOSE = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
PROPOSALS: dict[str, tuple[Callable[[Any, Any], Any], type[PeerFault]]] = {
    "misnamed": (lambda site, _make: (site.plan, "ct-contrast-00000000"), OutOfTurn),
    "does not name us": (lambda site, make: make(site.cards[1:]), UnknownMember),
    "names us with a key that is not ours": (
        lambda site, make: make([new_key_for_us(site), *site.cards[1:]]),
        UnknownMember,
    ),
    "names a hospital that is not on the roster": (
        lambda site, make: make([*site.cards, site.stranger]),
        UnknownMember,
    ),
    "expired": (
        lambda site, make: make(site.cards, purpose={**PURPOSE, "expires": "2026-01-01"}),
        Stale,
    ),
}


@pytest.mark.parametrize(("attack", "refusal"), PROPOSALS.values(), ids=PROPOSALS)
def test_proposals_that_are_set_aside(
    site: Any, make_plan_for: Any, new_card: Any, attack: Callable[[Any, Any], Any], refusal: type[PeerFault]
) -> None:
    site.stranger = new_card("stranger")
    plan = attack(site, make_plan_for)
    plan, study = plan if isinstance(plan, tuple) else (plan, study_id(plan))
    with pytest.raises(refusal):
        check_proposal(plan, study, site.own())


# --- closings ----------------------------------------------------------------------------------------
def close(site: Any, **changes: Any) -> bool:
    kept = site.kept()
    return check_closing(site.closing(kept, **changes), kept, site.plan, site.own())


def test_we_are_in_the_sum_or_not(site: Any) -> None:
    site.approve()
    site.ready()
    assert close(site)
    assert not close(site, members=("charite", "karolinska", "utrecht"), absent=("st-olavs",))
    assert not close(site, members=("charite", "karolinska", "utrecht"), absent=())


CLOSINGS: dict[str, tuple[dict[str, Any], type[PeerFault]]] = {
    "for another order": ({"order": digest(b"another order")}, OutOfTurn),
    "naming a stranger": ({"members": ("st-olavs", "charite", "karolinska", "stranger")}, UnknownMember),
    "naming a stranger as absent": (
        {"members": ("st-olavs", "charite", "utrecht"), "absent": ("stranger",)},
        UnknownMember,
    ),
    "naming a hospital twice": ({"members": ("st-olavs", "charite", "utrecht", "charite")}, UnknownMember),
    "naming a hospital as there and as absent": (
        {"members": ("st-olavs", "charite", "utrecht"), "absent": ("utrecht",)},
        UnknownMember,
    ),
}


@pytest.mark.parametrize(("changes", "refusal"), CLOSINGS.values(), ids=CLOSINGS)
def test_cohorts_a_hospital_does_not_join(site: Any, changes: dict[str, Any], refusal: type[PeerFault]) -> None:
    site.approve()
    site.ready()
    with pytest.raises(refusal):
        close(site, **changes)


def test_no_secrets_are_shared_while_we_are_still_working(site: Any) -> None:
    site.approve()
    site.ordered()
    with pytest.raises(OutOfTurn, match="while we are working"):
        close(site)


def test_no_secrets_are_shared_under_an_expired_roster(site: Any) -> None:
    site.approve()
    site.ready()
    site.now += timedelta(days=91)
    with pytest.raises(Expired):
        close(site)


# --- the roster --------------------------------------------------------------------------------------
def test_a_roster_never_goes_back(site: Any) -> None:
    newer = site.roster.update(site.coordinator.roster(*site.cards, version=2).data, site.now)
    with pytest.raises(RolledBack):
        newer.update(site.signed_roster.data, site.now)

"""Lies of the coordinator and of other hospitals about a masked sum: each is answered with a code and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boundary.canonical import digest
from boundary.envelope import open_envelope, peek
from boundary.identity import SigningIdentity
from boundary.messages import AgreementShown, CohortClosed, MaskedVector, SharesRouted, SurvivorsNamed
from boundary.plan import study_id
from boundary.protocol import Step

SILO, CHARITE, KAROLINSKA, UTRECHT = ALL = ("st-olavs", "charite", "karolinska", "utrecht")
THREE = (SILO, CHARITE, KAROLINSKA)
ANOTHER = digest(b"another")
Attack = Callable[[Any, Any], Any]  # of a site and the order; gives the message to hear


def key_of(site: Any, silo: str) -> SigningIdentity:
    key: SigningIdentity = site.folder.identity if silo == SILO else site.peers[silo].key
    return key


def resigned(site: Any, data: bytes, *, key: SigningIdentity | None = None, **changes: Any) -> bytes:
    """What its sender might have signed instead, or somebody with another `key` in its name."""
    sender, recipient, _ = peek(data)
    own = key_of(site, sender)
    said = open_envelope(data, recipient=recipient, signer=own.public, sender=sender).message
    peer = type(site.peers[CHARITE])(sender, key or own)
    envelope: bytes = peer.says(said.model_copy(update=changes), to=recipient)
    return envelope


def replaced(quoted: tuple[bytes, ...], silo: str, change: Callable[[bytes], bytes]) -> tuple[bytes, ...]:
    """With another envelope in the place of this hospital's."""
    return tuple(change(data) if peek(data)[0] == silo else data for data in quoted)


def lied(told: Any, field: str, silo: str, change: Callable[[bytes], bytes]) -> Any:
    return told.model_copy(update={field: replaced(getattr(told, field), silo, change)})


def forged(site: Any) -> Callable[[bytes], bytes]:
    return lambda data: resigned(site, data, key=SigningIdentity.generate())


def without(quoted: tuple[bytes, ...], silo: str) -> tuple[bytes, ...]:
    return tuple(data for data in quoted if peek(data)[0] != silo)


# --- A2: the cohort ----------------------------------------------------------------------------------
def keys(**changes: Any) -> Attack:
    """Charite announces something else, properly signed."""
    return lambda site, kept: lied(site.closing(kept), "ready", CHARITE, lambda data: resigned(site, data, **changes))


def with_anothers_keys(site: Any, kept: Any) -> Any:
    (data,) = site.attempt(kept).quote("ready", (UTRECHT,))
    said = open_envelope(data, recipient="coordinator", signer=key_of(site, UTRECHT).public, sender=UTRECHT).message
    return keys(transport_key=said.transport_key)(site, kept)


CLOSINGS: dict[str, tuple[Attack, str]] = {
    "a hospital's keys are signed with another key than the plan's": (
        lambda site, kept: lied(site.closing(kept), "ready", CHARITE, forged(site)),
        "BAD_SIGNATURE",
    ),
    "our own keys are others, signed by somebody else": (
        lambda site, kept: lied(site.closing(kept), "ready", SILO, forged(site)),
        "BAD_SIGNATURE",
    ),
    "our own keys are others, signed by us in another life": (
        lambda site, kept: lied(
            site.closing(kept), "ready", SILO, lambda data: resigned(site, data, self_commitment=ANOTHER)
        ),
        "SPLIT_VIEW",
    ),
    "two hospitals have one key": (with_anothers_keys, "KEY_REUSED"),
    "a key is no key": (keys(transport_key="hpke-mlkem768-x25519:" + "/" * 1621 + "w=="), "MALFORMED"),
    "a hospital was given another order": (keys(context=ANOTHER), "SPLIT_VIEW"),
    "a hospital is quoted twice": (
        lambda site, kept: site.closing(kept, ready=site.closing(kept).ready[:3] + site.closing(kept).ready[2:3]),
        "UNKNOWN_MEMBER",
    ),
    "a member's keys are missing": (
        lambda site, kept: site.closing(kept, ready=without(site.closing(kept).ready, UTRECHT)),
        "UNKNOWN_MEMBER",
    ),
    "keys of a hospital that is no member": (
        lambda site, kept: site.closing(kept, members=THREE, ready=site.attempt(kept).quote("ready", ALL)),
        "UNKNOWN_MEMBER",
    ),
    "a hospital that is not in the plan is a member": (
        lambda site, kept: site.closing(kept, members=(*THREE, "stranger")),
        "UNKNOWN_MEMBER",
    ),
    "there are only two of us": (lambda site, kept: site.closing(kept, members=(SILO, CHARITE)), "COHORT_TOO_SMALL"),
    "it is for another order": (lambda site, kept: site.closing(kept, order=ANOTHER), "OUT_OF_TURN"),
    "shares are routed before there are any": (
        lambda site, kept: SharesRouted(collection=site.collection(), order=kept.digest, members=ALL, parts=()),
        "OUT_OF_TURN",
    ),
}


# --- B2: the shares ----------------------------------------------------------------------------------
def part(**changes: Any) -> Attack:
    """Charite deals us something else, properly signed."""
    return lambda site, kept: lied(site.routing(kept), "parts", CHARITE, lambda data: resigned(site, data, **changes))


def part_for(site: Any, kept: Any, holder: str) -> bytes:
    data: bytes = site.attempt(kept).parts[CHARITE, holder]
    return data


ROUTINGS: dict[str, tuple[Attack, str]] = {
    "a part is missing": (
        lambda site, kept: site.routing(kept, parts=without(site.routing(kept).parts, CHARITE)),
        "OUT_OF_TURN",
    ),
    "a part was changed on the way": (
        lambda site, kept: lied(site.routing(kept), "parts", CHARITE, forged(site)),
        "BAD_SIGNATURE",
    ),
    "a part does not open": (part(sealed=bytes(1200)), "UNSEAL_FAILED"),
    "a part without the secret of our common mask": (part(pair=None), "MALFORMED"),
    "the secret of our common mask does not open": (part(pair=bytes(1200)), "UNSEAL_FAILED"),
    "a share is not the one that was promised": (part(seed_digest=ANOTHER), "BAD_SHARES"),
    "a part that was dealt in another cohort": (part(cohort=ANOTHER), "OUT_OF_TURN"),
    "a part for another hospital": (
        lambda site, kept: lied(site.routing(kept), "parts", CHARITE, lambda _: part_for(site, kept, UTRECHT)),
        "WRONG_RECIPIENT",
    ),
    "a part of a hospital that did not share in time": (
        lambda site, kept: site.routing(kept, members=THREE, parts=site.routing(kept, members=ALL).parts),
        "OUT_OF_TURN",
    ),
    "a hospital is named twice": (
        lambda site, kept: site.routing(kept, members=(*ALL, CHARITE), parts=site.routing(kept).parts),
        "UNKNOWN_MEMBER",
    ),
    "a hospital outside the cohort shared": (
        lambda site, kept: site.routing(kept, members=(*ALL, "stranger"), parts=site.routing(kept).parts),
        "UNKNOWN_MEMBER",
    ),
    "too few are left": (lambda site, kept: site.routing(kept, members=(SILO, CHARITE)), "COHORT_TOO_SMALL"),
    "it is for another order": (lambda site, kept: site.routing(kept, order=ANOTHER), "OUT_OF_TURN"),
    "the cohort is closed a second time": (lambda site, kept: site.closing(kept), "OUT_OF_TURN"),
    "the cohort is closed once more, over others": (
        lambda site, kept: site.closing(kept, members=THREE),
        "OUT_OF_TURN",
    ),
    "survivors are named before there are vectors": (
        lambda site, kept: SurvivorsNamed(
            collection=site.collection(), order=kept.digest, vectors=(a_vector_of_ours(site, kept),)
        ),
        "OUT_OF_TURN",
    ),
}


def a_vector_of_ours(site: Any, kept: Any) -> bytes:
    """As if we had sent one."""
    said = MaskedVector(collection=site.collection(), order=kept.digest, sharers=ANOTHER, vector=site.order().model)
    data: bytes = type(site.peers[CHARITE])(SILO, site.folder.identity).says(said)
    return data


# --- D1: the survivors -------------------------------------------------------------------------------
def vector(silo: str, **changes: Any) -> Attack:
    return lambda site, kept: lied(site.naming(kept), "vectors", silo, lambda data: resigned(site, data, **changes))


def other_blob(site: Any, kept: Any) -> Any:
    said = site.outbox()[-1].vector
    return vector(SILO, vector=said.model_copy(update={"digest": ANOTHER}))(site, kept)


NAMINGS: dict[str, tuple[Attack, str]] = {
    "another vector in our name": (other_blob, "SPLIT_VIEW"),
    "a vector that its hospital did not sign": (
        lambda site, kept: lied(site.naming(kept), "vectors", CHARITE, forged(site)),
        "BAD_SIGNATURE",
    ),
    "a hospital masked for another set": (vector(CHARITE, sharers=ANOTHER), "SPLIT_VIEW"),
    "too few survived": (lambda site, kept: site.naming(kept, (SILO, CHARITE)), "COHORT_TOO_SMALL"),
    "agreement is shown before we were asked": (
        lambda site, kept: AgreementShown(collection=site.collection(), order=kept.digest, seen=()),
        "OUT_OF_TURN",
    ),
    "the shares are routed a second time": (lambda site, kept: site.routing(kept), "OUT_OF_TURN"),
    "it is for another order": (lambda site, kept: site.naming(kept, order=ANOTHER), "OUT_OF_TURN"),
}


# --- D2s: agreement ----------------------------------------------------------------------------------
def two_saw_another_set(site: Any, kept: Any) -> Any:
    shown = site.agreement(kept)
    for silo in (KAROLINSKA, UTRECHT):
        shown = lied(shown, "seen", silo, lambda data: resigned(site, data, survivors=ANOTHER))
    return shown


AGREEMENTS: dict[str, tuple[Attack, str]] = {
    "too few agree": (lambda site, kept: site.agreement(kept, (SILO, CHARITE)), "SPLIT_VIEW"),
    "nobody does": (lambda site, kept: site.agreement(kept, ()), "SPLIT_VIEW"),
    "two of four saw another set of survivors": (two_saw_another_set, "SPLIT_VIEW"),
    "a hospital did not sign what it saw": (
        lambda site, kept: lied(site.agreement(kept), "seen", CHARITE, forged(site)),
        "BAD_SIGNATURE",
    ),
    "a hospital's word counts twice": (
        lambda site, kept: site.agreement(kept, (SILO, CHARITE, CHARITE)),
        "UNKNOWN_MEMBER",
    ),
    "a second set of survivors": (lambda site, kept: site.naming(kept, THREE), "OUT_OF_TURN"),
    "the same survivors a second time": (lambda site, kept: site.naming(kept), "OUT_OF_TURN"),
    "it is for another order": (lambda site, kept: site.agreement(kept, order=ANOTHER), "OUT_OF_TURN"),
}


def rows(reach: str, table: dict[str, tuple[Attack, str]]) -> list[Any]:
    return [pytest.param(reach, attack, code, id=f"{reach}: {name}") for name, (attack, code) in table.items()]


@pytest.mark.parametrize(
    ("reach", "attack", "code"),
    [*rows("ready", CLOSINGS), *rows("shared", ROUTINGS), *rows("masked", NAMINGS), *rows("agreed", AGREEMENTS)],
)
def test_a_lie_is_answered_with_a_code_and_nothing_else(site: Any, reach: str, attack: Attack, code: str) -> None:
    site.approve()
    kept = getattr(site, reach)()
    told = attack(site, kept)
    said, files = len(site.outbox()), list(site.folder.work.rglob("*.masked"))
    site.hear(told)
    assert [(message.kind, getattr(message, "code", "")) for message in site.outbox()[said:]] == [("refused", code)]
    assert site.kept().step is Step.REFUSED
    assert site.events()[-1] == "work-refused"
    assert list(site.folder.work.rglob("*.masked")) == files
    before = list(site.journal._db.iterdump())
    assert site.sums.hear(told), "and once more changes nothing"
    assert list(site.journal._db.iterdump()) == before


# --- what was said before ----------------------------------------------------------------------------
def said_before(site: Any, kind: str, silo: str) -> Callable[[bytes], bytes]:
    """The envelope of the first attempt in the place of the second's."""
    kept = site.kept(attempt=1)
    (data,) = site.attempt(kept).quote(kind, (silo,))
    return lambda _: data


REPLAYS: dict[str, tuple[str, Attack]] = {
    "our own keys": (
        "ready",
        lambda site, kept: lied(site.closing(kept), "ready", SILO, said_before(site, "ready", SILO)),
    ),
    "a hospital's keys": (
        "ready",
        lambda site, kept: lied(site.closing(kept), "ready", UTRECHT, said_before(site, "ready", UTRECHT)),
    ),
    "a hospital's part": (
        "shared",
        lambda site, kept: lied(
            site.routing(kept), "parts", CHARITE, lambda _: part_for(site, site.kept(attempt=1), SILO)
        ),
    ),
    "our vector": (
        "masked",
        lambda site, kept: lied(site.naming(kept), "vectors", SILO, said_before(site, "masked-vector", SILO)),
    ),
    "what a hospital saw": (
        "agreed",
        lambda site, kept: lied(site.agreement(kept), "seen", CHARITE, said_before(site, "survivors-seen", CHARITE)),
    ),
}


@pytest.mark.parametrize(("reach", "attack"), REPLAYS.values(), ids=REPLAYS)
def test_what_was_said_in_the_last_attempt_is_not_taken_in_this_one(site: Any, reach: str, attack: Attack) -> None:
    site.approve()
    site.attempt(site.agreed(attempt=1)).shown(ALL)
    told = attack(site, getattr(site, reach)(attempt=2))
    said = len(site.outbox())
    site.hear(told)
    assert [(message.kind, message.code) for message in site.outbox()[said:]] == [("refused", "OUT_OF_TURN")]


def test_agreement_of_three_of_four_is_enough(site: Any) -> None:
    site.approve()
    shown = site.agreement(site.agreed())
    site.hear(lied(shown, "seen", UTRECHT, lambda data: resigned(site, data, survivors=ANOTHER)))
    assert site.kept().step is Step.REVEALED


# --- how small a sum we take part in -----------------------------------------------------------------
def quorum_of_four(make_site: Any, make_plan_for: Any) -> Any:
    site = make_site()
    site.plan = make_plan_for(site.cards, aggregation={"quorum": 4})
    site.study = study_id(site.plan)
    return site


def floor_of_four(make_site: Any, _make_plan_for: Any) -> Any:
    return make_site(least=4)


FLOORS = {"the plan's quorum is four": quorum_of_four, "our own floor is four": floor_of_four}
TOO_SMALL: dict[str, tuple[str, Attack]] = {
    "the cohort is three": ("ready", lambda site, kept: site.closing(kept, members=THREE, absent=(UTRECHT,))),
    "three shared": ("shared", lambda site, kept: site.routing(kept, members=THREE)),
    "three survived": ("masked", lambda site, kept: site.naming(kept, THREE)),
}


@pytest.mark.parametrize(("reach", "tell"), TOO_SMALL.values(), ids=TOO_SMALL)
@pytest.mark.parametrize("floor", FLOORS.values(), ids=FLOORS)
def test_a_sum_that_is_too_small_for_us_is_not_joined(
    make_site: Any, make_plan_for: Any, floor: Callable[[Any, Any], Any], reach: str, tell: Attack
) -> None:
    site = floor(make_site, make_plan_for)
    site.approve()
    site.hear(tell(site, getattr(site, reach)()))
    assert site.outbox()[-1].code == "COHORT_TOO_SMALL"


# --- whatever is said out of turn --------------------------------------------------------------------
UNHEARD = {"it is for an order we never got": 3, "we are still working": 1, "we refused": 9}


@pytest.mark.parametrize("kind", [CohortClosed, SharesRouted, SurvivorsNamed, AgreementShown])
@pytest.mark.parametrize("number", UNHEARD.values(), ids=UNHEARD)
def test_what_is_said_about_an_order_that_waits_for_nothing_changes_nothing(site: Any, number: int, kind: Any) -> None:
    site.approve()
    site.ordered(1)
    site.ordered(9)
    collection = site.collection(number)
    order = site.journal.order(str(collection))
    content = {
        CohortClosed: {"members": ALL, "absent": (), "ready": ()},
        SharesRouted: {"members": ALL, "parts": ()},
        SurvivorsNamed: {"vectors": (a_vector_of_ours(site, order),) if order else ()},
        AgreementShown: {"seen": ()},
    }[kind]
    outbox, steps = site.outbox(), [kept.step for kept in site.journal.orders_of(site.study)]
    site.hear(kind(collection=collection, order=order.digest if order else ANOTHER, **content))
    assert site.outbox() == outbox
    assert [kept.step for kept in site.journal.orders_of(site.study)] == steps


def test_after_the_end_nothing_changes_anything(site: Any) -> None:
    site.approve()
    kept = site.revealed()
    before, result = site.outbox(), Path(kept.result) / "result.json"
    for told in (site.closing(kept), site.routing(kept), site.naming(kept, THREE), site.agreement(kept, ())):
        site.hear(told)
    assert (site.outbox(), site.kept().step, result.exists()) == (before, Step.REVEALED, True)

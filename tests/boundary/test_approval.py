"""A steward's approval is for one plan, at one hospital, by one person, over one data set, in its time."""

from datetime import UTC, date, datetime, timedelta, timezone
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.approval import Approval, SignedApproval, check_approval
from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import BadSignature, MalformedMessage, NotApproved, PeerFault
from boundary.requests import CLOCK_SKEW


def check(fed: ModuleType, signed: SignedApproval, **changes: Any) -> None:
    """As st-olavs checks it before every round."""
    asked: dict[str, Any] = {
        "plan": fed.plan(),
        "silo": "st-olavs",
        "steward": fed.key("steward of st-olavs").public,
        "dataset_digest": fed.sha("data set"),
        "now": fed.NOW,
    }
    check_approval(signed, **asked | changes)


def edited(signed: SignedApproval, **changes: Any) -> SignedApproval:
    return signed.model_copy(update={"approval": signed.approval.model_copy(update=changes)})


def other_plan(fed: ModuleType) -> Any:
    return fed.plan().model_copy(update={"revision": 4})


NOT_THIS: dict[str, tuple[Any, type[PeerFault]]] = {
    "for another digest": (lambda fed: check(fed, fed.approval(plan_digest=fed.sha("x"))), NotApproved),
    "for the revision before": (lambda fed: check(fed, fed.approval(), plan=other_plan(fed)), NotApproved),
    "for another silo": (lambda fed: check(fed, fed.approval(silo="ucl")), NotApproved),
    "shown at another silo": (lambda fed: check(fed, fed.approval(), silo="ucl"), NotApproved),
    "by another steward": (lambda fed: check(fed, fed.approval("steward of ucl")), NotApproved),
    "by the coordinator": (lambda fed: check(fed, fed.approval("coordinator")), NotApproved),
    "over another dataset": (lambda fed: check(fed, fed.approval(), dataset_digest=fed.sha("more data")), NotApproved),
    "dated in the future": (
        lambda fed: check(fed, fed.approval(approved_at=fed.NOW + CLOCK_SKEW + timedelta(seconds=1))),
        NotApproved,
    ),
    "expired": (lambda fed: check(fed, fed.approval(), now=datetime(2027, 1, 1, tzinfo=UTC)), NotApproved),
    "expired, at a clock that still has the old year": (
        lambda fed: check(fed, fed.approval(), now=datetime(2026, 12, 31, 14, tzinfo=timezone(timedelta(hours=-12)))),
        NotApproved,
    ),
    "the steward's name put on another's signature": (
        lambda fed: check(
            fed, fed.approval("mallory").model_copy(update={"steward": fed.key("steward of st-olavs").public.text})
        ),
        BadSignature,
    ),
    "the digest put in after signing": (
        lambda fed: check(
            fed, edited(fed.approval(plan_digest=fed.sha("x")), plan_digest=fed.approval().approval.plan_digest)
        ),
        BadSignature,
    ),
    "the role put in after signing": (lambda fed: check(fed, edited(fed.approval(), role="dpo")), BadSignature),
    "the date put in after signing": (
        lambda fed: check(fed, edited(fed.approval(), approved_at=fed.NOW - timedelta(days=1))),
        BadSignature,
    ),
    "an envelope's signature": (
        lambda fed: check(
            fed,
            fed.approval().model_copy(
                update={
                    "signature": fed.key("steward of st-olavs").sign(
                        "envelope", canonical_bytes(fed.approval().approval.model_dump(mode="json"))
                    )
                }
            ),
        ),
        BadSignature,
    ),
    "a steward's key that would sign anything": (
        lambda fed: check(
            fed, fed.approval().model_copy(update={"steward": "ed25519:AQ" + "A" * 41 + "="}), steward=None
        ),
        MalformedMessage,
    ),
}


@pytest.mark.parametrize(("attempt", "refusal"), NOT_THIS.values(), ids=NOT_THIS)
def test_an_approval_of_anything_else_is_refused(fed: ModuleType, attempt: Any, refusal: type[PeerFault]) -> None:
    check(fed, fed.approval())
    with pytest.raises(refusal) as why:
        attempt(fed)
    assert type(why.value) is refusal


def test_the_last_day_of_a_plan_is_a_day_in_utc(fed: ModuleType) -> None:
    assert fed.plan().purpose.expires == date(2026, 12, 31)
    check(fed, fed.approval(), now=datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    east = timezone(timedelta(hours=14))
    check(fed, fed.approval(), now=datetime(2027, 1, 1, 13, 59, tzinfo=east))  # still December in UTC


def test_the_clocks_may_differ_a_little(fed: ModuleType) -> None:
    check(fed, fed.approval(approved_at=fed.NOW + CLOCK_SKEW))


def test_the_coordinator_knows_neither_steward_nor_data(fed: ModuleType) -> None:
    check(fed, fed.approval("anybody"), steward=None, dataset_digest=None)


@given(st.integers(0, 511))
def test_a_signature_with_one_bit_flipped_is_refused(fed: ModuleType, bit: int) -> None:
    signed = fed.approval()
    signature = bytearray(signed.signature)
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        check(fed, signed.model_copy(update={"signature": bytes(signature)}))


def test_it_travels_as_json(fed: ModuleType) -> None:
    signed = fed.approval()
    wire = canonical_bytes(signed.model_dump(mode="json"))
    assert SignedApproval.model_validate(parse_canonical(wire)) == signed
    assert SignedApproval.model_validate_json(wire) == signed


BAD_APPROVALS: dict[str, dict[str, object]] = {
    "a role in free text": {"role": "the boss, Dr. Hansen"},
    "a time without an offset": {"approved_at": datetime(2026, 11, 20)},  # noqa: DTZ001 - that is what is refused
    "the coordinator as hospital": {"silo": "coordinator"},
    "no digest": {"dataset_digest": "all of them"},
    "extra key": {"reason": "looks good"},
}


@pytest.mark.parametrize("changes", BAD_APPROVALS.values(), ids=BAD_APPROVALS)
def test_what_is_no_approval_is_refused(fed: ModuleType, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Approval.model_validate(fed.approval().approval.model_dump() | changes)
    with pytest.raises(ValidationError):
        SignedApproval.model_validate(fed.approval().model_dump() | {"signature": bytes(63)})

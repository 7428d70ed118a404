"""A round's receipt: signed over everything in it, and over nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.canonical import canonical_bytes, digest
from boundary.errors import BadSignature
from boundary.identity import SigningIdentity
from boundary.receipt import Receipt

KEY = SigningIdentity.generate()
SAID: dict[str, Any] = {
    "study": "ct-contrast-0123abcd",
    "plan_digest": digest(b"plan"),
    "round": 3,
    "model_in": digest(b"model in"),
    "model_out": digest(b"model out"),
    "tried": None,
    "transcript": digest(b"transcript"),
    "contributing": ("charite", "st-olavs", "ucl"),
    "absent": ("utrecht",),
}
RECEIPT = Receipt(**SAID)
OTHERS: dict[str, Any] = {
    "study": "ct-contrast-0123abce",
    "plan_digest": digest(b"another plan"),
    "round": 4,
    "model_in": digest(b"another model"),
    "model_out": digest(b"another model"),
    "tried": digest(b"a model that was rolled back"),
    "transcript": digest(b"another sum"),
    "contributing": ("charite", "st-olavs"),
    "absent": (),
}


def test_what_was_signed_verifies_and_anybody_can_check_it() -> None:
    signature = RECEIPT.sign(KEY)
    assert len(signature) == 64
    RECEIPT.check(signature, KEY.public)
    Receipt(**SAID).check(signature, KEY.public)
    assert Receipt(**SAID).digest == RECEIPT.digest == digest(canonical_bytes(RECEIPT.model_dump(mode="json")))


def test_every_field_is_signed() -> None:
    assert set(OTHERS) == set(Receipt.model_fields)


@pytest.mark.parametrize("name", OTHERS)
def test_a_receipt_with_another_value_is_another_receipt(name: str) -> None:
    other = Receipt(**(SAID | {name: OTHERS[name]}))
    assert other.digest != RECEIPT.digest
    with pytest.raises(BadSignature):
        other.check(RECEIPT.sign(KEY), KEY.public)


def test_the_order_of_the_hospitals_is_signed_as_it_is() -> None:
    with pytest.raises(BadSignature):
        Receipt(**(SAID | {"contributing": ("ucl", "st-olavs", "charite")})).check(RECEIPT.sign(KEY), KEY.public)


@given(st.integers(0, 64 * 8 - 1))
def test_a_signature_with_a_bit_flipped_is_refused(bit: int) -> None:
    signature = bytearray(RECEIPT.sign(KEY))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        RECEIPT.check(bytes(signature), KEY.public)


FOREIGN: dict[str, Callable[[], bytes]] = {
    "of somebody else": lambda: RECEIPT.sign(SigningIdentity.generate()),
    "made for another purpose": lambda: KEY.sign("request", canonical_bytes(RECEIPT.model_dump(mode="json"))),
    "of nothing": lambda: bytes(64),
    "cut off": lambda: RECEIPT.sign(KEY)[:-1],
    "empty": lambda: b"",
}


@pytest.mark.parametrize("made", FOREIGN.values(), ids=FOREIGN)
def test_other_signatures_are_refused(made: Callable[[], bytes]) -> None:
    with pytest.raises(BadSignature):
        RECEIPT.check(made(), KEY.public)


BAD: dict[str, dict[str, Any]] = {
    "round 0": {"round": 0},
    "a hospital called coordinator": {"contributing": ("coordinator",)},
    "a model without its digest": {"model_out": "the new one"},
    "a note": {"note": "patient 17"},
    "a round in words": {"round": "3"},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_what_is_no_receipt_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Receipt(**(SAID | changes))

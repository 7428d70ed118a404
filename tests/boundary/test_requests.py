"""Signed requests: which hospital, for what exactly, and when."""

from collections.abc import Callable
from datetime import datetime, timedelta
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import BadSignature, CallerFault, Stale
from boundary.names import COORDINATOR
from boundary.requests import CLOCK_SKEW, HEADER, UNHASHED, RequestClaim, read_claim, sign_request


def header(fed: ModuleType, body: bytes | None = b"body", at: datetime | None = None) -> str:
    return sign_request(fed.key("ucl"), "ucl", "POST", "/v1/poll?after=3", body, at or fed.NOW, fed.NONCE)[HEADER]


def claim(text: str) -> RequestClaim:
    return read_claim({HEADER: text})


def test_a_signed_request_verifies(fed: ModuleType) -> None:
    said = claim(header(fed))
    assert (said.party, said.sent_at, said.nonce) == ("ucl", fed.NOW, fed.NONCE.hex())
    said.verify(fed.key("ucl").public, "POST", "/v1/poll?after=3", b"body")
    claim(header(fed, None)).verify(fed.key("ucl").public, "POST", "/v1/poll?after=3", None)


ELSEWHERE: dict[str, tuple[str, str, str, bytes | None]] = {
    "another method": ("ucl", "PUT", "/v1/poll?after=3", b"body"),
    "a method in small letters": ("ucl", "post", "/v1/poll?after=3", b"body"),
    "another path": ("ucl", "POST", "/v1/envelopes?after=3", b"body"),
    "another query": ("ucl", "POST", "/v1/poll?after=4", b"body"),
    "no query": ("ucl", "POST", "/v1/poll", b"body"),
    "another body": ("ucl", "POST", "/v1/poll?after=3", b"bodY"),
    "no body": ("ucl", "POST", "/v1/poll?after=3", b""),
    "as a blob range, whose body is not hashed": ("ucl", "POST", "/v1/poll?after=3", None),
    "a body that says it is not hashed": ("ucl", "POST", "/v1/poll?after=3", UNHASHED.encode()),
    "under another hospital's key": ("st-olavs", "POST", "/v1/poll?after=3", b"body"),
    "under the coordinator's key": (COORDINATOR, "POST", "/v1/poll?after=3", b"body"),
}


@pytest.mark.parametrize(("party", "method", "target", "body"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_signature_serves_no_other_request(
    fed: ModuleType, party: str, method: str, target: str, body: bytes | None
) -> None:
    with pytest.raises(BadSignature):
        claim(header(fed)).verify(fed.key(party).public, method, target, body)


Edit = Callable[[list[str]], list[str]]
EDITED: dict[str, Edit] = {
    "another hospital's name": lambda p: [p[0], "st-olavs", *p[2:]],
    "another time": lambda p: [*p[:2], "2026-11-20T12:00:00.123457Z", *p[3:]],
    "another nonce": lambda p: [*p[:3], "f" * 32, p[4]],
    "another signature": lambda p: [*p[:4], "A" * 86 + "=="],
}


@pytest.mark.parametrize("edit", EDITED.values(), ids=EDITED)
def test_an_edited_header_does_not_verify(fed: ModuleType, edit: Edit) -> None:
    edited = claim(";".join(edit(header(fed).split(";"))))
    with pytest.raises(BadSignature):
        edited.verify(fed.key("ucl").public, "POST", "/v1/poll?after=3", b"body")


FORMLESS: dict[str, Edit] = {
    "empty": lambda _: [],
    "another version": lambda p: ["v2", *p[1:]],
    "a part too few": lambda p: p[:4],
    "a part too many": lambda p: [*p, ""],
    "a line end": lambda p: [*p[:4], p[4] + "\n"],
    "a name in capitals": lambda p: [p[0], "UCL", *p[2:]],
    "a name with a slash": lambda p: [p[0], "../ucl", *p[2:]],
    "a name of 41 characters": lambda p: [p[0], "a" * 41, *p[2:]],
    "a nonce in capitals": lambda p: [*p[:3], "F" * 32, p[4]],
    "a nonce that is too short": lambda p: [*p[:3], "f" * 30, p[4]],
    "a time in another form": lambda p: [*p[:2], "2026-11-20T12:00:00Z", *p[3:]],
    "a time that never was": lambda p: [*p[:2], "2026-02-30T12:00:00.000000Z", *p[3:]],
    "a time in digits of another script": lambda p: [*p[:2], "\u0662" + p[2][1:], *p[3:]],
    "a signature with stray bits": lambda p: [*p[:4], p[4][:85] + ("B" if p[4][85] != "B" else "C") + "=="],
    "a signature that is too short": lambda p: [*p[:4], p[4][:80]],
    "spaces": lambda p: [" " + part for part in p],
}


@pytest.mark.parametrize("edit", FORMLESS.values(), ids=FORMLESS)
def test_a_header_in_another_form_is_refused(fed: ModuleType, edit: Edit) -> None:
    with pytest.raises(BadSignature, match=HEADER):
        claim(";".join(edit(header(fed).split(";"))))


def test_a_request_without_the_header_is_refused() -> None:
    with pytest.raises(BadSignature, match="carries no"):
        read_claim({})


@given(st.data())
def test_a_header_with_one_bit_flipped_is_refused(fed: ModuleType, data: st.DataObject) -> None:
    raw = bytearray(header(fed).encode())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        claim(raw.decode("latin-1")).verify(fed.key("ucl").public, "POST", "/v1/poll?after=3", b"body")


@given(st.data())
def test_a_body_with_one_bit_flipped_is_refused(fed: ModuleType, data: st.DataObject) -> None:
    body = data.draw(st.binary(min_size=1, max_size=40))
    said = claim(header(fed, body))
    said.verify(fed.key("ucl").public, "POST", "/v1/poll?after=3", body)
    bit = data.draw(st.integers(0, len(body) * 8 - 1))
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        said.verify(fed.key("ucl").public, "POST", "/v1/poll?after=3", bytes(changed))


CLOCKS = {"behind": timedelta(seconds=-1) - CLOCK_SKEW, "ahead": CLOCK_SKEW + timedelta(seconds=1)}


@pytest.mark.parametrize("off", CLOCKS.values(), ids=CLOCKS)
def test_a_clock_that_is_off_is_told_by_how_much(fed: ModuleType, off: timedelta) -> None:
    with pytest.raises(Stale, match=f"{int(off.total_seconds())} s off"):
        claim(header(fed, at=fed.NOW + off)).check_fresh(fed.NOW)


@pytest.mark.parametrize("off", [-CLOCK_SKEW, timedelta(0), CLOCK_SKEW])
def test_a_clock_within_five_minutes_will_do(fed: ModuleType, off: timedelta) -> None:
    claim(header(fed, at=fed.NOW + off)).check_fresh(fed.NOW)


def test_we_send_no_nonce_that_would_be_refused(fed: ModuleType) -> None:
    with pytest.raises(CallerFault, match="16 bytes"):
        sign_request(fed.key("ucl"), "ucl", "GET", "/", b"", fed.NOW, b"short")

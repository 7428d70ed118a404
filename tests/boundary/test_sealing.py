"""Sealed content opens for one key, in one context and whole; or not at all."""

import base64
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import MalformedMessage, UnsealFailed
from boundary.sealing import PRIVATE_KEY_BYTES, PUBLIC_KEY_BYTES, SealingKey, UnsealingKey

PREFIX = "hpke-mlkem768-x25519:"
CONTENT = bytes(range(32))


def text_of(raw: bytes) -> str:
    return PREFIX + base64.b64encode(raw).decode()


def raw_of(fed: ModuleType) -> bytes:
    return base64.b64decode(fed.unsealing("ucl").public.text.removeprefix(PREFIX))


NOT_A_KEY: dict[str, Callable[[bytes], str]] = {
    "no prefix": lambda raw: base64.b64encode(raw).decode(),
    "another kind": lambda raw: "hpke-x25519:" + base64.b64encode(raw).decode(),
    "too short": lambda raw: text_of(raw[:-1]),
    "too long": lambda raw: text_of(raw + b"\0"),
    "only the curve": lambda raw: text_of(raw[1184:]),
    "a line end": lambda raw: text_of(raw) + "\n",
    "no base64": lambda raw: PREFIX + "*" * len(base64.b64encode(raw)),
    "a lattice key with coefficients beyond the modulus": lambda raw: text_of(b"\xff" * 1184 + raw[1184:]),
    "a curve point of small order": lambda raw: text_of(raw[:1184] + bytes(32)),
    "another curve point of small order": lambda raw: text_of(raw[:1184] + (1).to_bytes(32, "little")),
}


@pytest.mark.parametrize("spoil", NOT_A_KEY.values(), ids=NOT_A_KEY)
def test_what_is_not_a_sealing_key_is_refused(fed: ModuleType, spoil: Callable[[bytes], str]) -> None:
    raw = raw_of(fed)
    assert len(raw) == PUBLIC_KEY_BYTES
    SealingKey(text_of(raw))
    with pytest.raises(MalformedMessage, match="not a sealing key"):
        SealingKey(spoil(raw))


@given(st.binary(max_size=100), st.binary(max_size=60))
def test_what_was_sealed_opens(fed: ModuleType, content: bytes, context: bytes) -> None:
    key = fed.unsealing("ucl")
    sealed = key.public.seal(content, context)
    assert key.unseal(sealed, context) == content
    assert sealed != key.public.seal(content, context)
    with pytest.raises(UnsealFailed):
        key.unseal(sealed, context + b"\0")
    with pytest.raises(UnsealFailed):
        fed.unsealing("st-olavs").unseal(sealed, context)


@given(st.data())
def test_a_sealed_blob_with_one_bit_flipped_does_not_open(fed: ModuleType, data: st.DataObject) -> None:
    key = fed.unsealing("ucl")
    sealed = bytearray(key.public.seal(CONTENT, b"context"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UnsealFailed):
        key.unseal(bytes(sealed), b"context")


@given(st.binary(max_size=1300))
def test_any_bytes_do_not_open(fed: ModuleType, sealed: bytes) -> None:
    with pytest.raises(UnsealFailed):
        fed.unsealing("ucl").unseal(sealed, b"context")


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda sealed: sealed[:-1],
    "extended": lambda sealed: sealed + b"\0",
    "empty": lambda _: b"",
    "only the encapsulated key": lambda sealed: sealed[:1120],
    "an encapsulated curve point of small order": lambda sealed: sealed[:1088] + bytes(32) + sealed[1120:],
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_blob_does_not_open(fed: ModuleType, spoil: Callable[[bytes], bytes]) -> None:
    key = fed.unsealing("ucl")
    with pytest.raises(UnsealFailed):
        key.unseal(spoil(key.public.seal(CONTENT, b"context")), b"context")


def test_a_private_key_is_kept_as_96_bytes_and_never_shown() -> None:
    key = UnsealingKey.generate()
    assert len(key.raw) == PRIVATE_KEY_BYTES
    again = UnsealingKey.from_raw(key.raw)
    assert again.public == key.public
    assert again.unseal(key.public.seal(b"x", b""), b"") == b"x"
    assert "_raw" not in f"{key!r} {key}"
    with pytest.raises(ValueError, match="96 bytes"):
        UnsealingKey.from_raw(key.raw[:-1])

"""Sealed content opens for one key, in one context, whole and in its order; or not at all."""

import base64
import io
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import MalformedMessage, UnsealFailed
from boundary.sealing import (
    CHUNK_BYTES,
    PRIVATE_KEY_BYTES,
    PUBLIC_KEY_BYTES,
    TAG_BYTES,
    SealingKey,
    UnsealingKey,
    seal_stream,
    unseal_stream,
)

PREFIX = "hpke-mlkem768-x25519:"
KEY = bytes(range(32))
FULL = CHUNK_BYTES + TAG_BYTES


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
    sealed = bytearray(key.public.seal(KEY, b"context"))
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
        key.unseal(spoil(key.public.seal(KEY, b"context")), b"context")


def test_a_private_key_is_kept_as_96_bytes_and_never_shown() -> None:
    key = UnsealingKey.generate()
    assert len(key.raw) == PRIVATE_KEY_BYTES
    again = UnsealingKey.from_raw(key.raw)
    assert again.public == key.public
    assert again.unseal(key.public.seal(b"x", b""), b"") == b"x"
    assert "_raw" not in f"{key!r} {key}"
    with pytest.raises(ValueError, match="96 bytes"):
        UnsealingKey.from_raw(key.raw[:-1])


def sealed_file(plain: bytes, context: bytes = b"context") -> bytes:
    return b"".join(seal_stream(io.BytesIO(plain).read, KEY, context))


def opened(sealed: bytes, key: bytes = KEY, context: bytes = b"context") -> bytes:
    return b"".join(unseal_stream(io.BytesIO(sealed).read, key, context))


LENGTHS = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES - 1, 2 * CHUNK_BYTES]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_file_round_trips_around_the_borders_of_chunks(length: int) -> None:
    plain = (b"0123456789abcdef!" * (length // 17 + 1))[:length]
    sealed = sealed_file(plain)
    assert opened(sealed) == plain
    assert len(sealed) == length + TAG_BYTES * max(1, -(-length // CHUNK_BYTES))


@given(st.integers(-3, 3), st.integers(1, 2), st.integers(1, 200_000))
def test_a_file_round_trips_however_little_is_read_at_a_time(off: int, chunks: int, most: int) -> None:
    plain = bytes(chunks * CHUNK_BYTES + off)
    most = max(most, 100_000)

    def little_by_little(data: bytes) -> Callable[[int], bytes]:
        source = io.BytesIO(data)
        return lambda size: source.read(min(size, most))

    sealed = b"".join(seal_stream(little_by_little(plain), KEY, b"context"))
    assert sealed == sealed_file(plain)
    assert b"".join(unseal_stream(little_by_little(sealed), KEY, b"context")) == plain


FILE_ATTACKS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "first chunk dropped": lambda c: c[1:],
    "middle chunk dropped": lambda c: [c[0], c[2]],
    "last chunk dropped": lambda c: c[:2],
    "all chunks dropped": lambda _: [],
    "two chunks swapped": lambda c: [c[1], c[0], c[2]],
    "a chunk repeated": lambda c: [c[0], c[0], *c[1:]],
    "last chunk repeated": lambda c: [*c, c[2]],
    "last chunk first": lambda c: [c[2], c[0], c[1]],
    "last chunk alone": lambda c: [c[2]],
    "a byte cut off the end": lambda c: [*c[:2], c[2][:-1]],
    "a byte cut off the start": lambda c: [c[0][1:], *c[1:]],
    "cut inside the last tag": lambda c: [*c[:2], c[2][: TAG_BYTES - 1]],
    "cut at the border of a chunk": lambda c: c[:1],
    "a byte appended": lambda c: [*c, b"\0"],
    "an empty sealed file appended": lambda c: [*c, sealed_file(b"")],
    "another sealed file appended": lambda c: [*c, sealed_file(b"more")],
    "the last chunk of another file": lambda c: [*c[:2], sealed_file(b"A" * 5)],
}


@pytest.fixture(scope="module")
def three_chunks() -> list[bytes]:
    sealed = sealed_file(b"A" * CHUNK_BYTES + b"B" * CHUNK_BYTES + b"C" * 5)
    return [sealed[:FULL], sealed[FULL : 2 * FULL], sealed[2 * FULL :]]


@pytest.mark.parametrize("attack", FILE_ATTACKS.values(), ids=FILE_ATTACKS)
def test_a_changed_file_does_not_open(three_chunks: list[bytes], attack: Callable[[list[bytes]], list[bytes]]) -> None:
    assert len(opened(b"".join(three_chunks))) == 2 * CHUNK_BYTES + 5
    with pytest.raises(UnsealFailed, match="does not open"):
        opened(b"".join(attack(three_chunks)))


@pytest.mark.parametrize(("key", "context"), [(bytes(32), b"context"), (KEY, b"Context"), (KEY, b"")])
def test_a_file_opens_under_its_own_key_and_context_only(key: bytes, context: bytes) -> None:
    with pytest.raises(UnsealFailed):
        opened(sealed_file(b"plain"), key, context)


@given(st.data())
def test_a_file_with_one_bit_flipped_does_not_open(data: st.DataObject) -> None:
    sealed = bytearray(sealed_file(b"twelve bytes"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UnsealFailed):
        opened(bytes(sealed))


def test_nothing_of_a_chunk_is_seen_before_its_tag_was_checked(three_chunks: list[bytes]) -> None:
    spoiled = b"".join([three_chunks[0], bytes(FULL), three_chunks[2]])
    chunks = unseal_stream(io.BytesIO(spoiled).read, KEY, b"context")
    assert next(chunks) == b"A" * CHUNK_BYTES
    with pytest.raises(UnsealFailed):
        next(chunks)

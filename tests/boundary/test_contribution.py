"""A sealed vector is of one hospital, for one collection, in answer to one order."""

import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.contribution import contribution_context, open_contribution, seal_contribution, sealed_size
from boundary.errors import CallerFault, UnsealFailed
from boundary.layout import Section, VectorLayout
from boundary.names import COORDINATOR
from boundary.sealing import CHUNK_BYTES, FILE_KEY_BYTES

PLAIN = b"\x00\x00\x80\x3f" * 5


def context(fed: ModuleType, silo: str = "ucl", order: str = "order", **moved: Any) -> bytes:
    return contribution_context(fed.collection().model_copy(update=moved), silo, fed.sha(order))


def sealed(fed: ModuleType, plain: bytes = PLAIN) -> tuple[bytes, bytes]:
    key, chunks = seal_contribution(
        io.BytesIO(plain).read,
        coordinator=fed.unsealing(COORDINATOR).public,
        context=context(fed),
        file_key=fed.FILE_KEY,
    )
    return key, b"".join(chunks)


def opening(fed: ModuleType, key: bytes, file: bytes, within: bytes, to: str = COORDINATOR) -> Iterator[bytes]:
    return open_contribution(io.BytesIO(file).read, sealed_key=key, key=fed.unsealing(to), context=within)


def test_the_coordinator_reads_what_the_hospital_sealed(fed: ModuleType) -> None:
    key, file = sealed(fed)
    assert b"".join(opening(fed, key, file, context(fed))) == PLAIN


MOVED: dict[str, dict[str, Any]] = {
    "moved to another round": {"round": 3},
    "moved to another phase": {"phase": "evaluate"},
    "moved to another attempt": {"attempt": 4},
    "moved to another study": {"study": "ct-contrast-00000000"},
    "claimed by another hospital": {"silo": "st-olavs"},
    "in answer to another order": {"order": "another model"},
}


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
def test_a_contribution_that_was_moved_does_not_open(fed: ModuleType, moved: dict[str, Any]) -> None:
    key, file = sealed(fed)
    with pytest.raises(UnsealFailed):
        opening(fed, key, file, context(fed, **moved))
    chunks = opening(
        fed, fed.unsealing(COORDINATOR).public.seal(fed.FILE_KEY, context(fed, **moved)), file, context(fed, **moved)
    )
    with pytest.raises(UnsealFailed):  # nor with a key that was sealed anew: the file is bound as well
        b"".join(chunks)


def test_no_other_party_opens_it(fed: ModuleType) -> None:
    key, file = sealed(fed)
    with pytest.raises(UnsealFailed):
        opening(fed, key, file, context(fed), to="st-olavs")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_file_key_has_32_bytes(fed: ModuleType, length: int) -> None:
    public = fed.unsealing(COORDINATOR).public
    with pytest.raises(CallerFault, match="32 bytes"):
        seal_contribution(io.BytesIO(PLAIN).read, coordinator=public, context=b"c", file_key=bytes(length))
    with pytest.raises(UnsealFailed, match="length"):
        opening(fed, public.seal(bytes(length), b"c"), b"", b"c")
    assert FILE_KEY_BYTES == 32


def test_two_contexts_never_share_their_bytes(fed: ModuleType) -> None:
    contexts = [context(fed), *(context(fed, **moved) for moved in MOVED.values())]
    assert len(set(contexts)) == len(contexts)


ITEMS = CHUNK_BYTES // 4


@pytest.mark.parametrize("items", [1, ITEMS - 1, ITEMS, ITEMS + 1, 2 * ITEMS])
def test_the_sealed_size_is_known_before_anything_is_opened(fed: ModuleType, items: int) -> None:
    layout = VectorLayout(sections=(Section(name="delta", size=items),))
    assert len(sealed(fed, bytes(4 * items))[1]) == sealed_size(layout)


def test_an_empty_vector_is_one_tag(fed: ModuleType) -> None:
    assert len(sealed(fed, b"")[1]) == sealed_size(VectorLayout(sections=())) == 16


@given(st.data())
def test_a_contribution_with_one_bit_flipped_does_not_open(fed: ModuleType, data: st.DataObject) -> None:
    key, file = sealed(fed)
    both = bytearray(key + file)
    bit = data.draw(st.integers(0, len(both) * 8 - 1))
    both[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UnsealFailed):
        b"".join(opening(fed, bytes(both[: len(key)]), bytes(both[len(key) :]), context(fed)))

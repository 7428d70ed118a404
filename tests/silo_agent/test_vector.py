"""The vector's file, plain and masked: in pieces it is what it would be in one, and nothing half-written stays."""

import errno
import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from boundary.errors import BadTensors
from boundary.layout import Section, VectorLayout
from boundary.secagg.encoding import Quantiser, count_clipped, encode_numbers
from boundary.secagg.masks import AES_BLOCK, PIECE_BYTES, Masking
from boundary.secagg.ring import Encoding, exponent_for
from boundary.secagg.secrets import MaskKey
from silo_agent.vector import THREADS, write_masked, write_vector

Ring = Literal[16, 32]
SEED = bytes(range(32))
BATCH_BYTES = PIECE_BYTES * THREADS


def layout_of(numbers: int, weights: int) -> VectorLayout:
    """`clipped` is the last of the numbers, as in training."""
    sections = [Section(name="others", size=numbers - 1)] if numbers > 1 else []
    return VectorLayout(sections=(*sections, Section(name="clipped", size=1)), weights=weights)


def encoding_of(ring: Ring, bound: float = 100.0) -> Encoding:
    return Encoding(ring=ring, exponent=exponent_for(bound, ring, 4), most=4)


def keys() -> list[MaskKey]:
    return [MaskKey(hashlib.sha256(bytes([n])).digest(), sign) for n, sign in enumerate((1, -1, 1))]


def values(layout: VectorLayout) -> tuple[Any, Any]:
    random = np.random.default_rng(layout.weights)
    numbers = random.normal(0, 1e3, layout.numbers)
    weights = random.normal(0, 60, layout.weights).astype(np.float32)  # a tenth is clipped
    return numbers, weights


def in_one_piece(numbers: Any, weights: Any, encoding: Encoding) -> bytes:
    """The reference: encode all, mask all."""
    numbers = numbers.copy()
    if len(weights):
        numbers[-1] = count_clipped(weights, encoding)
    words = np.empty(len(weights), f"<u{encoding.ring // 8}")
    Quantiser(encoding, SEED).encode(weights, words)
    head = encode_numbers(numbers, encoding.most).view(np.uint8)
    whole = np.concatenate([head, words.view(np.uint8)])
    Masking(keys(), numbers_bytes=head.nbytes, ring=encoding.ring).apply(whole, 0)
    return whole.tobytes()


def weights_for(masked_bytes: int, numbers: int, ring: Ring) -> int:
    return (masked_bytes - 8 * numbers) // (ring // 8)


LENGTHS: dict[str, tuple[int, int]] = {  # numbers, bytes of the masked vector
    "a few": (4, 60),
    "no whole cipher block": (3, 8 * 3 + AES_BLOCK + 4),
    "one piece less a word": (4, PIECE_BYTES - 4),
    "one piece": (4, PIECE_BYTES),
    "one piece and a word": (4, PIECE_BYTES + 4),
    "one batch less a word": (4, BATCH_BYTES - 4),
    "one batch": (4, BATCH_BYTES),
    "one batch and a word": (4, BATCH_BYTES + 4),
}


@pytest.mark.parametrize("ring", [16, 32])
@pytest.mark.parametrize(("numbers", "size"), LENGTHS.values(), ids=LENGTHS)
def test_a_vector_masked_in_pieces_is_the_one_masked_at_once(
    tmp_path: Path, numbers: int, size: int, ring: Ring
) -> None:
    layout, encoding = layout_of(numbers, weights_for(size, numbers, ring)), encoding_of(ring)
    plain = values(layout)
    write_vector(tmp_path / "vector", *plain)
    blob = write_masked(tmp_path / "vector", tmp_path / "masked", layout, encoding, keys(), SEED)
    data = (tmp_path / "masked").read_bytes()
    assert data == in_one_piece(*plain, encoding)
    assert (blob.size, blob.digest) == (len(data), "sha256:" + hashlib.sha256(data).hexdigest())
    assert blob.size == layout.masked_bytes(ring) == size


@pytest.mark.parametrize("ring", [16, 32])
def test_numbers_and_weights_may_end_anywhere_in_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ring: Ring
) -> None:
    """Pieces of four cipher blocks, so that all of it can be tried."""
    monkeypatch.setattr("silo_agent.vector.PIECE_BYTES", 64)
    encoding = encoding_of(ring)
    for numbers in (1, 7, 8, 9, 16, 17):
        for weights in (1, 2, 15, 16, 17, 32, 63, 64, 65):
            layout = layout_of(numbers, weights)
            plain = values(layout)
            write_vector(tmp_path / "vector", *plain)
            write_masked(tmp_path / "vector", tmp_path / "masked", layout, encoding, keys(), SEED)
            assert (tmp_path / "masked").read_bytes() == in_one_piece(*plain, encoding), (numbers, weights)


def test_a_vector_of_numbers_alone(tmp_path: Path) -> None:
    """An evaluation: there is nothing to clip, and no number is for that."""
    layout, encoding = VectorLayout(sections=(Section(name="metrics", size=5),), weights=0), encoding_of(32)
    numbers = np.array([1.5, -2.0, 0.0, 1e6, 0.25])
    write_vector(tmp_path / "vector", numbers)
    write_masked(tmp_path / "vector", tmp_path / "masked", layout, encoding, keys(), SEED)
    assert (tmp_path / "masked").read_bytes() == in_one_piece(numbers, np.empty(0, "<f4"), encoding)


@pytest.mark.parametrize("ring", [16, 32])
def test_clipped_weights_are_counted_and_stay_within_the_bound(tmp_path: Path, ring: Ring) -> None:
    encoding = encoding_of(ring)
    bound = np.float32(encoding.bound)
    weights = np.array([0, bound, -bound, 2 * bound, -3 * bound, 3e38, bound / 2], "<f4")
    layout = layout_of(4, len(weights))
    write_vector(tmp_path / "vector", np.array([0.5, 1.0, 2.0, 77.0]), weights)
    write_masked(tmp_path / "vector", tmp_path / "masked", layout, encoding, [], SEED)
    words = np.frombuffer((tmp_path / "masked").read_bytes(), np.uint8)
    assert words[:32].view("<i8").tolist() == [2**23, 2**24, 2**25, 3 * 2**24], "whatever stood in its place before"
    largest = encoding.largest
    assert words[32:].view(f"<i{ring // 8}").tolist()[:6] == [0, largest, -largest, largest, -largest, largest]


def test_the_file_is_numbers_then_weights(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "vector"
    write_vector(path, np.array([1.5, -2.5]), np.array([3.0], "<f4"))
    assert path.read_bytes() == np.array([1.5, -2.5], "<f8").tobytes() + np.array([3.0], "<f4").tobytes()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["vector"], "no draft stays"


NOT_FINITE = {"NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf}


@pytest.mark.parametrize("where", ["numbers", "weights"])
@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_not_finite_is_not_stored(tmp_path: Path, where: str, value: float) -> None:
    numbers, weights = np.zeros(4), np.zeros(7, "<f4")
    (numbers if where == "numbers" else weights)[-1] = value
    with pytest.raises(BadTensors, match="NaN or infinity"):
        write_vector(tmp_path / "vector", numbers, weights)
    assert list(tmp_path.iterdir()) == []


def with_file(path: Path, numbers: Any, weights: Any) -> None:
    """Around the checks of `write_vector`, as a failing disk or another program might."""
    path.write_bytes(np.asarray(numbers, "<f8").tobytes() + np.asarray(weights, "<f4").tobytes())


SPOILT: dict[str, tuple[list[float], list[float]]] = {
    "it is a weight short": ([0, 0, 0, 0], [0] * 6),
    "it is a weight longer": ([0, 0, 0, 0], [0] * 8),
    "it is empty": ([], []),
    "a number is NaN": ([math.nan, 0, 0, 0], [0] * 7),
    "a number is infinite": ([0, math.inf, 0, 0], [0] * 7),
    "a number is too large for the sum": ([1e30, 0, 0, 0], [0] * 7),
    "a weight is NaN": ([0, 0, 0, 0], [0] * 6 + [math.nan]),
    "a weight is infinite": ([0, 0, 0, 0], [-math.inf] + [0] * 6),
}


@pytest.mark.parametrize(("numbers", "weights"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_vector_is_not_masked_and_leaves_no_file(
    tmp_path: Path, numbers: list[float], weights: list[float]
) -> None:
    with_file(tmp_path / "vector", numbers, weights)
    with pytest.raises(BadTensors):
        write_masked(tmp_path / "vector", tmp_path / "masked", layout_of(4, 7), encoding_of(32), keys(), SEED)
    assert not (tmp_path / "masked").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    layout = layout_of(4, 7)
    write_vector(tmp_path / "vector", *values(layout))

    def fails(_: int) -> None:
        raise OSError(code, "the disk fails")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="the disk fails"):
        write_masked(tmp_path / "vector", tmp_path / "masked", layout, encoding_of(32), keys(), SEED)
    assert [one.name for one in tmp_path.iterdir()] == ["vector"]


def test_another_seed_rounds_otherwise_and_by_less_than_a_step(tmp_path: Path) -> None:
    layout, encoding = layout_of(4, 1000), encoding_of(16)
    weights = np.random.default_rng(1).normal(0, 10, 1000).astype(np.float32)
    write_vector(tmp_path / "vector", np.zeros(4), weights)
    found = []
    for seed in (SEED, bytes(32)):
        write_masked(tmp_path / "vector", tmp_path / "masked", layout, encoding, [], seed)
        words = np.frombuffer((tmp_path / "masked").read_bytes(), np.uint8)[32:].view("<i2")
        found.append(words * 2.0**-encoding.exponent)
        assert np.abs(found[-1] - weights).max() < 2.0**-encoding.exponent
    assert (found[0] != found[1]).any()

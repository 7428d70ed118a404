"""The stored vector, and from it the masked one: encoded and masked piece by piece, never whole in memory.

Loads NumPy: the child process and `silo_agent.aside` import it, the daemon never does.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.canonical import Digest
from boundary.errors import BadTensors
from boundary.layout import VectorLayout
from boundary.messages import BlobRef
from boundary.secagg.encoding import Quantiser, count_clipped, encode_numbers
from boundary.secagg.masks import PIECE_BYTES, Masking
from boundary.secagg.ring import Encoding
from boundary.secagg.secrets import MaskKey

THREADS = 2
_BY_WEIGHT = ("loss_sum", "images", "weight")  # where there are late updates: `layout_for`
Bytes = NDArray[np.uint8]


def write_vector(out: Path, numbers: NDArray[np.float64], weights: NDArray[np.float32] | None = None) -> None:
    """Store a finished vector (`boundary.layout`), on the disk for good. Raises `BadTensors` for NaN or infinity."""
    weights = np.empty(0, "<f4") if weights is None else weights
    if not (np.isfinite(numbers).all() and np.isfinite(weights).all()):
        raise BadTensors("the result holds NaN or infinity")
    out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = out.with_suffix(".part")
    with draft.open("wb") as file:
        numbers.astype("<f8").tofile(file)
        weights.astype("<f4", copy=False).tofile(file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(out)


def write_masked(
    vector: Path, masked: Path, layout: VectorLayout, encoding: Encoding, keys: list[MaskKey], seed: bytes,
    late_by: float | None = None,
) -> BlobRef:  # fmt: skip
    """Write `vector` under its masks to `masked`, on the disk for good, and give its digest and size.

    `seed` is 32 fresh bytes, for the rounding. With `late_by` the weighted delta, its weight and what is counted by
    weight are multiplied by that factor, and the vector counts as a late one. Raises `BadTensors` for a vector that is
    not finite or not of the layout's length, `OSError` when the disk fails; then no file is left.
    """
    if vector.stat().st_size != layout.plain_bytes:  # not what the child wrote, or cut by a crash
        raise BadTensors("the vector has another length than the plan's layout")
    numbers, weights = _read(vector, layout, encoding, late_by)
    masking = Masking(keys, numbers_bytes=layout.numbers_bytes, ring=encoding.ring)
    hasher, size = hashlib.sha256(), 0
    try:
        with masked.open("wb") as target, ThreadPoolExecutor(THREADS) as pool:
            for pieces in _batches(_encoded(numbers, weights, encoding, seed), PIECE_BYTES * THREADS):
                list(pool.map(lambda piece: masking.apply(piece[1], piece[0]), pieces))
                for _, piece in pieces:
                    hasher.update(piece.data)
                    size += target.write(piece.data)
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        masked.unlink(missing_ok=True)
        raise
    return BlobRef(digest=Digest("sha256:" + hasher.hexdigest()), size=size)


def _read(
    vector: Path, layout: VectorLayout, encoding: Encoding, late_by: float | None
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Give the encoded numbers, with the count of weights that have to be clipped among them, and the plain weights."""
    plain = np.memmap(vector, np.uint8, mode="r")
    numbers = np.array(plain[: layout.numbers_bytes]).view("<f8")
    weights = plain[layout.numbers_bytes :].view("<f4")
    if late_by is not None:
        weights = weights * np.float32(late_by)
        for name in _BY_WEIGHT:
            numbers[layout.where(name)] *= late_by
        numbers[layout.where("late")] = 1.0
    if layout.weights:
        numbers[layout.where("clipped")] = count_clipped(weights, encoding)
    return encode_numbers(numbers, encoding.most), weights


def _encoded(
    numbers: NDArray[np.uint64], weights: NDArray[np.float32], encoding: Encoding, seed: bytes
) -> Iterator[tuple[int, Bytes]]:
    """Yield the encoded vector in pieces of `PIECE_BYTES`, each with its offset; the last is shorter."""
    quantiser, word = Quantiser(encoding, seed), encoding.ring // 8
    total = numbers.nbytes + len(weights) * word
    for offset in range(0, total, PIECE_BYTES):
        piece = np.empty(min(PIECE_BYTES, total - offset), np.uint8)
        split = min(len(piece), max(0, numbers.nbytes - offset))
        piece[:split] = numbers.view(np.uint8)[offset : offset + split]
        first = (offset + split - numbers.nbytes) // word
        words = piece[split:].view(f"<u{word}")
        quantiser.encode(weights[first : first + len(words)], words)
        yield offset, piece


def _batches(pieces: Iterator[tuple[int, Bytes]], most: int) -> Iterator[list[tuple[int, Bytes]]]:
    batch: list[tuple[int, Bytes]] = []
    for piece in pieces:
        batch.append(piece)
        if sum(len(data) for _, data in batch) >= most:
            yield batch
            batch = []
    if batch:
        yield batch

"""Which patients a step sees, and which of their images: drawn from AES bits, cut into pieces that fit the memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from models.private.keystream import KeyStream

Rows = NDArray[np.int64]


def rows_by_patient(patients: NDArray[np.int64]) -> list[Rows]:
    """Give the row numbers of each patient, from the patient number of each row, int64 [n]."""
    order = np.argsort(patients, kind="stable")
    borders = np.flatnonzero(np.diff(patients[order])) + 1
    return [rows.astype(np.int64) for rows in np.split(order, borders)] if len(order) else []


def poisson(count: int, rate: float, stream: KeyStream) -> list[int]:
    """Take each of `count` patients by itself with probability `rate`, 0 < rate <= 1, rounded down to 2^-64.

    Nobody at all is a legal sample. Raises `ValueError` for another rate.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"a sampling rate of {rate}")
    if rate == 1:
        return list(range(count))
    limit = np.uint64(int(Fraction(rate) * 2**64))
    return [int(i) for i in np.flatnonzero(stream.words(count) < limit)]


def some_of(rows: Rows, most: int, stream: KeyStream) -> Rows:
    """At most `most` of a patient's rows, every subset of that size as likely as any other (Fisher and Yates)."""
    if len(rows) <= most:
        return rows
    drawn = rows.copy()
    for i in range(most):
        j = i + stream.below(len(drawn) - i)
        drawn[i], drawn[j] = drawn[j], drawn[i]
    return drawn[:most]


@dataclass(frozen=True, eq=False)
class Piece:
    """What goes through the network at once: rows [b], the share of each in its patient's mean, float32 [b].

    `runs` counts the rows of each patient in turn; `unfinished` says that the last one goes on in the next piece.
    """

    rows: Rows
    shares: NDArray[np.float32]
    runs: tuple[int, ...]
    unfinished: bool


def pieces(sample: list[Rows], size: int) -> Iterator[Piece]:
    """Cut a step's sample, the rows of one patient after the other, into pieces of at most `size` images."""
    owners = np.repeat(np.arange(len(sample)), [len(rows) for rows in sample])
    shares = np.concatenate(
        [np.full(len(rows), 1 / len(rows), np.float32) for rows in sample] or [np.empty(0, np.float32)]
    )
    every = np.concatenate(sample) if sample else np.empty(0, np.int64)
    for start in range(0, len(every), size):
        end = min(start + size, len(every))
        _, runs = np.unique(owners[start:end], return_counts=True)
        unfinished = end < len(every) and owners[end] == owners[end - 1]
        yield Piece(every[start:end], shares[start:end], tuple(map(int, runs)), bool(unfinished))

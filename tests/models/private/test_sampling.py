"""Who is in a step, and how a step is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from models.private.keystream import KeyStream
from models.private.sampling import Rows, pieces, poisson, rows_by_patient, some_of


def test_rows_by_patient_whatever_the_order() -> None:
    found = rows_by_patient(np.array([7, 2, 7, 5, 2, 7]))
    assert [rows.tolist() for rows in found] == [[1, 4], [3], [0, 2, 5]]
    assert rows_by_patient(np.zeros(0, np.int64)) == []


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.95])
def test_every_patient_is_drawn_by_itself_at_the_rate(rate: float) -> None:
    stream, rounds, count = KeyStream(bytes(32)), 2000, 50
    seen = np.zeros((rounds, count))
    for row in seen:
        row[poisson(count, rate, stream)] = 1
    assert binomtest(int(seen.sum()), rounds * count, rate).pvalue > 1e-4
    sizes = seen.sum(axis=1)  # independent: the variance of the number is the binomial one
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.15)


def test_certainty_and_nonsense() -> None:
    stream = KeyStream(bytes(32))
    assert poisson(5, 1.0, stream) == [0, 1, 2, 3, 4]
    assert poisson(0, 0.5, stream) == []
    for rate in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            poisson(5, rate, stream)


def test_some_images_of_a_patient() -> None:
    stream, rows = KeyStream(bytes(32)), np.arange(10, 15)
    assert some_of(rows, 5, stream) is rows
    drawn = [tuple(sorted(some_of(rows, 2, stream).tolist())) for _ in range(5000)]
    counts = np.unique(np.array(drawn), axis=0, return_counts=True)[1]
    assert len(counts) == 10  # all pairs of five
    assert chi2.sf(((counts - 500) ** 2 / 500).sum(), 9) > 1e-4
    assert rows.tolist() == [10, 11, 12, 13, 14]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20))
def test_pieces_hold_every_image_once_in_order(counts: list[int], size: int) -> None:
    sample: list[Rows] = [np.arange(100 * i, 100 * i + count) for i, count in enumerate(counts)]
    cut = list(pieces(sample, size))
    assert [row for piece in cut for row in piece.rows] == [row for rows in sample for row in rows]
    assert all(len(piece.rows) <= size and sum(piece.runs) == len(piece.rows) for piece in cut)
    assert all(len(piece.rows) == size for piece in cut[:-1])
    whole: list[int] = []
    begun = 0
    for piece in cut:
        runs = list(piece.runs)
        runs[0] += begun
        begun = runs.pop() if piece.unfinished else 0
        whole += runs
        for row, share in zip(piece.rows, piece.shares, strict=True):
            assert share == np.float32(1 / counts[row // 100])
    assert whole == counts
    assert begun == 0

"""The noise is the rounded normal distribution: by its table exactly, by its draws as far as they can tell."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, norm

from models.private.gaussian import LARGEST, SMALLEST, LatticeGaussian
from models.private.keystream import KeyStream


def drawn(sigma: float, count: int, key: int = 1) -> np.ndarray:
    out = np.empty(count, np.int32)
    LatticeGaussian(sigma, KeyStream(key.to_bytes(32, "big"))).fill(out)
    return out


@pytest.mark.parametrize("sigma", [SMALLEST, 700.5, 2.0**16, 3.7 * 2**16, LARGEST])
def test_fast_part_and_rest_together_are_the_rounded_normal_distribution(sigma: float) -> None:
    noise = LatticeGaussian(sigma, KeyStream(bytes(32)))
    slots = np.zeros(len(noise._cells) + 1, dtype=object)  # what the alias table gives each cell, the rest last
    cell = {int(start): i for i, start in enumerate(noise._cells)}
    for column, threshold in enumerate(noise._threshold):
        own, alias = noise._answers[2 * column : 2 * column + 2]
        slots[cell.get(int(own), -1)] += int(threshold)
        slots[cell.get(int(alias), -1)] += 2**35 - int(threshold)
    assert [int(count) for count in slots[:-1]] == [round(share * 2**48) for share in noise._floor]
    assert sum(slots) == 2**48
    some = np.arange(0, len(noise._cells), max(1, len(noise._cells) // 50))
    for i in some:
        x = noise._cells[i] + np.arange(noise._width)
        if abs(x).max() < 6 * sigma and noise._width <= 1024:
            exact = norm.sf((abs(x) - 0.5) / sigma) - norm.sf((abs(x) + 0.5) / sigma)
            assert np.abs(noise._density(x) / exact - 1).max() < 1e-6
            assert (noise._density(x) * noise._width >= noise._floor[i]).all()
            assert (noise._density(x) * noise._width <= noise._floor[i] + noise._rest[i]).all()
    first, end, step = int(noise._cells[0]), int(noise._cells[-1]) + noise._width, 2**16  # which stays in the cache
    sums = [noise._density(np.arange(at, min(at + step, end))).sum() for at in range(first, end, step)]
    left = math.fsum(sums) - noise._floor.sum()
    assert left == pytest.approx(1 - noise._floor.sum(), abs=1e-12)
    assert left < 0.004


@pytest.mark.parametrize("sigma", [SMALLEST, 1000.3])
def test_chi_square_over_single_integers(sigma: float) -> None:
    count = 4_000_000
    x = drawn(sigma, count)
    most = math.floor(3.5 * sigma)
    values = np.arange(-most, most + 1)
    expected = count * (norm.cdf((values + 0.5) / sigma) - norm.cdf((values - 0.5) / sigma))
    inside = x[np.abs(x) <= most]
    seen = np.bincount(inside + most, minlength=len(values))
    statistic = ((seen - expected) ** 2 / expected).sum() + (
        (count - len(inside) - (count - expected.sum())) ** 2 / (count - expected.sum())
    )
    assert 1e-4 < chi2.sf(statistic, len(values)) < 1 - 1e-4


@pytest.mark.parametrize("sigma", [SMALLEST, 2.0**16, 5.5 * 2**16])
def test_moments_tails_and_neighbours(sigma: float) -> None:
    count = 2_000_000
    x = drawn(sigma, count, key=5) / sigma
    assert abs(x.mean()) < 4 / math.sqrt(count)
    assert abs((x**2).mean() - 1 - 1 / (12 * sigma**2)) < 4 * math.sqrt(2 / count)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / count)
    assert abs((x[:-1] * x[1:]).mean()) < 4 / math.sqrt(count)
    assert abs((np.abs(x) > 4).mean() - 2 * norm.sf(4)) < 5 * math.sqrt(2 * norm.sf(4) / count)
    assert kstest(x[:100_000], "norm").pvalue > 1e-4


def test_a_wrong_sigma_would_be_seen() -> None:
    """The tests above can fail: half a percent of scale is far outside what they allow."""
    x = drawn(1.005 * 2.0**16, 2_000_000) / 2.0**16
    assert abs((x**2).mean() - 1) > 4 * math.sqrt(2 / 2_000_000)


def test_the_key_decides_and_every_draw_is_another() -> None:
    assert (drawn(2.0**16, 10_000, key=1) == drawn(2.0**16, 10_000, key=1)).all()
    assert (drawn(2.0**16, 10_000, key=1) != drawn(2.0**16, 10_000, key=2)).mean() > 0.99
    noise, first, second = LatticeGaussian(2.0**16, KeyStream(bytes(32))), np.empty(9, np.int32), np.empty(9, np.int32)
    noise.fill(first)
    noise.fill(second)
    assert (first != second).any()


@pytest.mark.parametrize("sigma", [SMALLEST - 1, LARGEST + 1, 0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_drawn_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        LatticeGaussian(sigma, KeyStream(bytes(32)))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.binary(min_size=32, max_size=32))
def test_the_stream_is_one_however_it_is_read(sizes: list[int], key: bytes) -> None:
    whole, pieces = KeyStream(key).words(sum(sizes)), KeyStream(key)
    at = 0
    for i, size in enumerate(sizes):
        words = np.empty(size, np.uint64)
        if i % 2:
            words[:] = pieces.words(size)
        else:
            pieces.fill(words)
        assert (words == whole[at : at + size]).all()
        at += size


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5 has another counter; FIPS 197, C.3: AES-256 of the zero block under the zero key."""
    assert KeyStream(bytes(32)).words(2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    with pytest.raises(ValueError, match="key"):
        KeyStream(bytes(16))


def test_below_is_even() -> None:
    stream = KeyStream(bytes(32))
    seen = np.bincount([stream.below(7) for _ in range(7000)], minlength=7)
    assert chi2.sf(((seen - 1000) ** 2 / 1000).sum(), 6) > 1e-4
    assert {stream.below(1) for _ in range(5)} == {0}

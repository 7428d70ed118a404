"""Fixed-point numbers and weights: what goes in comes out as a sum, within the bounds that are promised."""

import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boundary.errors import BadTensors
from boundary.secagg.encoding import PIECE, Quantiser, count_clipped, decode_mean, decode_numbers, encode_numbers
from boundary.secagg.ring import FRACTION_BITS, Encoding, exponent_for

RINGS = st.sampled_from([16, 32])
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
ANY_FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ENCODINGS = st.builds(Encoding, ring=RINGS, exponent=st.integers(-60, 60), most=st.integers(3, 200))


def encoded(weights: np.ndarray, encoding: Encoding, seed: bytes = bytes(32)) -> np.ndarray:
    words = np.empty(len(weights), np.uint32 if encoding.ring == 32 else np.uint16)
    Quantiser(encoding, seed).encode(weights, words)
    return words


def signed(words: np.ndarray) -> np.ndarray:
    return words.view(np.int32 if words.dtype == np.uint32 else np.int16).astype(np.int64)


def decoded(words: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The float64 reference: nothing is divided and nothing rounded."""
    return signed(words) * 2.0**-encoding.exponent


# --- weights in -------------------------------------------------------------------------------------------
@given(RINGS, st.integers(3, 200), st.integers(-30, 30), arrays(np.float32, st.integers(1, 50), elements=FLOATS))
def test_every_word_is_within_the_proven_bound(ring: int, most: int, exponent: int, weights: np.ndarray) -> None:
    encoding = Encoding(ring=ring, exponent=exponent, most=most)
    words = encoded(weights, encoding, os.urandom(32))
    assert np.abs(signed(words)).max() * most <= 2 ** (ring - 1) - 1


@pytest.mark.parametrize("ring", [16, 32])
def test_the_largest_values_of_all_hospitals_do_not_wrap(ring: int) -> None:
    encoding = Encoding(ring=ring, exponent=3, most=7)
    for value in (np.float32(np.finfo(np.float32).max), np.float32(-np.finfo(np.float32).max)):
        words = encoded(np.full(100, value), encoding, os.urandom(32))
        total = np.zeros_like(words)
        for _ in range(7):
            total += words
        mean, largest = decode_mean(total, encoding, 7.0)
        np.testing.assert_allclose(mean, np.sign(value) * encoding.bound, rtol=2e-3)
        np.testing.assert_allclose(largest, 7 * encoding.bound, rtol=2e-3)


@given(RINGS, arrays(np.float32, 40, elements=st.floats(-1, 1, width=32)))
def test_rounding_moves_a_weight_by_at_most_one_step(ring: int, weights: np.ndarray) -> None:
    encoding = Encoding(ring=ring, exponent=exponent_for(1.0, ring, 5), most=5)
    moved = decoded(encoded(weights, encoding, os.urandom(32)), encoding) - weights
    assert np.abs(moved).max() <= 2.0**-encoding.exponent * (1 + 2**-9) + 2.0**-24


@pytest.mark.parametrize("value", [0.3, -0.3, 0.996, -0.002, 3.5, -1e-10])
def test_rounding_is_unbiased(value: float) -> None:
    """In steps; 400,000 draws, five standard errors and the documented 2^-8."""
    encoding = Encoding(ring=16, exponent=0, most=3)
    mean = decoded(encoded(np.full(400_000, value, np.float32), encoding, os.urandom(32)), encoding).mean()
    assert abs(mean - value) < 5 * 0.5 / np.sqrt(400_000) + 2**-8


# --- what is clipped --------------------------------------------------------------------------------------
def test_what_is_clipped_is_counted() -> None:
    encoding = Encoding(exponent=exponent_for(1.0, 32, 5), most=5)
    weights = np.array([0.5, 1e9, -1e9, 0.0], np.float32)
    assert count_clipped(weights, encoding) == 2
    words = encoded(weights, encoding)
    np.testing.assert_allclose(decoded(words, encoding), [0.5, encoding.bound, -encoding.bound, 0], atol=1e-6)


@given(ENCODINGS, st.data())
def test_what_is_counted_is_what_the_quantiser_clips(encoding: Encoding, data: st.DataObject) -> None:
    """It clips what it cannot tell from the bound: so each word is compared with that of the exact value."""
    bound = np.float32(encoding.bound)
    edges = [bound, np.nextafter(bound, np.float32(0)), np.nextafter(bound, np.float32(np.inf))]
    around = st.sampled_from([float(sign * edge) for edge in edges for sign in (1, -1)])
    weights = np.array(data.draw(st.lists(ANY_FLOATS | around, min_size=1, max_size=30)), np.float32)
    exact = [Fraction(float(weight)) * Fraction(2) ** encoding.exponent for weight in weights]
    beyond = np.array([abs(value) > encoding.largest for value in exact])
    assert count_clipped(weights, encoding) == beyond.sum()
    if beyond.any():
        words = signed(encoded(weights, encoding, os.urandom(32)))[beyond]
        at_bound = signed(encoded(np.sign(weights[beyond]) * bound, encoding, bytes(32)))
        assert np.abs(words - at_bound).max() <= 1  # the dither of a value at the bound, in float32


@given(st.lists(st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 2]), unique=True))
def test_every_piece_is_counted(places: list[int]) -> None:
    weights = np.zeros(2 * PIECE + 3, np.float32)
    weights[places] = [(-1) ** place * 2e6 for place in places]
    assert count_clipped(weights, Encoding(exponent=10, most=3)) == len(places)


@pytest.mark.parametrize("use", [encoded, count_clipped], ids=["encoding", "counting"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, PIECE // 2 + 7, PIECE, PIECE + 1], ids=lambda place: f"at {place}")
def test_what_is_not_finite_is_refused(use: type, bad: float, place: int) -> None:
    weights = np.zeros(PIECE + 2, np.float32)
    weights[place] = bad
    for exponent in (-60, 10, 60):
        with pytest.raises(BadTensors), warnings.catch_warnings(action="error"):
            use(weights, Encoding(exponent=exponent, most=3))


# --- weights out ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ring", [16, 32])
@given(st.integers(-60, 60), st.integers(1, 9), st.floats(1e-3, 1e9), st.data())
def test_the_mean_is_that_of_float64_rounded_once(
    ring: int, exponent: int, size: int, weight: float, data: st.DataObject
) -> None:
    encoding = Encoding(ring=ring, exponent=exponent, most=3)
    total = data.draw(arrays(np.uint32 if ring == 32 else np.uint16, size))
    mean, largest = decode_mean(total, encoding, weight)
    reference = decoded(total, encoding)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, (reference / weight).astype(np.float32))
    assert largest == np.abs(reference).max()


@pytest.mark.parametrize("ring", [16, 32])
@pytest.mark.parametrize("place", [0, PIECE, -1], ids=["first piece", "second piece", "last piece"])
def test_the_mean_of_many_pieces_is_the_mean_of_all(ring: int, place: int) -> None:
    encoding = Encoding(ring=ring, exponent=7, most=3)
    size = 2 * PIECE + 5
    total = np.frombuffer(os.urandom(size * ring // 8), np.uint32 if ring == 32 else np.uint16) >> 2
    total[place] = 2 ** (ring - 1)  # the most negative word
    mean, largest = decode_mean(total, encoding, 3.5)
    np.testing.assert_array_equal(mean, (decoded(total, encoding) / 3.5).astype(np.float32))
    assert largest == 2.0 ** (ring - 1 - 7)


def test_the_mean_of_no_weights_is_empty() -> None:
    mean, largest = decode_mean(np.zeros(0, np.uint32), Encoding(exponent=0, most=3), 1.0)
    assert (len(mean), largest) == (0, 0.0)


@pytest.mark.parametrize("ring", [16, 32])
@given(data=st.data())
def test_a_mean_through_the_ring_is_within_one_step_for_each_hospital(ring: int, data: st.DataObject) -> None:
    hospitals = data.draw(st.integers(3, 20))
    deltas = [data.draw(arrays(np.float32, 8, elements=st.floats(-1, 1, width=32))) for _ in range(hospitals)]
    encoding = Encoding(ring=ring, exponent=exponent_for(1.0, ring, 20), most=20)
    total = np.sum([encoded(delta, encoding, os.urandom(32)) for delta in deltas], axis=0, dtype=f"u{ring // 8}")
    mean, _ = decode_mean(total, encoding, float(hospitals))
    reference = np.mean(np.array(deltas, np.float64), axis=0)
    assert np.abs(mean - reference).max() <= 2.0**-encoding.exponent * (1 + 2**-9) + 2.0**-22


# --- numbers ----------------------------------------------------------------------------------------------
@given(st.lists(st.lists(st.integers(-(2**31), 2**31), min_size=3, max_size=3), min_size=3, max_size=20))
def test_sums_of_whole_numbers_are_exact(hospitals: list[list[int]]) -> None:
    total = np.zeros(3, np.uint64)
    for numbers in hospitals:
        total += encode_numbers(np.array(numbers, float), 200)
    np.testing.assert_array_equal(decode_numbers(total), np.sum(np.array(hospitals, float), axis=0))


@given(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=20))
def test_a_sum_of_losses_is_right_to_half_a_step_for_each_hospital(losses: list[float]) -> None:
    total = np.zeros(1, np.uint64)
    for loss in losses:
        total += encode_numbers(np.array([loss]), 20)
    exact = sum(map(Fraction, losses), Fraction(0))
    steps = abs(Fraction(float(decode_numbers(total)[0])) - exact) * 2**FRACTION_BITS
    assert steps <= Fraction(len(losses), 2) + abs(exact) * 2**FRACTION_BITS / 2**52


@pytest.mark.parametrize("most", [3, 7, 200])
def test_a_number_that_does_not_fit_is_refused_not_clipped(most: int) -> None:
    largest = (2**63 - 1) // most // 2**FRACTION_BITS
    for sign in (1, -1):
        words = encode_numbers(np.array([sign * float(largest)]), most)
        total = np.sum([words] * most, axis=0, dtype=np.uint64)
        assert decode_numbers(total)[0] == sign * float(largest) * most
        with pytest.raises(BadTensors, match="too large"):
            encode_numbers(np.array([0.0, sign * float(largest + 1)]), most)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(BadTensors, match="NaN or infinite"):
        encode_numbers(np.array([1.0, bad]), 3)

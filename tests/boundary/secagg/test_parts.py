"""The pieces of a masked sum by themselves: masks, shares, graph."""

import os
from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.errors import CallerFault
from boundary.secagg import graph, shamir
from boundary.secagg.errors import BadShares
from boundary.secagg.graph import chooses_mask, neighbours, thresholds
from boundary.secagg.masks import BLOCK, PIECE_BYTES, Masking, apply_everywhere
from boundary.secagg.secrets import MaskKey
from infra.cohort import entropy_of

RINGS = st.sampled_from([16, 32])


# --- masks ------------------------------------------------------------------------------------------------
@given(st.integers(0, 5), st.integers(0, 900), RINGS, st.integers(1, 4))
@settings(max_examples=30)
def test_what_one_side_adds_the_other_takes_off(numbers: int, weights: int, ring: int, masks: int) -> None:
    plain = np.frombuffer(os.urandom(8 * numbers + 8 * weights), np.uint8)
    keys = [os.urandom(32) for _ in range(masks)]
    vector = plain.copy()
    for sign in (1, -1):
        masking = Masking([MaskKey(key, sign) for key in keys], numbers_bytes=8 * numbers, ring=ring)
        apply_everywhere(vector, masking, threads=1)
        assert len(vector) < 16 or sign == -1 or not np.array_equal(vector, plain)
    np.testing.assert_array_equal(vector, plain)


@pytest.mark.parametrize("numbers", [0, 3, BLOCK // 8 + 5])
def test_pieces_and_threads_give_the_same_bytes(numbers: int) -> None:
    size = PIECE_BYTES * 2 + 12_344
    plain = np.frombuffer(os.urandom(size), np.uint8)
    whole, pieces = plain.copy(), plain.copy()
    apply_everywhere(whole, Masking([MaskKey(bytes(32), 1)], numbers_bytes=8 * numbers, ring=32), threads=2)
    masking = Masking([MaskKey(bytes(32), 1)], numbers_bytes=8 * numbers, ring=32)
    for start in reversed(range(0, size, 48_000)):
        masking.apply(pieces[start : start + 48_000], start)
    np.testing.assert_array_equal(whole, pieces)


def test_misplaced_pieces_and_odd_keys_are_our_own_fault() -> None:
    with pytest.raises(CallerFault):
        MaskKey(bytes(16), 1)
    with pytest.raises(CallerFault):
        Masking([], numbers_bytes=4, ring=32)
    with pytest.raises(CallerFault):
        Masking([], numbers_bytes=0, ring=32).apply(np.zeros(8, np.uint8), 8)


# --- shares -----------------------------------------------------------------------------------------------
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
@settings(max_examples=60)
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, places: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, places))
    shares = shamir.split(secret, range(1, places + 1), threshold, os.urandom)
    some = data.draw(st.permutations(sorted(shares)))[: data.draw(st.integers(threshold, places))]
    assert shamir.combine({place: shares[place] for place in some}, threshold) == secret


def test_one_share_too_few_fits_every_secret() -> None:
    """With one share missing, each possible secret has exactly one value for it: the rest says nothing."""
    shares = shamir.split(bytes(32), (1, 2, 3), 3, os.urandom)
    with pytest.raises(BadShares):
        shamir.combine({1: shares[1], 2: shares[2]}, 3)
    found = {shamir.combine({1: shares[1], 2: shares[2], 3: bytes([0, value]) + bytes(31)}, 3) for value in (0, 1)}
    assert len(found) == 2


def test_shares_are_spread_over_the_whole_field() -> None:
    tops = Counter(shamir.split(bytes(32), (1, 2), 2, os.urandom)[1][1] >> 6 for _ in range(400))
    assert set(tops) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "bad", [b"", bytes(32), bytes(34), shamir.PRIME.to_bytes(33, "big"), (shamir.PRIME - 1).to_bytes(33, "big")]
)
def test_what_is_no_share_of_a_secret_is_refused(bad: bytes) -> None:
    with pytest.raises(BadShares):
        shamir.combine({1: bad}, 1)


@pytest.mark.parametrize(
    ("secret", "places", "threshold"),
    [
        (bytes(31), (1, 2), 2),
        (bytes(32), (1, 2), 3),
        (bytes(32), (1, 1), 2),
        (bytes(32), (0, 1), 2),
        (bytes(32), (1,), 0),
    ],
)
def test_sharing_that_cannot_be_is_our_own_fault(secret: bytes, places: tuple[int, ...], threshold: int) -> None:
    with pytest.raises(CallerFault):
        shamir.split(secret, places, threshold, os.urandom)


def test_the_prime_is_the_next_above_two_to_the_256() -> None:
    def is_prime(n: int) -> bool:  # Miller and Rabin, 40 fixed bases
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in range(2, 42):
            x = pow(base, odd, n)
            if x in {1, n - 1}:
                continue
            for _ in range(twos - 1):
                x = x * x % n
                if x == n - 1:
                    break
            else:
                return False
        return True

    assert is_prime(shamir.PRIME)
    assert not any(is_prime(2**256 + more) for more in range(1, 297))


# --- graph ------------------------------------------------------------------------------------------------
def test_the_design_pages_numbers() -> None:
    """docs/protocol.md; secure-aggregation.md gives the same."""
    tolerated = {n: n - thresholds(n).agreeing for n in (3, 4, 5, 7, 10, 20, 50)}
    assert tolerated == {3: 0, 4: 1, 5: 1, 7: 2, 10: 3, 20: 6, 50: 16}
    assert (thresholds(100).neighbours, thresholds(100).shares) == (41, 31)
    assert (thresholds(200).neighbours, thresholds(200).shares) == (75, 56)


@given(st.integers(3, 200))
@settings(max_examples=40)
def test_two_sets_of_survivors_cannot_both_be_agreed_on(members: int) -> None:
    """Honest hospitals sign once, fewer than a third sign twice."""
    colluding = (members - 1) // 3
    assert 2 * thresholds(members).agreeing > members + colluding


def test_sparse_numbers_hold_the_tails_they_claim() -> None:
    """By a sum over all ways, written another way than the code's."""
    for members in (65, 100, 200):
        numbers = thresholds(members)
        k, t, corrupt = numbers.neighbours, numbers.shares, members // 5
        chance = sum(
            comb(corrupt, hit) * comb(members - 1 - corrupt, k - hit) / comb(members - 1, k)
            for hit in range(2 * t - k, k + 1)
        )
        assert chance * members <= 2.0**-40


def test_without_numbers_that_hold_there_is_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "LOST_SHARE", 2)  # half of them drop out
    with pytest.raises(CallerFault, match="no thresholds"):
        graph._sparse.__wrapped__(65)


def test_a_hospital_picks_its_own_neighbours_and_all_are_as_likely() -> None:
    members = [f"h{number:03d}" for number in range(100)]
    picked: Counter[str] = Counter()
    for seed in range(400):
        chosen = neighbours("h000", members, entropy_of(seed))
        assert len(set(chosen)) == 41
        assert "h000" not in chosen
        picked.update(chosen)
    expected = 400 * 41 / 99
    assert max(abs(count - expected) for count in picked.values()) < 6 * np.sqrt(expected)
    assert len(picked) == 99


def test_each_pair_of_a_complete_graph_has_one_mask() -> None:
    assert chooses_mask("a", "b", is_complete=True) != chooses_mask("b", "a", is_complete=True)
    assert chooses_mask("b", "a", is_complete=False)
    assert neighbours("b", ["a", "b", "c"], os.urandom) == ("a", "c")

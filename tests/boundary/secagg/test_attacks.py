"""What a malicious coordinator or hospital may try. Each attack must be stopped, and must work where its check is gone.

The second half is what makes the first one a test: against a session weakened in exactly one respect the same attack
goes through and takes its prize.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from boundary.errors import (
    BoundaryError,
    CohortTooSmall,
    OutOfTurn,
    UnsealFailed,
)
from boundary.secagg import shamir
from boundary.secagg.context import binding
from boundary.secagg.errors import BadShares, KeyReused, ResultSpent, SplitView
from boundary.secagg.hospital import HospitalSession, Part, Revealed
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.secrets import (
    MaskKey,
    mask_key_pair,
    pair_key,
    pair_secret,
    self_key,
)
from infra.cohort import CONTEXT, NUMBERS, Cohort, Make, Words, difference, digest_of, flipped, vector
from infra.weakened import (
    AcceptsAnySize,
    ForgetsEarlierAttempts,
    ForgetsItsTurn,
    LooksAtNoCohort,
    LooksAtNoSurvivors,
    NeedsNobodysAgreement,
    OpensAnything,
    RevealsBoth,
)


# --- what the coordinator does with what it gets --------------------------------------------------------
def shares_of(cohort: Cohort, dealer: str, kind: str, said: Mapping[str, Revealed]) -> dict[int, bytes]:
    place = {silo: number for number, silo in enumerate(sorted(cohort.announced), start=1)}
    found = {}
    for holder, revealed in said.items():
        shares = revealed.of_survivors if kind == "self" else revealed.of_lost
        if dealer in shares:
            found[place[holder]] = shares[dealer]
    return found


def opened(cohort: Cohort, silo: str, own: Mapping[str, Revealed], seed: Mapping[str, Revealed]) -> Words:
    """One hospital's own vector, from shares of its self secret and shares of its key seed. The prize."""
    threshold = cohort.sessions[silo].numbers.shares
    secret = shamir.combine(shares_of(cohort, silo, "self", own), threshold)
    seed_secret = shamir.combine(shares_of(cohort, silo, "seed", seed), threshold)
    about, sharers = cohort.dealt[silo].cohort, cohort.sharers[silo]
    keys = [MaskKey(self_key(secret, sharers, silo), -1)]
    key = mask_key_pair(seed_secret, CONTEXT, silo)
    for other in set(cohort.masked) - {silo}:
        if silo < other:
            chosen = pair_secret(seed_secret, about, silo, other)
            keys.append(MaskKey(pair_key(chosen, sharers, silo, other), -1))
        else:
            sealed = cohort.dealt[other].parts[silo].pair
            assert sealed is not None
            chosen = key.unseal(sealed, binding("pair", about, other, silo))
            keys.append(MaskKey(pair_key(chosen, sharers, other, silo), 1))
    words = cohort.masked[silo].copy()
    apply_everywhere(words, Masking(keys, numbers_bytes=8 * NUMBERS, ring=32), threads=1)
    return words


def prize(cohort: Cohort, silo: str, words: Words) -> None:
    np.testing.assert_array_equal(words, vector(silo, cohort.weights))


# --- the attacks ------------------------------------------------------------------------------------------
def late_message_after_being_declared_lost(make: Make) -> None:
    """h000's vector is held back; the others reveal its key seed; then the vector "arrives"."""
    cohort = Cohort.of(4, make=make)
    _, surviving = cohort.until_masked(no_vector=1)
    for silo in surviving:
        cohort.agree(silo, cohort.named(surviving))
    said = {silo: cohort.reveal(silo) for silo in surviving}
    prize(cohort, "h000", opened(cohort, "h000", said, said))


def both_lists_name_one_hospital(make: Make) -> None:
    """First everybody survives, then h000 does not."""
    cohort = Cohort.of(4, make=make)
    _, all_four = cohort.until_masked()
    for silo in all_four:
        cohort.agree(silo, cohort.named(all_four))
    first = {silo: cohort.reveal(silo) for silo in all_four}
    fewer = all_four - {"h000"}
    seen = {silo: cohort.sessions[silo].agree(cohort.sent(silo), cohort.named(fewer)) for silo in fewer}
    second = {silo: cohort.sessions[silo].reveal(seen) for silo in fewer}
    prize(cohort, "h000", opened(cohort, "h000", first, second))


def two_survivor_sets_to_two_halves(make: Make) -> None:
    """Half of the hospitals are told that h000 survived, the other half that it did not."""
    cohort = Cohort.of(8, make=make)
    _, everybody = cohort.until_masked()
    fewer = everybody - {"h000"}
    halves = {silo: everybody if silo < "h004" else fewer for silo in everybody}
    for silo, told in halves.items():
        cohort.agree(silo, cohort.named(told))
    said = {
        silo: cohort.reveal(silo, {u: digest for u, digest in cohort.seen.items() if u in told})
        for silo, told in halves.items()
    }
    assert shares_of(cohort, "h000", "self", said)
    assert shares_of(cohort, "h000", "seed", said)


def a_key_swapped_in_our_name(make: Make) -> None:
    """The others seal their shares for the coordinator instead of for h001."""
    cohort = Cohort.of(3, make=make).until_announced()
    coordinators = Cohort.of(3, attempt=9)
    coordinators.announce("h001")
    swapped = cohort.announced | {"h001": coordinators.announced["h001"]}
    cohort.share("h001", swapped)


def the_coordinators_key_instead_of_a_peers(make: Make) -> None:
    """One key, the coordinator's, stands for two hospitals."""
    cohort = Cohort.of(4, make=make).until_announced()
    own = replace(cohort.announced["h003"], transport_key=cohort.announced["h002"].transport_key)
    cohort.share("h000", cohort.announced | {"h003": own})


def a_peers_keys_replayed_from_the_last_attempt(make: Make) -> None:
    """h001's keys of an attempt whose seed was revealed are shown again."""
    last = Cohort.of(3, make=make, context=digest_of("last attempt"))
    last.announce("h001")
    cohort = Cohort.of(3, make=make).until_announced()
    cohort.share("h000", cohort.announced | {"h001": last.announced["h001"]})


def one_hospital_gets_another_model(make: Make) -> None:
    """h000 trained a model of the coordinator's making, to show its own data in the sum."""
    cohort = Cohort.of(3, make=make, contexts={"h000": digest_of("another model")}).until_announced()
    cohort.share("h001")


def the_minimum_lowered_by_the_coordinator(make: Make) -> None:
    """Ten hospitals are ready; the sum is to be over h000 alone."""
    cohort = Cohort.of(10, make=make).until_shared()
    sharing = frozenset(cohort.silos)
    for silo in sharing:
        cohort.mask(silo, sharing)
    alone = frozenset({"h000"})
    cohort.agree("h000", cohort.named(alone))
    cohort.reveal("h000")


def a_cohort_below_the_hospitals_own_floor(make: Make) -> None:
    cohort = Cohort.of(4, make=make, least=5).until_announced()
    cohort.share("h000")


def a_second_vector_under_the_same_masks(make: Make) -> None:
    """The difference of two vectors under the same masks is not masked at all."""
    cohort = Cohort.of(3, make=make)
    sharing, _ = cohort.until_masked()
    first = cohort.masked["h000"].copy()
    keys = cohort.sessions["h000"].mask(sharing, cohort.parts_for("h000", sharing))
    other = np.zeros_like(first)
    apply_everywhere(other, Masking(keys, numbers_bytes=8 * NUMBERS, ring=32), threads=1)
    prize(cohort, "h000", difference(first, other))


def two_sets_of_sharers_to_two_halves(make: Make) -> None:
    """h000 masks for all four, the others for the three without h003: their masks do not cancel as it believes."""
    cohort = Cohort.of(4, make=make).until_shared()
    everybody, fewer = frozenset(cohort.silos), frozenset(cohort.silos[:3])
    cohort.mask("h000", everybody)
    for silo in ("h001", "h002"):
        cohort.mask(silo, fewer)
    cohort.agree("h001", cohort.named(fewer))
    cohort.reveal("h001")


def another_vector_in_our_name(make: Make) -> None:
    cohort = Cohort.of(3, make=make)
    _, surviving = cohort.until_masked()
    named = cohort.named(surviving)
    cohort.agree("h000", named | {"h000": (named["h000"][0], digest_of("not what h000 sent"))})


def one_result_in_two_sums(make: Make) -> None:
    """The coordinator gets its sum over four, says that the attempt failed, and asks for one over three."""
    sums = []
    for attempt, no_vector, before in ((1, 0, None), (2, 1, frozenset(Cohort.of(4).silos))):
        cohort = Cohort.of(4, make=make, attempt=attempt, revealed_for=before)
        sharing, surviving = cohort.until_masked(no_vector=no_vector)
        for silo in surviving:
            cohort.agree(silo, cohort.named(surviving))
        for silo in surviving:
            cohort.reveal(silo)
        sums.append(cohort.unmasked(cohort.opening(sharing, surviving), surviving))
    prize(cohort, "h000", difference(*sums))


def _tampered(make: Make, change: Callable[[Part], Part]) -> None:
    cohort = Cohort.of(3, make=make).until_shared()
    sharing = frozenset(cohort.silos)
    parts = cohort.parts_for("h001", sharing)
    cohort.mask("h001", sharing, parts | {"h000": change(parts["h000"])})


def a_share_bit_flipped_on_the_way(make: Make) -> None:
    _tampered(make, lambda part: replace(part, sealed=flipped(part.sealed, -1 % len(part.sealed))))


def the_ml_kem_ciphertext_tampered_with(make: Make) -> None:
    """HPKE with this KEM begins with the 1,088 bytes of the ML-KEM ciphertext."""
    _tampered(make, lambda part: replace(part, sealed=flipped(part.sealed, 100)))


def the_ml_kem_ciphertext_of_a_pair_tampered_with(make: Make) -> None:
    _tampered(make, lambda part: replace(part, pair=flipped(part.pair or b"", 100)))


def a_dealer_that_promises_another_share(make: Make) -> None:
    _tampered(make, lambda part: replace(part, seed_digest=digest_of("another share")))


def a_share_for_the_wrong_recipient(make: Make) -> None:
    cohort = Cohort.of(3, make=make).until_shared()
    sharing = frozenset(cohort.silos)
    parts = cohort.parts_for("h001", sharing)
    cohort.mask("h001", sharing, parts | {"h000": cohort.dealt["h000"].parts["h002"]})


@dataclass(frozen=True)
class Stopped:
    """What stops an attack, and the session it works against."""

    by: type[BoundaryError]
    weakened: type[HospitalSession]


ATTACKS: dict[Callable[[Make], None], Stopped] = {
    late_message_after_being_declared_lost: Stopped(BadShares, RevealsBoth),
    both_lists_name_one_hospital: Stopped(OutOfTurn, ForgetsItsTurn),
    two_survivor_sets_to_two_halves: Stopped(SplitView, NeedsNobodysAgreement),
    a_key_swapped_in_our_name: Stopped(SplitView, LooksAtNoCohort),
    the_coordinators_key_instead_of_a_peers: Stopped(KeyReused, LooksAtNoCohort),
    a_peers_keys_replayed_from_the_last_attempt: Stopped(SplitView, LooksAtNoCohort),
    one_hospital_gets_another_model: Stopped(SplitView, LooksAtNoCohort),
    the_minimum_lowered_by_the_coordinator: Stopped(CohortTooSmall, AcceptsAnySize),
    a_cohort_below_the_hospitals_own_floor: Stopped(CohortTooSmall, LooksAtNoCohort),
    a_second_vector_under_the_same_masks: Stopped(OutOfTurn, ForgetsItsTurn),
    two_sets_of_sharers_to_two_halves: Stopped(SplitView, LooksAtNoSurvivors),
    one_result_in_two_sums: Stopped(ResultSpent, ForgetsEarlierAttempts),
    another_vector_in_our_name: Stopped(SplitView, LooksAtNoSurvivors),
    a_share_bit_flipped_on_the_way: Stopped(UnsealFailed, OpensAnything),
    the_ml_kem_ciphertext_tampered_with: Stopped(UnsealFailed, OpensAnything),
    the_ml_kem_ciphertext_of_a_pair_tampered_with: Stopped(UnsealFailed, OpensAnything),
    a_dealer_that_promises_another_share: Stopped(BadShares, OpensAnything),
    a_share_for_the_wrong_recipient: Stopped(UnsealFailed, OpensAnything),
}


def english(attack: Callable[[Make], None]) -> str:
    return attack.__name__.replace("_", " ")


@pytest.mark.parametrize("attack", ATTACKS, ids=english)
def test_stopped(attack: Callable[[Make], None]) -> None:
    with pytest.raises(ATTACKS[attack].by):
        attack(HospitalSession)


@pytest.mark.parametrize("attack", ATTACKS, ids=english)
def test_works_where_the_check_is_gone(attack: Callable[[Make], None]) -> None:
    attack(ATTACKS[attack].weakened)

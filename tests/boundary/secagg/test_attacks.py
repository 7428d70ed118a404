"""What a malicious coordinator or hospital may try. Each attack must be stopped, and must work where its check is gone.

The second half is what makes the first one a test: against a session weakened in exactly one respect the same attack
goes through and takes its prize.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from boundary.errors import BoundaryError, CallerFault, MalformedMessage, OutOfTurn, UnknownMember, UnsealFailed
from boundary.sealing import SealingKey
from boundary.secagg import shamir
from boundary.secagg.context import binding
from boundary.secagg.errors import BadShares, CohortTooSmall, KeyReused, ResultSpent, SplitView
from boundary.secagg.graph import Thresholds
from boundary.secagg.hospital import HospitalSession, Part, Revealed, Turn
from boundary.secagg.masks import Masking, MaskKey, apply_everywhere
from boundary.secagg.opening import DealtBy, Opening
from boundary.secagg.secrets import (
    Announcement,
    mask_key_pair,
    pair_key,
    pair_secret,
    self_key,
    share_digest,
)
from infra.cohort import CONTEXT, NUMBERS, Cohort, Make, Words, digest_of, vector


# --- sessions weakened in one respect -----------------------------------------------------------------
class RevealsBoth(HospitalSession):
    """Tells everything it holds about everybody."""

    def reveal(self, seen: Mapping[str, str]) -> Revealed:
        held = dict(self._held)
        said = super().reveal(seen)
        return replace(said, of_survivors={u: own for u, (own, _) in held.items()})


class ForgetsItsTurn(HospitalSession):
    """Does every step as often as it is asked to."""

    def _expect(self, turn: Turn) -> None:
        pass

    def reveal(self, seen: Mapping[str, str]) -> Revealed:
        held = dict(self._held)
        said = super().reveal(seen)
        self._held = held
        return said


class NeedsNobodysAgreement(HospitalSession):
    """Reveals whatever the others saw."""

    def reveal(self, seen: Mapping[str, str]) -> Revealed:
        return super().reveal(dict.fromkeys({*seen, *self._surviving} & self._surviving, self._survivors))


class LooksAtNoCohort(HospitalSession):
    """Takes the cohort as it is shown."""

    def _check_cohort(self, members: Mapping[str, Announcement]) -> None:
        pass


class AcceptsAnySize(NeedsNobodysAgreement):
    """Takes part in a sum of any size."""

    def _enough(self, there: int) -> None:
        pass

    @property
    def numbers(self) -> Thresholds:
        return replace(super().numbers, agreeing=1)


class LooksAtNoSurvivors(NeedsNobodysAgreement):
    """Signs the survivors as they are shown."""

    def agree(self, own_vector: str, vectors: Mapping[str, tuple[str, str]]) -> str:
        mine = dict.fromkeys(vectors, (self._sharers, own_vector))
        super().agree(own_vector, mine)
        return self._survivors


class ForgetsEarlierAttempts(HospitalSession):
    """Lends one result to as many sums as it is asked to."""

    def _unspent(self, surviving: frozenset[str]) -> None:
        pass


class OpensAnything(HospitalSession):
    """Takes what it cannot open for a share of zeros."""

    def _open(self, dealer: str, part: Part) -> tuple[bytes, bytes]:
        try:
            return super()._open(dealer, part)
        except BoundaryError:
            return bytes(shamir.SHARE_BYTES), bytes(shamir.SHARE_BYTES)

    def _pair(self, dealer: str, part: Part) -> bytes:
        try:
            return super()._pair(dealer, part)
        except BoundaryError:
            return bytes(32)


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
    cohort = Cohort.of(3, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    coordinators = Cohort.of(3, attempt=9)
    coordinators.announce("h001")
    swapped = cohort.announced | {"h001": coordinators.announced["h001"]}
    cohort.share("h001", swapped)


def the_coordinators_key_instead_of_a_peers(make: Make) -> None:
    """One key, the coordinator's, stands for two hospitals."""
    cohort = Cohort.of(4, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    own = replace(cohort.announced["h003"], transport_key=cohort.announced["h002"].transport_key)
    cohort.share("h000", cohort.announced | {"h003": own})


def a_peers_keys_replayed_from_the_last_attempt(make: Make) -> None:
    """h001's keys of an attempt whose seed was revealed are shown again."""
    last = Cohort.of(3, make=make, context=digest_of("last attempt"))
    last.announce("h001")
    cohort = Cohort.of(3, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    cohort.share("h000", cohort.announced | {"h001": last.announced["h001"]})


def one_hospital_gets_another_model(make: Make) -> None:
    """h000 trained a model of the coordinator's making, to show its own data in the sum."""
    cohort = Cohort.of(3, make=make, contexts={"h000": digest_of("another model")})
    for silo in cohort.silos:
        cohort.announce(silo)
    cohort.share("h001")


def the_minimum_lowered_by_the_coordinator(make: Make) -> None:
    """Ten hospitals are ready; the sum is to be over h000 alone."""
    cohort = Cohort.of(10, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    for silo in cohort.silos:
        cohort.share(silo)
    sharing = frozenset(cohort.silos)
    for silo in sharing:
        cohort.mask(silo, sharing)
    alone = frozenset({"h000"})
    cohort.agree("h000", cohort.named(alone))
    cohort.reveal("h000")


def a_cohort_below_the_hospitals_own_floor(make: Make) -> None:
    cohort = Cohort.of(4, make=make, least=5)
    for silo in cohort.silos:
        cohort.announce(silo)
    cohort.share("h000")


def a_second_vector_under_the_same_masks(make: Make) -> None:
    """The difference of two vectors under the same masks is not masked at all."""
    cohort = Cohort.of(3, make=make)
    sharing, _ = cohort.until_masked()
    first = cohort.masked["h000"].copy()
    keys = cohort.sessions["h000"].mask(sharing, cohort.parts_for("h000", sharing))
    other = np.zeros_like(first)
    apply_everywhere(other, Masking(keys, numbers_bytes=8 * NUMBERS, ring=32), threads=1)
    first[8 * NUMBERS :].view(np.uint32)[:] -= other[8 * NUMBERS :].view(np.uint32)
    first[: 8 * NUMBERS].view(np.uint64)[:] -= other[: 8 * NUMBERS].view(np.uint64)
    prize(cohort, "h000", first)


def two_sets_of_sharers_to_two_halves(make: Make) -> None:
    """h000 masks for all four, the others for the three without h003: their masks do not cancel as it believes."""
    cohort = Cohort.of(4, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    for silo in cohort.silos:
        cohort.share(silo)
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
    sums[0][: 8 * NUMBERS].view(np.uint64)[:] -= sums[1][: 8 * NUMBERS].view(np.uint64)
    sums[0][8 * NUMBERS :].view(np.uint32)[:] -= sums[1][8 * NUMBERS :].view(np.uint32)
    prize(cohort, "h000", sums[0])


def _tampered(make: Make, change: Callable[[Part], Part]) -> None:
    cohort = Cohort.of(3, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    for silo in cohort.silos:
        cohort.share(silo)
    sharing = frozenset(cohort.silos)
    parts = cohort.parts_for("h001", sharing)
    cohort.mask("h001", sharing, parts | {"h000": change(parts["h000"])})


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def a_share_bit_flipped_on_the_way(make: Make) -> None:
    _tampered(make, lambda part: replace(part, sealed=_flipped(part.sealed, -1 % len(part.sealed))))


def the_ml_kem_ciphertext_tampered_with(make: Make) -> None:
    """HPKE with this KEM begins with the 1,088 bytes of the ML-KEM ciphertext."""
    _tampered(make, lambda part: replace(part, sealed=_flipped(part.sealed, 100)))


def the_ml_kem_ciphertext_of_a_pair_tampered_with(make: Make) -> None:
    _tampered(make, lambda part: replace(part, pair=_flipped(part.pair or b"", 100)))


def a_dealer_that_promises_another_share(make: Make) -> None:
    _tampered(make, lambda part: replace(part, seed_digest=digest_of("another share")))


def a_share_for_the_wrong_recipient(make: Make) -> None:
    cohort = Cohort.of(3, make=make)
    for silo in cohort.silos:
        cohort.announce(silo)
    for silo in cohort.silos:
        cohort.share(silo)
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


# --- hospitals that lie to the coordinator ----------------------------------------------------------------
def revealed() -> tuple[Cohort, Opening, dict[str, Revealed]]:
    cohort = Cohort.of(5)
    sharing, surviving = cohort.until_masked(no_vector=1)
    for silo in surviving:
        cohort.agree(silo, cohort.named(surviving))
    said = {silo: cohort.sessions[silo].reveal(cohort.seen) for silo in surviving}
    return cohort, cohort.opening(sharing, surviving), said


LIES: dict[str, Callable[[Revealed], Revealed]] = {
    "a share with one bit flipped": lambda s: replace(s, of_lost={"h000": _flipped(s.of_lost["h000"], 9)}),
    "somebody else's share": lambda s: replace(s, of_lost={"h000": s.of_survivors["h001"]}),
    "a share of a survivor's seed": lambda s: replace(s, of_lost=s.of_lost | {"h001": s.of_survivors["h001"]}),
    "a share of a stranger": lambda s: replace(s, of_survivors=s.of_survivors | {"nobody": bytes(33)}),
    "for other survivors": lambda s: replace(s, survivors=digest_of("others")),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_hospital_that_reveals_something_else_is_named_and_nothing_of_it_is_used(
    lie: Callable[[Revealed], Revealed],
) -> None:
    _, opening, said = revealed()
    with pytest.raises(BadShares, match="h004"):
        opening.take("h004", lie(said["h004"]))
    for silo in ("h001", "h002", "h003"):
        opening.take(silo, said[silo])
    assert opening.missing
    opening.take("h004", said["h004"])
    assert not opening.missing


def test_a_lost_hospital_reveals_nothing() -> None:
    _, opening, said = revealed()
    with pytest.raises(BadShares, match="h000"):
        opening.take("h000", said["h001"])


def dealt_wrongly(kind: str) -> Any:
    """A dealer whose shares are all as promised, but of another secret than it committed to."""

    class Wrong(HospitalSession):
        def share(self, members: Mapping[str, Announcement]) -> Any:
            before = self._secrets
            self._secrets = replace(before, **{kind: bytes(32)})
            if kind == "self_secret":
                self._check_cohort = lambda _members: None  # type: ignore[method-assign]
            try:
                return super().share(members)
            finally:
                self._secrets = before

    return Wrong


@pytest.mark.parametrize("kind", ["self_secret", "seed"])
def test_a_dealer_of_shares_of_another_secret_is_named(kind: str) -> None:
    cohort = Cohort.of(5)
    liar = "h000" if kind == "seed" else "h001"
    cohort.make = lambda context, silo, **more: (dealt_wrongly(kind) if silo == liar else HospitalSession)(
        context, silo, **more
    )
    sharing, surviving = cohort.until_masked(no_vector=1)
    for silo in surviving:
        cohort.agree(silo, cohort.named(surviving))
    for silo in surviving:
        cohort.reveal(silo)
    with pytest.raises(BadShares, match=liar):
        cohort.opening(sharing, surviving).masks()


# --- a cohort that shares, up to where one hospital's parts are shown to it ---------------------------------
def before_masking() -> tuple[Cohort, frozenset[str], dict[str, Part]]:
    cohort = Cohort.of(3)
    for silo in cohort.silos:
        cohort.announce(silo)
    for silo in cohort.silos:
        cohort.share(silo)
    sharing = frozenset(cohort.silos)
    return cohort, sharing, cohort.parts_for("h001", sharing)


def sealed_again(cohort: Cohort, shares: bytes) -> Part:
    """A part of h000 for h001 with other bytes in it, and the digests that go with them."""
    about = cohort.dealt["h000"].cohort
    bound = binding("shares", about, "h000", "h001")
    halves = shares[: shamir.SHARE_BYTES], shares[shamir.SHARE_BYTES :]
    digests = [
        share_digest(half, about, "h000", "h001", kind) for half, kind in zip(halves, ("self", "seed"), strict=True)
    ]
    sealed = SealingKey(cohort.announced["h001"].transport_key).seal(shares, bound)
    return replace(cohort.dealt["h000"].parts["h001"], sealed=sealed, self_digest=digests[0], seed_digest=digests[1])


def test_shares_of_a_wrong_length_are_refused_though_they_are_those_promised() -> None:
    cohort, sharing, parts = before_masking()
    with pytest.raises(BadShares, match="length"):
        cohort.mask("h001", sharing, parts | {"h000": sealed_again(cohort, bytes(65))})
    assert cohort.sessions["h001"].turn is Turn.SHARES  # nothing was taken in


def test_a_withheld_part_is_noticed() -> None:
    cohort, sharing, parts = before_masking()
    with pytest.raises(OutOfTurn, match="missing"):
        cohort.mask("h001", sharing, {"h000": parts["h000"]})


def test_a_missing_mask_secret_is_noticed() -> None:
    cohort, sharing, parts = before_masking()
    with pytest.raises(MalformedMessage):
        cohort.mask("h001", sharing, parts | {"h000": replace(parts["h000"], pair=None)})


def test_a_mask_secret_of_a_wrong_length_is_refused() -> None:
    cohort, sharing, parts = before_masking()
    bound = binding("pair", cohort.dealt["h000"].cohort, "h000", "h001")
    short = SealingKey(cohort.announced["h001"].mask_key).seal(bytes(31), bound)
    with pytest.raises(UnsealFailed, match="length"):
        cohort.mask("h001", sharing, parts | {"h000": replace(parts["h000"], pair=short)})


def test_a_stranger_cannot_share_survive_or_agree() -> None:
    cohort, sharing, parts = before_masking()
    with pytest.raises(UnknownMember):
        cohort.mask("h001", sharing | {"nobody"}, parts)
    for silo in sharing:
        cohort.mask(silo, sharing)
    with pytest.raises(UnknownMember):
        cohort.agree("h001", cohort.named(sharing) | {"nobody": ("", "")})
    for silo in sharing:
        cohort.agree(silo, cohort.named(sharing))
    with pytest.raises(UnknownMember):
        cohort.reveal("h001", cohort.seen | {"nobody": cohort.seen["h001"]})


def test_a_mask_secret_that_does_not_open_names_who_sealed_it() -> None:
    cohort = Cohort.of(5)
    sharing, _ = cohort.until_masked()
    surviving = sharing - {"h004"}
    for silo in surviving:
        cohort.agree(silo, cohort.named(surviving))
    for silo in surviving:
        cohort.reveal(silo)
    parts = dict(cohort.dealt["h001"].parts)
    parts["h004"] = replace(parts["h004"], pair=_flipped(parts["h004"].pair or b"", 100))
    cohort.dealt["h001"] = replace(cohort.dealt["h001"], parts=parts)
    with pytest.raises(BadShares, match="h001 sealed for h004"):
        cohort.opening(sharing, surviving).masks()


def test_nobody_promised_a_share_to_who_is_no_neighbour() -> None:
    assert DealtBy({}, "sha256:a", "sha256:b").promised("h000", "h001", "self") is None
    assert DealtBy({}, "sha256:a", "sha256:b").promised("h000", "h000", "seed") == "sha256:b"


def test_the_same_survivors_may_be_summed_again() -> None:
    """After an attempt in which too few revealed: the very same sum tells nothing new."""
    cohort = Cohort.of(4, revealed_for=frozenset(Cohort.of(4).silos))
    _, surviving = cohort.until_masked()
    cohort.agree("h000", cohort.named(surviving))


def test_a_mask_key_is_used_once() -> None:
    key = MaskKey(bytes(32), 1)
    Masking([key], numbers_bytes=0, ring=32)
    with pytest.raises(CallerFault):
        Masking([key], numbers_bytes=0, ring=32)


def test_secrets_do_not_show_themselves() -> None:
    cohort = Cohort.of(3)
    cohort.announce("h000")
    secrets = cohort.sessions["h000"]._secrets
    key = MaskKey(secrets.seed, 1)
    for shown in (repr(secrets), repr(key), repr(cohort.sessions["h000"])):
        assert not any(form in shown for form in (repr(secrets.seed), secrets.seed.hex(), "b'", "seed"))

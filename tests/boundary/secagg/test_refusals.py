"""Hospitals that lie to the coordinator are named; parts that are not what they should be are refused."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from boundary.errors import (
    CallerFault,
    MalformedMessage,
    OutOfTurn,
    UnknownMember,
    UnsealFailed,
)
from boundary.sealing import SealingKey
from boundary.secagg import shamir
from boundary.secagg.context import binding
from boundary.secagg.errors import BadShares
from boundary.secagg.hospital import Dealt, HospitalSession, Part, Revealed, Turn
from boundary.secagg.masks import Masking
from boundary.secagg.opening import Opening
from boundary.secagg.secrets import (
    Announcement,
    MaskKey,
    share_digest,
)
from infra.cohort import Cohort, digest_of, flipped


# --- hospitals that lie to the coordinator ----------------------------------------------------------------
def revealed() -> tuple[Cohort, Opening, dict[str, Revealed]]:
    cohort = Cohort.of(5)
    sharing, surviving = cohort.until_masked(no_vector=1)
    for silo in surviving:
        cohort.agree(silo, cohort.named(surviving))
    said = {silo: cohort.sessions[silo].reveal(cohort.seen) for silo in surviving}
    return cohort, cohort.opening(sharing, surviving), said


LIES: dict[str, Callable[[Revealed], Revealed]] = {
    "a share with one bit flipped": lambda s: replace(s, of_lost={"h000": flipped(s.of_lost["h000"], 9)}),
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
    cohort = Cohort.of(3).until_shared()
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
    parts["h004"] = replace(parts["h004"], pair=flipped(parts["h004"].pair or b"", 100))
    cohort.dealt["h001"] = replace(cohort.dealt["h001"], parts=parts)
    with pytest.raises(BadShares, match="h001 sealed for h004"):
        cohort.opening(sharing, surviving).masks()


def test_nobody_promised_a_share_to_who_is_no_neighbour() -> None:
    assert Dealt("", {}, "sha256:a", "sha256:b").promised("h000", "h001", "self") is None
    assert Dealt("", {}, "sha256:a", "sha256:b").promised("h000", "h000", "seed") == "sha256:b"


def test_the_same_survivors_may_be_summed_again() -> None:
    """After an attempt in which too few revealed: the very same sum tells nothing new."""
    cohort = Cohort.of(4, revealed_for=frozenset(Cohort.of(4).silos))
    _, surviving = cohort.until_masked()
    cohort.agree("h000", cohort.named(surviving))
    assert cohort.sessions["h000"].turn is Turn.AGREEMENT


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

"""The coordinator's half: from revealed shares to the masks that are still on the sum.

The coordinator has no secret of its own. Every revealed share is compared with the digest its dealer promised, so a
wrong one names its sender; secrets that do not match their commitments, though all their shares are the promised
ones, name their dealer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from boundary.errors import UnsealFailed
from boundary.sealing import UnsealingKey
from boundary.secagg import shamir
from boundary.secagg.context import binding
from boundary.secagg.errors import BadShares
from boundary.secagg.graph import chooses_mask, thresholds
from boundary.secagg.hospital import Dealt, Revealed
from boundary.secagg.secrets import (
    Announcement,
    MaskKey,
    mask_key_pair,
    pair_key,
    pair_secret,
    self_commitment,
    self_key,
    share_digest,
)


@dataclass(frozen=True, slots=True)
class Sum:
    """What is fixed about a sum when its shares are asked for."""

    context: str
    cohort: str
    sharers: str
    survivors: str
    members: Mapping[str, Announcement]
    dealt: Mapping[str, Dealt]  # by the sharers
    surviving: frozenset[str]

    @property
    def lost(self) -> frozenset[str]:
        return frozenset(self.dealt) - self.surviving


class Opening:
    """Collects revealed shares until every mask can be taken off."""

    def __init__(self, about: Sum) -> None:
        self._about = about
        self._threshold = thresholds(len(about.members)).shares
        self._place = {silo: place for place, silo in enumerate(sorted(about.members), start=1)}
        self._shares: dict[tuple[str, str], dict[int, bytes]] = {}

    def take(self, holder: str, revealed: Revealed) -> None:
        """Add one hospital's shares; raises `BadShares`, which names it, and takes none of them then."""
        about, kept = self._about, []
        if revealed.survivors != about.survivors or holder not in about.surviving:
            raise BadShares(f"{holder} revealed shares for another set of survivors")
        for kind, shares, whose in (
            ("self", revealed.of_survivors, about.surviving),
            ("seed", revealed.of_lost, about.lost),
        ):
            for dealer, share in shares.items():
                promised = about.dealt[dealer].promised(dealer, holder, kind) if dealer in whose else None
                if promised is None or promised != share_digest(share, about.cohort, dealer, holder, kind):
                    raise BadShares(f"{holder} revealed a share of {dealer} that {dealer} did not deal it")
                kept.append(((dealer, kind), share))
        for key, share in kept:
            self._shares.setdefault(key, {})[self._place[holder]] = share

    @property
    def missing(self) -> frozenset[str]:
        """Hospitals of whose secret there are too few shares yet."""
        wanted = [(silo, "self") for silo in self._about.surviving] + [(silo, "seed") for silo in self._about.lost]
        return frozenset(key[0] for key in wanted if len(self._shares.get(key, {})) < self._threshold)

    def masks(self) -> list[MaskKey]:
        """Give what takes the masks off the survivors' sum. Raises `BadShares`, which names the dealer."""
        about = self._about
        off = [MaskKey(self_key(self._self_secret(silo), about.sharers, silo), -1) for silo in sorted(about.surviving)]
        for silo in sorted(about.lost):
            off += self._masks_with(silo, self._combined(silo, "seed"))
        return off

    def _self_secret(self, silo: str) -> bytes:
        secret = self._combined(silo, "self")
        if self_commitment(secret, self._about.context, silo) != self._about.members[silo].self_commitment:
            raise BadShares(f"the shares {silo} dealt give another self mask than it committed to")
        return secret

    def _combined(self, dealer: str, kind: str) -> bytes:
        return shamir.combine(self._shares.get((dealer, kind), {}), self._threshold)

    def _masks_with(self, lost: str, seed: bytes) -> list[MaskKey]:
        """Give the masks that the survivors share with a lost hospital."""
        about, found = self._about, []
        is_complete = thresholds(len(about.members)).is_complete
        key = mask_key_pair(seed, about.context, lost)
        if key.public.text != about.members[lost].mask_key:
            raise BadShares(f"the shares {lost} dealt give another key than it announced")
        for other in sorted(about.surviving):
            if other in about.dealt[lost].parts and chooses_mask(lost, other, is_complete=is_complete):
                secret = pair_secret(seed, about.cohort, lost, other)
                found.append(MaskKey(pair_key(secret, about.sharers, lost, other), 1))  # the survivor took it off
            part = about.dealt[other].parts.get(lost)
            if part is not None and part.pair is not None:
                secret = self._unsealed(key, part.pair, other, lost)
                found.append(MaskKey(pair_key(secret, about.sharers, other, lost), -1))
        return found

    def _unsealed(self, key: UnsealingKey, sealed: bytes, dealer: str, lost: str) -> bytes:
        try:
            return key.unseal(sealed, binding("pair", self._about.cohort, dealer, lost))
        except UnsealFailed as why:
            raise BadShares(f"what {dealer} sealed for {lost} does not open") from why

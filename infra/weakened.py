"""Hospital sessions weakened in exactly one respect, for tests that must be able to fail."""

from collections.abc import Mapping
from dataclasses import replace

from boundary.errors import BoundaryError
from boundary.secagg import shamir
from boundary.secagg.graph import Thresholds
from boundary.secagg.hospital import HospitalSession, Part, Revealed, Turn
from boundary.secagg.secrets import Announcement


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

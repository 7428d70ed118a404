"""Hospitals and a coordinator in one process, step by step, with a place between any two steps for mischief."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from boundary.canonical import digest
from boundary.secagg.context import survivors_of
from boundary.secagg.hospital import Dealt, HospitalSession, Part, Revealed
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.opening import Opening, Sum
from boundary.secagg.secrets import Announcement

CONTEXT = "sha256:" + "c" * 64
NUMBERS = 4  # 64-bit words before the weights
Words = NDArray[np.uint8]
Make = Callable[..., HospitalSession]


def digest_of(*parts: object) -> str:
    return digest(repr(parts).encode())


def entropy_of(seed: int | str) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes  # noqa: S311 - the same every time is what a test wants


def vector(silo: str, weights: int, ring: int = 32) -> Words:
    """Random words of both rings: every value is as likely to wrap as not."""
    return np.frombuffer(random.Random(silo).randbytes(8 * NUMBERS + weights * ring // 8), np.uint8).copy()  # noqa: S311


def added(vectors: list[Words], ring: int = 32) -> Words:
    """The integer reference: plain modular sums of both rings."""
    total = np.zeros_like(vectors[0])
    for one in vectors:
        for into, words in zip(_rings(total, ring), _rings(one, ring), strict=True):
            np.add(into, words, out=into)
    return total


def difference(one: Words, other: Words, ring: int = 32) -> Words:
    left = one.copy()
    for into, words in zip(_rings(left, ring), _rings(other, ring), strict=True):
        np.subtract(into, words, out=into)
    return left


def flipped(data: bytes, at: int) -> bytes:
    """With one bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _rings(words: Words, ring: int) -> tuple[NDArray[Any], NDArray[Any]]:
    split = 8 * NUMBERS
    return words[:split].view(np.uint64), words[split:].view(np.uint32 if ring == 32 else np.uint16)


@dataclass
class Cohort:
    """All of one attempt. `make` may be a weakened session; `contexts` what some took the order to mean.

    With `groups` each of them is summed by itself.
    """

    silos: tuple[str, ...]
    make: Make = HospitalSession
    least: int = 3
    weights: int = 40
    ring: int = 32
    attempt: int = 1
    context: str = CONTEXT
    revealed_for: frozenset[str] | None = None
    contexts: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[frozenset[str], ...] = ()
    sessions: dict[str, HospitalSession] = field(default_factory=dict)
    announced: dict[str, Announcement] = field(default_factory=dict)
    dealt: dict[str, Dealt] = field(default_factory=dict)
    masked: dict[str, Words] = field(default_factory=dict)
    sharers: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)

    @classmethod
    def of(cls, hospitals: int, **more: object) -> "Cohort":
        return cls(tuple(f"h{number:03d}" for number in range(hospitals)), **more)  # type: ignore[arg-type]

    # --- the steps, each for one hospital --------------------------------------------------------------
    def announce(self, silo: str) -> None:
        context = self.contexts.get(silo, self.context)
        entropy = entropy_of(f"{silo}/{self.attempt}")
        group = next((one for one in self.groups if silo in one), None)
        made = self.make(context, silo, least=self.least, entropy=entropy, group=group, revealed_for=self.revealed_for)
        self.sessions[silo] = made
        self.announced[silo] = replace(made.announce(), digest=digest_of(silo, self.attempt, made.announce()))

    def share(self, silo: str, members: Mapping[str, Announcement] | None = None) -> None:
        self.dealt[silo] = self.sessions[silo].share(self.announced if members is None else members)

    def parts_for(self, silo: str, sharing: frozenset[str]) -> dict[str, Part]:
        return {u: self.dealt[u].parts[silo] for u in sharing if silo in self.dealt[u].parts}

    def mask(self, silo: str, sharing: frozenset[str], parts: Mapping[str, Part] | None = None) -> None:
        keys = self.sessions[silo].mask(sharing, self.parts_for(silo, sharing) if parts is None else parts)
        words = vector(silo, self.weights, self.ring)
        masking = Masking(keys, numbers_bytes=8 * NUMBERS, ring=self.ring)  # type: ignore[arg-type]
        apply_everywhere(words, masking, threads=1)
        self.masked[silo], self.sharers[silo] = words, self.sessions[silo].sharers

    def sent(self, silo: str) -> str:
        return digest_of(self.masked[silo].tobytes())

    def named(self, surviving: frozenset[str]) -> dict[str, tuple[str, str]]:
        return {u: (self.sharers[u], self.sent(u)) for u in surviving}

    def agree(self, silo: str, vectors: Mapping[str, tuple[str, str]]) -> None:
        self.seen[silo] = self.sessions[silo].agree(self.sent(silo), vectors)

    def reveal(self, silo: str, seen: Mapping[str, str] | None = None) -> Revealed:
        self.revealed[silo] = self.sessions[silo].reveal(self.seen if seen is None else seen)
        return self.revealed[silo]

    # --- all of it -------------------------------------------------------------------------------------
    def until_announced(self) -> Self:
        for silo in self.silos:
            self.announce(silo)
        return self

    def until_shared(self) -> Self:
        self.until_announced()
        for silo in self.silos:
            self.share(silo)
        return self

    def until_masked(self, *, no_shares: int = 0, no_vector: int = 0) -> tuple[frozenset[str], frozenset[str]]:
        """Run to the point where the survivors are named; the first `no_shares`, then `no_vector`, drop out."""
        self.until_shared()
        sharing = frozenset(self.silos[no_shares:])
        surviving = frozenset(self.silos[no_shares + no_vector :])
        for silo in sorted(sharing):
            self.mask(silo, sharing)
        return sharing, surviving

    def opening(
        self, sharing: frozenset[str], surviving: frozenset[str], group: frozenset[str] | None = None
    ) -> Opening:
        """With the shares that were revealed; of a group of them, if there are such."""
        sharers, whose = self.sharers[min(surviving)], frozenset(self.silos) if group is None else group
        about = Sum(
            context=self.context,
            cohort=self.dealt[min(sharing)].cohort,
            sharers=sharers,
            survivors=survivors_of(sharers, {u: self.sent(u) for u in surviving}),
            members={u: said for u, said in self.announced.items() if u in whose},
            dealt={u: self.dealt[u] for u in sharing & whose},
            surviving=surviving & whose,
        )
        opening = Opening(about)
        for silo, revealed in self.revealed.items():
            if silo in whose:
                opening.take(silo, revealed)
        return opening

    def unmasked(self, opening: Opening, surviving: frozenset[str]) -> Words:
        total = added([self.masked[u] for u in sorted(surviving)], self.ring)
        masking = Masking(opening.masks(), numbers_bytes=8 * NUMBERS, ring=self.ring)  # type: ignore[arg-type]
        apply_everywhere(total, masking, threads=1)
        return total

    def reference(self, surviving: frozenset[str]) -> Words:
        return added([vector(u, self.weights, self.ring) for u in sorted(surviving)], self.ring)

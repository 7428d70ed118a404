"""The secrets of one hospital in one attempt, and everything that is derived from them.

Two 32-byte secrets are shared among the others: the self mask, and the key seed. From the seed follow the mask key pair
(X25519 + ML-KEM-768, for HPKE) and, for every neighbour whose common mask this hospital chooses, that mask's secret.
So whoever has the seed of a lost hospital can make again what it chose, and open what others chose and sealed for it:
that is all the recovery there is (docs/protocol.md, "Recovery"). The transport key pair, which opens
shares, is not derived from the seed and is never shared.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from boundary.canonical import digest
from boundary.errors import CallerFault
from boundary.sealing import PRIVATE_KEY_BYTES, UnsealingKey
from boundary.secagg.context import binding

SECRET_BYTES = 32
Sign = Literal[1, -1]


@dataclass(frozen=True, slots=True)
class Announcement:
    """The public half, as the hospital signed it in `Ready`; `digest` is that of its envelope."""

    context: str
    transport_key: str
    mask_key: str
    self_commitment: str
    digest: str


@dataclass(frozen=True, slots=True, repr=False)
class AttemptSecrets:
    """Made for one context, used for one vector, held in memory only. No `repr`."""

    self_secret: bytes
    seed: bytes
    transport: UnsealingKey
    mask: UnsealingKey

    @classmethod
    def make(cls, context: str, silo: str, entropy: Callable[[int], bytes]) -> Self:
        """`entropy(n)` is a CSPRNG."""
        seed = entropy(SECRET_BYTES)
        transport = UnsealingKey.from_raw(entropy(PRIVATE_KEY_BYTES))
        return cls(entropy(SECRET_BYTES), seed, transport, mask_key_pair(seed, context, silo))


@dataclass(slots=True, repr=False, eq=False)
class MaskKey:
    """A key and the sign its keystream is added with. No `repr`; usable once."""

    key: bytes
    sign: Sign
    _is_spent: bool = field(default=False)

    def __post_init__(self) -> None:
        if len(self.key) != SECRET_BYTES:
            raise CallerFault(f"a mask key has {SECRET_BYTES} bytes")

    def spend(self) -> tuple[bytes, Sign]:
        """Give the key for its one use; raises `CallerFault` the second time."""
        if self._is_spent:
            raise CallerFault("a mask key is used for one vector only")
        self._is_spent = True
        return self.key, self.sign


def self_commitment(self_secret: bytes, context: str, silo: str) -> str:
    """Hiding, because the secret has 256 bits; binding by SHA-256."""
    return digest(binding("self commitment", context, silo) + self_secret)


def share_digest(share: bytes, cohort: str, dealer: str, holder: str, kind: str) -> str:
    """By which a share is recognised when it is revealed. `kind` is "self" or "seed"."""
    return digest(binding("share", cohort, dealer, holder, kind) + share)


def mask_key_pair(seed: bytes, context: str, silo: str) -> UnsealingKey:
    return UnsealingKey.from_raw(_derive(seed, binding("mask key pair", context, silo), PRIVATE_KEY_BYTES))


def pair_secret(seed: bytes, cohort: str, chooser: str, other: str) -> bytes:
    """The secret of the mask that `chooser` has in common with `other`."""
    return _derive(seed, binding("pair secret", cohort, chooser, other), SECRET_BYTES)


def pair_key(secret: bytes, sharers: str, chooser: str, other: str) -> bytes:
    """The AES-256 key of the mask, bound to the set of hospitals it is used in."""
    return _derive(secret, binding("pair mask", sharers, chooser, other), SECRET_BYTES)


def self_key(self_secret: bytes, sharers: str, silo: str) -> bytes:
    return _derive(self_secret, binding("self mask", sharers, silo), SECRET_BYTES)


def _derive(secret: bytes, info: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt=None, info=info).derive(secret)

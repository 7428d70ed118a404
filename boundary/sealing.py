"""Sealed content: HPKE (RFC 9180) to one party, post-quantum hybrid X25519 + ML-KEM-768.

For small things: the shares and the mask secrets of a masked sum. Whole vectors leave a hospital only under masks.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from boundary.errors import MalformedMessage, UnsealFailed
from boundary.names import decode_base64, encode_base64

PUBLIC_KEY_BYTES = 1184 + 32  # ML-KEM-768 encapsulation key (FIPS 203, table 3), X25519
PRIVATE_KEY_BYTES = 64 + 32  # ML-KEM seed (d, z), X25519
_PREFIX = "hpke-mlkem768-x25519:"
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))  # not a secret: it only tells points of small order


@dataclass(frozen=True, slots=True)
class SealingKey:
    """The public half, written `hpke-mlkem768-x25519:<base64 of ML-KEM key || X25519 key>`."""

    text: str

    def __post_init__(self) -> None:
        _parsed(self.text)

    def seal(self, content: bytes, context: bytes) -> bytes:
        """HPKE base mode, single shot: encapsulated key || ciphertext, bound to `context`."""
        return bytes(_SUITE.encrypt(content, _parsed(self.text), info=context))


@lru_cache(maxsize=8)  # a hospital seals twice for each of its neighbours
def _parsed(text: str) -> MLKEM768X25519PublicKey:
    try:
        if not text.startswith(_PREFIX):
            raise ValueError("unknown kind")  # noqa: TRY301 - one refusal for all reasons
        raw = decode_base64(text.removeprefix(_PREFIX))
        if len(raw) != PUBLIC_KEY_BYTES:
            raise ValueError("wrong length")  # noqa: TRY301
        curve = X25519PublicKey.from_public_bytes(raw[1184:])
        _PROBE.exchange(curve)  # a point of small order: ValueError here, on parsing, and not when we seal
        return MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(raw[:1184]), curve)
    except ValueError as why:
        raise MalformedMessage(f"not a sealing key: {text!r:.60}") from why


@dataclass(frozen=True, slots=True, repr=False)
class UnsealingKey:
    """The private half. No `repr`."""

    _private: MLKEM768X25519PrivateKey
    _raw: bytes
    public: SealingKey

    @classmethod
    def generate(cls) -> Self:
        return cls._of(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_raw(cls, raw: bytes) -> Self:
        """From the 96 bytes of `raw`; raises `ValueError`."""
        if len(raw) != PRIVATE_KEY_BYTES:
            raise ValueError(f"an unsealing key has {PRIVATE_KEY_BYTES} bytes")
        return cls._of(MLKEM768PrivateKey.from_seed_bytes(raw[:64]), X25519PrivateKey.from_private_bytes(raw[64:]))

    @classmethod
    def _of(cls, lattice: MLKEM768PrivateKey, curve: X25519PrivateKey) -> Self:
        public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        raw = lattice.private_bytes_raw() + curve.private_bytes_raw()
        return cls(MLKEM768X25519PrivateKey(lattice, curve), raw, SealingKey(_PREFIX + encode_base64(public)))

    @property
    def raw(self) -> bytes:
        """For the key file of mode 0600, and nowhere else."""
        return self._raw

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """Raises `UnsealFailed` for any change to the bytes, the key or the context."""
        try:
            return bytes(_SUITE.decrypt(sealed, self._private, info=context))
        except (InvalidTag, ValueError) as why:
            raise UnsealFailed("sealed content does not open under this key and context") from why

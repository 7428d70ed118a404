"""Sealed content: HPKE (RFC 9180) to one party, post-quantum hybrid X25519 + ML-KEM-768.

Small things are sealed whole. A file is sealed in AES-256-GCM chunks under a fresh key, and only that key is
sealed with HPKE, so that neither side ever holds the file in memory. The chunk number and "is it the last" are
in each nonce (STREAM, Hoang, Reyhanitabar, Rogaway and Vizar 2015): chunks cannot be dropped, swapped or cut.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
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

CHUNK_BYTES = 1024 * 1024
TAG_BYTES = 16
PUBLIC_KEY_BYTES = 1184 + 32  # ML-KEM-768 encapsulation key (FIPS 203, table 3), X25519
PRIVATE_KEY_BYTES = 64 + 32  # ML-KEM seed (d, z), X25519
FILE_KEY_BYTES = 32
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


@lru_cache(maxsize=512)  # a hospital seals twice for each of its neighbours
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


def seal_stream(read: Callable[[int], bytes], key: bytes, context: bytes) -> Iterator[bytes]:
    """Yield sealed chunks of what `read(n)` gives. `key` is fresh: one key, one stream."""
    cipher = AESGCM(key)
    for nonce, chunk in _chunks(read, CHUNK_BYTES):
        yield cipher.encrypt(nonce, chunk, context)


def unseal_stream(read: Callable[[int], bytes], key: bytes, context: bytes) -> Iterator[bytes]:
    """The inverse. A chunk is yielded only after its tag was checked; raises `UnsealFailed`.

    Until the iterator has ended without an error the content may be cut short: keep nothing of it before.
    """
    cipher = AESGCM(key)
    for nonce, chunk in _chunks(read, CHUNK_BYTES + TAG_BYTES):
        try:
            yield cipher.decrypt(nonce, chunk, context)
        except (InvalidTag, ValueError) as why:
            raise UnsealFailed("a chunk of a sealed file does not open") from why


def _chunks(read: Callable[[int], bytes], size: int) -> Iterator[tuple[bytes, bytes]]:
    """(nonce, chunk) pairs; every chunk but the last is full, however little `read` gives at a time."""
    chunk, number = _fill(read, size), 0
    while following := _fill(read, size):
        yield struct.pack(">QI", number, 0), chunk
        chunk, number = following, number + 1
    yield struct.pack(">QI", number, 1), chunk


def _fill(read: Callable[[int], bytes], size: int) -> bytes:
    chunk = read(size)
    while len(chunk) < size and (more := read(size - len(chunk))):
        chunk += more
    return chunk

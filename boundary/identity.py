"""Ed25519 identities (RFC 8032). A private key is made where it is used and never leaves that machine."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from boundary.errors import BadSignature, CallerFault, MalformedMessage
from boundary.names import decode_base64, encode_base64

_PREFIX = "ed25519:"
_NOTES = ("wardround/", "cosignature/v1\n")  # frames begin with "wardround v1 "
_FIELD = 2**255 - 19  # RFC 8032, section 5.1
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# Under a key of small order one signature fits many messages: its owner could disown what was signed, and others
# could sign in its place. RFC 8032 leaves the check to us and OpenSSL does not make it.
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Ed25519PublicKey:
    """Parsing a key costs half of a verification, and a federation has few keys."""
    try:
        if not text.startswith(_PREFIX):
            raise ValueError("no ed25519: prefix")  # noqa: TRY301 - one refusal for all reasons
        raw = decode_base64(text.removeprefix(_PREFIX))
        y = int.from_bytes(raw, "little") & ~(1 << 255)
        if y >= _FIELD or y in _SMALL_ORDER_Y:
            raise ValueError("not the one encoding of a point of large order")  # noqa: TRY301
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as why:
        raise MalformedMessage(f"not a public key: {text!r:.60}") from why


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """A public key in its one written form, `ed25519:<base64>`."""

    text: str

    def __post_init__(self) -> None:
        self._key()

    def _key(self) -> Ed25519PublicKey:
        return _parsed(self.text)

    def verify(self, context: str, data: bytes, signature: bytes) -> None:
        """Raises `BadSignature` unless `signature` was made over exactly this context and data."""
        try:
            self._key().verify(signature, _framed(context, data))
        except InvalidSignature as why:
            raise BadSignature(f"the signature does not verify under {self.text}") from why

    def verify_note(self, text: str, signature: bytes) -> None:
        """As `verify`, for the text of a C2SP signed note, which is signed as it is."""
        try:
            self._key().verify(signature, _note(text))
        except InvalidSignature as why:
            raise BadSignature(f"the note's signature does not verify under {self.text}") from why

    @property
    def raw(self) -> bytes:
        """The 32 bytes of RFC 8032."""
        return self._key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """Sixteen groups of four hex digits, to be read aloud over the telephone."""
        digits = hashlib.sha256(b"wardround fingerprint v1\x00" + self.text.encode()).hexdigest()
        return " ".join(digits[at : at + 4] for at in range(0, 64, 4))


@dataclass(frozen=True, slots=True, repr=False)
class SigningIdentity:
    """The private half. It has no `repr`, so it cannot slip into a log."""

    _private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Self:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """From unencrypted PKCS#8 PEM; raises `ValueError`."""
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the PEM holds another kind of key than Ed25519")  # noqa: TRY004
        return cls(key)

    def to_pem(self) -> bytes:
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def public(self) -> PublicIdentity:
        return PublicIdentity(_PREFIX + encode_base64(self._private.public_key().public_bytes_raw()))

    def sign(self, context: str, data: bytes) -> bytes:
        """64 bytes over `data` in `context`, which keeps one kind of signature from serving as another."""
        return self._private.sign(_framed(context, data))

    def sign_note(self, text: str) -> bytes:
        """64 bytes over the text of a C2SP signed note. Raises `CallerFault` for a text of no kind we sign."""
        return self._private.sign(_note(text))


def _note(text: str) -> bytes:
    """Notes have no frame. What they begin with keeps them apart from each other and from all that is framed."""
    if not text.startswith(_NOTES):
        raise CallerFault("not the text of a checkpoint or a cosignature")
    return text.encode()


def _framed(context: str, data: bytes) -> bytes:
    """Length-prefixed, so no two (context, data) pairs share one byte string (as DSSE's PAE does)."""
    name = context.encode()
    return b"wardround v1 %d %b %d %b" % (len(name), name, len(data), data)

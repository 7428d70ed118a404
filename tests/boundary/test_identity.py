"""Ed25519 identities: one key, one text; one signature, one meaning."""

import base64
from types import ModuleType

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import BadSignature, MalformedMessage
from boundary.identity import PublicIdentity, SigningIdentity

FIELD = 2**255 - 19
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, section 5.1
ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826


def text_of(raw: bytes) -> str:
    return "ed25519:" + base64.b64encode(raw).decode()


def point(y: int, sign: int = 0) -> str:
    return text_of((y | sign << 255).to_bytes(32, "little"))


GOOD = base64.b64encode(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")).decode()
NOT_A_KEY = {
    "empty": "",
    "no prefix": GOOD,
    "another kind of key": "rsa:" + GOOD,
    "capitals in the prefix": "ED25519:" + GOOD,
    "prefix twice": "ed25519:ed25519:" + GOOD,
    "a space": "ed25519: " + GOOD,
    "a line end": f"ed25519:{GOOD}\n",
    "base64 with stray bits": "ed25519:" + GOOD.replace("URo=", "URp="),
    "the URL alphabet": "ed25519:" + GOOD.replace("+", "-").replace("/", "_"),
    "31 bytes": text_of(b"\x09" * 31),
    "33 bytes": text_of(b"\x09" * 33),
    "no bytes": text_of(b""),
    "the neutral element": point(1),
    "the neutral element with a sign": point(1, 1),
    "the point of order 2": point(FIELD - 1),
    "a point of order 4": point(0),
    "the other point of order 4": point(0, 1),
    "a point of order 8": point(ORDER_8),
    "a point of order 8 with a sign": point(ORDER_8, 1),
    "the opposite point of order 8": point(FIELD - ORDER_8),
    "the opposite point of order 8 with a sign": point(FIELD - ORDER_8, 1),
    "the neutral element not reduced": point(FIELD + 1),
    "a coordinate not reduced": point(FIELD + 3),
    "all ones": text_of(b"\xff" * 32),
}


@pytest.mark.parametrize("text", NOT_A_KEY.values(), ids=NOT_A_KEY)
def test_what_is_not_a_key_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage, match="not a public key"):
        PublicIdentity(text)


def test_the_table_of_points_of_order_8_is_right() -> None:
    d = -121665 * pow(121666, -1, FIELD) % FIELD
    y2 = ORDER_8**2 % FIELD
    x2 = (y2 - 1) * pow(d * y2 + 1, -1, FIELD) % FIELD
    assert pow(x2, (FIELD - 1) // 2, FIELD) == 1  # it is on the curve
    doubled_y = (y2 + x2) * pow(1 - d * x2 * y2, -1, FIELD) % FIELD
    assert doubled_y == 0  # twice it is a point of order 4


def test_a_key_of_small_order_would_sign_anything() -> None:
    """Why they are refused: OpenSSL accepts this signature over every message."""
    forged = (1).to_bytes(32, "little") + bytes(32)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    neutral = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    neutral.verify(forged, b"one message")
    neutral.verify(forged, b"another message")


def test_the_vector_of_rfc_8032_signs_in_our_frame(fed: ModuleType) -> None:
    signer = fed.key("st-olavs")
    signature = signer.sign("kind", b"data")
    raw = base64.b64decode(signer.public.text.removeprefix("ed25519:"))
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Ed25519PublicKey.from_public_bytes(raw).verify(signature, b"wardround v1 4 kind 4 data")


@given(st.text(max_size=8), st.binary(max_size=20))
def test_what_was_signed_verifies(fed: ModuleType, context: str, data: bytes) -> None:
    if context.encode("utf-8", "ignore").decode() == context:
        signer = fed.key("st-olavs")
        signer.public.verify(context, data, signer.sign(context, data))


OTHERS = {
    "signature of another kind of message": ("request", b"data", "st-olavs"),
    "body changed after signing": ("envelope", b"Data", "st-olavs"),
    "signed by somebody else": ("envelope", b"data", "ucl"),
    "a byte moved from the data to the kind": ("envelope d", b"ata", "st-olavs"),
    "the data cut": ("envelope", b"dat", "st-olavs"),
    "the data extended": ("envelope", b"data\0", "st-olavs"),
    "no data": ("envelope", b"", "st-olavs"),
}


@pytest.mark.parametrize(("context", "data", "party"), OTHERS.values(), ids=OTHERS)
def test_a_signature_has_one_meaning(fed: ModuleType, context: str, data: bytes, party: str) -> None:
    signature = fed.key("st-olavs").sign("envelope", b"data")
    with pytest.raises(BadSignature, match="does not verify"):
        fed.key(party).public.verify(context, data, signature)


@given(st.integers(0, 511))
def test_a_signature_with_one_bit_flipped_is_refused(fed: ModuleType, bit: int) -> None:
    signature = bytearray(fed.key("ucl").sign("envelope", b"data"))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        fed.key("ucl").public.verify("envelope", b"data", bytes(signature))


def test_a_signature_has_one_byte_string(fed: ModuleType) -> None:
    """S + L is the same scalar: RFC 8032, section 5.1.7, has it refused."""
    signature = fed.key("ucl").sign("envelope", b"data")
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    with pytest.raises(BadSignature):
        fed.key("ucl").public.verify("envelope", b"data", signature[:32] + scalar.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(fed: ModuleType, size: int) -> None:
    with pytest.raises(BadSignature):
        fed.key("ucl").public.verify("envelope", b"data", bytes(size))


def test_a_private_key_is_kept_as_pem_and_never_shown(fed: ModuleType) -> None:
    signer = SigningIdentity.generate()
    assert SigningIdentity.from_pem(signer.to_pem()).public == signer.public
    assert signer.public != SigningIdentity.generate().public
    shown = f"{signer!r} {signer} {[signer]}"
    assert "_private" not in shown
    assert "Ed25519" not in shown


def test_a_pem_of_another_kind_of_key_is_refused() -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="another kind of key"):
        SigningIdentity.from_pem(pem)
    with pytest.raises(ValueError, match=r"."):
        SigningIdentity.from_pem(b"not a PEM")


def test_a_fingerprint_can_be_read_aloud(fed: ModuleType) -> None:
    groups = fed.key("ucl").public.fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 16
    assert fed.key("ucl").public.fingerprint != fed.key("st-olavs").public.fingerprint

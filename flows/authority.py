"""The coordinator's own small certificate authority: who may open a TLS connection to the relay.

TLS certificates open the door and nothing else; what a hospital says counts by its Ed25519 signature. All keys are
ECDSA P-256: rustls, OpenSSL and the TLS-inspecting proxies of hospitals all verify it, which is not so for Ed25519
in certificates (docs/adr/0002). A certificate names its silo in CN and its purpose in OU.
"""

import base64
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from boundary.api import Invitation
from boundary.errors import MalformedMessage
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.roster import KeyCard, Roster, SignedRoster, sign_roster

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
CLIENT_LIFETIME = timedelta(days=90)
INVITATION_LIFETIME = timedelta(days=7)
ENROLMENT = "wardround enrolment"  # OU: opens /v1/enrolment and nothing else
MEMBER = "wardround member"  # OU: opens the rest
_BACKDATED = timedelta(hours=1)  # for hospital clocks that are slow
_CURVE = ec.SECP256R1

Clock = Callable[[], datetime]
Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, repr=False)
class Issued:
    """A certificate with the private key made for it."""

    certificate_pem: str
    private_key_pem: str
    expires_at: datetime

    def save(self, certificate: Path, key: Path) -> None:
        """Write both; the key with mode 0600."""
        certificate.write_text(self.certificate_pem)
        write_secret(key, self.private_key_pem.encode())


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a hospital gets for its certificate request."""

    certificate_pem: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """The CA: its certificate, its key, and where time and randomness come from."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey
    _clock: Clock
    _entropy: Entropy

    @classmethod
    def create(cls, name: str, *, clock: Clock, entropy: Entropy) -> Self:
        """A new CA with a key of its own."""
        key, now = ec.generate_private_key(_CURVE()), clock()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), _serial(entropy), now, now + AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key, clock, entropy)

    @classmethod
    def load(cls, folder: Path, *, clock: Clock, entropy: Entropy) -> Self:
        """From `ca.pem` and `ca.key`; raises `OSError` or `ValueError`."""
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{folder / 'ca.key'} holds another kind of key than ECDSA")  # noqa: TRY004
        return cls(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), key, clock, entropy)

    def save(self, folder: Path) -> None:
        """`ca.pem`, and `ca.key` with mode 0600. The relay needs the first, only the coordinator's CLI the second."""
        (folder / "ca.pem").write_text(self.pem)
        write_secret(folder / "ca.key", _key_pem(self._key))

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue_server(self, names: Sequence[str]) -> Issued:
        """The relay's own certificate, for its DNS names and IP addresses."""
        key = ec.generate_private_key(_CURVE())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._issue(key, subject, SERVER_LIFETIME, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def issue_client(self, csr_pem: str, silo: str) -> ClientCertificate:
        """A member's certificate for the key in its request; raises `MalformedMessage`.

        Nothing is copied from the request but the public key: name, purpose and lifetime are ours.
        """
        request = read_csr(csr_pem, silo)
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):  # read_csr has refused it
            raise MalformedMessage("the certificate request holds another kind of key than ECDSA P-256")
        expires = self._clock() + CLIENT_LIFETIME
        return ClientCertificate(
            self._sign(key, _subject(silo, MEMBER), expires, ExtendedKeyUsageOID.CLIENT_AUTH, None), expires
        )

    def invite(self, silo: str, relay_url: str, coordinator: PublicIdentity) -> Invitation:
        """A one-time token with a certificate that opens the door for enrolment. Keep `token_digest(token)` only."""
        issued = self._issue(
            ec.generate_private_key(_CURVE()),
            _subject(silo, ENROLMENT),
            INVITATION_LIFETIME,
            ExtendedKeyUsageOID.CLIENT_AUTH,
            None,
        )
        return Invitation(
            silo=silo,
            relay_url=relay_url,
            relay_ca_pem=self.pem,
            coordinator_key=coordinator.text,
            token=base64.urlsafe_b64encode(self._entropy(32)).rstrip(b"=").decode(),
            certificate_pem=issued.certificate_pem,
            private_key_pem=issued.private_key_pem,
            expires_at=issued.expires_at,
        )

    def _issue(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        lifetime: timedelta,
        purpose: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> Issued:
        expires = self._clock() + lifetime
        pem = self._sign(key.public_key(), subject, expires, purpose, alternatives)
        return Issued(pem, _key_pem(key).decode(), expires)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        expires: datetime,
        purpose: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> str:
        builder = (
            _builder(subject, self.certificate.subject, key, _serial(self._entropy), self._clock(), expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def read_csr(csr_pem: str, silo: str) -> x509.CertificateSigningRequest:
    """Raises `MalformedMessage` unless it is a P-256 request for exactly `silo`, signed by the key it holds."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key, signed = request.public_key(), request.is_signature_valid
    except ValueError as why:
        raise MalformedMessage("the certificate request does not parse") from why
    if not signed:
        raise MalformedMessage("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVE):
        raise MalformedMessage("the certificate request holds another kind of key than ECDSA P-256")
    names = [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [silo]:
        raise MalformedMessage(f"the certificate request is for {names!r:.80}, not for {silo}")
    return request


def issue_roster(
    members: Iterable[KeyCard],
    *,
    version: int,
    coordinator: KeyCard,
    keys: Sequence[SigningIdentity],
    now: datetime,
    lifetime: timedelta,
) -> SignedRoster:
    """Sign the membership. `keys` are the coordinator's key and, when it changes, the former one too."""
    cards = tuple(sorted(members, key=lambda card: card.party))
    roster = Roster(version=version, issued_at=now, expires_at=now + lifetime, coordinator=coordinator, members=cards)
    return sign_roster(roster, *keys)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, never for a moment readable by others."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    expires: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(expires)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(silo: str, purpose: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, silo), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, purpose)]
    )


def _serial(entropy: Entropy) -> int:
    return int.from_bytes(entropy(20), "big") >> 1 | 1  # RFC 5280, 4.1.2.2: positive, at most 20 octets


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

"""Certificates open the door to exactly what they say, and keys stay with their owner."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from boundary.errors import MalformedMessage
from boundary.identity import SigningIdentity
from boundary.roster import make_card
from boundary.sealing import UnsealingKey
from flows.authority import CLIENT_LIFETIME, ENROLMENT, INVITATION_LIFETIME, MEMBER, Authority, issue_roster
from flows.store.members import token_digest

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def authority() -> Authority:
    return Authority.create("Wardround test CA", clock=lambda: NOW, entropy=os.urandom)


def csr(name: str, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def read(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def subject(certificate: x509.Certificate) -> tuple[object, ...]:
    return tuple(name.value for name in certificate.subject)


def usage(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_server_certificate_verifies_for_its_names_and_addresses(authority: Authority) -> None:
    certificate = read(authority.issue_server(["relay.example.org", "127.0.0.1"]).certificate_pem)
    policy = PolicyBuilder().store(Store([authority.certificate])).time(NOW)
    policy.build_server_verifier(x509.DNSName("relay.example.org")).verify(certificate, [])
    with pytest.raises(x509.verification.VerificationError):
        policy.build_server_verifier(x509.DNSName("other.example.org")).verify(certificate, [])
    assert usage(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_client_certificate_is_for_one_silo_and_ninety_days(authority: Authority) -> None:
    issued = authority.issue_client(csr("st-olavs"), "st-olavs")
    certificate = read(issued.certificate_pem)
    assert subject(certificate) == ("st-olavs", MEMBER)
    assert usage(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_after_utc == issued.expires_at == NOW + CLIENT_LIFETIME
    certificate.verify_directly_issued_by(authority.certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca


def tampered() -> str:
    lines = csr("st-olavs").splitlines()
    lines[-2] = lines[-2][:4] + ("A" if lines[-2][4] != "A" else "B") + lines[-2][5:]
    return "\n".join(lines)


BAD_REQUESTS: dict[str, Callable[[], str]] = {
    "for another silo": lambda: csr("charite"),
    "with an Ed25519 key": lambda: csr("st-olavs", ed25519.Ed25519PrivateKey.generate()),
    "with a P-384 key": lambda: csr("st-olavs", ec.generate_private_key(ec.SECP384R1())),
    "changed after it was signed": tampered,
    "not a request": lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "nothing": str,
}


@pytest.mark.parametrize("make", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_other_requests_are_refused(authority: Authority, make: Callable[[], str]) -> None:
    with pytest.raises(MalformedMessage):
        authority.issue_client(make(), "st-olavs")


def test_an_invitation_carries_a_token_and_a_certificate_for_enrolment_only(authority: Authority) -> None:
    coordinator = SigningIdentity.generate().public
    invitation = authority.invite("st-olavs", "https://relay.example.org:8443", coordinator)
    certificate = read(invitation.certificate_pem)
    assert subject(certificate) == ("st-olavs", ENROLMENT)
    assert certificate.not_valid_after_utc == invitation.expires_at == NOW + INVITATION_LIFETIME
    key = serialization.load_pem_private_key(invitation.private_key_pem.encode(), None)
    assert key.public_key() == certificate.public_key()
    assert (invitation.coordinator_key, invitation.relay_ca_pem) == (coordinator.text, authority.pem)
    again = authority.invite("st-olavs", "https://relay.example.org:8443", coordinator)
    assert again.token != invitation.token
    assert token_digest(again.token) != token_digest(invitation.token)


def test_it_is_saved_with_a_private_key_and_loaded_again(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    authority.save(tmp_path)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    loaded = Authority.load(tmp_path, clock=lambda: NOW, entropy=os.urandom)
    certificate = read(loaded.issue_client(csr("st-olavs"), "st-olavs").certificate_pem)
    certificate.verify_directly_issued_by(authority.certificate)
    issued = loaded.issue_server(["localhost"])
    issued.save(tmp_path / "relay.pem", tmp_path / "relay.key")
    assert (tmp_path / "relay.key").stat().st_mode & 0o777 == 0o600


def test_serials_come_from_the_given_entropy_and_are_valid(authority: Authority) -> None:
    for filler in (b"\x00", b"\xff"):
        fixed = Authority(authority.certificate, authority._key, lambda: NOW, lambda size, f=filler: f * size)  # type: ignore[misc]
        serial = read(fixed.issue_client(csr("st-olavs"), "st-olavs").certificate_pem).serial_number
        assert 0 < serial < 2**159


def test_a_roster_is_signed_sorted_and_expires() -> None:
    key = SigningIdentity.generate()
    sealing = UnsealingKey.generate().public
    cards = [make_card(silo, SigningIdentity.generate(), sealing) for silo in ("ucl", "charite")]
    coordinator = make_card("coordinator", key, sealing)
    signed = issue_roster(cards, version=7, coordinator=coordinator, keys=[key], now=NOW, lifetime=timedelta(days=90))
    assert [card.party for card in signed.roster.members] == ["charite", "ucl"]
    assert (signed.roster.version, signed.roster.expires_at) == (7, NOW + timedelta(days=90))

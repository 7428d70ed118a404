"""Where the agent may dial: the addresses that the hospital's policy names, each with its certificate's public key."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from silo_agent.errors import ConfigError
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.files import load_policy
from silo_agent.policy.gates import check_destination

# Asked before each request with None, and with the key of the certificate once it was shown. Raises `PolicyRefused`.
Allow = Callable[[str, int, str | None], None]


def by_policy(root: Path) -> Allow:
    """By the policy that is in force at that moment in the agent's folder; without one nothing is dialled."""

    def allow(host: str, port: int, spki_sha256: str | None) -> None:
        try:
            policy = load_policy(root).policy
        except ConfigError as why:
            raise PolicyRefused(PolicyCode.POLICY_NOT_IN_FORCE, str(why)) from why
        check_destination(host, port, spki_sha256, policy)

    return allow


def address_of(url: str) -> tuple[str, int]:
    """Host, without brackets, and port."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 443


def spki_of(der: bytes) -> str:
    """SHA-256 of a certificate's public key, hex digits (RFC 7469, 2.4). Raises `ValueError`."""
    key = x509.load_der_x509_certificate(der).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def entry_of(host: str, port: int, spki_sha256: str) -> str:
    """The line for `[network] allow`."""
    return f'{{ host = "{host}", port = {port}, spki_sha256 = "{spki_sha256}" }}'

"""The agent's state folder: keys made here that never leave, mode 0600 in a folder of mode 0700."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from boundary.identity import SigningIdentity
from boundary.roster import KeyCard, make_card
from boundary.sealing import UnsealingKey
from silo_agent.errors import ConfigError

DATASET_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where everything of one agent lies. Nothing here is read by anybody else."""

    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def log(self) -> Path:
        return self.root / "agent.log"

    @property
    def tls_certificate(self) -> Path:
        return self.root / "tls.crt"

    @property
    def tls_key(self) -> Path:
        return self.root / "tls.key"

    @property
    def relay_ca(self) -> Path:
        return self.root / "relay-ca.crt"

    @property
    def dataset_key_file(self) -> Path:
        return self.root / "dataset.key"

    def create(self, entropy: Callable[[int], bytes]) -> None:
        """Make the folder and all keys; raises `ConfigError` if there are some already."""
        if (self.root / "identity.pem").exists():
            raise ConfigError(f"{self.root} already holds an identity; it survives every upgrade, keep it")
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)
        for folder in (self.work, self.cache, self.models):
            folder.mkdir(mode=0o700, exist_ok=True)
        write_private(self.root / "steward.pem", SigningIdentity.generate().to_pem())
        write_private(self.root / "sealing.key", UnsealingKey.generate().raw)
        write_private(self.dataset_key_file, entropy(DATASET_KEY_BYTES))
        # TLS stacks do not take Ed25519 client keys everywhere (hospital proxies): P-256 for the wire only
        tls = ec.generate_private_key(ec.SECP256R1())
        write_private(
            self.tls_key,
            tls.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        # last, because its presence says that the folder is complete
        write_private(self.root / "identity.pem", SigningIdentity.generate().to_pem())

    @property
    def identity(self) -> SigningIdentity:
        return SigningIdentity.from_pem(self._key("identity.pem"))

    @property
    def steward(self) -> SigningIdentity:
        return SigningIdentity.from_pem(self._key("steward.pem"))

    @property
    def unsealing(self) -> UnsealingKey:
        return UnsealingKey.from_raw(self._key("sealing.key"))

    def card(self, silo: str) -> KeyCard:
        return make_card(silo, self.identity, self.unsealing.public)

    def csr(self, silo: str) -> str:
        """A certificate request (PKCS #10, RFC 2986) for the TLS key, naming the hospital."""
        key = serialization.load_pem_private_key(self._key("tls.key"), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{self.tls_key} does not hold an elliptic-curve key")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, silo)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def _key(self, name: str) -> bytes:
        path = self.root / name
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")
            return path.read_bytes()
        except FileNotFoundError as why:
            raise ConfigError(f"{path} does not exist: run `silo-agent init` first") from why

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Hold the state folder for one daemon; raises `ConfigError` when another holds it."""
        with (self.root / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as why:
                raise ConfigError(f"another silo-agent already runs on {self.root}") from why
            yield


def write_private(path: Path, data: bytes) -> None:
    """Write and sync a file of mode 0600, so that it is whole or not there."""
    draft = path.with_name(path.name + ".new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    draft.replace(path)

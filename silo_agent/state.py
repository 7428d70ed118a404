"""The agent's state folder: keys made here that never leave, mode 0600 in a folder of mode 0700."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from boundary.identity import SigningIdentity
from boundary.roster import KeyCard, make_card
from boundary.sealing import UnsealingKey
from silo_agent.config import CONFIG_NAME
from silo_agent.errors import ConfigError

DATASET_KEY_BYTES = 32
Key = TypeVar("Key")


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
    def index(self) -> Path:
        """What scans remember of files (`intake.index`)."""
        return self.root / "index.sqlite"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def personal(self) -> Path:
        """Models of the hospital's own, and how they do (`silo_agent.personal`)."""
        return self.root / "personal"

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

    def create(self, entropy: Callable[[int], bytes], config: str) -> None:
        """Make the folder, its agent.toml and all keys; raises `ConfigError` if there are some already."""
        if (self.root / "identity.pem").exists():
            raise ConfigError(f"{self.root} already holds an identity; it survives every upgrade, keep it")
        try:
            self._make_folders()
        except OSError as why:
            by_root = f": have root make it, `install -d -m 700 -o {os.getuid()} {self.root}`"
            fix = by_root if isinstance(why, PermissionError) else ""
            raise ConfigError(f"{self.root} cannot be made ({why.strerror}){fix}") from why
        write_private(self.root / CONFIG_NAME, config.encode())
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

    def _make_folders(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)
        for folder in (self.work, self.cache, self.models):
            folder.mkdir(mode=0o700, exist_ok=True)

    def check_private(self) -> None:
        """Raises `ConfigError` if anybody else on this machine may look into the folder."""
        try:
            about = self.root.stat()
            mode = about.st_mode
        except OSError as why:
            raise ConfigError(f"{self.root} cannot be read: {why}: run `silo-agent init` first") from why
        if mode & 0o077:
            raise ConfigError(f"{self.root} is open to others (mode {mode & 0o777:03o}): run `chmod 700 {self.root}`")
        if about.st_uid != os.geteuid():  # what we write would be unreadable to the agent
            raise ConfigError(
                f"{self.root} belongs to another user: run this as the agent's, with `sudo -u silo-agent`"
            )

    @property
    def identity(self) -> SigningIdentity:
        return self._read("identity.pem", SigningIdentity.from_pem)

    @property
    def steward(self) -> SigningIdentity:
        return self._read("steward.pem", SigningIdentity.from_pem)

    @property
    def unsealing(self) -> UnsealingKey:
        return self._read("sealing.key", UnsealingKey.from_raw)

    def card(self, silo: str) -> KeyCard:
        return make_card(silo, self.identity, self.unsealing.public)

    def csr(self, silo: str) -> str:
        """A certificate request (PKCS #10, RFC 2986) for the TLS key, naming the hospital."""
        key = self._read("tls.key", _curve_key)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, silo)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def _read(self, name: str, parse: Callable[[bytes], Key]) -> Key:
        path = self.root / name
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")
            return parse(path.read_bytes())
        except FileNotFoundError as why:
            raise ConfigError(f"{path} does not exist: run `silo-agent init` first") from why
        except OSError as why:
            raise ConfigError(f"{path} cannot be read: {why}. Run the agent as the user that owns its folder") from why
        except ValueError as why:
            raise ConfigError(f"{path} is damaged: restore it from the backup of the state folder") from why

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Hold the state folder for one daemon; raises `ConfigError` when another holds it."""
        try:
            handle = (self.root / "lock").open("w")
        except OSError as why:
            raise ConfigError(f"{self.root} cannot be written: {why}") from why
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as why:
                raise ConfigError(f"another silo-agent already runs on {self.root}") from why
            yield


def write_private(path: Path, data: bytes) -> None:
    """Write and sync a file of mode 0600, so that it is whole or not there, also after a power cut."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)  # of another crash, perhaps with another mode
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _curve_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("another kind of key")  # noqa: TRY004 - one refusal for all damage
    return key

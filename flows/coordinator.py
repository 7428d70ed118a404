"""The coordinator's home folder: settings and keys, read once, passed down. The composition root of this side."""

import os
import secrets
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from sqlalchemy import Engine

from boundary.fields import PublicKeyStr
from boundary.identity import SigningIdentity
from boundary.names import COORDINATOR, Frozen, StudyName
from boundary.roster import KeyCard, make_card
from boundary.sealing import UnsealingKey
from flows.authority import Authority, write_secret
from flows.store.blobs import BlobStore
from flows.store.database import migrate, open_store

HOME_VARIABLE = "WARDROUND_HOME"
SETTINGS_NAME = "coordinator.toml"
DEFAULT_HOME = Path("/var/lib/wardround")
ROSTER_LIFETIME = timedelta(days=90)
DRIVER_LEASE = timedelta(seconds=15)  # how long a killed flow run keeps the next one waiting


class SettingsError(Exception):
    """The home folder or coordinator.toml is missing or wrong. The sentence names the fix."""


class RelaySettings(Frozen):
    """Where hospitals dial, and where the relay listens."""

    url: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9.\-\[\]:]+$")]
    host: str = "0.0.0.0"  # noqa: S104 - hospitals come from outside; the certificate check is the door
    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    names: list[str] = Field(min_length=1)


class Settings(Frozen):
    """All of coordinator.toml."""

    version: Annotated[int, Field(ge=1, le=1)]
    store: str
    blobs: str
    relay: RelaySettings
    prefect_url: str | None = None
    mlflow_url: str | None = None
    weights: str | None = None
    """The folder of pretrained weights that plans may begin with; without it `weights` in the home folder."""
    officers: dict[StudyName, PublicKeyStr] = Field(default_factory=dict)
    """Who may decide about releasing a model, by name."""


@dataclass(frozen=True)
class Coordinator:
    """Settings, keys, store, clock and entropy of one coordinator."""

    home: Path
    settings: Settings
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes]

    @cached_property
    def store(self) -> Engine:
        engine = open_store(self.settings.store, self.entropy)
        migrate(engine)
        return engine

    @cached_property
    def blobs(self) -> BlobStore:
        return BlobStore(self.settings.blobs, scratch=self.home / "scratch")

    @cached_property
    def key(self) -> SigningIdentity:
        return SigningIdentity.from_pem(self._secret("identity.pem"))

    @cached_property
    def unsealing(self) -> UnsealingKey:
        return UnsealingKey.from_raw(self._secret("sealing.key"))

    @cached_property
    def authority(self) -> Authority:
        return Authority.load(self.keys, clock=self.now, entropy=self.entropy)

    @property
    def card(self) -> KeyCard:
        return make_card(COORDINATOR, self.key, self.unsealing.public)

    @property
    def weights(self) -> Path:
        """Where files of pretrained weights are, by the names that plans have."""
        return self.home / "weights" if self.settings.weights is None else Path(self.settings.weights)

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    def _secret(self, name: str) -> bytes:
        path = self.keys / name
        try:
            if path.stat().st_mode & 0o077:
                raise SettingsError(f"{path} can be read by others: run `chmod 600 {path}`")
            return path.read_bytes()
        except FileNotFoundError as why:
            raise SettingsError(f"{path} does not exist: run `wardround init` first") from why


def load(home: Path | None = None) -> Coordinator:
    """From the folder given, or `$WARDROUND_HOME`; raises `SettingsError`."""
    place = home or Path(os.environ.get(HOME_VARIABLE, DEFAULT_HOME))
    path = place / SETTINGS_NAME
    try:
        settings = Settings.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError as why:
        raise SettingsError(f"{path} does not exist: run `wardround init`, or set {HOME_VARIABLE}") from why
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
        raise SettingsError(f"{path} cannot be read: {why}") from why
    except ValidationError as why:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
            for error in why.errors(include_url=False, include_input=False)
        )
        raise SettingsError(f"{path}: {problems}") from why
    return Coordinator(place, settings, lambda: datetime.now(UTC), secrets.token_bytes)


def create(home: Path, settings: str) -> Coordinator:
    """Make the home folder: keys, the CA, the relay's certificate, coordinator.toml. Raises `SettingsError`."""
    if (home / SETTINGS_NAME).exists():
        raise SettingsError(f"{home} is a coordinator's home already; its keys are kept")
    keys = home / "keys"
    for folder in (home, keys, home / "scratch"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / SETTINGS_NAME).write_text(settings, "utf-8")
    coordinator = load(home)
    write_secret(keys / "identity.pem", SigningIdentity.generate().to_pem())
    write_secret(keys / "sealing.key", UnsealingKey.generate().raw)
    authority = Authority.create("Wardround coordinator", clock=coordinator.now, entropy=coordinator.entropy)
    authority.save(keys)
    authority.issue_server(coordinator.settings.relay.names).save(keys / "relay.crt", keys / "relay.key")
    return coordinator


def starting_settings(home: Path, url: str, host: str, port: int, names: list[str]) -> str:
    """The coordinator.toml that `wardround init` writes."""
    listed = ", ".join(f'"{name}"' for name in names)
    return f"""\
# Wardround coordinator. Read docs/operating.md before changing anything here.
version = 1
store = "sqlite:///{home / "store.sqlite"}"     # in production: postgresql://user@host/wardround
blobs = "{home / "blobs"}"                      # in production: s3://bucket/prefix
# prefect_url = "http://127.0.0.1:4200/api"
# mlflow_url = "http://127.0.0.1:5000"
# weights = "/srv/wardround/weights"         # files of pretrained weights that plans begin with; else weights/ in here

[relay]
url = "{url}"          # what hospitals dial
host = "{host}"
port = {port}
names = [{listed}]     # DNS names and addresses in the relay's certificate

# [officers]           # who may decide about releasing a model: `wardround officer init` prints such a line
# anna = "ed25519:..."
"""

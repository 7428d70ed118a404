"""The way out through a proxy: where it stands, how we log in to it, whom its own TLS is believed from.

The address stands in agent.toml. The login is a secret and stands apart, in `proxy.credentials` of the state folder:
one line `user:password` (RFC 7617), mode 0600. The CA of a proxy that speaks TLS itself may lie beside it as
`proxy.pem`; without it the machine's own store decides.
"""

import base64
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from silo_agent.errors import ConfigError

CREDENTIALS, AUTHORITY = "proxy.credentials", "proxy.pem"
_MOST_BYTES = 1024
_PORTS = {"http": 80, "https": 443}
_FORM = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?/?", re.ASCII)


class ProxyNotTrusted(ssl.SSLError):
    """The proxy's own certificate was refused. Said apart, lest the proxy be taken for a false coordinator."""

    def __str__(self) -> str:
        return str(self.args[-1])


class _ProxyTls(ssl.SSLObject):
    """TLS to a proxy: asyncio hands on what a handshake raises, if it is an `ssl.SSLError`."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as why:
            raise ProxyNotTrusted(
                f"the proxy's own certificate is not trusted ({why.verify_message}): put the CA of the proxy, from the "
                f"network team, as {AUTHORITY} into the state folder"
            ) from why


@dataclass(frozen=True, slots=True)
class Login:
    """User and password for the proxy. `repr` shows neither."""

    user: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of Proxy-Authorization: Basic, UTF-8 (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class WayOut:
    """A proxy: `secure` is TLS to the proxy itself. `host` has no brackets."""

    secure: bool
    host: str
    port: int
    login: Login | None = None
    authority: Path | None = None

    @classmethod
    def of(cls, proxy: str, folder: Path) -> Self:
        """From agent.toml's `proxy` and the files in the state folder. Raises `ConfigError`, without any secret."""
        secure, host, port = _address(proxy, folder)
        authority = folder / AUTHORITY
        return cls(secure, host, port, _login(folder / CREDENTIALS), authority if authority.exists() else None)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """TLS to the proxy itself, None where it speaks none. Raises `ConfigError`."""
        if not self.secure:
            return None
        try:
            context = ssl.create_default_context(cafile=None if self.authority is None else str(self.authority))
        except (OSError, ssl.SSLError) as why:
            raise ConfigError(
                f"{self.authority} cannot be used: {why}. Put the CA of the proxy there as PEM, readable by the "
                "agent's user"
            ) from why
        context.sslobject_class = _ProxyTls
        return context


def _address(proxy: str, folder: Path) -> tuple[bool, str, int]:
    if "@" in proxy:
        raise ConfigError(
            "agent.toml: proxy holds a user or a password: leave only http(s)://host:port there, and write "
            f"user:password into {folder / CREDENTIALS} (chmod 600)"
        )
    found = _FORM.fullmatch(proxy)
    port = 0 if found is None else int(found[3] or _PORTS[found[1]])
    if found is None or not 1 <= port <= 65535:
        raise ConfigError("agent.toml: proxy is not an address: write it as http(s)://host:port and nothing behind it")
    return found[1] == "https", found[2].strip("[]"), port


def _login(path: Path) -> Login | None:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as why:
        raise ConfigError(
            f"{path} cannot be read ({why.strerror}): make it a file of the agent's user, mode 600"
        ) from why
    return _parsed(data, path)


def _parsed(data: bytes, path: Path) -> Login:
    """Nothing of the content is said: half a password is one too many."""
    try:
        user, colon, password = data.decode("utf-8").removesuffix("\n").removesuffix("\r").partition(":")
    except UnicodeDecodeError:
        user, colon, password = "", "", ""
    if len(data) > _MOST_BYTES or not (user and colon) or not (user + password).isprintable():
        raise ConfigError(f"{path} is not one line `user:password` in UTF-8: write it so, the agent reads nothing else")
    return Login(user, password)

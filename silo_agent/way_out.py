"""The way out through a proxy: where it stands, how we log in to it, whom its own TLS is believed from.

The address stands in agent.toml. The login is a secret and stands apart, in `proxy.credentials` of the state folder:
one line `user:password` (RFC 7617), mode 0600. The CA of a proxy that speaks TLS itself may lie beside it as
`proxy.pem`; without it the machine's own store decides.
"""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from silo_agent.errors import ConfigError
from silo_agent.login import Login, read_login

CREDENTIALS, AUTHORITY = "proxy.credentials", "proxy.pem"
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
        return cls(secure, host, port, read_login(folder / CREDENTIALS), authority if authority.exists() else None)

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

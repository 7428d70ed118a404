"""A user and a password for somebody else's server, from a file of their own: one line `user:password`, mode 0600."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

from silo_agent.errors import ConfigError

_MOST_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Login:
    """`repr` shows neither."""

    user: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of Authorization or Proxy-Authorization: Basic, UTF-8 (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def read_login(path: Path) -> Login | None:
    """Read it anew; None where there is no such file. Raises `ConfigError`, without any secret."""
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

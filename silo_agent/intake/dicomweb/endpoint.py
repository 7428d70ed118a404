"""Where an archive is, how we log in to it, and whom its certificate is believed from.

The address stands in the configuration. The login is a secret and stands apart, in a file of one line `user:password`
(RFC 7617), mode 0600.
"""

import re
import ssl
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from silo_agent.intake.dicomweb.errors import ArchiveNotTrusted, NotDicomweb
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.preflight.way_out import Login

_LABEL = r"[A-Za-z0-9_-]{1,63}"
_FORM = re.compile(  # within what silo_agent.policy.sections allows
    rf"https?://(?:{_LABEL}(?:\.{_LABEL})*|\[([0-9A-Fa-f:.]+)\])(?::(\d{{1,5}}))?(?:/[A-Za-z0-9._~/-]*)?", re.ASCII
)
_MOST_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An archive's DICOMweb root, for example https://pacs.hospital.example/dicom-web.

    `credentials` is the file with the login; where it is not there, none is sent. `authority` is the PEM file of the
    only CA that is believed; without it the machine's own store decides.
    """

    url: str
    credentials: Path | None = None
    authority: Path | None = None

    def root(self) -> str:
        """Return the address with a slash at its end. Raises `NotDicomweb` without repeating what is no address."""
        found = _FORM.fullmatch(self.url)
        if found is None or not _is_address(found[1]) or not 1 <= int(found[2] or 1) <= 65535:
            raise NotDicomweb(
                "source.url of the data set is not an address: write it as http(s)://host:port/path, with a user and "
                "a password in the credentials file and nothing behind the path"
            )
        return self.url.rstrip("/") + "/"

    def login(self) -> Login | None:
        """Read the credentials anew. Raises `ArchiveDenied`, without any secret."""
        if self.credentials is None:
            return None
        try:
            if self.credentials.stat().st_mode & 0o077:
                raise ArchiveDenied(f"{self.credentials} can be read by others: run `chmod 600 {self.credentials}`")
            data = self.credentials.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as why:
            raise ArchiveDenied(
                f"{self.credentials} cannot be read ({why.strerror}): make it a file of the agent's user, mode 600"
            ) from why
        return _parsed(data, self.credentials)

    def context(self) -> ssl.SSLContext:
        """Raises `ArchiveNotTrusted` when the CA file cannot be used."""
        if self.url.startswith("http://"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used, and would trust nobody
        try:
            return ssl.create_default_context(cafile=None if self.authority is None else str(self.authority))
        except (OSError, ssl.SSLError) as why:
            raise ArchiveNotTrusted(
                f"{self.authority} cannot be used ({why.strerror}): put the CA of the archive there as PEM, readable "
                "by the agent's user"
            ) from why


def _is_address(ipv6: str | None) -> bool:
    try:
        return ipv6 is None or bool(IPv6Address(ipv6))
    except ValueError:
        return False


def _parsed(data: bytes, path: Path) -> Login:
    """Nothing of the content is said: half a password is one too many."""
    try:
        user, colon, password = data.decode("utf-8").removesuffix("\n").removesuffix("\r").partition(":")
    except UnicodeDecodeError:
        user, colon, password = "", "", ""
    if len(data) > _MOST_BYTES or not (user and colon) or not (user + password).isprintable():
        raise ArchiveDenied(f"{path} is not one line `user:password` in UTF-8: write it so")
    return Login(user, password)

"""Where an archive is, how we log in to it, and whom its certificate is believed from.

The address stands in the configuration. The login is a secret and stands apart, in a file of one line `user:password`
(RFC 7617), mode 0600.
"""

import re
import ssl
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import urlsplit

from silo_agent.errors import ConfigError
from silo_agent.intake.dicomweb.errors import ArchiveNotTrusted, NotDicomweb
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.login import Login, read_login

_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_FORM = re.compile(
    rf"https?://(?:{_LABEL}(?:\.{_LABEL})*|\[([0-9A-Fa-f:.]+)\])(?::(\d{{1,5}}))?(?:/[A-Za-z0-9._~/-]*)?", re.ASCII
)


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
        try:
            return None if self.credentials is None else read_login(self.credentials)
        except ConfigError as why:
            raise ArchiveDenied(str(why)) from why

    @property
    def is_open(self) -> bool:
        """Whether a login would go through a network in clear."""
        return self.url.startswith("http://") and urlsplit(self.url).hostname not in _THIS_MACHINE

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

"""What the checks look at and how: the state folder, the machine, and the ways to ask the network.

All of it is handed in, so that a test can put any machine and any network in place. Reading is on demand: a check
names in the ladder what must have been well before it, and what is wrong all the same raises an `AgentError`.
"""

import asyncio
import re
import shutil
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from boundary.api import Invitation
from silo_agent.config import AgentConfig, load_config
from silo_agent.daemon import RELAY_URL
from silo_agent.destination import by_policy
from silo_agent.enrolment import read_invitation
from silo_agent.errors import ConfigError, NotEnrolled
from silo_agent.journal import Journal
from silo_agent.preflight.line import Line, dial
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder
from silo_agent.way_out import WayOut

PROBE_MODULE = "silo_agent.preflight.child_probe"
_RELAY = re.compile(r"https://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?/?", re.ASCII)


class Address(NamedTuple):
    """Where the relay listens; `host` has no brackets."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where this machine tells of itself: proc(5), cgroup v2, the shared memory's file system.

    `usage` gives (total, used, free) in bytes, as `shutil.disk_usage` does.
    """

    meminfo: Path = Path("/proc/meminfo")
    memory_limit: Path = Path("/sys/fs/cgroup/memory.max")
    shared_memory: Path = Path("/dev/shm")  # noqa: S108 - looked at, nothing is written there
    usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage


async def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port)
    return sorted({str(entry[4][0]) for entry in found})


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything a check may use. Seconds are limits: on one step of the network, and on one command of the child."""

    folder: StateFolder
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    version: str
    resolve: Callable[[str, int], Awaitable[list[str]]] = _resolve
    connect: Callable[[str, int, float], Awaitable[Line]] = dial
    machine: Machine = field(default_factory=Machine)
    network_seconds: float = 15.0
    child_seconds: float = 180.0  # torch and MONAI from a cold, slow disk; a share that hangs
    probe: str = PROBE_MODULE
    invitation: Path | None = (
        None  # a file, before enrolment: its relay and CA are tried instead of those that were kept
    )

    @property
    def config(self) -> AgentConfig:
        """agent.toml. Raises `ConfigError`."""
        return load_config(self.folder.root)

    @property
    def way_out(self) -> WayOut | None:
        """The proxy, if there is one. Raises `ConfigError`."""
        proxy = self.config.proxy
        return None if proxy is None else WayOut.of(proxy, self.folder.root)

    @property
    def tls_files(self) -> TlsFiles:
        return TlsFiles(self.folder.tls_certificate, self.folder.tls_key, self.folder.relay_ca)

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """The agent's journal, which is never made here. Raises `NotEnrolled`."""
        if not self.folder.journal.exists():
            raise NotEnrolled("this agent is not enrolled")
        journal = Journal(self.folder.journal, self.config.site)
        try:
            yield journal
        finally:
            journal.close()

    def fact(self, name: str) -> bytes:
        """What the journal keeps under a name. Raises `NotEnrolled` when there is nothing."""
        with self.journal() as journal:
            kept = journal.fact(name)
        if kept is None:
            raise NotEnrolled("this agent is not enrolled")
        return kept

    @property
    def invited(self) -> Invitation | None:
        """Raises `ConfigError`, with nothing of the token that is in the file."""
        return None if self.invitation is None else read_invitation(self.invitation, self.config.site)

    @property
    def relay(self) -> Address:
        """Raises `NotEnrolled`, or `ConfigError` when what was kept is no address."""
        invited = self.invited
        found = _RELAY.fullmatch(self.fact(RELAY_URL).decode() if invited is None else invited.relay_url)
        if found is None:
            raise ConfigError("the relay's address in the journal is damaged: enrol again with a new invitation")
        return Address(found[1].strip("[]"), int(found[2] or 443))

    def pinned(self) -> ssl.SSLContext:
        """TLS as the agent asks for it: 1.3, and only the CA of enrolment or invitation. Raises `ConfigError`."""
        invited = self.invited
        if invited is None:
            return self.tls_files.context()
        try:
            context = ssl.create_default_context(cadata=invited.relay_ca_pem)
        except (ssl.SSLError, ValueError) as why:
            raise ConfigError(f"{self.invitation} holds no usable CA: ask the coordinator for a new one") from why
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def client(self) -> RelayClient:
        """The agent's own client of the relay: what it can do here the daemon can do."""
        return RelayClient(
            self.fact(RELAY_URL).decode(), self.tls_files, self.config.site, self.folder.identity,
            now=self.now, entropy=self.entropy, allow=by_policy(self.folder.root), proxy=self.config.proxy,
        )  # fmt: skip

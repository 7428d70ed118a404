"""What the tests of the preflight share: a proxy, a hospital that is enrolled, and a setting around it."""

import os
import secrets
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.authority import Authority
from infra.servers.connect_proxy import Proxy
from silo_agent.preflight.setting import Setting
from silo_agent.state import StateFolder, write_private


def serving(authority: Authority, folder: Path, *names: str) -> ssl.SSLContext:
    """A server's TLS with a certificate of this CA."""
    folder.mkdir(exist_ok=True)
    authority.issue_server(list(names)).save(folder / "server.pem", folder / "server.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


@pytest.fixture
def server_tls(tmp_path: Path) -> Callable[..., ssl.SSLContext]:
    return lambda authority, *names: serving(authority, tmp_path / secrets.token_hex(4), *names)


@pytest.fixture(scope="session")
def hospital_network() -> Authority:
    """The hospital's own CA, of its proxies."""
    return Authority.create("Hospital Network CA", clock=lambda: datetime.now(UTC), entropy=os.urandom)


@pytest.fixture
def make_proxy() -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(Proxy(**options))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def secure_proxy(make_proxy: Callable[..., Any], server_tls: Any, hospital_network: Authority) -> Any:
    """TLS to the proxy itself, of the hospital's CA, and a login."""
    return make_proxy(login="agent:s3cret:ü", tls=server_tls(hospital_network, "localhost"))


@pytest.fixture
def behind() -> Callable[..., None]:
    """Put a hospital behind a proxy, as its people would: agent.toml, proxy.credentials, proxy.pem."""

    def put(folder: StateFolder, proxy: Any, login: str | None = None, authority: Authority | None = None) -> None:
        path = folder.root / "agent.toml"
        lines = [line for line in path.read_text().splitlines() if not line.lstrip("# ").startswith("proxy = ")]
        url = proxy if isinstance(proxy, str) else proxy.url
        path.write_text("\n".join([lines[0], f'proxy = "{url}"', *lines[1:]]) + "\n")
        if login is not None:
            write_private(folder.root / "proxy.credentials", f"{login}\n".encode())
        if authority is not None:
            write_private(folder.root / "proxy.pem", authority.pem.encode())

    return put


@pytest.fixture
def setting_of() -> Callable[..., Setting]:
    def make(folder: StateFolder, **changes: Any) -> Setting:
        usual = {"now": lambda: datetime.now(UTC), "entropy": secrets.token_bytes, "version": "0.1.0"}
        return Setting(folder, **(usual | {"network_seconds": 5.0} | changes))

    return make


@pytest.fixture(scope="session")
def enrolled(federation: Any, hospital_data: Path, tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    """A hospital with data, enrolled with the real relay. Who changes it uses `site` instead."""
    folder: StateFolder = federation.enrolled(tmp_path_factory.mktemp("checked") / "state", "checked", hospital_data)[0]
    return folder


@pytest.fixture
def dialling(site: Any, hostile: Any, authority: Authority) -> StateFolder:
    """A hospital of this test's own, enrolled with the hostile relay."""
    site.enrol_offline(hostile.url, authority)
    folder: StateFolder = site.folder
    return folder

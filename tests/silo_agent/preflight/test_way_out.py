"""The proxy's address, login and CA: what is taken, and what is refused with its fix and without a secret."""

import base64
import ssl
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from silo_agent.errors import ConfigError
from silo_agent.way_out import CREDENTIALS, WayOut

SECRET = "hunter2"
ADDRESSES = {
    "plain": ("http://proxy.hospital.example:3128", ("http://proxy.hospital.example:3128", False)),
    "with TLS": ("https://proxy.hospital.example:8443/", ("https://proxy.hospital.example:8443", True)),
    "without a port": ("http://proxy", ("http://proxy:80", False)),
    "with TLS and without a port": ("https://proxy", ("https://proxy:443", True)),
    "an IPv6 address": ("http://[fd00::1]:3128", ("http://[fd00::1]:3128", False)),
}
NO_ADDRESSES = {
    "a password in it": (f"http://agent:{SECRET}@proxy:3128", "leave only http"),
    "a user in it": ("http://agent@proxy:3128", r"proxy\.credentials \(chmod 600\)"),
    "a path": ("http://proxy:3128/pac", "host:port and nothing behind it"),
    "a query": ("http://proxy:3128?x=1", "nothing behind it"),
    "another protocol": ("socks5://proxy:1080", "nothing behind it"),
    "a port that is none": ("http://proxy:99999", "nothing behind it"),
    "port zero": ("http://proxy:0", "nothing behind it"),
    "a line break": ("http://proxy:3128\nx", "nothing behind it"),
}
LOGINS = {
    "a line": (b"agent:pass\n", ("agent", "pass")),
    "no line break": (b"agent:pass", ("agent", "pass")),
    "a line of Windows": (b"agent:pass\r\n", ("agent", "pass")),
    "colons in the password": (b"agent:a:b", ("agent", "a:b")),
    "a domain": (b"HOSP\\agent:pass", ("HOSP\\agent", "pass")),
    "an empty password": (b"agent:", ("agent", "")),
}
NO_LOGINS = {
    "nothing": b"",
    "no colon": b"hunter2",
    "no user": b":hunter2",
    "two lines": b"agent:hunter2\nagent:hunter2\n",
    "no UTF-8": b"agent:hunter2\xff",
    "a zero byte": b"agent:hunter2\0",
    "very long": b"agent:" + b"hunter2" * 1000,
}


def written(folder: Path, data: bytes, mode: int = 0o600) -> Path:
    path = folder / CREDENTIALS
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("proxy", "taken"), ADDRESSES.values(), ids=ADDRESSES)
def test_addresses_that_are_taken(tmp_path: Path, proxy: str, taken: tuple[str, bool]) -> None:
    way = WayOut.of(proxy, tmp_path)
    assert (way.url, way.secure, way.login) == (*taken, None)
    assert (way.context() is not None) is way.secure


@pytest.mark.parametrize(("proxy", "says"), NO_ADDRESSES.values(), ids=NO_ADDRESSES)
def test_addresses_that_are_refused(tmp_path: Path, proxy: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        WayOut.of(proxy, tmp_path)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(("data", "taken"), LOGINS.values(), ids=LOGINS)
def test_logins_that_are_taken(tmp_path: Path, data: bytes, taken: tuple[str, str]) -> None:
    written(tmp_path, data)
    login = WayOut.of("http://proxy:1", tmp_path).login
    assert login is not None
    assert (login.user, login.password) == taken


@pytest.mark.parametrize("data", NO_LOGINS.values(), ids=NO_LOGINS)
def test_logins_that_are_refused_say_the_form_and_nothing_of_the_content(tmp_path: Path, data: bytes) -> None:
    written(tmp_path, data)
    with pytest.raises(ConfigError, match="is not one line `user:password` in UTF-8: write it so") as refused:
        WayOut.of("http://proxy:1", tmp_path)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_login_that_others_may_read_is_refused_with_the_command(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, b"agent:hunter2", mode)
    with pytest.raises(ConfigError, match=f"can be read by others: run `chmod 600 {path}`"):
        WayOut.of("http://proxy:1", tmp_path)


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / CREDENTIALS).mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="make it a file of the agent's user"):
        WayOut.of("http://proxy:1", tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    user=st.text("abcü\\. ", min_size=1, max_size=20), password=st.text("abc:ü\\$%& ", max_size=20),
)  # fmt: skip
def test_the_header_carries_exactly_what_the_file_says_and_no_repr_shows_it(
    tmp_path: Path, user: str, password: str
) -> None:
    written(tmp_path, f"{user}:{password}\n".encode())
    way = WayOut.of("http://proxy.example:1", tmp_path)
    assert way.login is not None
    assert base64.b64decode(way.login.header.removeprefix("Basic ")).decode() == f"{user}:{password}"
    assert repr(way.login) == "Login()"


def test_a_ca_beside_it_is_the_only_one_believed(tmp_path: Path, hospital_network: object) -> None:
    (tmp_path / "proxy.pem").write_text(hospital_network.pem)  # type: ignore[attr-defined]
    context = WayOut.of("https://proxy", tmp_path).context()
    assert isinstance(context, ssl.SSLContext)
    assert [dict(part[0] for part in one["subject"])["commonName"] for one in context.get_ca_certs()] == [
        "Hospital Network CA"
    ]


def test_a_ca_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "proxy.pem").write_text("no")
    with pytest.raises(ConfigError, match="Put the CA of the proxy there as PEM"):
        WayOut.of("https://proxy", tmp_path).context()

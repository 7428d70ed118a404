"""The way to the relay's door: names, ports, and every bad manner of a proxy, each with its fix."""

import asyncio
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silo_agent.preflight import line as line_module
from silo_agent.preflight import network
from silo_agent.preflight.finding import Check, Finding
from silo_agent.preflight.line import ProxyAnswer, read_answer
from silo_agent.preflight.setting import Setting
from silo_agent.state import StateFolder
from silo_agent.way_out import CREDENTIALS

SettingOf = Callable[..., Setting]


def outcome(look: Any, setting: Setting) -> tuple[str, str, str]:
    finding: Finding = asyncio.run(look(setting))
    return finding.verdict.value, finding.said, finding.fix


async def nowhere(host: str, port: int) -> list[str]:
    raise socket.gaierror(-2, "Name or service not known")


# --- names and ports ---------------------------------------------------------------------------------
def test_a_relay_that_answers_has_a_name_and_an_open_port(dialling: StateFolder, setting_of: SettingOf) -> None:
    setting = setting_of(dialling)
    assert outcome(network.names, setting)[0] == "ok"
    assert outcome(network.connection, setting)[:2] == ("ok", f"localhost port {setting.relay.port} is open")


def test_a_name_that_nobody_knows_is_the_network_teams(dialling: StateFolder, setting_of: SettingOf) -> None:
    verdict, said, fix = outcome(network.names, setting_of(dialling, resolve=nowhere))
    assert (verdict, "has no address here" in said, "DNS resolve localhost" in fix) == ("fail", True, True)


def test_behind_a_proxy_only_the_proxy_has_to_know_the_name(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any
) -> None:
    behind(dialling, make_proxy())
    assert outcome(network.names, setting_of(dialling, resolve=nowhere))[0] == "ok"
    verdict, said, fix = outcome(network.proxy, setting_of(dialling, resolve=nowhere))
    assert (verdict, "no address" in said, "Correct the proxy's name" in fix) == ("fail", True, True)


def test_a_port_that_nobody_opened_is_said_with_host_and_port(
    dialling: StateFolder, setting_of: SettingOf, hostile: Any
) -> None:
    async def closed(host: str, port: int, seconds: float) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    async def dropped(host: str, port: int, seconds: float) -> Any:
        raise TimeoutError

    for connect, says in ((closed, "Connection refused"), (dropped, "a firewall drops it silently")):
        verdict, said, fix = outcome(network.connection, setting_of(dialling, connect=connect))
        assert (verdict, says in said) == ("fail", True)
        assert f"allow this machine out to localhost port {hostile.url.rpartition(':')[2]} (TCP)" in fix


# --- a real proxy ------------------------------------------------------------------------------------
PROXIES: dict[str, tuple[dict[str, Any], str | None, str, str, str]] = {
    "lets everybody through": ({}, None, "ok", "without a login", ""),
    "lets us through with our login": ({"login": "u:p"}, "u:p", "ok", "with our login", ""),
    "wants a login and there is none": ({"login": "u:p"}, None, "fail", r"\(407\) and there is none", CREDENTIALS),
    "refuses our password": ({"login": "u:p"}, "u:wrong", "fail", r"refuses our user or password \(407\)", "Correct"),
    "wants another kind of login": (
        {"manners": "negotiate"}, "u:p", "fail", "by negotiate, ntlm; the agent logs in by Basic only", "Basic login",
    ),
    "forbids the relay": ({"manners": "refuse"}, "u:p", "fail", r"forbids localhost port \d+ \(403\)", "CONNECT to"),
    "cannot reach the relay": ({"manners": "unreachable"}, None, "fail", r"cannot reach .* itself \(503\)", "team why"),
    "shows a portal's page": ({"manners": "portal"}, None, "fail", "a web page, as a portal", "without the portal"),
    "is a web server": ({"manners": "page"}, None, "fail", "not a proxy's", "Correct proxy in agent.toml"),
    "closes at once": ({"manners": "close"}, None, "fail", "closes the connection without an answer", "CONNECT to"),
    "never answers": ({"manners": "hang"}, None, "fail", "no answer in time", "leave to reach it"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "login", "verdict", "says", "fix"), PROXIES.values(), ids=PROXIES)
def test_a_proxy_that(  # noqa: PLR0917 - fixtures
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any, options: dict[str, Any],
    login: str | None, verdict: str, says: str, fix: str,
) -> None:  # fmt: skip
    proxy = make_proxy(**options)
    behind(dialling, proxy, login)
    found = outcome(network.proxy, setting_of(dialling, network_seconds=0.5))
    assert found[0] == verdict, found
    assert re.search(says, found[1]), found
    assert fix in found[2], found
    assert "wrong" not in "".join(found)


def test_a_login_is_shown_only_to_a_proxy_that_asks_for_it_by_basic(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any
) -> None:
    proxy = make_proxy(login="u:p")
    behind(dialling, proxy, "u:p")
    for manners in ("forward", "negotiate", "refuse", "portal", "page"):
        proxy.manners = manners
        outcome(network.proxy, setting_of(dialling))
    assert [shown for _, shown in proxy.asked] == [False, True, False, False, False, False]


def test_a_proxy_with_tls_of_its_own_is_believed_by_its_ca(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, secure_proxy: Any, hospital_network: Any
) -> None:
    behind(dialling, secure_proxy, secure_proxy.login)
    verdict, said, fix = outcome(network.proxy, setting_of(dialling))
    assert (verdict, "not trusted" in said, "proxy.pem" in fix) == ("fail", True, True)
    assert secure_proxy.asked == []
    behind(dialling, secure_proxy, authority=hospital_network)
    assert outcome(network.proxy, setting_of(dialling))[:2] == (
        "ok",
        f"{secure_proxy.url} lets us through with our login",
    )


def test_https_before_a_proxy_that_speaks_no_tls_is_said(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any
) -> None:
    proxy = make_proxy()
    behind(dialling, proxy.url.replace("http:", "https:"))
    for cut in (False, True):  # it waits for the end of a request, or hangs up
        found = outcome(network.proxy, setting_of(dialling, network_seconds=1.0, connect=cutting(cut)))
        assert found[0] == "fail"
        assert "TLS to the proxy itself fails" in found[1], found
        assert "write http:// before it" in found[2]


def cutting(cut: bool) -> Any:
    """Dial as usual; the far end may be gone before a handshake begins."""

    async def dial(host: str, port: int, seconds: float) -> Any:
        line = await line_module.dial(host, port, seconds)
        if cut:
            await line.write(b"no request\r\n\r\n")  # what makes this proxy hang up
            await asyncio.sleep(0.2)
        return line

    return dial


CONFIGURED = {
    "a password in agent.toml": ("http://u:hunter2@localhost:1", "u:hunter2", "leave only http"),
    "a path behind it": ("http://localhost:1/x", None, "host:port and nothing behind it"),
}


@pytest.mark.parametrize(("url", "login", "says"), CONFIGURED.values(), ids=CONFIGURED)
def test_a_proxy_that_is_written_wrong(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, url: str, login: str | None, says: str
) -> None:
    behind(dialling, url, login)
    found = outcome(network.proxy, setting_of(dialling))
    assert found[0] == "fail"
    assert says in found[1]
    assert "hunter2" not in "".join(found)


def test_a_login_that_others_may_read_is_said_with_the_command(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any
) -> None:
    proxy = make_proxy(login="u:p")
    behind(dialling, proxy, "u:p")
    (dialling.root / CREDENTIALS).chmod(0o644)
    verdict, said, _ = outcome(network.proxy, setting_of(dialling))
    assert verdict == "fail"
    assert f"run `chmod 600 {dialling.root / CREDENTIALS}`" in said
    assert proxy.asked == []


# --- its answer, as bytes ----------------------------------------------------------------------------
HEADS = {
    "an open tunnel": (b"HTTP/1.1 200 OK\r\n\r\n", ProxyAnswer(200)),
    "an old one": (b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", ProxyAnswer(200)),
    "no reason": (b"HTTP/1.1 200\r\n\r\n", ProxyAnswer(200)),
    "an empty content": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ProxyAnswer(200)),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", ProxyAnswer(200, page=True)),
    "a refusal with a page": (b"HTTP/1.1 403 No\r\nContent-Type: text/html\r\n\r\n<html>", ProxyAnswer(403)),
    "two logins": (
        b'HTTP/1.1 407 x\r\nPROXY-AUTHENTICATE: NTLM\r\nProxy-Authenticate: Basic realm="a"\r\n\r\n',
        ProxyAnswer(407, schemes=("ntlm", "basic")),
    ),
    "nothing": (b"", ProxyAnswer(0, silent=True)),
    "half a head": (b"HTTP/1.1 200 OK\r\nVia", ProxyAnswer(0)),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ProxyAnswer(0)),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", ProxyAnswer(0)),
}  # fmt: skip


@pytest.mark.parametrize(("head", "read"), HEADS.values(), ids=HEADS)
def test_an_answer_is_read_as(head: bytes, read: ProxyAnswer) -> None:
    assert read_answer(head) == read


@given(
    st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda rest: b"HTTP/1.1 200 " + rest + b"\r\n\r\n"))
)
def test_no_bytes_break_the_reading_and_only_a_clean_2xx_is_a_tunnel(head: bytes) -> None:
    answer = read_answer(head)
    assert not answer.is_open or head.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))
    finding = network.judge_proxy(answer, network.WayOut(secure=False, host="p", port=1), "r port 1", logged_in=False)
    assert (finding.verdict == "ok") is answer.is_open
    assert finding.check is Check.PROXY
    assert answer.is_open or finding.fix

"""Whose certificate is shown to us: the relay's own, or that of something between."""

import asyncio
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flows.authority import Authority
from silo_agent.preflight.finding import Check, Finding
from silo_agent.preflight.setting import Setting
from silo_agent.preflight.tls import tls
from silo_agent.state import StateFolder

SettingOf = Callable[..., Setting]


def looked(setting: Setting) -> Finding:
    finding: Finding = asyncio.run(tls(setting))
    return finding


def spki(pem: bytes) -> str:
    key = x509.load_pem_x509_certificate(pem).public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def test_the_relays_own_certificate_is_named_with_the_digest_of_its_key(
    enrolled: StateFolder, federation: Any, setting_of: SettingOf
) -> None:
    found = looked(setting_of(enrolled))
    assert found.verdict == "ok", found
    assert f"SPKI sha256:{spki((federation.home / 'keys' / 'relay.crt').read_bytes())}" in found.said
    assert found.said.endswith("TLSv1.3; named by the policy")


def test_a_proxy_that_opens_tls_is_found_named_and_told_to_the_network_team(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any, server_tls: Any,
    hospital_network: Authority, tmp_path: Path,
) -> None:  # fmt: skip
    proxy = make_proxy(manners="intercept", other=server_tls(hospital_network, "localhost"))
    behind(dialling, proxy)
    found = looked(setting_of(dialling))
    assert (found.check, found.verdict) == (Check.TLS, "fail")
    assert "issued by CN=Hospital Network CA" in found.said
    assert "Something between us opens TLS" in found.said
    assert "exempt localhost from TLS inspection" in found.fix


def test_an_interceptor_of_old_tls_is_still_seen_and_named(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any, server_tls: Any,
    hospital_network: Authority,
) -> None:  # fmt: skip
    context = server_tls(hospital_network, "localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    behind(dialling, make_proxy(manners="intercept", other=context))
    found = looked(setting_of(dialling))
    assert found.verdict == "fail"
    assert "issued by CN=Hospital Network CA" in found.said
    assert "exempt localhost" in found.fix


def test_nothing_of_ours_is_shown_to_what_opens_tls(  # noqa: PLR0917 - fixtures
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any, server_tls: Any,
    hospital_network: Authority, authority: Authority, tmp_path: Path,
) -> None:  # fmt: skip
    """It asks for a client certificate and would finish its handshake only with one."""
    context = server_tls(hospital_network, "localhost")
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where a client that has none to show ends the handshake
    context.verify_mode = ssl.CERT_REQUIRED
    (tmp_path / "ca.pem").write_text(authority.pem)
    context.load_verify_locations(tmp_path / "ca.pem")
    behind(dialling, make_proxy(manners="intercept", other=context))
    found = looked(setting_of(dialling))
    assert found.verdict == "fail"
    assert "does not finish a TLS handshake" in found.said


def at(authority: Authority, when: datetime) -> Authority:
    """The same CA at another time."""
    return Authority(authority.certificate, authority._key, lambda: when, os.urandom)


NOW = datetime.now(UTC)
DATES: dict[str, tuple[timedelta, Check, str, str]] = {
    "ran out": (timedelta(days=-366), Check.TLS, "has expired by our clock", "Compare this machine's clock first"),
    "begins tomorrow": (timedelta(days=1), Check.CLOCK, "begins in the future", "Set this machine's clock by NTP"),
}


@pytest.mark.parametrize(("shift", "check", "says", "fix"), DATES.values(), ids=DATES)
def test_a_certificate_of_the_right_ca_that(  # noqa: PLR0917 - fixtures
    site: Any, authority: Authority, make_hostile: Any, setting_of: SettingOf, tmp_path: Path,
    shift: timedelta, check: Check, says: str, fix: str,
) -> None:  # fmt: skip
    """A wrong clock is no attack, and is not called one."""
    (tmp_path / "other").mkdir()
    server = make_hostile(at(authority, NOW + shift), tmp_path / "other")
    try:
        site.enrol_offline(server.url, authority)
        found = looked(setting_of(site.folder))
    finally:
        server.close()
    assert (found.check, found.verdict) == (check, "fail"), found
    assert says in found.said
    assert fix in found.fix
    assert "opens TLS" not in found.said


def test_a_certificate_of_the_right_ca_for_another_name_is_the_coordinators(
    site: Any, authority: Authority, make_hostile: Any, setting_of: SettingOf, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    server = make_hostile(authority, tmp_path / "other", "somebody.example")
    try:
        site.enrol_offline(server.url, authority)
        found = looked(setting_of(site.folder))
    finally:
        server.close()
    assert (found.verdict, "it is not for localhost" in found.said) == ("fail", True), found
    assert "Ask the coordinator" in found.fix


def test_a_name_that_draws_in_the_terminal_is_shown_as_its_escapes(
    site: Any, make_hostile: Any, authority: Authority, setting_of: SettingOf, tmp_path: Path
) -> None:
    evil = Authority.create("x\x1b[2J", clock=lambda: datetime.now(UTC), entropy=os.urandom)
    (tmp_path / "other").mkdir()
    server = make_hostile(evil, tmp_path / "other")
    try:
        site.enrol_offline(server.url, authority)
        found = looked(setting_of(site.folder))
    finally:
        server.close()
    assert found.verdict == "fail"
    assert "\x1b" not in found.said


def test_a_server_without_tls_does_not_finish_a_handshake(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any
) -> None:
    proxy = make_proxy(manners="forward")
    site_of_plain = make_proxy(manners="page")
    behind(dialling, proxy)
    setting = setting_of(dialling, network_seconds=2.0)
    object.__setattr__(setting, "connect", _to(site_of_plain.port, setting.connect))
    found = looked(setting)
    assert found.verdict == "fail"
    assert "exempt" in found.fix or "pass unopened" in found.fix


def _to(port: int, connect: Any) -> Any:
    async def dial(host: str, _port: int, seconds: float) -> Any:
        return await connect(host, port, seconds)

    return dial

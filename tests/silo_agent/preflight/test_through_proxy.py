"""Joining and working through a hospital's proxy, with the real relay behind it."""

import asyncio
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from boundary.api import Heartbeat, PollRequest
from boundary.canonical import digest
from boundary.messages import BlobRef
from boundary.version import ProtocolRange
from flows.store import holdings
from flows.store.database import writing
from silo_agent.config import load_config, starting_config
from silo_agent.daemon import RELAY_URL
from silo_agent.destination import by_policy
from silo_agent.errors import ConfigError, RelayRefused, RelayUnreachable
from silo_agent.journal import Parcel
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder

LOGIN = "agent:s3cret:ü"
POLL = PollRequest(
    after=0,
    wait_seconds=0.0,
    heartbeat=Heartbeat(agent_version="0.1.0", protocol=ProtocolRange(), roster_version=10_000),
)


def client(folder: StateFolder, url: str, silo: str, now: Any = lambda: datetime.now(UTC)) -> RelayClient:
    tls = TlsFiles(folder.tls_certificate, folder.tls_key, folder.relay_ca)
    return RelayClient(
        url, tls, silo, folder.identity, now=now, entropy=secrets.token_bytes, allow=by_policy(folder.root),
        proxy=load_config(folder.root).proxy,
    )  # fmt: skip


def once(relay: RelayClient) -> Any:
    async def talk() -> Any:
        async with relay:
            return await relay.poll(POLL)

    return asyncio.run(talk())


def new_hospital(federation: Any, root: Path, silo: str) -> StateFolder:
    folder = StateFolder(root)
    folder.create(secrets.token_bytes, starting_config(silo, threads=1, heartbeat=1.0))
    federation.allow(folder, silo, root, root)
    return folder


def test_an_agent_enrols_polls_and_moves_blobs_through_an_https_proxy_that_wants_a_login(
    federation: Any, secure_proxy: Any, hospital_network: Any, behind: Any, tmp_path: Path
) -> None:
    folder = new_hospital(federation, tmp_path / "state", "walled-in")
    behind(folder, secure_proxy, LOGIN, hospital_network)
    config = load_config(folder.root)
    asking = federation.enrolment(folder, config, federation.invite("walled-in", tmp_path))

    async def join() -> bool:
        assert not await asking.ask_and_wait(0, lambda: None)
        federation.admit(folder, "walled-in")
        return await asking.ask_and_wait(5, lambda: None)

    assert asyncio.run(join())
    data, model = os.urandom(3_000_000), os.urandom(500_000)
    blob: BlobRef = federation.put(model)
    with writing(federation.coordinator.store) as connection:
        holdings.grant(connection, blob, giver="coordinator", reader="walled-in")
    (tmp_path / "sealed").write_bytes(data)
    parcel = Parcel(1, "slot", "study", "masked-vector", b"{}", str(tmp_path / "sealed"), digest(data), len(data))

    async def work() -> int:
        async with client(folder, federation.coordinator.settings.relay.url, "walled-in") as relay:
            assert (await relay.poll(POLL)).roster_version >= 1
            with pytest.raises(RelayRefused, match="MALFORMED"):  # `{}` is no envelope; its blob went before it
                await relay.send(parcel)
            await relay.download(blob, tmp_path / "model.safetensors")
            return relay.traffic.up

    assert asyncio.run(work()) == len(data)
    with federation.coordinator.blobs.open(parcel.blob_digest) as stored:
        assert stored.read() == data
    assert (tmp_path / "model.safetensors").read_bytes() == model
    assert secure_proxy.asked, "all of it went through the proxy"
    assert set(secure_proxy.asked) == {(f"localhost:{federation.port}", True)}
    assert secure_proxy.moved > len(data) + len(model)


def test_the_daemon_takes_its_login_from_the_same_file(
    site: Any, hostile: Any, authority: Any, make_proxy: Any, behind: Any
) -> None:
    """The daemon hands over `proxy` from agent.toml and nothing else."""
    site.enrol_offline(hostile.url, authority)
    hostile.answers["/v1/poll"] = b'{"deliveries": [], "roster_version": 1}'
    proxy = make_proxy(login="u:p")
    behind(site.folder, proxy, "u:p")
    url = site.journal.fact(RELAY_URL).decode()
    assert once(client(site.folder, url, "st-olavs")).roster_version == 1
    assert proxy.asked == [(url.removeprefix("https://"), True)]


REFUSALS = {
    "it wants a login and there is none": ("forward", None, r"write user:password into .*proxy\.credentials"),
    "it refuses our password": ("forward", "u:wrong-one", r"refuses our login: correct .*proxy\.credentials"),
    "it forbids the relay": ("refuse", "u:p", "does not let us through to https://localhost.*403"),
    "it cannot reach the relay": ("unreachable", "u:p", "does not let us through to https://localhost.*503"),
}


@pytest.mark.parametrize(("manners", "login", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_proxy_refuses_is_said_with_its_fix_and_without_the_password(
    dialling: StateFolder, hostile: Any, make_proxy: Any, behind: Any, manners: str, login: str | None, says: str
) -> None:  # fmt: skip
    behind(dialling, make_proxy(login="u:p", manners=manners), login)
    with pytest.raises(RelayUnreachable, match=says) as stopped:
        once(client(dialling, hostile.url, "st-olavs"))
    assert "wrong-one" not in str(stopped.value)


def test_a_refused_password_is_not_tried_again_at_once_lest_the_account_be_locked(
    dialling: StateFolder, hostile: Any, make_proxy: Any, behind: Any
) -> None:
    """A heartbeat every ten seconds would lock a directory's account within a minute."""
    proxy = make_proxy(login="u:p")
    behind(dialling, proxy, "u:wrong")
    now = [datetime(2026, 11, 20, 12, tzinfo=UTC)]
    asked = []

    async def insist() -> None:
        async with client(dialling, hostile.url, "st-olavs", lambda: now[0]) as relay:
            for minutes in (0, 1, 13, 2):
                now[0] += timedelta(minutes=minutes)
                with pytest.raises(RelayUnreachable, match="refuse"):
                    await relay.poll(POLL)
                asked.append(len(proxy.asked))

    asyncio.run(insist())
    assert asked == [1, 1, 1, 2]


def test_a_proxy_without_our_trust_is_not_taken_for_a_false_coordinator(
    dialling: StateFolder, hostile: Any, secure_proxy: Any, behind: Any
) -> None:
    """A wrong coordinator ends the agent for good; a missing proxy.pem must not."""
    behind(dialling, secure_proxy, LOGIN)
    with pytest.raises(RelayUnreachable, match=r"proxy's own certificate is not trusted .* as proxy\.pem into"):
        once(client(dialling, hostile.url, "st-olavs"))
    assert secure_proxy.asked == [], "and the login was not shown to it"


WRITTEN_WRONG: dict[str, tuple[str, int, str]] = {
    "a password in agent.toml": ("http://u:hunter2@localhost:1", 0o600, "leave only http"),
    "a login that others may read": ("http://localhost:1", 0o640, r"run `chmod 600 .*proxy\.credentials`"),
}


@pytest.mark.parametrize(("url", "mode", "says"), WRITTEN_WRONG.values(), ids=WRITTEN_WRONG)
def test_the_agent_does_not_start_with(
    dialling: StateFolder, hostile: Any, behind: Any, url: str, mode: int, says: str
) -> None:
    behind(dialling, url, "u:hunter2")
    (dialling.root / "proxy.credentials").chmod(mode)
    with pytest.raises(ConfigError, match=says) as stopped:
        client(dialling, hostile.url, "st-olavs")
    assert stopped.value.exit_code == 2
    assert "hunter2" not in str(stopped.value)

"""The agent dials what the policy names, with the key that it names, and nothing else."""

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from boundary.api import Heartbeat
from boundary.version import ProtocolRange
from infra.hospitals.policy import destination_of
from silo_agent.destination import by_policy, entry_of
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.model import parse_policy
from silo_agent.policy.sections import Destination
from silo_agent.relay_client import RelayClient, TlsFiles

BEAT = Heartbeat(agent_version="0.1.0", protocol=ProtocolRange(), roster_version=1)


def beat(site: Any, url: str, times: int = 1, between: Callable[[], object] = lambda: None) -> None:
    async def talk() -> None:
        tls = TlsFiles(site.folder.tls_certificate, site.folder.tls_key, site.folder.relay_ca)
        async with RelayClient(
            url, tls, "st-olavs", site.folder.identity, now=lambda: datetime.now(UTC), entropy=secrets.token_bytes,
            allow=by_policy(site.root),
        ) as relay:  # fmt: skip
            for number in range(times):
                if number:
                    between()
                await relay.beat(BEAT)

    asyncio.run(talk())


@pytest.fixture
def relay(site: Any, hostile: Any, authority: Any) -> Any:
    site.enrol_offline(hostile.url, authority)
    hostile.answers["/v1/heartbeat"] = b""
    return hostile


def test_the_relay_that_is_named_is_dialled(site: Any, relay: Any) -> None:
    beat(site, relay.url)
    assert relay.asked["/v1/heartbeat"] == 1


CHANGES: dict[str, Callable[[Destination], Destination | None]] = {
    "no relay": lambda _: None,
    "another host": lambda one: one.model_copy(update={"host": "relay.example"}),
    "another port": lambda one: one.model_copy(update={"port": 443}),
    "another key": lambda one: one.model_copy(update={"spki_sha256": "ab" * 32}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_where_the_policy_names_something_else_no_request_is_sent(site: Any, relay: Any, change: Any) -> None:
    """Though the certificate is of the CA that enrolment pinned."""
    named = change(destination_of(relay.url))
    site.allow(relay=[] if named is None else [named])
    with pytest.raises(PolicyRefused, match=r"\[network\] does not name localhost") as refused:
        beat(site, relay.url)
    assert refused.value.code == "DESTINATION_NOT_ALLOWED"
    assert "/v1/heartbeat" not in relay.asked


def test_taken_out_of_the_policy_it_is_not_asked_again_over_a_connection_that_is_open(site: Any, relay: Any) -> None:
    with pytest.raises(PolicyRefused):
        beat(site, relay.url, 2, lambda: site.allow(relay=[]))
    assert relay.asked["/v1/heartbeat"] == 1


def test_without_a_policy_nothing_is_dialled(site: Any, relay: Any) -> None:
    (site.root / "approvers.json").unlink()
    with pytest.raises(PolicyRefused, match="no policy is in force"):
        beat(site, relay.url)


def test_the_line_that_is_shown_is_what_the_policy_takes(site: Any, relay: Any) -> None:
    seen = destination_of(relay.url)
    line = entry_of(seen.host, seen.port, seen.spki_sha256)
    text = (site.root / "policy.toml").read_text()
    start, _, rest = text.partition('"allow" = [')
    policy = parse_policy((start + '"allow" = [' + line + rest[rest.index("]") :]).encode(), "policy.toml")
    assert policy.network.allow == (seen,)


def test_two_relays_may_be_named(site: Any, relay: Any) -> None:
    seen = destination_of(relay.url)
    site.allow(relay=[seen.model_copy(update={"spki_sha256": "ab" * 32}), seen])  # while its key is changed
    beat(site, relay.url)
    assert relay.asked["/v1/heartbeat"] == 1

"""Joining and renewing, against a real relay: nothing of the old is touched before the new is complete."""

import asyncio
import base64
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from boundary.canonical import canonical_bytes, parse_json
from boundary.identity import SigningIdentity
from silo_agent.config import AgentConfig, starting_config
from silo_agent.daemon import RELAY_URL, ROSTER, Surroundings
from silo_agent.enrolment import Enrolment, read_invitation
from silo_agent.errors import ConfigError, RelayRefused, RelayUnreachable, WrongCoordinator
from silo_agent.journal import Journal
from silo_agent.state import StateFolder


def nothing() -> None:
    pass


def ask(enrolment: Enrolment, seconds: float = 0) -> bool:
    return asyncio.run(enrolment.ask_and_wait(seconds, nothing))


def everything(folder: StateFolder) -> dict[str, bytes]:
    """All files but the journal's, which SQLite touches when it is looked at."""
    return {
        path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file() and "journal" not in path.name
    }


def facts(folder: StateFolder, silo: str) -> tuple[bytes | None, bytes | None]:
    journal = Journal(folder.journal, silo)
    try:
        return journal.fact(ROSTER), journal.fact(RELAY_URL)
    finally:
        journal.close()


def new(federation: Any, tmp_path: Path, impatient: Any, silo: str) -> tuple[StateFolder, AgentConfig]:
    folder = StateFolder(tmp_path / silo)
    folder.create(secrets.token_bytes, starting_config(silo, threads=1, heartbeat=1.0))
    federation.allow(folder, silo, tmp_path, tmp_path)
    return folder, impatient(folder)


def test_asking_again_later_goes_on_where_it_stopped(federation: Any, tmp_path: Path, impatient: Any) -> None:
    """Found by reading: a second `enrol` with the same invitation was a second request, and its token was used."""
    folder, config = new(federation, tmp_path, impatient, "bergen")
    invitation = federation.invite("bergen", tmp_path)
    assert not ask(federation.enrolment(folder, config, invitation))
    assert not ask(federation.enrolment(folder, config, invitation))
    assert facts(folder, "bergen") == (None, None)
    federation.admit(folder, "bergen")
    assert ask(federation.enrolment(folder, config, invitation), 5)
    assert facts(folder, "bergen")[0] == federation.roster().data
    assert {"enrol.json", "enrol.crt", "enrol.key", "enrol-ca.crt", "offered.crt"} & set(everything(folder)) == set()
    assert folder.tls_certificate.stat().st_mode & 0o777 == 0o600


def test_the_answer_may_be_lost_after_the_admission(federation: Any, tmp_path: Path, impatient: Any) -> None:
    folder, config = new(federation, tmp_path, impatient, "tromso")
    invitation = federation.invite("tromso", tmp_path)
    ask(federation.enrolment(folder, config, invitation))
    federation.admit(folder, "tromso")
    assert ask(federation.enrolment(folder, config, invitation)), "asked once more, after a crash"


def test_a_renewal_keeps_every_key_and_the_roster_and_changes_the_certificate(federation: Any, tmp_path: Path) -> None:
    folder, config = federation.enrolled(tmp_path / "state", "renewing")
    before, roster = everything(folder), federation.roster()
    invitation = federation.invite("renewing", tmp_path)
    assert not ask(federation.enrolment(folder, config, invitation))
    waiting = everything(folder)
    assert {name: waiting[name] for name in before} == before, "while it waits, the old certificate is in use"
    federation.admit(folder, "renewing")
    assert ask(federation.enrolment(folder, config, invitation), 5)
    after = everything(folder)
    assert {name for name in before if after[name] != before[name]} == {"tls.crt"}
    assert federation.roster().digest == roster.digest, "the same card needs no new roster"


def test_an_invitation_by_another_coordinator_changes_nothing(federation: Any, tmp_path: Path) -> None:
    """An attack: a file by mail, to an agent that has a coordinator."""
    folder, config = federation.enrolled(tmp_path / "state", "steadfast")
    invitation = federation.invite("steadfast", tmp_path)
    forged = parse_json(invitation.read_bytes()) | {"coordinator_key": SigningIdentity.generate().public.text}
    invitation.write_bytes(canonical_bytes(forged))
    before, known = everything(folder), facts(folder, "steadfast")
    with pytest.raises(WrongCoordinator, match="another coordinator than the one this agent is enrolled with"):
        ask(federation.enrolment(folder, config, invitation))
    assert (everything(folder), facts(folder, "steadfast")) == (before, known)


def test_an_invitation_with_another_ca_leaves_the_agents_own_in_place(
    federation: Any, tmp_path: Path, authority: Any
) -> None:
    """Found by reading: the relay's CA was replaced before anything was known of the new one."""
    folder, config = federation.enrolled(tmp_path / "state", "unmoved")
    invitation = federation.invite("unmoved", tmp_path)
    invitation.write_bytes(canonical_bytes(parse_json(invitation.read_bytes()) | {"relay_ca_pem": authority.pem}))
    before = folder.relay_ca.read_bytes()
    with pytest.raises(WrongCoordinator):
        ask(federation.enrolment(folder, config, invitation))
    assert folder.relay_ca.read_bytes() == before


def test_a_used_invitation_is_refused_by_the_relay(federation: Any, tmp_path: Path, impatient: Any) -> None:
    folder, config = new(federation, tmp_path, impatient, "bodo")
    invitation = federation.invite("bodo", tmp_path)
    ask(federation.enrolment(folder, config, invitation))
    thief, thiefs_config = StateFolder(tmp_path / "thief"), config
    thief.create(secrets.token_bytes, (folder.root / "agent.toml").read_text())
    federation.allow(thief, "bodo", tmp_path, tmp_path)
    with pytest.raises(RelayRefused, match="INVITATION_REFUSED"):
        ask(federation.enrolment(thief, thiefs_config, invitation))


ADMISSIONS: dict[str, tuple[dict[str, Any], str]] = {
    "without a certificate": ({"certificate_pem": None}, "without a certificate and a roster"),
    "without a roster": ({"roster": None}, "without a certificate and a roster"),
    "with a roster somebody else signed": ({"roster": "forged"}, "not the invited coordinator's"),
    "with a roster that names other keys for us": ({"roster": "other keys"}, "other keys for us than ours"),
    "with a certificate for another key": ({"certificate_pem": "another"}, "not for our key"),
    "with something that is no certificate": ({"certificate_pem": "no PEM"}, "not for our key"),
}


@pytest.mark.parametrize(("changes", "says"), ADMISSIONS.values(), ids=ADMISSIONS)
def test_an_admission_that_is_not_the_coordinators_changes_nothing(  # noqa: PLR0917 - fixtures
    site: Any, hostile: Any, authority: Any, tmp_path: Path, new_signer: Any, new_card: Any,
    changes: dict[str, Any], says: str,
) -> None:  # fmt: skip
    """The relay is somebody's server: what it says counts only with the coordinator's signature."""
    others = [card.model_copy() for card in site.cards[1:]]
    roster = {
        "forged": new_signer().roster(*site.cards).data,
        "other keys": site.coordinator.roster(new_card("st-olavs"), *others, version=2).data,
    }.get(changes.get("roster", "") or "", site.signed_roster.data)
    good = authority.issue_client(site.folder.csr("st-olavs"), "st-olavs").certificate_pem
    another = authority.issue_server(["st-olavs"]).certificate_pem
    content = {
        "state": "admitted",
        "certificate_pem": {"another": another, "no PEM": "no"}.get(changes.get("certificate_pem", "") or "", good),
        "roster": base64.b64encode(roster).decode(),
    } | {name: None for name, value in changes.items() if value is None}
    hostile.answers["/v1/enrolment"] = json.dumps(content).encode()
    invitation = authority.invite("st-olavs", hostile.url, site.coordinator.key.public)
    path = tmp_path / "invitation.json"
    path.write_bytes(canonical_bytes(invitation.model_dump(mode="json")))
    config = site.enrol_offline(hostile.url, authority)
    before = everything(site.folder)
    world = Surroundings(lambda: site.now, secrets.token_bytes, "0.1.0")
    with pytest.raises(WrongCoordinator, match=says):
        ask(Enrolment(config, site.folder, read_invitation(path, "st-olavs"), world))
    after = everything(site.folder)
    assert {name: after[name] for name in before} == before


def test_a_relay_that_is_away_is_said(federation: Any, site: Any, authority: Any, tmp_path: Path) -> None:
    invitation = authority.invite("st-olavs", "https://localhost:9", site.coordinator.key.public)
    path = tmp_path / "invitation.json"
    path.write_bytes(canonical_bytes(invitation.model_dump(mode="json")))
    with pytest.raises(RelayUnreachable):
        ask(federation.enrolment(site.folder, site.enrol_offline(invitation.relay_url, authority), path))


INVITATIONS = {
    "no such file": None,
    "not JSON": b"no",
    "something else": b"{}",
    "not UTF-8": b"\xff",
}


@pytest.mark.parametrize("content", INVITATIONS.values(), ids=INVITATIONS)
def test_a_file_that_is_no_invitation_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "invitation.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is not an invitation|cannot be read"):
        read_invitation(path, "st-olavs")


def test_anothers_invitation_is_said(authority: Any, tmp_path: Path) -> None:
    invitation = authority.invite("charite", "https://localhost:9", SigningIdentity.generate().public)
    path = tmp_path / "invitation.json"
    path.write_bytes(canonical_bytes(invitation.model_dump(mode="json")))
    with pytest.raises(ConfigError, match="the invitation is for charite, this agent is st-olavs"):
        read_invitation(path, "st-olavs")

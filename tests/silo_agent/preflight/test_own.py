"""The agent's own files: every fault a hospital has made, with the class it falls in and its fix."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from silo_agent.daemon import ROSTER
from silo_agent.preflight import own
from silo_agent.preflight.finding import Finding
from silo_agent.preflight.setting import Setting
from silo_agent.state import StateFolder

SettingOf = Callable[..., Setting]


def looked(look: Any, setting: Setting) -> Finding:
    finding: Finding = asyncio.run(look(setting))
    return finding


LOOKS = [own.config, own.state, own.keys, own.enrolment, own.certificate]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: str(look.__name__))
def test_a_hospital_as_it_should_be_has_no_finding(enrolled: StateFolder, setting_of: SettingOf, look: Any) -> None:
    found = looked(look, setting_of(enrolled))
    assert (found.verdict, found.fix) == ("ok", ""), found


def spoilt(path: Path, data: bytes = b"no") -> None:
    path.write_bytes(data)


FAULTS: dict[str, tuple[Any, Callable[[Path], Any], str, str]] = {
    "agent.toml is not there": (
        own.config,
        lambda root: (root / "agent.toml").unlink(),
        "silo-agent init",
        "agent.toml",
    ),
    "agent.toml is no TOML": (own.config, lambda root: spoilt(root / "agent.toml"), "cannot be read", "agent.toml"),
    "agent.toml has an unknown key": (
        own.config,
        lambda root: spoilt(root / "agent.toml", b'version = 1\nsite = "x"\ncolour = 1\n[dataset]\n'),
        "colour: unknown key",
        "agent.toml",
    ),
    "the folder is open to the group": (own.state, lambda root: root.chmod(0o750), "open to others", "chmod 700"),
    "a file of root's lies in it": (
        own.state,
        lambda root: os.chown(root / "agent.toml", 12345, -1),
        "belongs to another user",
        "chown",
    ),
    "the folder is another user's": (
        own.state,
        lambda root: os.chown(root, 12345, -1),
        "belongs to user 12345",
        "sudo -u",
    ),
    "the cache folder is not there": (
        own.state,
        lambda root: (root / "cache").rmdir(),
        "cache is not there",
        "mkdir -m 700",
    ),
    "the identity is lost": (own.keys, lambda root: (root / "identity.pem").unlink(), "identity.pem", "backup"),
    "the identity is readable by others": (
        own.keys,
        lambda root: (root / "identity.pem").chmod(0o644),
        "read by others",
        "chmod 600",
    ),
    "the steward's key is damaged": (own.keys, lambda root: spoilt(root / "steward.pem"), "damaged", "backup"),
    "the sealing key is damaged": (own.keys, lambda root: spoilt(root / "sealing.key"), "damaged", "backup"),
    "the key of the data is short": (own.keys, lambda root: spoilt(root / "dataset.key"), "2 bytes, not 32", "backup"),
    "the TLS key is damaged": (own.keys, lambda root: spoilt(root / "tls.key"), "damaged", "backup"),
    "the TLS key is lost": (own.keys, lambda root: (root / "tls.key").unlink(), "tls.key", "backup"),
    "the agent never enrolled": (
        own.enrolment,
        lambda root: (root / "tls.crt").unlink(),
        "not enrolled",
        "silo-agent enrol",
    ),
    "the certificate is damaged": (
        own.certificate,
        lambda root: spoilt(root / "tls.crt"),
        "certificate",
        "all keys are kept",
    ),
    "the relay's CA is lost": (
        own.certificate,
        lambda root: (root / "relay-ca.crt").unlink(),
        "relay-ca.crt cannot be used",
        "all keys are kept",
    ),
}


@pytest.mark.parametrize(("look", "spoil", "says", "fix"), FAULTS.values(), ids=FAULTS)
def test_it_is_said_that(
    dialling: StateFolder, setting_of: SettingOf, look: Any, spoil: Callable[[Path], Any], says: str, fix: str
) -> None:
    before = looked(look, setting_of(dialling))
    assert before.verdict == "ok", before
    spoil(dialling.root)
    found = looked(look, setting_of(dialling))
    assert (found.verdict, says in found.said, fix in found.fix) == ("fail", True, True), found


def test_a_folder_that_is_not_there_or_no_folder_is_said(tmp_path: Path, setting_of: SettingOf) -> None:
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path / "none", "No such file"), (tmp_path / "file", "is not a folder")):
        found = looked(own.state, setting_of(StateFolder(path)))
        assert (found.verdict, says in found.said) == ("fail", True), found
        assert "--state" in found.fix


def test_a_disk_of_its_own_may_have_its_lost_and_found(dialling: StateFolder, setting_of: SettingOf) -> None:
    (dialling.root / "lost+found").mkdir()
    os.chown(dialling.root / "lost+found", 12345, -1)
    assert looked(own.state, setting_of(dialling)).verdict == "ok"


def test_a_damaged_journal_or_roster_is_said(site: Any, dialling: StateFolder, setting_of: SettingOf) -> None:
    site.journal.set_fact(ROSTER, b"no roster")
    found = looked(own.enrolment, setting_of(dialling))
    assert (found.verdict, "roster in the journal is damaged" in found.said) == ("fail", True)
    site.journal.close()
    for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"):
        (dialling.root / name).unlink(missing_ok=True)
    spoilt(dialling.journal, b"no database" * 1000)
    found = looked(own.enrolment, setting_of(dialling))
    assert (found.verdict, "not a database" in found.said, "backup" in found.fix) == ("fail", True, True), found


def test_a_check_makes_no_journal(tmp_path: Path, dialling: StateFolder, setting_of: SettingOf, site: Any) -> None:
    site.journal.close()
    for path in dialling.root.glob("journal.sqlite*"):
        path.unlink()
    assert looked(own.enrolment, setting_of(dialling)).verdict == "fail"
    assert not dialling.journal.exists()
    with pytest.raises(sqlite3.ProgrammingError):
        site.journal.fact("x")


DAYS = {"31 days before": (31, "ok"), "30 days": (29.9, "warn"), "14 days": (13, "warn"), "7 days": (6, "warn"),
        "an hour before": (0.05, "warn"), "the end": (0, "fail"), "a year after": (-365, "fail")}  # fmt: skip


@pytest.mark.parametrize(("days", "verdict"), DAYS.values(), ids=DAYS)
def test_the_certificate_is_warned_of_and_then_fails_at(
    dialling: StateFolder, setting_of: SettingOf, days: float, verdict: str
) -> None:
    from silo_agent.certificate import read_certificate

    ends = read_certificate(dialling.tls_certificate).expires_at
    found = looked(own.certificate, setting_of(dialling, now=lambda: ends - timedelta(days=days)))
    assert found.verdict == verdict
    assert ("silo-agent enrol INVITATION" in found.fix) is (verdict != "ok")


def test_an_old_roster_is_a_warning(site: Any, dialling: StateFolder, setting_of: SettingOf) -> None:
    late = site.signed_roster
    from boundary.roster import TrustedRoster

    ends = TrustedRoster.kept(late.data).roster.expires_at
    found = looked(own.enrolment, setting_of(dialling, now=lambda: ends))
    assert (found.verdict, "expired" in found.said) == ("warn", True)

"""What people type, and what the process says when it ends."""

import fcntl
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from boundary.canonical import canonical_bytes
from boundary.plan import study_id
from compliance.accountant import epsilon
from flows.store import members
from flows.store.database import reading
from silo_agent import cli
from silo_agent.budget import terms_of
from silo_agent.cli import app
from silo_agent.errors import ConfigError
from silo_agent.journal import SCHEMA_VERSION
from silo_agent.policy.model import parse_policy
from silo_agent.releases import reserve
from silo_agent.state import StateFolder

run = CliRunner()


def commands() -> Iterator[list[str]]:
    top = typer.main.get_command(app)
    yield []
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        yield [name]
        for inner in getattr(command, "commands", {}):
            yield [name, inner]


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: " ".join(["silo-agent", *command]))
def test_every_command_explains_itself(command: list[str]) -> None:
    said = run.invoke(app, [*command, "--help"])
    assert said.exit_code == 0
    assert len(said.output.splitlines()) > 5


def agent(*arguments: str | Path, program: str = "silo-agent") -> subprocess.CompletedProcess[str]:
    """The installed command, as hospital IT runs it."""
    return subprocess.run(
        [Path(sys.executable).parent / program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def init(state: Path, data: Path, site: str = "st-olavs") -> Any:
    return run.invoke(app, ["init", "--site", site, "--dicom", str(data), "--labels", str(data), "--state", str(state)])


# --- init --------------------------------------------------------------------------------------------
def test_init_makes_keys_and_says_what_to_do_next(tmp_path: Path) -> None:
    said = init(tmp_path / "state", tmp_path)
    assert said.exit_code == 0, said.output
    assert re.search(r"fingerprint: ([0-9a-f]{4} ){15}[0-9a-f]{4}", said.output)
    assert "have both people sign it" in said.output


def test_the_consoles_passphrase_is_shown_at_a_terminal_only(tmp_path: Path) -> None:
    """Elsewhere it would end up in the log of whatever runs `init`."""
    said = init(tmp_path / "state", tmp_path)
    assert "console --new-login" in said.output
    assert not (tmp_path / "state" / "console.login").exists()
    piped = run.invoke(app, ["console", "--new-login", "--state", str(tmp_path / "state")])
    assert "at a terminal only" in str(piped.exception)
    assert not (tmp_path / "state" / "console.login").exists()


def test_a_new_passphrase_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path / "state", tmp_path)
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    shown = run.invoke(app, ["console", "--new-login", "--state", str(tmp_path / "state")])
    assert re.search(r"shown this once: ([0-9a-z]{5}-){3}[0-9a-z]{5}$", shown.output.strip())
    assert (tmp_path / "state" / "console.login").stat().st_mode & 0o777 == 0o600


def test_a_wrong_site_name_can_be_corrected(tmp_path: Path) -> None:
    """Found by reading: keys were made before the name was looked at, and the second try was refused."""
    first = init(tmp_path / "state", tmp_path, site="St Olavs")
    assert isinstance(first.exception, ConfigError)
    assert "site: has to be a short name" in str(first.exception)
    assert not (tmp_path / "state").exists()
    assert init(tmp_path / "state", tmp_path).exit_code == 0


def test_init_never_replaces_keys(tmp_path: Path) -> None:
    init(tmp_path / "state", tmp_path)
    before = (tmp_path / "state" / "identity.pem").read_bytes()
    assert isinstance(init(tmp_path / "state", tmp_path).exception, ConfigError)
    assert (tmp_path / "state" / "identity.pem").read_bytes() == before


def test_init_writes_a_policy_that_allows_nothing_yet_and_waits_for_the_second_person(tmp_path: Path) -> None:
    arguments = ["--site", "st-olavs", "--dicom", str(tmp_path), "--labels", str(tmp_path), "--dataset", "chest-ct"]
    said = run.invoke(app, ["init", *arguments, "--most-patients", "1200", "--state", str(tmp_path / "state")])
    assert said.exit_code == 0, said.output
    path = tmp_path / "state" / "policy.toml"
    with pytest.raises(ConfigError, match=r"approvers\.keys\.1"):
        parse_policy(path.read_bytes(), "policy.toml")
    made = run.invoke(app, ["policy", "key", str(tmp_path / "it.pem")])
    path.write_text(path.read_text().replace("ed25519:...", made.output.strip()))
    policy = parse_policy(path.read_bytes(), "policy.toml")
    assert (policy.network.allow, policy.study, policy.privacy.required) == ((), {}, True)
    assert policy.dataset["chest-ct"].n_max_patients == 1200
    assert (tmp_path / "state" / "excluded.hmac").read_bytes() == b""


@pytest.mark.parametrize("number", ["0", "-1", "10000001"])
def test_init_refuses_a_number_of_patients_that_cannot_be(tmp_path: Path, number: str) -> None:
    arguments = ["--site", "st-olavs", "--dicom", str(tmp_path), "--labels", str(tmp_path), "--most-patients", number]
    said = run.invoke(app, ["init", *arguments, "--state", str(tmp_path / "state")])
    assert said.exit_code == 2
    assert "--most-patients" in said.output
    assert not (tmp_path / "state").exists()


def test_a_missing_folder_is_said_before_anything_is_made(tmp_path: Path) -> None:
    said = init(tmp_path / "state", tmp_path / "nowhere")
    assert "the DICOM folder" in str(said.exception)
    assert not (tmp_path / "state").exists()


# --- exit codes --------------------------------------------------------------------------------------
def open_folder(site: Any) -> None:
    site.folder.root.chmod(0o755)


def open_key(site: Any) -> None:
    (site.folder.root / "identity.pem").chmod(0o644)


def unknown_key(site: Any) -> None:
    path = site.folder.root / "agent.toml"
    path.write_text(path.read_text() + "\nlisten = 80\n")


def damaged_journal(site: Any) -> None:
    site.journal.close()
    site.folder.journal.with_name("journal.sqlite-wal").unlink(missing_ok=True)
    site.folder.journal.write_bytes(b"no database" * 1000)


def no_ca(site: Any) -> None:
    site.folder.relay_ca.unlink()


def damaged_roster(site: Any) -> None:
    site.journal.set_fact("roster", b"[]")


def newer_journal(site: Any) -> None:
    site.journal._db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")


def not_enrolled(site: Any) -> None:
    site.folder.tls_certificate.unlink()


def no_policy(site: Any) -> None:
    (site.folder.root / "approvers.json").unlink()


def unsigned_change(site: Any) -> None:
    path = site.folder.root / "policy.toml"
    path.write_text(path.read_text().replace("Mon-Sun 00:00-24:00", "Mon 00:00-24:00"))


def older_policy(site: Any) -> None:
    """From a backup, with all its signatures."""
    names = ("policy.toml", "policy.sig", "approvers.json")
    before = {name: (site.folder.root / name).read_bytes() for name in names}
    site.allow(least=4)
    site.permission().in_force()
    for name, data in before.items():
        (site.folder.root / name).write_bytes(data)


def running(site: Any) -> None:
    site.lock = (site.folder.root / "lock").open("w")
    fcntl.flock(site.lock, fcntl.LOCK_EX)


ENDS: dict[str, tuple[Callable[[Any], None], int, str]] = {
    "the state folder is open to others": (open_folder, 2, "run `chmod 700"),
    "a key can be read by others": (open_key, 2, "run `chmod 600"),
    "no policy was ever signed": (no_policy, 6, "run `silo-agent policy begin`"),
    "the policy was changed by one hand": (unsigned_change, 6, "this is not the policy in force"),
    "the policy is an older one": (older_policy, 6, "was replaced by number"),
    "agent.toml has an unknown key": (unknown_key, 2, "unknown key"),
    "the journal is damaged": (damaged_journal, 2, "never delete it"),
    "the relay's CA is missing": (no_ca, 2, "relay-ca.crt cannot be used"),
    "the roster in the journal is damaged": (damaged_roster, 2, "all keys are kept"),
    "another agent runs": (running, 2, "another silo-agent already runs"),
    "the agent is not enrolled": (not_enrolled, 3, "run `silo-agent enrol INVITATION` first"),
    "the journal is a newer agent's": (newer_journal, 5, "install the newer agent again"),
}


@pytest.mark.parametrize(("prepare", "code", "says"), ENDS.values(), ids=ENDS)
def test_run_ends_with_a_code_and_one_line(
    site: Any, authority: Any, prepare: Callable[[Any], None], code: int, says: str
) -> None:
    site.lock = None
    site.enrol_offline("https://localhost:9", authority)
    prepare(site)
    ended = agent("run", "--state", site.folder.root)
    if site.lock:
        site.lock.close()
    assert (ended.returncode, ended.stdout) == (code, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("silo-agent: ")
    assert says in line


def test_a_state_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    for command in (["run"], ["status"], ["plan", "list"], ["plan", "show", "x"]):
        ended = agent(*command, "--state", tmp_path / "nowhere")
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        assert "run `silo-agent init` first" in ended.stderr


ERRORS = {
    "a journal that another process holds": sqlite3.OperationalError("database is locked"),
    "a full disk": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("why", ERRORS.values(), ids=ERRORS)
def test_trouble_with_the_disk_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: Exception
) -> None:
    def fail() -> None:
        raise why

    umask = os.umask(0o077)
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    os.umask(umask)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("silo-agent: the state folder or its disk: ")


# --- status and plans --------------------------------------------------------------------------------
def invoke(site: Any, *arguments: str) -> str:
    said = run.invoke(app, [*arguments, "--state", str(site.folder.root)], env={"COLUMNS": "250"})
    if said.exception is not None and not isinstance(said.exception, SystemExit):
        raise said.exception
    return said.output


def test_status_before_and_after_enrolment(site: Any, authority: Any) -> None:
    assert "not enrolled: silo-agent enrol INVITATION" in invoke(site, "status")
    site.enrol_offline("https://localhost:9", authority)
    said = invoke(site, "status")
    assert re.search(r"relay +https://localhost:9", said)
    assert re.search(r"last contact +never", said)
    assert re.search(r"certificate +valid until", said)
    assert re.search(r"roster +version 1 of 4 hospitals, until", said)
    assert "TROUBLE" not in said


def test_status_tells_what_does_not_work_at_present(site: Any, authority: Any) -> None:
    site.enrol_offline("https://localhost:9", authority)
    site.journal.set_fact("trouble listen", b"since 2026-11-20: https://localhost:9: refused")
    site.folder.tls_certificate.write_bytes(b"no")
    site.journal.set_fact("roster", b"[]")
    said = invoke(site, "status")
    assert re.search(r"TROUBLE listen +since 2026-11-20: https://localhost:9: refused", said)
    assert re.search(r"certificate +TROUBLE", said)
    assert re.search(r"roster +TROUBLE: damaged", said)


def test_run_tells_a_person_where_it_says_what_it_does(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal it was silent: nobody could tell whether it worked."""
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    monkeypatch.setattr(cli, "_log_to", lambda *_, **__: None)  # its handler lives as long as the process
    said = run.invoke(app, ["run", "--state", str(site.root)]).output
    assert f"st-olavs runs; its log is {site.folder.log}" in said


def test_status_shows_rounds_and_everything_that_has_left(site: Any) -> None:
    site.approve()
    site.masked()
    said = invoke(site, "status")
    assert re.search(rf"{site.study}/1/train/1 .* masked", said)
    assert re.search(rf"masked-vector/{site.study}/1/train/1 .* waiting .* 60 ", said)


def test_a_plan_from_arrival_to_approval_and_back(site: Any) -> None:
    assert "Plans" in invoke(site, "plan", "list")
    site.propose()
    assert "wait: our data are being checked" in invoke(site, "plan", "list")
    site.scanned()
    site.forbid("study")
    said = invoke(site, "plan", "show", "ct-contrast@1")
    assert "STUDY_NOT_ALLOWED" in said
    assert "plan approve" not in said, "it would be refused"
    site.allow()
    assert "--reason" in invoke(site, "plan", "show", "ct-contrast@1")
    assert f"approved {site.study}: sha256:" in invoke(site, "plan", "approve", site.study, "--reason", "agreed")
    assert "approved" in invoke(site, "plan", "list")
    assert f"declined {site.study}" in invoke(site, "plan", "decline", site.study, "--reason", "stop")
    assert [message.kind for message in site.outbox()] == ["plan-approved", "plan-declined"]


def test_a_rescan_after_a_correction(site: Any) -> None:
    site.propose()
    site.scanned("no '1'")
    assert "will check our data" in invoke(site, "plan", "rescan", site.study)
    assert site.journal.plan(site.study).state == "received"


# --- the budget --------------------------------------------------------------------------------------
def spend(site: Any, number: int, *, kept: bool) -> None:
    terms = terms_of(site.plan, site.permission().dataset(site.plan))
    assert terms is not None
    release = reserve(site.journal, terms, site.collection(number), 1, site.now)
    if kept:
        release.commit(site.journal, site.now)


def two_studies(site: Any, make_plan_for: Any, private: Any) -> list[str]:
    """One has trained two rounds and lost one, the other has trained one."""
    site.approve()
    for number, kept in ((1, True), (2, True), (3, False)):
        spend(site, number, kept=kept)
    first = site.study
    site.plan = make_plan_for(site.cards, revision=2, **private(noise_multiplier=None, epsilon=0.7))
    site.study = study_id(site.plan)
    site.approve()
    spend(site, 1, kept=True)
    return [first, site.study]


def test_the_budget_is_shown_per_study_and_for_all_together(
    private_site: Any, make_plan_for: Any, private: Any
) -> None:
    first, second = two_studies(private_site, make_plan_for, private)
    said = invoke(private_site, "budget")
    assert re.search(rf"{first} .* 0\.68 .* 8 .*█░+.*2 trained, 1 lost, 3 fit", said)
    assert re.search(rf"{second} .* 0\.43 .* 0\.7 .*█+░+.*1 trained, 2 fit", said)
    lifetime = epsilon(private_site.journal.ledger.of_population("everybody"), 1e-3)
    assert re.search(rf"everybody .* {lifetime:.2f} .* 16 .* 1\.0e-03", said)
    assert 0.68 < lifetime < 0.68 + 0.43, "computed anew from all events, not added up"


def test_the_budget_for_a_program(private_site: Any, make_plan_for: Any, private: Any) -> None:
    studies = two_studies(private_site, make_plan_for, private)
    told = [json.loads(line) for line in invoke(private_site, "budget", "--json").splitlines()]
    assert [one["study"] for one in told] == studies
    ledger = private_site.journal.ledger
    assert [one["epsilon"] for one in told] == [epsilon(ledger.of_study(study), 1e-3) for study in studies]
    assert {one["lifetime_epsilon"] for one in told} == {epsilon(ledger.of_population("everybody"), 1e-3)}
    assert [(one["cap"], one["lifetime_cap"], one["delta"]) for one in told] == [(8.0, 16.0, 1e-3), (0.7, 16.0, 1e-3)]
    assert [(one["committed"], one["reserved"], one["fits"]) for one in told] == [(2, 1, 3), (1, 0, 2)]


def test_without_a_private_study_there_is_nothing_to_show(site: Any, private_site: Any) -> None:
    nothing = "Nothing was spent: no plan with a guarantee per patient was approved here."
    assert invoke(site, "budget") == f"{nothing}\n"
    private_site.propose()
    private_site.scanned()
    assert invoke(private_site, "budget") == f"{nothing}\n", "not approved yet"
    assert not invoke(private_site, "budget", "--json")


def test_a_budget_that_cannot_be_told_any_more_is_said_with_its_reason(private_site: Any) -> None:
    """Found by reading: `[dataset.images]` was taken for markup and left out of the very sentence."""
    private_site.approve()
    private_site.allow(dataset="others")
    said = invoke(private_site, "budget")
    assert re.search(rf"{private_site.study} .*\? .*\? .*names no data set images: add \[dataset\.images\]", said)
    (told,) = (json.loads(line) for line in invoke(private_site, "budget", "--json").splitlines())
    assert told["unable"].startswith("the policy names no data set images")


def test_a_ledger_that_cannot_be_read_is_said_and_no_traceback(private_site: Any) -> None:
    private_site.approve()
    spend(private_site, 1, kept=True)
    for statement in ("DROP TRIGGER budget_is_never_refunded", "DELETE FROM budget"):
        private_site.journal._db.execute(statement)
    assert "the privacy ledger has 0 entries of 1: some are gone" in invoke(private_site, "budget")


def test_the_budget_says_nothing_of_how_many_patients_there_are(private_site: Any) -> None:
    private_site.approve()
    report = private_site.folder.cache / private_site.study / "report.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"patients": {"training": 4711, "holdout": 815}}))
    for how in ((), ("--json",)):
        said = invoke(private_site, "budget", *how)
        assert "4711" not in said
        assert "815" not in said


def test_an_invitation_is_read_before_anything_else(site: Any, authority: Any, tmp_path: Path) -> None:
    invitation = authority.invite("charite", "https://localhost:9", site.coordinator.key.public)
    path = tmp_path / "invitation.json"
    path.write_bytes(canonical_bytes(invitation.model_dump(mode="json")))
    with pytest.raises(ConfigError, match="the invitation is for charite"):
        invoke(site, "enrol", str(path))


def test_enrol_by_hand(federation: Any, tmp_path: Path, until: Any) -> None:
    """init, enrol in a terminal, admit on the other side, enrol again: renewal."""
    state = tmp_path / "state"
    init(state, tmp_path, site="by-hand")
    federation.allow(StateFolder(state), "by-hand", tmp_path, tmp_path)
    for expected in ("admitted: start the agent", "renewed: a running agent uses the new certificate"):
        invitation = federation.invite("by-hand", tmp_path)
        process = subprocess.Popen(
            [Path(sys.executable).parent / "silo-agent", "enrol", invitation, "--wait", "30", "--state", state],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

        def asks() -> bool:
            with reading(federation.coordinator.store) as connection:
                return any(member.silo == "by-hand" for member in members.waiting(connection))

        until(asks)
        federation.admit(StateFolder(state), "by-hand")
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert expected in said
        assert StateFolder(state).identity.public.fingerprint in said


def test_not_admitted_yet_is_no_disaster(federation: Any, tmp_path: Path) -> None:
    init(tmp_path / "state", tmp_path, site="patient")
    federation.allow(StateFolder(tmp_path / "state"), "patient", tmp_path, tmp_path)
    invitation = federation.invite("patient", tmp_path)
    for _ in range(2):
        ended = agent("enrol", invitation, "--wait", "0", "--state", tmp_path / "state")
        assert ended.returncode == 2
        assert "run the same command again later, nothing is lost" in ended.stderr

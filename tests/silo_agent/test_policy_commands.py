"""`silo-agent policy`, as two people use it."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from boundary.parties import last_round
from boundary.plan import digest_of, parse_plan
from compliance.trail import read_leaf
from silo_agent.cli import app
from silo_agent.errors import ConfigError
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.files import load_policy
from silo_agent.policy.proposing import papers_of, propose_plan

PAPERS = ["--irb", "2025/118", "--dpia", "sha256:" + "ab" * 32, "--expires", "2099-01-01"]


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def well(*words: object) -> str:
    done = run(*words)
    assert done.exit_code == 0, (words, done.output, done.exception)
    return str(done.output)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """After `init`, with the second person's key."""
    public = well("policy", "key", tmp_path / "it.pem").strip()
    state = tmp_path / "state"
    well("init", "--site", "st-olavs", "--dicom", tmp_path, "--labels", tmp_path, "--second-key", public,
         "--state", state)  # fmt: skip
    return state


@pytest.fixture
def ruled(hospital: Path) -> Path:
    """With its first policy in force."""
    sign(hospital)
    well("policy", "begin", "--state", hospital)
    return hospital


def sign(state: Path) -> None:
    well("policy", "sign", "--state", state)
    well("policy", "sign", "--role", "it_security", "--key", state.parent / "it.pem", "--state", state)


def propose(state: Path, old: str, new: str) -> None:
    text = (state / "policy.toml").read_text()
    assert old in text
    (state / "policy.proposed.toml").write_text(text.replace(old, new))


def test_a_key_is_for_its_person_alone_and_never_replaced(tmp_path: Path) -> None:
    well("policy", "key", tmp_path / "it.pem")
    assert (tmp_path / "it.pem").stat().st_mode & 0o777 == 0o600
    assert isinstance(run("policy", "key", tmp_path / "it.pem").exception, ConfigError)


def test_the_first_policy_takes_two_people(hospital: Path) -> None:
    well("policy", "sign", "--state", hospital)
    assert isinstance(run("policy", "begin", "--state", hospital).exception, PolicyRefused)
    sign(hospital)
    assert "in force: number 1" in well("policy", "begin", "--state", hospital)
    said = well("policy", "show", "--state", hospital)
    assert "none: no plan can run here" in " ".join(said.split())
    assert "data_steward, it_security" in " ".join(said.split())


def test_signing_on_another_machine(hospital: Path, tmp_path: Path) -> None:
    well("policy", "sign", "--state", hospital)
    well("policy", "sign", "--role", "it_security", "--key", tmp_path / "it.pem", "--text", hospital / "policy.toml",
         "--out", tmp_path / "it.sig")  # fmt: skip
    assert "signed by data_steward, it_security" in well("policy", "add", tmp_path / "it.sig", "--state", hospital)
    well("policy", "begin", "--state", hospital)


def test_a_later_policy_is_signed_on_another_machine_as_the_agent_says(ruled: Path, tmp_path: Path) -> None:
    """Its number is not 1: whoever sees only the text cannot know it."""
    propose(ruled, "max_epsilon_per_study = 6.0", "max_epsilon_per_study = 7.0")
    it, text = tmp_path / "it.pem", ruled / "policy.proposed.toml"
    elsewhere = ["policy", "sign", "--role", "it_security", "--key", it, "--text", text, "--out", tmp_path / "it.sig"]
    well("policy", "sign", "--state", ruled)
    well(*elsewhere)
    refused = run("policy", "add", tmp_path / "it.sig", "--state", ruled).exception
    assert "--number 2" in str(refused)
    assert "--number 2" in well("policy", "show", "--proposed", "--state", ruled)
    well(*elsewhere, "--number", 2)
    well("policy", "add", tmp_path / "it.sig", "--state", ruled)
    assert "in force: number 2" in well("policy", "adopt", "--state", ruled)


def test_a_signature_of_nobody_who_may_is_not_taken(hospital: Path, tmp_path: Path) -> None:
    """It would count for nothing, and look as if it did until the policy is put into force."""
    well("policy", "key", tmp_path / "other.pem")
    well("policy", "sign", "--role", "it_security", "--key", tmp_path / "other.pem",
         "--text", hospital / "policy.toml", "--out", tmp_path / "other.sig")  # fmt: skip
    before = [path.name for path in hospital.iterdir()]
    refused = run("policy", "add", tmp_path / "other.sig", "--state", hospital)
    assert isinstance(refused.exception, ConfigError)
    assert "is not the it_security's" in str(refused.exception)
    assert [path.name for path in hospital.iterdir()] == before


def test_a_second_key_that_is_none_is_said_by_init_and_a_missing_one_by_its_policy(tmp_path: Path) -> None:
    begin = ["init", "--site", "st-olavs", "--dicom", tmp_path, "--labels", tmp_path, "--state", tmp_path / "state"]
    refused = run(*begin, "--second-key", "ssh-ed25519 AAAA").exception
    assert "--second-key has to be a public key, as `silo-agent policy key FILE` prints it" in str(refused)
    assert not (tmp_path / "state").exists()
    well(*begin)
    unsigned = run("policy", "show", "--proposed", "--state", tmp_path / "state").exception
    assert "approvers.keys.1: has to be a public key, as `silo-agent policy key FILE` prints it" in str(unsigned)


def test_a_tightening_takes_one_signature_and_a_loosening_both(ruled: Path) -> None:
    propose(ruled, "max_epsilon_per_study = 6.0", "max_epsilon_per_study = 4.0")
    assert "TIGHTER" in well("policy", "show", "--proposed", "--state", ruled)
    well("policy", "sign", "--state", ruled)
    well("policy", "adopt", "--state", ruled)
    propose(ruled, "max_epsilon_per_study = 4.0", "max_epsilon_per_study = 5.0")
    well("policy", "sign", "--state", ruled)
    assert isinstance(run("policy", "adopt", "--state", ruled).exception, PolicyRefused)
    assert load_policy(ruled).policy.privacy.max_epsilon_per_study == 4.0
    sign(ruled)
    assert "in force: number 3" in well("policy", "adopt", "--state", ruled)


def test_each_that_comes_into_force_is_in_the_trail(ruled: Path) -> None:
    propose(ruled, "max_epsilon_per_study = 6.0", "max_epsilon_per_study = 4.0")
    well("policy", "sign", "--state", ruled)
    well("policy", "adopt", "--state", ruled)
    entries = [read_leaf(line.encode()).event for line in well("trail", "--json", "--state", ruled).splitlines()]
    assert [(one.number, one.how) for one in entries] == [(1, "signed"), (2, "tightened")]  # type: ignore[union-attr]
    assert entries[-1].policy == load_policy(ruled).digest  # type: ignore[union-attr]


def test_papers_that_are_no_digest_are_named_with_their_option(site: Any) -> None:
    site.forbid("study")
    site.propose()
    papers = ["--irb", "x" * 65, "--dpia", "DPIA-2025-7", "--expires", "2099-01-01"]
    refused = run("policy", "allow", "ct-contrast@1", *papers, "--state", site.root).exception
    assert isinstance(refused, ConfigError)
    assert "--irb: " in str(refused)
    assert "--dpia: has to be sha256: and the 64 small hexadecimal digits that `sha256sum FILE` prints" in str(refused)


def test_a_plan_is_allowed_by_two_people_who_read_it(site: Any, tmp_path: Path) -> None:
    site.forbid("study")
    site.propose()
    site.scanned()
    (tmp_path / "second.pem").write_bytes(site.second.to_pem())
    (tmp_path / "second.pem").chmod(0o600)
    well("policy", "allow", "ct-contrast@1", *PAPERS, "--state", site.root)
    shown = " ".join(well("policy", "show", "--proposed", "--state", site.root).split())
    assert "study.ct-contrast" in shown
    assert digest_of(site.plan)[:20] in shown.replace(" ", "")
    assert isinstance(run("policy", "allow", "ct-contrast@1", *PAPERS, "--state", site.root).exception, ConfigError)
    well("policy", "sign", "--state", site.root)
    well("policy", "sign", "--role", "it_security", "--key", tmp_path / "second.pem", "--state", site.root)
    well("policy", "adopt", "--state", site.root)
    well("plan", "approve", "ct-contrast@1", "--reason", "a test", "--state", site.root)
    again = run("policy", "allow", "ct-contrast@1", *PAPERS, "--state", site.root).exception
    assert "names exactly this plan already" in str(again)
    longer = site.plan.model_dump(mode="json") | {"revision": 2}
    longer["training"] |= {"rounds": last_round(site.plan) + 7}
    with pytest.raises(ConfigError, match=rf"its max_rounds is {last_round(site.plan)}, the plan has") as further:
        propose_plan(site.root, parse_plan(longer), papers_of("2025/118", "sha256:" + "ab" * 32, date(2099, 1, 1)), 9)
    assert digest_of(parse_plan(longer)) in str(further.value)


def test_pausing_is_said_and_done_once(site: Any) -> None:
    assert "nothing is computed until" in well("pause", "--state", site.root)
    assert "nothing changed" in well("pause", "--state", site.root)
    assert site.permission().is_paused
    assert "PAUSED" in well("status", "--state", site.root)
    assert "work goes on" in well("resume", "--state", site.root)
    assert site.events()[-2:] == ["work-paused", "work-resumed"]

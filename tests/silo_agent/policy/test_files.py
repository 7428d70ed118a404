"""The policy on a real disk: what is in force, how it changes, and what a crash or a curious neighbour leaves."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from silo_agent_tests_policies import IT, NOW, PAGE, STEWARD, STRANGER, a_policy, signed

from silo_agent.errors import AgentError, ConfigError
from silo_agent.policy import files as files_module
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.files import (
    PolicyFiles,
    add_signatures,
    adopt,
    begin,
    load_policy,
    next_number,
    sign,
    sign_here,
)
from silo_agent.policy.signing import to_json

TIGHTER = PAGE.replace("devices = 1", "devices = 0")
LOOSER = PAGE.replace("devices = 1", "devices = 2")


@pytest.fixture
def new(tmp_path: Path) -> PolicyFiles:
    """policy.toml is written and nobody has signed it."""
    files = PolicyFiles(tmp_path)
    files.policy.write_text(PAGE)
    return files


@pytest.fixture
def files(new: PolicyFiles) -> PolicyFiles:
    """The page's policy is in force."""
    sign_here(new.root, STEWARD, "data_steward")
    sign_here(new.root, IT, "it_security")
    begin(new.root, "st-olavs", NOW)
    return new


def test_a_signed_policy_is_pinned_and_loaded(files: PolicyFiles) -> None:
    force = load_policy(files.root)
    assert force.policy == a_policy()
    assert force.standing.pin.number == 1
    assert {path.name: path.stat().st_mode & 0o777 for path in (files.pin, files.signatures)} == {
        "approvers.json": 0o600,
        "policy.sig": 0o600,
    }


def test_without_all_signatures_nothing_begins(new: PolicyFiles) -> None:
    with pytest.raises(ConfigError, match="have the policy signed with `silo-agent policy sign`"):
        begin(new.root, "st-olavs", NOW)
    sign_here(new.root, STEWARD, "data_steward")
    with pytest.raises(PolicyRefused, match="one of it_security has to sign"):
        begin(new.root, "st-olavs", NOW)
    with pytest.raises(ConfigError, match="no policy is in force"):
        load_policy(new.root)


def test_a_policy_in_force_is_not_begun_again(files: PolicyFiles) -> None:
    with pytest.raises(ConfigError, match=r"Propose the new one in .*policy\.proposed\.toml"):
        begin(files.root, "st-olavs", NOW)


def test_a_tightening_takes_effect_at_once_with_one_signature(files: PolicyFiles) -> None:
    files.proposed.write_text(TIGHTER)
    sign_here(files.root, IT, "it_security")
    adopted = adopt(files.root, NOW)
    assert [(one.field, one.kind) for one in adopted.changed] == [("resources.devices", "tighter")]
    assert load_policy(files.root) == adopted.force
    assert adopted.force.policy.resources.devices == 0
    assert (adopted.force.standing.pin.number, adopted.force.standing.pin.how) == (2, "tightened")
    assert files.policy.read_text() == TIGHTER
    assert not files.proposed.exists()
    assert not files.proposed_signatures.exists()


def test_a_loosening_waits_for_the_second_while_the_old_one_works(files: PolicyFiles) -> None:
    files.proposed.write_text(LOOSER)
    sign_here(files.root, STEWARD, "data_steward")
    with pytest.raises(PolicyRefused, match="one of it_security has to sign"):
        adopt(files.root, NOW)
    assert load_policy(files.root).policy.resources.devices == 1
    add_signatures(files.root, to_json(sign(LOOSER.encode(), IT, "it_security", number=next_number(files.root))))
    assert adopt(files.root, NOW).force.policy.resources.devices == 2
    assert load_policy(files.root).standing.pin.how == "signed"


def test_a_policy_from_the_backup_does_not_come_back(files: PolicyFiles) -> None:
    old = files.policy.read_bytes(), files.signatures.read_bytes()
    files.proposed.write_text(TIGHTER)
    sign_here(files.root, IT, "it_security")
    adopt(files.root, NOW)
    files.policy.write_bytes(old[0])
    files.signatures.write_bytes(old[1])
    with pytest.raises(PolicyRefused) as refused:
        load_policy(files.root)
    assert refused.value.code == "POLICY_NOT_IN_FORCE"
    files.policy.write_text(TIGHTER)
    files.proposed.write_bytes(old[0])
    files.proposed_signatures.write_bytes(old[1])
    with pytest.raises(PolicyRefused) as refused:
        adopt(files.root, NOW)
    assert refused.value.code == "POLICY_ROLLED_BACK"


def test_a_draft_that_changed_loses_its_signatures(files: PolicyFiles) -> None:
    files.proposed.write_text(LOOSER)
    sign_here(files.root, STEWARD, "data_steward")
    files.proposed.write_text(LOOSER.replace("devices = 2", "devices = 8"))
    file = sign_here(files.root, IT, "it_security")
    assert [one.role for one in file.signatures] == ["it_security"]
    with pytest.raises(PolicyRefused, match="one of data_steward has to sign"):
        adopt(files.root, NOW)


@pytest.mark.parametrize("is_signed", [False, True])
def test_comments_change_without_a_signature(files: PolicyFiles, is_signed: bool) -> None:
    files.proposed.write_text("# read by the board\n" + PAGE)
    if is_signed:  # for the number after this one, which is not used up
        sign_here(files.root, STEWARD, "data_steward")
    assert adopt(files.root, NOW).changed == ()
    assert files.policy.read_text().startswith("# read by the board")
    assert load_policy(files.root).standing.pin.number == 1


WHO = {
    "a stranger": (STRANGER, "data_steward"),
    "an approver in another's role": (STEWARD, "it_security"),
    "a role that nobody has": (STEWARD, "dpo"),
}


@pytest.mark.parametrize(("key", "role"), WHO.values(), ids=WHO)
def test_who_is_no_approver_is_told_so_at_once(new: PolicyFiles, key: object, role: str) -> None:
    with pytest.raises(ConfigError, match="sign with the key that"):
        sign_here(new.root, key, role)  # type: ignore[arg-type]
    assert not new.signatures.exists()


def _edit(path: str, old: str, to: str) -> Callable[[PolicyFiles], None]:
    def do(files: PolicyFiles) -> None:
        file = files.root / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, to))

    return do


def _one_signature(files: PolicyFiles) -> None:
    files.signatures.write_bytes(to_json(signed(a_policy(), by="s")))


def _folder(files: PolicyFiles) -> None:
    files.signatures.unlink()
    files.signatures.mkdir()


def _emptied(files: PolicyFiles) -> None:
    files.pin.write_bytes(b"")


def _unpinned(files: PolicyFiles) -> None:
    files.pin.unlink()


TAMPERED: dict[str, tuple[Callable[[PolicyFiles], None], str]] = {
    "a limit was raised in the text": (_edit("policy.toml", "devices = 1", "devices = 9"), "not the policy in force"),
    "a limit was raised in the pin": (_edit("approvers.json", '"devices":1', '"devices":9'), "not the policy in force"),
    "the pin asks for less": (_edit("approvers.json", '"required":2', '"required":1'), "damaged: restore it"),
    "the pin's number was raised": (_edit("approvers.json", '"number":1', '"number":2'), "restore policy.sig"),
    "the pin has a key more": (_edit("approvers.json", '"v":1', '"trust":"me","v":1'), "damaged: restore it"),
    "the pin is empty": (_emptied, "damaged: restore it"),
    "the pin is gone": (_unpinned, "restore the file from the backup"),
    "others can read the pin": (lambda files: files.pin.chmod(0o644), "run `chmod 600"),
    "the policy is gone": (lambda files: files.policy.unlink(), "restore it from the backup"),
    "the signatures are gone": (lambda files: files.signatures.unlink(), "silo-agent policy sign"),
    "a signature is gone": (_one_signature, "one of it_security has to sign"),
    "the signatures are a folder": (
        _folder,
        "let the agent's user read it",
    ),
    "the policy does not parse": (_edit("policy.toml", "version = 1", "version = "), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "says"), TAMPERED.values(), ids=TAMPERED)
def test_what_was_tampered_with_is_not_in_force(
    files: PolicyFiles, tamper: Callable[[PolicyFiles], None], says: str
) -> None:
    tamper(files)
    with pytest.raises(AgentError, match=says):
        load_policy(files.root)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `silo-agent init` first"):
        load_policy(tmp_path / "nowhere")


def test_whoever_is_killed_while_adopting_finishes_later(files: PolicyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each write in turn. Old or new is in force, or nothing until it is finished; never half of one."""
    for survived in range(4):
        files.proposed.write_text(PAGE.replace("devices = 1", f"devices = {survived + 2}"))
        sign_here(files.root, STEWARD, "data_steward")
        sign_here(files.root, IT, "it_security")
        before = load_policy(files.root)
        _kill_after(survived, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            adopt(files.root, NOW)
        monkeypatch.undo()
        try:
            assert (load_policy(files.root) == before) == (survived == 0)
        except PolicyRefused as why:
            assert why.code in {"POLICY_NOT_IN_FORCE", "POLICY_ROLLED_BACK"}  # noqa: PT017 - or it is whole
        force = adopt(files.root, NOW).force
        assert load_policy(files.root) == force
        assert force.policy.resources.devices == survived + 2
        assert force.standing.pin.number == before.standing.pin.number + 1


def _kill_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [writes]
    write, unlink = files_module.write_private, Path.unlink

    def killed(path: Path, data: bytes) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, data)

    def killed_instead_of_removing(path: Path, *, missing_ok: bool = False) -> None:
        if left[0] == 0 and path.name == "policy.proposed.toml":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(files_module, "write_private", killed)
    monkeypatch.setattr(Path, "unlink", killed_instead_of_removing)


def test_nobody_reads_half_of_a_change(files: PolicyFiles) -> None:
    """A reader in another process waits for whoever holds the folder."""
    with files_module._held(files.root, files_module.fcntl.LOCK_EX):
        child = os.fork()
        if child == 0:
            handle = os.open(files.root, os.O_RDONLY)
            try:
                files_module.fcntl.flock(handle, files_module.fcntl.LOCK_SH | files_module.fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(7)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert load_policy(files.root)

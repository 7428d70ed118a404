"""The state folder: keys made here, for one user, whole or not there."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from silo_agent.errors import ConfigError
from silo_agent.state import StateFolder, write_private

KEYS = ["identity.pem", "steward.pem", "sealing.key", "dataset.key", "tls.key", "agent.toml"]


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    made.create(secrets.token_bytes, "version = 1")
    return made


def test_only_its_user_may_look_into_it(folder: StateFolder) -> None:
    assert folder.root.stat().st_mode & 0o777 == 0o700
    assert {name: (folder.root / name).stat().st_mode & 0o777 for name in KEYS} == dict.fromkeys(KEYS, 0o600)
    folder.check_private()


def test_an_identity_is_never_made_twice(folder: StateFolder) -> None:
    before = (folder.root / "identity.pem").read_bytes()
    with pytest.raises(ConfigError, match="already holds an identity; it survives every upgrade"):
        folder.create(secrets.token_bytes, "version = 1")
    assert (folder.root / "identity.pem").read_bytes() == before


def test_a_folder_that_only_root_can_make_is_said_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under /var/lib, whose owner the agent's user is not."""

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    state = tmp_path / "state"
    with pytest.raises(ConfigError) as refused:
        StateFolder(state).create(secrets.token_bytes, "version = 1")
    fix = f"have root make it, `install -d -m 700 -o {os.getuid()} {state}`"
    assert str(refused.value) == f"{state} cannot be made (Permission denied): {fix}"


def test_making_it_can_be_tried_again_after_a_crash(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")

    def power_cut(_: int) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.create(power_cut, "version = 1")
    folder.create(secrets.token_bytes, "version = 1")
    assert folder.identity.public


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770, 0o777])
def test_a_folder_open_to_others_is_refused_with_the_fix(folder: StateFolder, mode: int) -> None:
    folder.root.chmod(mode)
    with pytest.raises(ConfigError, match=r"run `chmod 700"):
        folder.check_private()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused_with_the_fix(folder: StateFolder, mode: int) -> None:
    (folder.root / "identity.pem").chmod(mode)
    with pytest.raises(ConfigError, match=r"run `chmod 600"):
        _ = folder.identity


READERS: dict[str, Callable[[StateFolder], Any]] = {
    "identity.pem": lambda folder: folder.identity,
    "steward.pem": lambda folder: folder.steward,
    "sealing.key": lambda folder: folder.unsealing,
    "tls.key": lambda folder: folder.csr("st-olavs"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_lost_or_damaged_key_is_said_with_the_fix(folder: StateFolder, name: str) -> None:
    path = folder.root / name
    path.write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(ConfigError, match="is damaged: restore it from the backup"):
        READERS[name](folder)
    path.unlink()
    with pytest.raises(ConfigError, match="run `silo-agent init` first"):
        READERS[name](folder)
    path.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="Run the agent as the user that owns its folder"):
        READERS[name](folder)


def test_the_request_for_a_certificate_names_the_hospital(folder: StateFolder) -> None:
    request = x509.load_pem_x509_csr(folder.csr("st-olavs").encode())
    assert request.subject.rfc4514_string() == "CN=st-olavs"


def test_one_agent_per_folder(folder: StateFolder) -> None:
    with folder.only_one(), pytest.raises(ConfigError, match="another silo-agent already runs"), folder.only_one():
        pytest.fail("two agents on one folder")
    with folder.only_one():
        pass


def test_a_private_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_private(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, b"new")
    monkeypatch.undo()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("key", b"old")]


def test_a_draft_that_others_could_read_is_not_written_into(tmp_path: Path) -> None:
    draft = tmp_path / "key.new"
    draft.touch(mode=0o666)
    write_private(tmp_path / "key", b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600

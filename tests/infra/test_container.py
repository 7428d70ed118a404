"""The agent's container: what its files promise, and what a trial (`python -m infra.container`) holds an image to."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from infra.container import __main__ as trial_command
from infra.container.building import Sources, build_options
from infra.container.trial import EXPECTED_FAILURES, TrialFailed, judge_changes, judge_check, judge_walls
from infra.container.walls import COMPOSE, UnknownWall, options, service
from silo_agent.cli import app

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "infra/container/Containerfile").read_text("utf-8")
FOLDERS = {"/var/lib/silo-agent": Path("/s"), "/data/ct": Path("/a")}


# --- the walls -------------------------------------------------------------------------------------------
def test_a_trial_has_every_wall_of_the_compose_file() -> None:
    assert options(service(), FOLDERS) == [
        "--init", "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL",
        "--security-opt=no-new-privileges:true", "--user=65532:65532", "--pids-limit=256", "--shm-size=256m",
        "--tmpfs=/tmp:mode=1777,size=256m", "--volume=/s:/var/lib/silo-agent", "--volume=/a:/data/ct:ro",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        {"privileged": True},
        {"cap_add": ["NET_ADMIN"]},
        {"network_mode": "host"},
        {"ports": ["8443:8443"]},
        {"read_only": False},
        {"init": "yes"},
        {"cap_drop": "ALL"},
        {"user": True},
        {"volumes": ["/srv/weights:/srv/weights:ro"]},
    ],
)
def test_what_a_trial_would_not_do_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(UnknownWall):
        options(service() | said, FOLDERS)


# --- the build -------------------------------------------------------------------------------------------
def test_without_any_option_the_image_is_built_of_what_is_documented() -> None:
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", CONTAINERFILE, re.MULTILINE))
    assert defaults == {
        "BASE": "docker.io/library/python:3.11-slim-bookworm",
        "TORCH_INDEX": "https://download.pytorch.org/whl/cpu",
    }
    assert set(re.findall(r"^FROM (\S+)", CONTAINERFILE, re.MULTILINE)) == {"${BASE}"}
    assert "syntax=" not in CONTAINERFILE, "a frontend would be fetched from docker.io, whatever BASE is"


def test_the_image_has_the_torch_of_the_package_and_the_versions_of_the_lock() -> None:
    agent = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["agent"]
    (torch,) = [one for one in agent if one.startswith("torch==")]
    assert set(re.findall(r"torch==\S+", CONTAINERFILE)) == {torch}
    assert torch in (ROOT / "infra/requirements.lock").read_text("utf-8").splitlines()
    assert "--constraint /src/infra/requirements.lock" in CONTAINERFILE


def test_every_call_of_pip_has_the_settings_and_nothing_of_them_is_copied() -> None:
    steps = re.findall(r"^RUN (?:.*\\\n)*.*$", CONTAINERFILE, re.MULTILINE)
    fetching = [step for step in steps if "pip install" in step]
    assert len(fetching) == 2
    for step in fetching:
        assert "--mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem" in step
    assert re.findall(r"^COPY (.*)$", CONTAINERFILE, re.MULTILINE) == [
        ". /src",
        "--from=build /opt/wardround /opt/wardround",
    ]


def test_pip_conf_and_ca_go_into_a_build_as_secrets(tmp_path: Path) -> None:
    sources = Sources(torch_index="", pip_conf=tmp_path / "p", ca=tmp_path / "c", mounts=[Path("/wheels")])
    assert build_options(sources, "mirror/python:3.11") == [
        "--build-arg=BASE=mirror/python:3.11", "--build-arg=TORCH_INDEX=",
        f"--secret=id=pip.conf,src={tmp_path / 'p'}", f"--secret=id=ca.pem,src={tmp_path / 'c'}",
        "--volume=/wheels:/wheels:ro",
    ]  # fmt: skip
    assert build_options(Sources(), "b") == ["--build-arg=BASE=b"]


# --- what a trial judges ---------------------------------------------------------------------------------
WELL = {
    "ids": ["65532"] * 8,
    "no_new_privs": "1",
    "capabilities": ["0" * 16],
    "writable": ["/var/lib/silo-agent", "/tmp"],
}


def test_walls_that_hold_pass() -> None:
    judge_walls(WELL)


@pytest.mark.parametrize(
    "said",
    [
        {"ids": ["0"] * 8},
        {"no_new_privs": "0"},
        {"capabilities": ["0" * 16, "00000000a80425fb"]},
        {"writable": ["/var/tmp", "/var/lib/silo-agent", "/tmp"]},
        {"writable": ["/tmp"]},
    ],
)
def test_a_wall_that_is_open_or_a_state_folder_that_is_shut_fails(said: dict[str, Any]) -> None:
    with pytest.raises(TrialFailed):
        judge_walls(WELL | said)


def findings(**verdicts: str) -> dict[str, Any]:
    well = dict.fromkeys(("state", "keys", "disk", "cache", "memory", "shm", "child"), "ok")
    expected = dict.fromkeys(EXPECTED_FAILURES, "fail")
    return {"findings": [{"check": c, "verdict": v} for c, v in (well | expected | verdicts).items()]}


def test_a_check_before_enrolment_passes_though_it_is_not_enrolled() -> None:
    judge_check(findings(relay="warn"))


@pytest.mark.parametrize("verdicts", [{"shm": "warn"}, {"child": "fail"}, {"archive": "fail"}])
def test_a_check_that_finds_anything_else_fails(verdicts: dict[str, str]) -> None:
    with pytest.raises(TrialFailed):
        judge_check(findings(**verdicts))


def test_only_what_podman_writes_may_be_written() -> None:
    judge_changes(["A /data", "A /data/ct", "C /etc", "C /etc/passwd"])
    with pytest.raises(TrialFailed, match="numba"):
        judge_changes(["C /etc", "A /var/tmp/numba_cache"])


def test_without_buildah_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "buildah" else f"/usr/bin/{name}")
    assert trial_command.main([]) == 2
    assert capsys.readouterr().err == "not installed: buildah\n"


def test_the_console_is_the_agent_with_the_hosts_network_and_only_when_asked_for() -> None:
    """Nothing publishes a port: the console listens on the host's 127.0.0.1 alone, and `up` does not start it."""
    services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    assert not [name for name, said in services.items() if "ports" in said or "expose" in said]
    assert [name for name, said in services.items() if "network_mode" in said] == ["console"]
    console = dict(services["console"])
    assert (console.pop("extends"), console.pop("profiles")) == ({"service": "agent"}, ["console"])
    assert set(console) == {"network_mode", "command"}, "its walls are the agent's"
    told = CliRunner().invoke(app, [*console["command"], "--help"])
    assert told.exit_code == 0

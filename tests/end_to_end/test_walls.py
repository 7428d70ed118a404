"""The agent in a container's walls: a read-only root, no capability, no network, and what the files say of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
CONTAINER = Path(__file__).resolve().parents[2] / "infra" / "container"


def walled(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    words = ["unshare", "--mount", "--net", "sh", CONTAINER / "walls.sh", folder, *command]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The only one that can be written to."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root and util-linux to build the walls")
    inner = tmp_path / "inner"
    inner.mkdir()
    if walled(inner, "true").returncode != 0:
        pytest.skip("this machine lets nobody make namespaces")
    return inner


def test_the_walls_hold(folder: Path, tmp_path: Path) -> None:
    assert "Read-only file system" in walled(folder, "touch", tmp_path / "outside").stderr
    assert walled(folder, "touch", folder / "inside").returncode == 0
    said = walled(folder, "cat", "/proc/self/status").stdout
    assert {line.split()[1] for line in said.splitlines() if line.startswith("Cap")} == {"0" * 16}
    assert walled(folder, "ls", "/sys/class/net").returncode == 0


def test_a_round_is_played_within_them(folder: Path) -> None:
    (folder / "dicom").mkdir()
    (folder / "labels.csv").touch()
    state = ("--state", folder / "state")
    begun = walled(
        folder, BIN / "silo-agent", "init", "--site", "st-olavs", "--dataset", "ct", "--dicom", folder / "dicom",
        "--labels", folder / "labels.csv", "--most-patients", "2000", *state,
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    played = walled(folder, BIN / "silo-agent", "rehearse", "--hospitals", "3", "--side", "32", *state)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "a round could be played here" in played.stdout


def test_the_container_is_nobody_in_particular_and_opens_no_port() -> None:
    text = (CONTAINER / "Containerfile").read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["65532:65532"]
    assert not re.search(r"^(EXPOSE|ADD)", text, re.MULTILINE)
    agent = yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"]["agent"]
    assert "ports" not in agent
    assert (agent["read_only"], agent["cap_drop"], agent["user"]) == (True, ["ALL"], "65532:65532")
    assert agent["security_opt"] == ["no-new-privileges:true"]
    (archive,) = [volume for volume in agent["volumes"] if not volume.endswith(":/var/lib/silo-agent")]
    assert archive.endswith(":ro")

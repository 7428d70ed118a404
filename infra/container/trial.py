"""Run an image of the agent within the walls of compose.yaml, as a hospital would before its first study."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.container.building import Engine
from infra.container.walls import options, service

STATE, ARCHIVE = "/var/lib/silo-agent", "/data/ct"
IMAGES, USER = 60, 65532
# podman-diff(1) without a word from the agent: where podman mounts, and whom it names
_OF_PODMAN = frozenset({"/data", "/data/ct", "/etc", "/etc/group", "/etc/passwd", "/run", "/run/podman-init"})
# Nobody has enrolled or signed yet, and there is no network: what `check` must find, and nothing else.
EXPECTED_FAILURES = frozenset({"enrolment", "policy"})
_MUST_BE_WELL = frozenset({"state", "keys", "disk", "cache", "memory", "shm", "child"})
_LOOK = """
import json, os
said = dict(line.split(":", 1) for line in open("/proc/self/status"))
def writable(place):
    try:
        open(os.path.join(place, "tried"), "w").close()
        os.unlink(os.path.join(place, "tried"))
    except OSError:
        return False
    return True
folders = ["/", "/etc", "/run", "/opt/wardround", "/var/tmp", "/data/ct", "/var/lib/silo-agent", "/tmp"]
print(json.dumps({
    "ids": said["Uid"].split() + said["Gid"].split(), "no_new_privs": said["NoNewPrivs"].strip(),
    "capabilities": sorted({said[key].strip() for key in said if key.startswith("Cap")}),
    "writable": [folder for folder in folders if writable(folder)],
}))
"""


class TrialFailed(Exception):
    """The image does not do what it must. The sentence says which step."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One image, and the two folders that a hospital mounts: `state`, and `archive` with dicom/ and labels.csv."""

    engine: Engine
    image: str
    state: Path
    archive: Path
    say: Callable[[str], None]

    def run(self) -> None:
        """Every step, to its end. Raises `TrialFailed`."""
        self._agent("--help")
        judge_walls(json.loads(self._inside(["--entrypoint=python"], "-c", _LOOK)))
        self.say("user, capabilities and writable folders are those of compose.yaml")
        said = self._agent(
            "init", "--site", "st-olavs", "--dataset", "chest-ct", "--dicom", f"{ARCHIVE}/dicom",
            "--labels", f"{ARCHIVE}/labels.csv",
        )  # fmt: skip
        self.say(said.splitlines()[0])
        judge_check(json.loads(self._agent("check", "--json", may_fail=True)))
        self.say("check: nothing fails but what has not been done yet")
        found = json.loads(self._agent("scan", f"{ARCHIVE}/dicom", "--json"))
        if found["used"] != IMAGES:
            raise TrialFailed(f"scan of {IMAGES} good images: {found}")
        self.say(f"scan: {found}")
        self.say(self._agent("rehearse", "--hospitals", "3", "--side", "32"))
        judge_changes(self._changes("rehearse", "--hospitals", "3", "--side", "32"))
        self.say("with a writable root it writes nothing there either")

    def _agent(self, *arguments: str, may_fail: bool = False) -> str:
        return self._inside([], *arguments, may_fail=may_fail)

    def _inside(self, more: Sequence[str], *arguments: str, may_fail: bool = False) -> str:
        walls = options(service(), {STATE: self.state, ARCHIVE: self.archive})
        done = self._podman("run", "--rm", *_limits(), *walls, *more, self.image, *arguments)
        if done.returncode != 0 and not may_fail:
            raise TrialFailed(f"{' '.join(arguments[:1])} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def _changes(self, *arguments: str) -> list[str]:
        """What the command writes into a root that lets it: lines of podman-diff(1)."""
        open_root = {key: value for key, value in service().items() if key != "read_only"}
        walls = options(open_root, {STATE: self.state, ARCHIVE: self.archive})
        name = "wardround-trial"
        done = self._podman("run", f"--name={name}", *_limits(), *walls, self.image, *arguments)
        try:
            if done.returncode != 0:
                raise TrialFailed(f"with a writable root: {done.stderr or done.stdout}")
            seen = self._podman("diff", name)
            if seen.returncode != 0:
                raise TrialFailed(f"podman diff: {seen.stderr}")
            return seen.stdout.splitlines()
        finally:
            self._podman("rm", "--force", name)

    def _podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        runtime = ["--runtime=runc"] if shutil.which("runc") else []  # crun refuses a cgroup tree of both versions
        words = self.engine.command("podman", *runtime, "--cgroup-manager=cgroupfs", "--events-backend=none")
        return subprocess.run([*words, *arguments], capture_output=True, text=True, check=False, timeout=600)


def _limits() -> list[str]:
    """No network, and limits that are below anybody's own: podman would raise them, which not every root may."""
    return ["--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]


def judge_walls(seen: dict[str, Any]) -> None:
    """What a process inside says of itself. Raises `TrialFailed`."""
    wanted = {
        "ids": [str(USER)] * 8, "no_new_privs": "1", "capabilities": ["0" * 16], "writable": [STATE, "/tmp"],  # noqa: S108
    }  # fmt: skip
    if wrong := {key: seen.get(key) for key in wanted if seen.get(key) != wanted[key]}:
        raise TrialFailed(f"the walls do not hold: {wrong}")


def judge_check(said: dict[str, Any]) -> None:
    """`silo-agent check --json` before enrolment and without a network. Raises `TrialFailed`."""
    verdicts = {one["check"]: one["verdict"] for one in said["findings"]}
    wrong = {check for check, verdict in verdicts.items() if verdict == "fail"} - EXPECTED_FAILURES
    wrong |= {check for check in _MUST_BE_WELL if verdicts.get(check) != "ok"}
    if wrong:
        raise TrialFailed(f"check: {sorted(wrong)}: {[one for one in said['findings'] if one['check'] in wrong]}")


def judge_changes(lines: Sequence[str]) -> None:
    """Lines of podman-diff(1), like `C /etc`. Raises `TrialFailed` for what the agent wrote."""
    if written := [line for line in lines if line.split(maxsplit=1)[1] not in _OF_PODMAN]:
        raise TrialFailed(f"written outside the state folder and /tmp: {written}")

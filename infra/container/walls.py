"""What compose.yaml says of the agent's service, as options of `podman run`: the same walls without a Docker engine.

Only keys that are known here are translated. One that is not is refused, so that no wall is left out of a trial unseen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).with_name("compose.yaml")
_OF_THE_ENGINE = frozenset({"image", "build", "pull_policy", "restart", "stop_grace_period"})  # which keeps it running
# without the second, podman lays writable folders over /run and /var/tmp, which Docker does not
_SWITCHED_ON = {"init": ["--init"], "read_only": ["--read-only", "--read-only-tmpfs=false"]}
_ONE = {"user": "--user", "pids_limit": "--pids-limit", "shm_size": "--shm-size"}
_EACH = {"cap_drop": "--cap-drop", "security_opt": "--security-opt", "tmpfs": "--tmpfs"}


class UnknownWall(ValueError):
    """compose.yaml says something that a trial would not do."""


def service(path: Path = COMPOSE) -> dict[str, Any]:
    """The agent's service, as it is written."""
    return dict(yaml.safe_load(path.read_text("utf-8"))["services"]["agent"])


def options(service: Mapping[str, Any], folders: Mapping[str, Path]) -> list[str]:
    """Options of podman-run(1). `folders` are mounted instead of the hospital's, by their place in the container.

    Raises `UnknownWall` for a key that is not translated, or a volume that `folders` has not.
    """
    found = []
    for key, value in service.items():
        found += _option(key, value, folders)
    return found


def _option(key: str, value: Any, folders: Mapping[str, Path]) -> list[str]:
    if key in _OF_THE_ENGINE:
        return []
    if value is True and key in _SWITCHED_ON:
        return _SWITCHED_ON[key]
    if isinstance(value, str | int) and not isinstance(value, bool) and key in _ONE:
        return [f"{_ONE[key]}={value}"]
    if isinstance(value, list) and key in _EACH:
        return [f"{_EACH[key]}={one}" for one in value]
    if isinstance(value, list) and key == "volumes":
        return [_volume(one, folders) for one in value]
    raise UnknownWall(f"compose.yaml has {key} = {value!r}: teach infra/container/walls.py to try it")


def _volume(volume: str, folders: Mapping[str, Path]) -> str:
    _, place, *rest = volume.split(":")
    if place not in folders:
        raise UnknownWall(f"compose.yaml mounts {place}: say what a trial is to mount there")
    return ":".join([f"--volume={folders[place]}", place, *rest])

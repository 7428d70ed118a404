"""What the child process is told about a plan's work: the same for a round as for a rung before it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boundary.plan import parse_plan
from silo_agent.config import Resources
from silo_agent.policy.model import SiloDataset
from silo_agent.state import StateFolder


@dataclass(frozen=True, slots=True)
class Errand:
    """One plan with one data set. `plan` is its JSON value, `cache` where its scan is or will be.

    `state` is the state folder, where the logins of archives lie.
    """

    plan: dict[str, Any]
    study: str
    dataset: SiloDataset
    state: Path
    key_file: Path
    cache: Path
    resources: Resources
    devices: int  # GPUs that the policy allows; with none the child computes on processors
    weights: str | None = None  # the folder of pretrained weights that the policy names

    def command(self, do: str) -> dict[str, Any]:
        return self.dataset.told(self.state) | {
            "do": do,
            "plan": self.plan,
            "study": self.study,
            "key_file": str(self.key_file),
            "cache": str(self.cache),
            "device": device_of(self.resources, self.devices),
            "at_once": self.resources.images_at_once,
            "declared": self.dataset.caps.most_patients,
            "weights": self.weights,
            "held_back": self.dataset.is_held_back(parse_plan(self.plan)),
        }


def device_of(resources: Resources, devices: int) -> str:
    """`auto`, `cpu` or `cuda`: what this machine is set to, within what the policy allows."""
    return resources.device if devices else "cpu"


def disk_shortage(folder: StateFolder, resources: Resources) -> str:
    """A sentence if less disk is free than agent.toml asks for, else nothing."""
    free = shutil.disk_usage(folder.root).free // 2**20
    if free >= resources.min_free_disk_mb:
        return ""
    return f"{free} MB are free under {folder.root}, agent.toml asks for {resources.min_free_disk_mb}: make room"

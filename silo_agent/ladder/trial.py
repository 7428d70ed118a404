"""A plan's work tried in this hospital, by the same child process and commands as a round, in a folder of its own.

Nothing of it is posted, and nothing in the journal is written: no budget is spent, because no result leaves. The folder
is removed at the end.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boundary.canonical import parse_json
from boundary.layout import VectorLayout, layout_for
from boundary.plan import StudyPlan, study_id, to_json
from silo_agent.budget import Terms, terms_of
from silo_agent.config import AgentConfig
from silo_agent.errand import Errand
from silo_agent.errors import WorkFailed
from silo_agent.policy.model import SiloDataset
from silo_agent.results import HOME
from silo_agent.worker import OnProgress, Worker, untold

_SELECTION_BYTES = 32


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan with one data set. `scratch` is an empty private folder; `state`, `key_file` as the agent's scans have.

    Without `noise` a plan with a guarantee is tried as one without: for numbers that stay in the hospital.
    """

    plan: StudyPlan
    dataset: SiloDataset
    worker: Worker
    scratch: Path
    state: Path
    key_file: Path
    config: AgentConfig
    entropy: Callable[[int], bytes]
    noise: bool = True
    devices: int = 0  # GPUs, by the policy
    weights: str | None = None  # the folder of pretrained weights, by the policy

    @property
    def terms(self) -> Terms | None:
        """Of a plan with a guarantee per patient; raises `WorkFailed` where this hospital cannot take part in it."""
        return terms_of(self.plan, self.dataset)

    async def scan(self, withdrawn: dict[str, list[str]], on_progress: OnProgress) -> dict[str, Any]:
        """The intake report, as a scan for this plan would make it now."""
        return await self.worker.run(self._command("scan") | {"withdrawn": withdrawn}, on_progress)

    async def begin(self, weights: Path) -> int:
        """Write the model that the study begins with; give how many weights it has."""
        said = await self.worker.run(self._command("initial") | {"model": str(weights)} | self._own(), untold)
        return int(said["parameters"])

    async def statistics(self) -> dict[str, float] | None:
        """What the plan gives, or our own in the place of everybody's if it asks for such; raises `WorkFailed`."""
        if self.plan.preprocessing.normalise != "federated":
            given = self.plan.preprocessing.given
            return None if given is None else given.model_dump()
        out = self.scratch / "statistics"
        await self.worker.run(self._command("statistics") | {"out": str(out)}, untold)
        count, total, squares = numbers_of(out, 3)
        if not count:
            raise WorkFailed("NO_IMAGES", "no image is left to train on")
        mean = total / count
        return {"mean": mean, "deviation": max(math.sqrt(max(0.0, squares / count - mean**2)), 1e-6)}

    async def train(
        self, weights: Path, out: Path, on_progress: OnProgress, *, steps: int | None = None
    ) -> VectorLayout:
        """One round's training, or only its first `steps`; give where things lie in the vector at `out`."""
        command = self._command("train", steps=steps) | {
            "model": str(weights), "out": str(out), "normalisation": await self.statistics(),
            "selection": self.entropy(_SELECTION_BYTES).hex(), "residual": str(self.scratch / "residual"),
        }  # fmt: skip
        said = await self.worker.run(command | self._own(), on_progress)
        made = out.with_suffix(HOME)
        if made.exists():
            made.replace(self._own()["home"])
        bands, steps = self.plan.bands if self.noise else 0, self.plan.counts_steps
        clipping = self.plan.robustness.clip is not None
        late = self.plan.selection.keeps_late
        return layout_for(
            "train",
            parameters=int(said["parameters"]),
            metrics=0,
            bands=bands,
            steps=steps,
            clipping=clipping,
            late=late,
        )

    async def evaluate(self, weights: Path, out: Path) -> VectorLayout:
        """Measure on the patients held back; give where things lie in the vector at `out`."""
        command = self._command("evaluate") | {
            "model": str(weights), "out": str(out), "normalisation": await self.statistics(),
        }  # fmt: skip
        said = await self.worker.run(command | self._own(), untold)
        return layout_for("evaluate", parameters=int(said["parameters"]), metrics=int(said["metrics"]))  # and no vote

    def _own(self) -> dict[str, Any]:
        """What of the network does not come with a round's model."""
        base = None if self.plan.model.moves_whole else str(self.scratch / "base.safetensors")
        return {"base": base, "home": str(self.scratch / "home"), "own_control": str(self.scratch / "control")}

    def _command(self, do: str, *, steps: int | None = None) -> dict[str, Any]:
        plan: dict[str, Any] = parse_json(to_json(self.plan), limit=len(to_json(self.plan)))
        plan["aggregation"]["downlink"] = "float32"  # nothing comes down: we go on from our own weights as they are
        private = None
        if not self.noise:
            plan["privacy"], plan["training"]["weighting"] = {"mechanism": "none"}, "images"
        elif (terms := self.terms) is not None:
            private = terms.for_trial(steps)
        if steps is not None:
            plan["training"]["max_steps"] = min(steps, plan["training"]["max_steps"])
        errand = Errand(
            plan=plan,
            study=study_id(self.plan),
            dataset=self.dataset,
            state=self.state,
            key_file=self.key_file,
            cache=self.scratch / "cache",
            resources=self.config.resources,
            devices=self.devices,
            weights=self.weights,
        )
        return errand.command(do) | {"private": private}


def numbers_of(vector: Path, count: int) -> list[float]:
    """The first numbers of a stored vector (`boundary.layout`)."""
    with vector.open("rb") as file:
        return list(struct.unpack(f"<{count}d", file.read(8 * count)))


def refusal_lines(report: dict[str, Any]) -> list[tuple[str, int]]:
    """(code, files) of an intake report, most first."""
    return sorted(report["refused"].items(), key=lambda pair: (-pair[1], pair[0]))

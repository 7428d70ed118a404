"""One hospital's work of one round, in the child: weights in, one vector out, both as files.

Train: the vector is `[w * (new - old), loss sum, images, w]`; evaluate: the additive metrics on the patients that
are held back. Incoming weights are checked (names, shapes, dtype, finite, norm) before they touch a network.
"""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from boundary.layout import layout_for
from boundary.plan import StudyPlan, Training, parse_plan
from boundary.tensors import TensorManifest, Vector, check_values, flatten, unflatten, unpack_file
from models.catalogue import build
from models.errors import TrainingCancelled
from models.metrics import MetricLayout
from models.parameters import load_tensors, manifest, to_tensors
from models.training import LocalData, evaluate, train
from silo_agent.errors import WorkCancelled, WorkFailed
from silo_agent.intake.cache import load_cache

_manifests: dict[tuple[str, int, int], TensorManifest] = {}


@dataclass(frozen=True, slots=True)
class LocalRound:
    """Everything the work needs. `model` is a safetensors file, `out` the vector's file (float32, little-endian)."""

    plan: StudyPlan
    manifest: TensorManifest
    cache: Path
    model: Path
    out: Path
    device: str

    @classmethod
    def of(cls, command: dict[str, Any]) -> Self:
        """From a command of the daemon; sets torch's threads."""
        torch.set_num_threads(int(command["threads"]))
        plan = parse_plan(command["plan"])
        wanted = (plan.model.name, plan.model.version, len(plan.labels.classes))
        if wanted not in _manifests:
            _manifests[wanted] = manifest(plan.model, len(plan.labels.classes))
        device = command["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        cache, model, out = (Path(command.get(name, "")) for name in ("cache", "model", "out"))
        return cls(plan, _manifests[wanted], cache, model, out, device)

    def incoming(self) -> Vector:
        weights = unpack_file(self.model, self.manifest)
        check_values(weights, self.plan.aggregation.max_model_norm)
        return weights

    def network(self, weights: Vector) -> torch.nn.Module:
        module = build(self.plan.model, len(self.plan.labels.classes))
        load_tensors(module, unflatten(weights, self.manifest))
        return module

    def data(self, *, holdout: bool) -> LocalData:
        arrays, _ = load_cache(self.cache)
        rows = np.flatnonzero(arrays.holdout == holdout)
        return LocalData(np.asarray(arrays.images[rows]), arrays.labels[rows], arrays.patients[rows])


def train_round(
    work: LocalRound, on_step: Callable[[int, int], None], should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train and write the vector; raises `WorkFailed`, `BadTensors`, `ModelError` or `WorkCancelled`."""
    old = work.incoming()
    module, data = work.network(old), work.data(holdout=False)
    seed = secrets.randbits(63)  # shuffling is nobody else's business
    every = _every(0.5, on_step)
    try:
        outcome = train(
            module, data, work.plan.training, seed=seed, on_step=every, should_stop=should_stop, device=work.device
        )
    except TrainingCancelled as why:
        raise WorkCancelled("between two steps") from why
    new = flatten(to_tensors(module.to("cpu")), work.manifest)
    weight = _weight(work.plan.training, data)
    layout = layout_for("train", parameters=work.manifest.size, metrics=0)
    vector = np.empty(layout.size, dtype="<f4")
    np.subtract(new, old, out=vector[layout.where("delta")])
    vector[layout.where("delta")] *= np.float32(weight)
    vector[layout.where("loss_sum")] = outcome.mean_loss * outcome.images_seen
    vector[layout.where("images")] = outcome.images_seen
    vector[layout.where("weight")] = weight
    _write(vector, work.out)
    return {"parameters": work.manifest.size, "metrics": 0}


def evaluate_round(work: LocalRound, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Evaluate on the held-back patients and write the metric vector; raises as `train_round`."""
    layout = MetricLayout(len(work.plan.labels.classes))
    module = work.network(work.incoming())
    try:
        metrics = evaluate(module, work.data(holdout=True), layout, should_stop=should_stop, device=work.device)
    except TrainingCancelled as why:
        raise WorkCancelled("between two batches") from why
    _write(metrics.astype("<f4"), work.out)
    return {"parameters": work.manifest.size, "metrics": layout.size}


def _weight(training: Training, data: LocalData) -> float:
    match training.weighting:
        case "images":
            return float(len(data))
        case "patients":
            return float(len(np.unique(data.patients)))
        case "equal":
            return 1.0


def _write(vector: NDArray[np.float32], out: Path) -> None:
    if not np.isfinite(vector).all():
        raise WorkFailed("NON_FINITE_LOSS", "the result holds NaN or infinity")
    out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = out.with_suffix(".part")
    with draft.open("wb") as file:  # on the disk for good before "done" is said
        vector.tofile(file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(out)


def _every(seconds: float, say: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Pass on the first, the last and at most one step per interval: progress is for people."""
    last = -seconds

    def throttled(step: int, steps: int) -> None:
        nonlocal last
        now = time.monotonic()
        if step == steps or now - last >= seconds:
            last = now
            say(step, steps)

    return throttled

"""What `silo-agent dry-run`, `baseline` and `rehearse` do, step by step; every line they say stays in the hospital."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boundary.layout import VectorLayout
from boundary.parts import parts_of
from boundary.plan import StudyPlan
from boundary.secagg.ring import first_encoding
from silo_agent.errors import ConfigError, ContractNotMet
from silo_agent.ladder.trial import Trial, refusal_lines
from silo_agent.worker import OnProgress, untold

if TYPE_CHECKING:
    from models.dice import SegmentationMetrics
    from models.metrics import Metrics

Say = Callable[[str], None]


_NOTHING_LEFT = "nothing left: no message was written, no budget spent; what lay on the disk for it is removed now"


@dataclass(frozen=True, slots=True)
class Measured:
    """On the patients held back, after `round` rounds of training here alone; 0 is the untrained model.

    `scores` are (name, value) by the plan's task, None where a class is not among them: AUROC and accuracy, or Dice.
    """

    round: int
    images: int
    loss: float
    scores: tuple[tuple[str, float | None], ...]
    seconds: float

    def line(self) -> str:
        scores = "  ".join(f"no {name}" if value is None else f"{name} {value:.3f}" for name, value in self.scores)
        return f"round {self.round:>3}  loss {self.loss:.4f}  {scores}  {self.seconds:.1f} s"


async def dry_run(trial: Trial, withdrawn: dict[str, list[str]], say: Say, on_progress: OnProgress) -> dict[str, Any]:
    """Intake, one training step, masks: everything of a round but sending. Raises `ContractNotMet` or `WorkFailed`."""
    report = await _intake(trial, withdrawn, say, on_progress)
    if (terms := trial.terms) is not None and (excess := terms.excess(sum(report["patients"].values()))):
        raise ContractNotMet(excess)
    weights, vector = trial.scratch / "model.safetensors", trial.scratch / "vector"
    parameters = await trial.begin(weights)
    if trial.dataset.is_held_back(trial.plan):
        say("nothing is trained here by this plan: all patients are held back")
        return await _measuring_only(trial, report, weights, parameters, say)
    begun = time.monotonic()
    layout = await trial.train(weights, vector, untold, steps=1)
    step = time.monotonic() - begun
    say(f"one training step of {trial.plan.model.name} ({parameters:,} weights): {step:.1f} s with loading")
    sent = _rehearse_masks(trial, vector, layout, say)
    metrics = await trial.evaluate(weights, trial.scratch / "metrics")
    say(f"measuring on the patients held back: {metrics.numbers} numbers, to be added to the others'")
    say(_NOTHING_LEFT)
    return {"report": report, "parameters": parameters, "step_seconds": step, "masked_bytes": sent}


async def _measuring_only(
    trial: Trial, report: dict[str, Any], weights: Path, parameters: int, say: Say
) -> dict[str, Any]:
    """The dry run of a hospital that trains nothing: measure, mask."""
    out, begun = trial.scratch / "metrics", time.monotonic()
    layout = await trial.evaluate(weights, out)
    step = time.monotonic() - begun
    say(f"measuring on all patients: {layout.numbers} numbers in {step:.1f} s, to be added to the others'")
    sent = _rehearse_masks(trial, out, layout, say)
    say(_NOTHING_LEFT)
    return {"report": report, "parameters": parameters, "step_seconds": step, "masked_bytes": sent}


async def baseline(
    trial: Trial, withdrawn: dict[str, list[str]], rounds: int, say: Say, on_progress: OnProgress
) -> list[Measured]:
    """Train here alone for `rounds` rounds of the plan, without noise, and measure after each on who is held back.

    What a study has to beat. Nothing of it leaves, so nothing of a budget is spent.
    """
    if trial.dataset.is_held_back(trial.plan):
        raise ConfigError("by this plan nothing is trained here, so there is nothing to compare with")
    if trial.plan.aggregation.random_share < 1:
        raise ConfigError(
            "the plan sends a share of the weights (random_share): its change is not whole, so no baseline"
        )
    trial = replace(trial, noise=False)
    await _intake(trial, withdrawn, say, on_progress)
    weights, vector, metrics = (trial.scratch / name for name in ("model.safetensors", "vector", "metrics"))
    await trial.begin(weights)
    found = [await _measured(trial, weights, metrics, 0, 0.0)]
    say(found[-1].line())
    for number in range(1, rounds + 1):
        begun = time.monotonic()
        layout = await trial.train(weights, vector, on_progress)
        _apply(trial.plan, weights, vector, layout)
        found.append(await _measured(trial, weights, metrics, number, time.monotonic() - begun))
        say(found[-1].line())
    return found


async def rehearse(trial: Trial, say: Say, on_progress: OnProgress) -> list[Measured]:
    """A whole round on synthetic images: read, train, measure, mask, add up, compare."""
    await _intake(trial, {"before": [], "after": []}, say, on_progress)
    weights, vector, metrics = (trial.scratch / name for name in ("model.safetensors", "vector", "metrics"))
    await trial.begin(weights)
    before = await _measured(trial, weights, metrics, 0, 0.0)
    begun = time.monotonic()
    layout = await trial.train(weights, vector, on_progress)
    seconds = time.monotonic() - begun
    say(f"trained one round: {seconds:.1f} s")
    _rehearse_masks(trial, vector, layout, say)
    _apply(trial.plan, weights, vector, layout)
    after = await _measured(trial, weights, metrics, 1, seconds)
    say(before.line())
    say(after.line())
    return [before, after]


async def _intake(trial: Trial, withdrawn: dict[str, list[str]], say: Say, on_progress: OnProgress) -> dict[str, Any]:
    report = await trial.scan(withdrawn, on_progress)
    patients = sum(report["patients"].values())
    say(f"{report['used']} of {report['files']} files used, of {patients} patients")
    for code, count in refusal_lines(report):
        say(f"  {count:>8}  {code}")
    if report["problems"]:
        raise ContractNotMet(f"our data do not meet the plan's contract: {'; '.join(report['problems'])}")
    return report


def _rehearse_masks(trial: Trial, vector: Path, layout: VectorLayout, say: Say) -> int:
    from silo_agent.ladder.masking import masked_trip

    trip = masked_trip(vector, layout, first_encoding(trial.plan), trial.plan.silos, trial.entropy)
    say(
        f"masked for a sum of {trip.hospitals} hospitals: {trip.masked_bytes:,} bytes would leave, {trip.seconds:.1f} "
        "s; their sum came out from under the masks as it went in"
    )
    return trip.masked_bytes


async def _measured(trial: Trial, weights: Path, out: Path, number: int, seconds: float) -> Measured:
    import numpy as np

    from models.measuring import layout_of, read

    layout = await trial.evaluate(weights, out)
    found = read(np.fromfile(out, "<f8", layout.numbers), layout_of(trial.plan))
    return Measured(number, found.count, found.loss, _scores(found, trial.plan), seconds)


def _scores(found: "Metrics | SegmentationMetrics", plan: StudyPlan) -> tuple[tuple[str, float | None], ...]:
    from models.metrics import Metrics

    if isinstance(found, Metrics):
        return ("AUROC", found.auroc), ("accuracy", found.accuracy)
    each = zip(plan.labels.classes[1:], found.classes, strict=True)
    return ("Dice", found.dice), *((f"Dice of {name}", one.mean) for name, one in each)


def _apply(plan: StudyPlan, weights: Path, vector: Path, layout: VectorLayout) -> None:
    """The next model of a study of this hospital alone: its own mean change."""
    import numpy as np

    from boundary.tensors import pack, unpack_file
    from models.parameters import manifest

    shapes = parts_of(plan.model, manifest(plan.model, len(plan.labels.classes))).moving
    numbers = np.fromfile(vector, "<f8", layout.numbers)
    delta = np.fromfile(vector, "<f4", offset=layout.numbers_bytes)
    weight = float(numbers[layout.where("weight")][0])
    steps = float(numbers[layout.where("steps")][0]) / weight if plan.counts_steps else 1.0
    np.multiply(delta, np.float32(steps / weight), out=delta)
    weights.write_bytes(pack(np.add(unpack_file(weights, shapes), delta, out=delta), shapes))

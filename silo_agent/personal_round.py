"""A hospital personalises, in the child: its own model, what it would have alone, and how all three do on its patients.

After the last round: the federated model that the order brought, this hospital's own (fine-tuned from it, or Ditto's
v), and one that it trains from where the study began, with as many epochs as it had. All are looked at on the held-back
patients. Into the vector goes which is better, as `boundary.layout.COMPARED` has it; the figures themselves and the
hospital's own model lie beside it and never leave. With a guarantee per patient its own is trained with the same noise
as a round, paid for like one, and none is trained alone: that would have to be paid for too.
"""

import json
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from boundary.learning import Personalisation
from boundary.parts import tuned_of
from boundary.tensors import Vector, check_values, flatten, manifest_of, pack, unflatten
from models.catalogue import build
from models.comparing import Comparison, Estimate, Figure, compare, figure_of
from models.errors import NonFiniteLoss, TrainingCancelled
from models.low_rank import merge
from models.measuring import layout_of
from models.metrics import MetricLayout
from models.parameters import Tensors, initial_tensors, load_tensors, to_tensors, train_only
from models.personal import alone_training, personalise, weights_of
from models.private.keystream import KEY_BYTES
from models.private.training import PrivateTraining
from models.training import LocalData, train
from silo_agent.errors import WorkCancelled, WorkFailed
from silo_agent.local_round import LocalRound, every, prove_once
from silo_agent.results import DITTO, MODEL, ROW
from silo_agent.state import write_private
from silo_agent.vector import write_vector

_log = logging.getLogger("silo_agent.personal_round")


@dataclass(frozen=True, slots=True)
class Watch:
    """Who hears of the steps of each training, one after another, and may stop them."""

    on_step: Callable[[int, int], None]
    should_stop: Callable[[], bool]


def train_beside(work: LocalRound, watch: Watch) -> None:
    """Ditto's half of a round: this hospital's own model, pulled to the one that the round began with.

    It takes the place of the one before when the round is committed with this hospital in it. One that diverges is
    dropped and the one before stays: the study is not to miss this hospital's part for it. Raises as
    `personalise_round`.
    """
    federated = to_tensors(work.network(work.incoming()))
    try:
        own = flatten(_own(work, work.data(holdout=False), federated, watch), work.parts.whole)
    except NonFiniteLoss as why:
        _log.warning("our own model is left as it was: %s", why)
        return
    write_vector(work.out.with_suffix(DITTO), np.empty(0), own)


def personalise_round(work: LocalRound, watch: Watch) -> dict[str, Any]:
    """Train, compare and write all of it; raises `WorkFailed`, `BadTensors`, `ModelError` or `WorkCancelled`."""
    module = work.network(work.incoming())
    models = {"federated": to_tensors(module)}
    data = work.data(holdout=False)
    models["personal"] = _own(work, data, models["federated"], watch)
    if work.private is None:
        with suppress(NonFiniteLoss):  # alone it may come to nothing: then there is none to compare with
            models["local"] = _alone(work, data, watch)
    compared = _compared(work, models, watch.should_stop)
    check_values(flatten(models["personal"], work.parts.whole), float("inf"))
    write_vector(work.out, compared.outcomes())
    write_private(work.out.with_suffix(MODEL), _plain(work, models["personal"]))
    write_private(work.out.with_suffix(ROW), json.dumps(_row(work, compared)).encode())
    return {"parameters": work.parts.moving.size, "metrics": 0}


def _how(work: LocalRound) -> Personalisation:
    how = work.plan.personalisation
    if how is None:
        raise WorkFailed("NOT_APPROVED", "the plan has no personalisation")
    return how


def _own(work: LocalRound, data: LocalData, federated: Tensors, watch: Watch) -> Tensors:
    """Fine-tuned, or Ditto's v one training further."""
    how, plan = _how(work), work.plan
    tuned, module = tuned_of(work.parts, how.parameters), build(plan.model, len(plan.labels.classes))
    on_step = every(0.5, watch.on_step)
    try:
        if plan.privacy.mechanism == "none":
            before = _kept(work) if how.method == "ditto" else None
            personalise(
                module, data, plan.training, how,
                federated=federated, own=None if before is None else unflatten(before, work.parts.whole), tuned=tuned,
                seed=secrets.randbits(63), on_step=on_step, should_stop=watch.should_stop, device=work.device,
            )  # fmt: skip
            return weights_of(module)
        if work.private is None:
            raise WorkFailed("INTERNAL", "a plan with a guarantee per patient, and no budget was reserved for this")
        prove_once(plan)
        load_tensors(module, federated)
        train_only(module, tuned)
        private = PrivateTraining(work.private.steps, secrets.token_bytes(KEY_BYTES), work.at_once)
        training = plan.training.model_copy(
            update={"learning_rate": how.learning_rate or plan.training.learning_rate, "proximal": 0.0}
        )
        private.run(module, data, training, on_step=on_step, should_stop=watch.should_stop, device=work.device)
    except TrainingCancelled as why:
        raise WorkCancelled("between two steps") from why
    return weights_of(module)


def _kept(work: LocalRound) -> Vector | None:
    """Ditto's v of former rounds, float32 [parts.whole.size]; none yet, or somebody with a share in it withdrew."""
    with suppress(FileNotFoundError):
        return np.fromfile(work.personal, "<f4")
    return None


def _alone(work: LocalRound, data: LocalData, watch: Watch) -> Tensors:
    plan, classes = work.plan, len(work.plan.labels.classes)
    module = build(plan.model, classes)
    load_tensors(module, initial_tensors(plan.model, classes, work.weights))
    train_only(module, work.parts.trained)
    try:
        train(
            module, data, alone_training(plan.training), seed=secrets.randbits(63),
            on_step=every(0.5, watch.on_step), should_stop=watch.should_stop, device=work.device,
        )  # fmt: skip
    except TrainingCancelled as why:
        raise WorkCancelled("between two steps") from why
    return weights_of(module)


def _compared(work: LocalRound, models: dict[str, Tensors], should_stop: Callable[[], bool]) -> Comparison:
    plan, held_back, layout = work.plan, work.data(holdout=True), layout_of(work.plan)
    module, figures = build(plan.model, len(plan.labels.classes)), dict[str, Figure]()
    try:
        for name, weights in models.items():
            load_tensors(module, weights)
            figures[name] = figure_of(module, held_back, layout, should_stop=should_stop, device=work.device)
    except TrainingCancelled as why:
        raise WorkCancelled("between two batches") from why
    return compare(figures, held_back.patients, secrets.randbits(63))


def _plain(work: LocalRound, own: Tensors) -> bytes:
    """The catalogue's network with these weights, adapters merged: who uses it needs to know nothing of them."""
    module = build(work.plan.model, len(work.plan.labels.classes))
    load_tensors(module, own)
    merge(module)
    tensors = to_tensors(module)
    shapes = manifest_of(tensors)
    return pack(flatten(tensors, shapes), shapes)


def _row(work: LocalRound, compared: Comparison) -> dict[str, Any]:
    """What the hospital's own people are shown, and what they need to use the model; nobody else."""
    plan, scale = work.plan, work.normalisation
    return {
        "model": f"{plan.model.name}@{plan.model.version}",
        "method": _how(work).method,
        "classes": list(plan.labels.classes),
        "normalisation": None if scale is None else scale.model_dump(),
        "figure": "AUROC" if isinstance(layout_of(plan), MetricLayout) else "mean Dice",
        "patients": compared.patients,
        "figures": {name: _said(found) for name, found in compared.figures.items()},
        "differences": [[*pair, _said(found), found.verdict] for pair, found in compared.differences.items()],
    }


def _said(found: Estimate) -> list[float | None]:
    return [found.value, found.low, found.high]

"""One hospital's work of one round, in the child: weights in, one vector out, both as files.

What the vector holds (`boundary.layout`): for statistics images, summed intensities and squares, images of each class
(with masks: that show it); for train loss sum, images, w, 0 and `w * (new - old)` of the parameters that move, with a
guarantee per patient w, 0, bands and that, for FedNova and SCAFFOLD also w * steps and the change divided by steps, and
never the change as well: two sums of it with different factors would tell single hospitals' apart; for evaluate the
additive metrics on the patients that are held back, and the vote if the plan has one. Incoming weights are checked
(names, shapes, dtype, finite, norm) before they touch a network.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from boundary.errors import BadTensors
from boundary.images import Normalisation
from boundary.learning import ModelChoice
from boundary.parts import Parts, parts_of, tuned_of
from boundary.plan import StudyPlan, parse_plan
from boundary.secagg.selection import selected
from boundary.tensors import TensorManifest, TensorSpec, Vector, check_values, flatten, unflatten, unpack_file
from models.catalogue import build, check_model, entry_of
from models.errors import NonFiniteLogits, TrainingCancelled
from models.losses import mean_loss
from models.measuring import guess_of, layout_of, mean_loss_of
from models.metrics import LARGEST_LOSS
from models.parameters import load_tensors, manifest, to_tensors, train_only
from models.preprocessing import normalised
from models.private.keystream import KEY_BYTES
from models.private.proof import class_labels, prove, voxel_labels
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, evaluate, next_control, planned_steps, shorten, train, weight_of
from models.weiszfeld import weight_beside
from silo_agent.beginning import check_first, checked_base
from silo_agent.describing import described
from silo_agent.errors import WorkCancelled, WorkFailed
from silo_agent.intake.cache import load_cache
from silo_agent.intake.errors import CacheUnreadable
from silo_agent.results import CONTROL, HOME, RESIDUAL
from silo_agent.vector import write_vector


@dataclass(frozen=True, slots=True)
class Private:
    """The public numbers of a private training, and the bands of epsilon this hospital is still below (1 or 0)."""

    steps: PrivateSteps
    bands: tuple[float, ...]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Self:
        numbers = {name: value for name, value in said.items() if name != "bands"}
        return cls(PrivateSteps(**numbers), tuple(said["bands"]))


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """SCAFFOLD's control variates c and c_i, float32 [parts.moving.size] each."""

    common: Vector
    own: Vector


_parts: dict[tuple[ModelChoice, int], Parts] = {}
_tried: set[tuple[ModelChoice, tuple[int, ...], int, str, int]] = set()
_proven: set[tuple[ModelChoice, tuple[int, ...], int]] = set()


@dataclass(frozen=True, slots=True)
class LocalRound:
    """Everything the work needs. `model` is a safetensors file, `out` the vector's file."""

    plan: StudyPlan
    parts: Parts
    cache: Path
    model: Path
    out: Path
    device: str
    normalisation: Normalisation | None = None
    selection: bytes = b""  # the key that draws which weights are sent
    residual: Path = Path()  # what former rounds did not send, if the plan has error feedback
    base: Path | None = None  # the network as the study begins, where not all of it moves
    home: Path = Path()  # what former rounds made of the parameters that stay here, if there are such
    control: Path | None = None  # the coordinator's control variate, if the plan has such and there is one yet
    own_control: Path = Path()  # ours, of former rounds
    before: Path | None = None  # the model that the round began with, where we vote on another
    home_before: Path = Path()  # what belonged to it
    personal: Path = Path()  # our own model, as former rounds left it, if the plan has one trained beside them (Ditto)
    private: Private | None = None  # of a training with a guarantee per patient
    declared: int = 0  # the most patients the hospital declares
    at_once: int = 16  # images through the network in a private training
    weights: Path | None = None  # the hospital's folder of pretrained weights, if its policy names one
    begins: bool = False  # whether the model that came is the one the study begins with

    @classmethod
    def of(cls, command: dict[str, Any]) -> Self:
        """From a command of the daemon; sets torch's threads. Raises a `ModelError` for a network that does not fit."""
        torch.set_num_threads(int(command["threads"]))
        plan = parse_plan(command["plan"])
        check_model(plan)
        wanted = (plan.model, len(plan.labels.classes))
        if wanted not in _parts:
            _parts[wanted] = parts_of(plan.model, manifest(*wanted))
        if plan.personalisation is not None:
            tuned_of(_parts[wanted], plan.personalisation.parameters)
        device = command["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        normalisation, private = command.get("normalisation"), command.get("private")

        def path(name: str) -> Path:
            return Path(command.get(name, ""))

        def path_or_none(name: str) -> Path | None:
            return None if command.get(name) is None else Path(command[name])

        return cls(
            plan=plan,
            parts=_parts[wanted],
            cache=path("cache"),
            model=path("model"),
            out=path("out"),
            device=device,
            normalisation=None if normalisation is None else Normalisation.model_validate(normalisation),
            selection=bytes.fromhex(command.get("selection", "")),
            residual=path("residual"),
            base=path_or_none("base"),
            home=path("home"),
            control=path_or_none("control"),
            own_control=path("own_control"),
            before=path_or_none("before"),
            home_before=path("home_before"),
            personal=path("personal"),
            private=None if private is None else Private.of(private),
            declared=command.get("declared") or 0,
            at_once=command.get("at_once", 16),
            weights=path_or_none("weights"),
            begins=command.get("begins", False),
        )

    def incoming(self) -> Vector:
        """What moves, float32 [parts.moving.size]. Raises as `silo_agent.beginning.check_first`."""
        aggregation = self.plan.aggregation
        moving = unpack_file(self.model, self.parts.moving, aggregation.downlink)
        check_values(moving, aggregation.max_model_norm)
        if self.begins:
            check_first(moving, self.plan, self.parts, self.weights)
        return moving

    def whole(self, moving: Vector) -> Vector:
        """The whole network, float32 [parts.whole.size], with our own parameters in it.

        Raises as `silo_agent.beginning.checked_base`.
        """
        base = None if self.base is None else checked_base(self.base, self.plan, self.parts, self.weights)
        home = None
        if self.parts.home.tensors:
            with suppress(FileNotFoundError):  # none yet, or somebody who had a share in it has just withdrawn consent
                home = np.fromfile(self.home, "<f4")
        whole = self.parts.joined(base, moving, home)
        check_values(whole, self.plan.aggregation.max_model_norm)
        return whole

    def controls(self) -> Controls | None:
        """SCAFFOLD's two, zeros where all begin anew. Raises `BadTensors`."""
        if not self.plan.has_controls:
            return None
        size = self.parts.moving.size
        own = np.zeros(size, np.float32)
        if self.control is None:
            return Controls(own, own)
        common = unpack_file(self.control, TensorManifest(tensors=(TensorSpec(name="control", shape=(size,)),)))
        with suppress(FileNotFoundError):  # none yet, or somebody who had a share in it has just withdrawn consent
            own = np.fromfile(self.own_control, "<f4")
        if own.shape != common.shape:
            raise BadTensors("what is kept of former rounds is of another model")
        check_values(common, self.plan.aggregation.max_model_norm)
        return Controls(common, own)

    def network(self, weights: Vector) -> torch.nn.Module:
        """With what moves as it came, float32 [parts.moving.size]. Raises as `whole`."""
        module = build(self.plan.model, len(self.plan.labels.classes))
        load_tensors(module, unflatten(self.whole(weights), self.parts.whole))
        train_only(module, self.parts.trained)
        return module

    def data(self, *, holdout: bool) -> LocalData:
        arrays, _ = load_cache(self.cache)
        rows = np.flatnonzero((arrays.holdout == holdout) & ~arrays.withdrawn)
        images = np.asarray(arrays.images[rows])
        if self.normalisation is not None:
            images = normalised(images, self.normalisation.mean, self.normalisation.deviation)
        if self.plan.task == "classification":
            return LocalData(images, arrays.labels[rows], arrays.patients[rows])
        if arrays.masks is None:
            raise CacheUnreadable(f"the scan at {self.cache} has no masks: scan the archive again")
        return LocalData(images, arrays.masks[rows], arrays.patients[rows])


def train_round(
    work: LocalRound, on_step: Callable[[int, int], None], should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train and write the vector; raises `WorkFailed`, `BadTensors`, `ModelError` or `WorkCancelled`."""
    old, controls = work.incoming(), work.controls()
    module, data = work.network(old), work.data(holdout=False)
    try:
        said = _train(work, module, data, controls, every(0.5, on_step), should_stop)
    except TrainingCancelled as why:
        raise WorkCancelled("between two steps") from why
    whole = flatten(to_tensors(module.to("cpu")), work.parts.whole)
    new = whole if work.parts.moves_whole else work.parts.moving_of(whole)
    if work.parts.home.tensors:
        _store(work.out.with_suffix(HOME), np.empty(0), work.parts.home_of(whole))
    change = np.subtract(new, old, out=new)
    weight = weight_beside(work.plan, _weight(work, data), change)
    delta, shortened = _to_send(change, work)
    steps = planned_steps(len(data), work.plan.training) if work.plan.counts_steps else 1
    if controls is not None:
        control = next_control(controls.own, controls.common, delta, steps, work.plan.training)
        _store(work.out.with_suffix(CONTROL), np.empty(0), control)
    delta *= np.float32(weight / steps)
    before, after = said
    if before and work.plan.varies:  # a true count would be solved for, from sums over other hospitals
        before = (weight * before[0] / before[1], weight)
    counted = [weight * steps] if work.plan.counts_steps else []
    counted += [float(shortened)] if work.plan.robustness.clip is not None else []
    counted += [0.0] if work.plan.selection.keeps_late else []  # a 1 when it is summed late (`silo_agent.vector`)
    _store(work.out, np.array([*before, weight, 0.0, *counted, *after]), delta)
    return {"parameters": len(delta), "metrics": 0}


def _train(
    work: LocalRound,
    module: torch.nn.Module,
    data: LocalData,
    controls: Controls | None,
    on_step: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Train in place; give the numbers that stand before and after the weight (`boundary.layout`)."""
    training = work.plan.training
    if work.plan.privacy.mechanism == "none":
        seed = secrets.randbits(63)  # shuffling is nobody else's business
        correction = None if controls is None else unflatten(controls.common - controls.own, work.parts.moving)
        outcome = train(
            module, data, training, seed=seed, on_step=on_step, should_stop=should_stop, device=work.device,
            correction=correction,
        )  # fmt: skip
        return (outcome.mean_loss * outcome.images_seen, outcome.images_seen), ()
    if work.private is None:
        raise WorkFailed(
            "INTERNAL", "a plan with a guarantee per patient, and no budget was reserved for this training"
        )
    prove_once(work.plan)
    private = PrivateTraining(work.private.steps, secrets.token_bytes(KEY_BYTES), work.at_once)
    private.run(module, data, training, on_step=on_step, should_stop=should_stop, device=work.device)
    return (), work.private.bands


def prove_once(plan: StudyPlan) -> None:
    """Have the plan's network shown to give per-sample gradients, once in the life of this process.

    Raises a `ModelError` if it does not.
    """
    size, targets = plan.preprocessing.size, class_labels
    if plan.task == "segmentation":
        # a network that answers every voxel does the same to each: the smallest volume stands for all, and a whole one
        # in float64 would take the memory of a hundred trainings
        size, targets = (entry_of(plan.model).smallest_side,) * len(size), voxel_labels
    wanted = (plan.model, size, len(plan.labels.classes))
    if wanted in _proven:
        return
    network, generator = build(plan.model, len(plan.labels.classes)), torch.Generator().manual_seed(0)
    prove(network, (1, *size), mean_loss, generator=generator, targets=targets)
    _proven.add(wanted)


def try_once(work: LocalRound) -> None:
    """Take one private step on images of zeros, as many and as large as a real one takes at a time.

    So what this machine has no memory for fails here, for no patient's sake, and before it is paid for.
    """
    plan, labels = work.plan, np.zeros(1, np.int64)
    wanted = (plan.model, plan.preprocessing.size, len(plan.labels.classes), work.device, work.at_once)
    if wanted in _tried:
        return
    if plan.task == "segmentation":
        labels = np.zeros((1, *plan.preprocessing.size), np.uint8)
    one = LocalData(np.zeros((1, 1, *plan.preprocessing.size), np.float32), labels, np.zeros(1, np.int64))
    steps = PrivateSteps(steps=1, rate=1.0, denominator=1.0, clip=1.0, noise_multiplier=1.0, images=1)
    private = PrivateTraining(steps, secrets.token_bytes(KEY_BYTES), work.at_once)
    count = private.images_at_once(one)
    data = LocalData(
        np.repeat(one.images, count, axis=0), np.repeat(one.labels, count, axis=0), np.arange(count, dtype=np.int64)
    )
    module = build(plan.model, len(plan.labels.classes))
    private.run(module, data, plan.training, on_step=lambda _step, _steps: None, device=work.device)
    _tried.add(wanted)


def statistics_round(work: LocalRound) -> dict[str, Any]:
    """Count the training images and add up their intensities and labels, and describe the cohort if the plan has it.

    An image with a mask counts for every class that it shows. Raises `WorkFailed`.
    """
    data, classes = work.data(holdout=False), len(work.plan.labels.classes)
    means = [float(image.mean(dtype=np.float64)) for image in data.images]
    squares = [float(np.square(image, dtype=np.float64).mean()) for image in data.images]
    labels = np.zeros(classes)
    for label in data.labels:
        labels[np.unique(label)] += 1
    counted = described(load_cache(work.cache)[0], classes) if work.plan.dataset.described else ()
    _store(work.out, np.array([len(means), sum(means), sum(squares), *labels, *counted], dtype=np.float64))
    return {"parameters": work.parts.moving.size, "metrics": classes}


def evaluate_round(work: LocalRound, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Evaluate on the held-back patients, vote, and write the metric vector; raises as `train_round`."""
    data, layout = work.data(holdout=True), layout_of(work.plan)
    if work.before is None:
        numbers = _measured(work, data, should_stop)
    else:
        before = replace(work, model=work.before, home=work.home_before)
        known = _measured(before, data, should_stop)
        try:
            metrics = _measured(work, data, should_stop)
        except NonFiniteLogits:  # what answers nothing is voted down, and has no metrics
            metrics, vote = np.zeros(layout.size), (1.0, 1.0, LARGEST_LOSS)
        else:
            vote = _vote(work.plan, metrics, known)
        numbers = np.array([*metrics, *vote])
    _store(work.out, numbers)
    return {"parameters": work.parts.moving.size, "metrics": layout.size}


def _vote(plan: StudyPlan, metrics: NDArray[np.float64], before: NDArray[np.float64]) -> tuple[float, float, float]:
    """Against, whether at all, and by how much the mean loss rose. Who holds nobody back cannot vote."""
    loss, known = mean_loss_of(metrics), mean_loss_of(before)
    if loss is None or known is None:
        return 0.0, 0.0, 0.0
    return float(plan.robustness.is_worse(loss, known, guess_of(plan))), 1.0, loss - known


def _measured(work: LocalRound, data: LocalData, should_stop: Callable[[], bool]) -> NDArray[np.float64]:
    module = work.network(work.incoming())
    try:
        return evaluate(module, data, layout_of(work.plan), should_stop=should_stop, device=work.device)
    except TrainingCancelled as why:
        raise WorkCancelled("between two batches") from why


def _to_send(delta: Vector, work: LocalRound) -> tuple[Vector, bool]:
    """The weights of this round's sum, and whether the change had to be shortened (`boundary.robustness`).

    With error feedback those left over are kept beside the result. They take the place of `work.residual` when the
    round is committed with this hospital in it (Karimireddy et al. 2019, "Error feedback fixes SignSGD").
    """
    aggregation = work.plan.aggregation
    if aggregation.error_feedback:
        with suppress(FileNotFoundError):  # none yet, or somebody who had a share in it has just withdrawn consent
            delta += np.fromfile(work.residual, "<f4")
    shortened = shorten(delta, work.plan.robustness.clip)
    count = aggregation.summed_weights(len(delta))
    if count == len(delta):
        return delta, shortened
    chosen = selected(work.selection, len(delta), count)
    sent = delta[chosen]
    if aggregation.error_feedback:
        delta[chosen] = 0
        _store(work.out.with_suffix(RESIDUAL), np.empty(0), delta)
    return sent, shortened


def _store(out: Path, numbers: NDArray[np.float64], weights: NDArray[np.float32] | None = None) -> None:
    try:
        write_vector(out, numbers, weights)
    except BadTensors as why:
        raise WorkFailed("NON_FINITE_LOSS", str(why)) from why


def _weight(work: LocalRound, data: LocalData) -> float:
    if work.plan.training.weighting == "declared" and not work.declared:
        raise WorkFailed("NO_PRIVACY_BUDGET", "the plan weighs by most_patients, which agent.toml does not declare")
    return weight_of(work.plan, data, work.declared)


def every(seconds: float, say: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Pass on the first, the last and at most one step per interval: progress is for people."""
    last = -seconds

    def throttled(step: int, steps: int) -> None:
        nonlocal last
        now = time.monotonic()
        if step == steps or now - last >= seconds:
            last = now
            say(step, steps)

    return throttled

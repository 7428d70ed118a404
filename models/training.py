"""What happens in a hospital between two global models: plain local training, and evaluation.

Nothing here is private. Per-patient DP-SGD will stand beside `train` as another `LocalTraining`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boundary.learning import Training
from boundary.plan import StudyPlan
from models.errors import NoImages, NonFiniteLoss, TrainingCancelled
from models.losses import mean_loss
from models.measuring import Layout, measure
from models.metrics import Labels, Vector

VOXELS_AT_ONCE = 2**22  # in an evaluation: 64 images of 256 x 256, two volumes of 128 x 128 x 128


@dataclass(frozen=True, eq=False)
class LocalData:
    """A hospital's preprocessed images: float32 [n, 1, h, w] or [n, 1, d, h, w], labels, patient numbers int64 [n].

    `labels` are int64 [n], a class for each image, or for segmentation uint8 [n, *sides], one for each pixel or voxel.
    `images` may be memory-mapped: only the rows of one batch are read at a time. Patient numbers only say
    which images belong together; they mean nothing outside. Raises `ValueError` if the arrays do not match.
    """

    images: NDArray[np.float32]
    labels: Labels
    patients: NDArray[np.int64]

    def __post_init__(self) -> None:
        n, *sides = self.images.shape
        if len(sides) not in (3, 4) or sides[0] != 1 or self.images.dtype != np.float32:
            raise ValueError(f"images: {self.images.dtype}{self.images.shape}, not float32 [n, 1, (d,) h, w]")
        kinds = {"int64": (n,), "uint8": (n, *sides[1:])}
        if kinds.get(self.labels.dtype.name) != self.labels.shape:
            raise ValueError(f"labels: {self.labels.dtype}{self.labels.shape}, not int64 [{n}] or uint8 [{n}, *sides]")
        if self.patients.shape != (n,) or self.patients.dtype != np.int64:
            raise ValueError(f"patients: {self.patients.dtype}{self.patients.shape}, not int64 [{n}]")

    @property
    def voxels(self) -> int:
        """Pixels or voxels of one image."""
        return math.prod(self.images.shape[1:])

    @property
    def has_masks(self) -> bool:
        return self.labels.ndim > 1

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What training did. `mean_loss` in nats, over all images seen, each before its step."""

    steps: int
    images_seen: int
    mean_loss: float


def _never() -> bool:
    return False


class LocalTraining(Protocol):
    """One way to train `module` in place on local data; `on_step` hears (steps done, steps planned)."""

    def __call__(
        self,
        module: nn.Module,
        data: LocalData,
        training: Training,
        *,
        seed: int,
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool] = ...,
        device: str = ...,
    ) -> TrainingOutcome: ...


class ProximalTerm:
    """FedProx's pull towards the weights that `module` has now (Li et al. 2020): strength / 2 * |new - now|^2.

    Or towards others, by name, as Ditto pulls a hospital's own model towards that of all (Li et al. 2021).
    """

    def __init__(
        self, module: nn.Module, strength: float, towards: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        self._strength = strength
        self._pairs = [
            (p, p.detach().clone() if towards is None else torch.tensor(towards[name], device=p.device))
            for name, p in module.named_parameters()
            if p.requires_grad and strength > 0
        ]

    def add(self) -> None:
        """Add the term's gradient to every `grad`. It knows no patient and needs no noise."""
        for p, begin in self._pairs:
            if p.grad is not None:
                p.grad.add_(p.detach() - begin, alpha=self._strength)


class Correction:
    """SCAFFOLD's correction of each step, c - c_i by parameter (Karimireddy et al. 2020, Algorithm 1, line 10)."""

    def __init__(self, module: nn.Module, values: Mapping[str, NDArray[np.float32]]) -> None:
        named = dict(module.named_parameters())
        self._pairs = [(named[name], torch.tensor(value, device=named[name].device)) for name, value in values.items()]

    def add(self) -> None:
        """Add it to every `grad`; of a parameter that is not trained there is none."""
        for p, value in self._pairs:
            if p.grad is not None:
                p.grad.add_(value)


def next_control(
    own: NDArray[np.float32], common: NDArray[np.float32], delta: NDArray[np.float32], steps: int, training: Training
) -> NDArray[np.float32]:
    """SCAFFOLD's c_i after a training, float32 [n], by option II: the mean gradient of its steps (there, line 12)."""
    gradient = -delta / np.float32(steps * training.learning_rate)
    return gradient - common + own


def shorten(delta: NDArray[np.float32], longest: float | None) -> bool:
    """Scale a change, float32 [n], in place to the Euclidean norm `longest`; whether it was longer. None: never.

    Sun et al. 2019, "Can You Really Backdoor Federated Learning?", there done by the server on each change.
    """
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    if longest is None or norm <= longest:
        return False
    delta *= np.float32(longest / norm)
    return True


def weight_of(plan: StudyPlan, data: LocalData, declared: int) -> float:
    """A hospital's weight in the sum, never above the plan's largest: what one can add to it is bounded."""
    counts = {"images": len(data), "patients": len(np.unique(data.patients)), "equal": 1, "declared": declared}
    return float(min(counts[plan.training.weighting], plan.aggregation.largest_weight(plan.training)))


def train(  # noqa: PLR0913 - two of them are for who watches
    module: nn.Module,
    data: LocalData,
    training: Training,
    *,
    seed: int,
    on_step: Callable[[int, int], None],
    should_stop: Callable[[], bool] = _never,
    device: str = "cpu",
    correction: Mapping[str, NDArray[np.float32]] | None = None,
    towards: Mapping[str, NDArray[np.float32]] | None = None,
) -> TrainingOutcome:
    """Train in place with the plan's optimiser, its state fresh; the module stays on `device`.

    `training.proximal` pulls to the weights it begins with, or to those of `towards`.

    On the CPU the result is a function of weights, data, plan, seed and number of threads; on CUDA no two runs are
    the same to the bit (seen on an H200), so a retry must send the stored answer. Raises `NoImages`,
    `TrainingCancelled` if `should_stop` says so before a step, `NonFiniteLoss`; the module is then of no use.
    """
    if len(data) == 0:
        raise NoImages("there is no image to train on")
    module.to(device).train()
    optimizer = optimizer_for(module, training)
    terms = ProximalTerm(module, training.proximal, towards), Correction(module, correction or {})
    planned, seen, loss_sum = planned_steps(len(data), training), 0, 0.0
    for step, rows in enumerate(batches(len(data), training, seed), start=1):
        if should_stop():
            raise TrainingCancelled(step - 1)
        loss_sum += len(rows) * _step(module, optimizer, *batch(data, rows, device), number=step, terms=terms)
        seen += len(rows)
        on_step(step, planned)
    if not all(torch.isfinite(parameter).all() for parameter in module.parameters()):
        raise NonFiniteLoss(planned)  # the last step's gradient was not finite
    return TrainingOutcome(steps=planned, images_seen=seen, mean_loss=loss_sum / seen)


def evaluate(
    module: nn.Module,
    data: LocalData,
    layout: Layout,
    batch_size: int = 256,
    *,
    should_stop: Callable[[], bool] = _never,
    device: str = "cpu",
) -> Vector:
    """The metric vector, float64 [layout.size], of the module on all of `data`; zeros if it is empty.

    Of large images fewer than `batch_size` go through the network at once. The weights are not changed; the module
    stays on `device`. Raises `NonFiniteLogits`, `TrainingCancelled`.
    """
    was_training = module.training
    module.to(device).eval()
    total = np.zeros(layout.size)
    batch_size = min(batch_size, max(1, VOXELS_AT_ONCE // data.voxels))
    try:
        with torch.inference_mode():
            for start in range(0, len(data), batch_size):
                if should_stop():
                    raise TrainingCancelled(start // batch_size)
                rows = np.arange(start, min(start + batch_size, len(data)))
                images, _ = batch(data, rows, device)
                total += measure(module(images).cpu().numpy(), data.labels[rows], layout)
    finally:
        module.train(was_training)
    return total


def planned_steps(count: int, training: Training) -> int:
    """Steps that `count` images give: every epoch ends with a smaller batch if they do not divide."""
    return min(training.local_epochs * math.ceil(count / training.batch_size), training.max_steps)


def batches(count: int, training: Training, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each step: every epoch all rows, in a new order that the seed decides."""
    return islice(_epochs(count, training, seed), training.max_steps)


def batch(data: LocalData, rows: NDArray[np.int64], device: str) -> tuple[Tensor, Tensor]:
    """Copy some rows to the device: images float32 [b, 1, *sides], labels int64 [b] or uint8 [b, *sides].

    As rows of C order, whatever the strides in `data` are: indexing keeps those, torch may take a channel's for an
    image in channels-last form, and of such Opacus gets the gradients of convolutions wrong without a sign of it.
    """
    images, labels = (torch.from_numpy(np.take(values, rows, axis=0)) for values in (data.images, data.labels))
    return images.to(device), labels.to(device)


def optimizer_for(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Adam with torch's defaults (Kingma & Ba 2015), or SGD without momentum; fused, one kernel for all tensors."""
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(module.parameters(), lr=training.learning_rate, fused=True)
        case "sgd":
            return torch.optim.SGD(module.parameters(), lr=training.learning_rate, fused=True)


def _epochs(count: int, training: Training, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(training.local_epochs):
        order: NDArray[np.int64] = torch.randperm(count, generator=generator).numpy()
        for start in range(0, count, training.batch_size):
            yield order[start : start + training.batch_size]


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    number: int,
    terms: Iterable[ProximalTerm | Correction],
) -> float:
    """One optimiser step; returns the mean loss. A loss that is not finite never reaches the weights."""
    loss = mean_loss(module(images), labels)
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteLoss(number)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for term in terms:
        term.add()
    optimizer.step()
    return value

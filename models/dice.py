"""Metrics of segmentation that add up: voxels that are right, found and true for each class, and the images' Dice.

Dice is told in two ways. *Pooled*, of the sums of voxels over all images: large organs and long scans dominate it. And
the *mean* over images of each one's own Dice, which is what people report; only images that show the class have one.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from boundary.secagg.ring import FRACTION_BITS
from models.errors import NoImages, NonFiniteLogits
from models.metrics import LARGEST_LOSS, Labels, Vector

SMOOTH = 1.0  # voxels, as in `models.losses`
_STEP = 2.0**-FRACTION_BITS  # the finest step of a number in a masked sum
_COUNTED = ("intersection", "predicted", "true", "shown", "dice")


@dataclass(frozen=True)
class DiceLayout:
    """The coordinates of a metric vector: loss_sum, count, and five for each class but the first, the background.

    intersection, predicted, true: voxels, in units of 2^24 of them, one voxel being the finest step of a masked sum, so
    that it is exact. A hospital may tell at most 2^39 / hospitals of a number (`boundary.secagg.encoding`), which at
    200 hospitals is 2.7e9 times the largest volume that a plan can have, each. shown: images that show the class; dice:
    the sum of their Dice, each rounded to such a step.
    """

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"{self.classes} classes: 2 or more")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name per coordinate: `loss_sum`, `count`, `intersection_1`, `predicted_1`, ..."""
        return (
            "loss_sum",
            "count",
            *(f"{name}_{number}" for number, name in product(range(1, self.classes), _COUNTED)),
        )

    @property
    def size(self) -> int:
        return 2 + len(_COUNTED) * (self.classes - 1)


@dataclass(frozen=True, slots=True)
class ClassDice:
    """One class: `images` show it; `mean` over these of each one's Dice, `pooled` over all voxels, None without any."""

    images: int
    mean: float | None
    pooled: float | None


@dataclass(frozen=True, slots=True)
class SegmentationMetrics:
    """What people read. `loss` in nats per image; `classes` are those after the background, in the plan's order.

    `dice` is the mean of the classes' means and `pooled_dice` that of the pooled ones, over classes that are there.
    """

    count: int
    loss: float
    classes: tuple[ClassDice, ...]

    @property
    def dice(self) -> float | None:
        return _mean([one.mean for one in self.classes])

    @property
    def pooled_dice(self) -> float | None:
        return _mean([one.pooled for one in self.classes])


def measure(logits: NDArray[np.float32], masks: Labels, layout: DiceLayout) -> Vector:
    """The metric vector, float64 [layout.size], of logits [n, classes, *sides] and masks [n, *sides]; n may be 0.

    Every coordinate is at least 0; `loss_sum` is at most LARGEST_LOSS * n. One image at a time: the memory is that of
    one. Raises `NonFiniteLogits`; `ValueError` for shapes and labels that do not fit the layout.
    """
    if masks.ndim < 2 or logits.shape != (len(masks), layout.classes, *masks.shape[1:]):
        raise ValueError(
            f"logits {logits.shape}, labels {masks.shape}: not [n, {layout.classes}, *sides] and [n, *sides]"
        )
    if masks.size and not 0 <= masks.min() <= masks.max() < layout.classes:
        raise ValueError(f"labels from {masks.min()} to {masks.max()} in {layout.classes} classes")
    if not np.isfinite(logits).all():
        raise NonFiniteLogits("the model answers NaN or infinity")
    total = np.zeros(layout.size)
    for answer, mask in zip(logits, masks, strict=True):
        total += _one(answer.reshape(layout.classes, -1), mask.reshape(-1))
    return total


def read(vector: Vector, layout: DiceLayout) -> SegmentationMetrics:
    """Metrics from a vector or a sum of vectors, float64 [layout.size].

    Raises `NoImages` if it counts none; `ValueError` if it is no sum of what `measure` returns.
    """
    if vector.shape != (layout.size,) or not np.isfinite(vector).all() or vector.min() < 0:
        raise ValueError("not a metric vector of this layout")
    count = round(vector[1])
    if count == 0:
        raise NoImages("the metrics are a sum over no image")
    rows = vector[2:].reshape(layout.classes - 1, len(_COUNTED))
    return SegmentationMetrics(count, float(vector[0]) / count, tuple(_class(*map(float, row)) for row in rows))


def _class(intersection: float, predicted: float, true: float, shown: float, dice: float) -> ClassDice:
    images = round(shown)
    pooled = 2 * intersection / (predicted + true) if true >= _STEP / 2 else None
    return ClassDice(images, dice / images if images else None, pooled)


def _one(answer: NDArray[np.float32], mask: Labels) -> Vector:
    """Of one image: logits [classes, voxels], labels [voxels]."""
    found = answer.argmax(axis=0)
    numbers = [_loss(answer, mask), 1.0]
    for k in range(1, len(answer)):
        here, there = found == k, mask == k
        both, predicted, true = (int(np.count_nonzero(some)) for some in (here & there, here, there))
        dice = round(2 * both / (predicted + true) / _STEP) * _STEP if true else 0.0
        numbers += [both * _STEP, predicted * _STEP, true * _STEP, float(true > 0), dice]
    return np.array(numbers)


def _loss(answer: NDArray[np.float32], mask: Labels) -> float:
    """As `models.losses.image_losses`, in numpy; the cross-entropy is at most LARGEST_LOSS."""
    shifted = answer - answer.max(axis=0)
    shares = np.exp(shifted)
    sums = shares.sum(axis=0)
    shares /= sums
    entropy = float((np.log(sums) - np.take_along_axis(shifted, mask[None].astype(np.intp), axis=0)[0]).mean(dtype="d"))
    soft = []
    for k in range(1, len(answer)):
        share, there = shares[k], mask == k
        both, squares = float(share[there].sum(dtype="d")), float(np.square(share).sum(dtype="d"))
        soft.append((2 * both + SMOOTH) / (squares + int(there.sum()) + SMOOTH))
    return (min(entropy, LARGEST_LOSS) + 1 - sum(soft) / len(soft)) / 2


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None

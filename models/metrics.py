"""Metrics of classification that add up: a hospital reports sums, the coordinator sees only the sum of the sums.

Averages and AUROCs of different hospitals cannot be added, so each hospital reports one vector: summed loss,
count, confusion matrix and score histograms. The vector of all images is the sum of the vectors of any parts.
Numpy only: the coordinator reads metrics without torch.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import NoImages, NonFiniteLogits

Vector = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]  # of classes, int64 [n], or masks, uint8 [n, *sides]

LARGEST_LOSS = 100.0  # nats per image; a probability of e^-100. Bounds what one image can add to the sum
MOST_BINS = 128
LINEAR_MARGIN, LARGEST_MARGIN = 0.25, 64.0  # log-odds, see `_squash`


@dataclass(frozen=True)
class MetricLayout:
    """The coordinates of a metric vector: loss_sum, count, confusion (true, predicted), score histograms.

    Histograms are one-vs-rest, for each class positives then negatives; for two classes only of class 1.
    """

    classes: int
    bins: int = 64

    def __post_init__(self) -> None:
        if self.classes < 2 or not 2 <= self.bins <= MOST_BINS:
            raise ValueError(f"{self.classes} classes, {self.bins} bins: 2 or more, and 2 to {MOST_BINS}")

    @property
    def scored(self) -> tuple[int, ...]:
        """The classes that have histograms."""
        return (1,) if self.classes == 2 else tuple(range(self.classes))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name per coordinate: `loss_sum`, `count`, `confusion_0_1`, `score_1_positive_07`, ..."""
        classes = range(self.classes)
        return (
            "loss_sum",
            "count",
            *(f"confusion_{true}_{predicted}" for true in classes for predicted in classes),
            *(
                f"score_{k}_{sign}_{b:02d}"
                for k in self.scored
                for sign in ("positive", "negative")
                for b in range(self.bins)
            ),
        )

    @property
    def size(self) -> int:
        return 2 + self.classes**2 + len(self.scored) * 2 * self.bins


@dataclass(frozen=True, slots=True)
class Metrics:
    """What people read. `loss` in nats per image; rows of `confusion` are the true classes.

    `auroc` (macro average over classes if more than two) and `balanced_accuracy` are None when a class is absent.
    The exact AUROC lies within `auroc` +- `auroc_resolution`: what the histograms leave open.
    """

    count: int
    loss: float
    accuracy: float
    auroc: float | None
    auroc_resolution: float | None
    balanced_accuracy: float | None
    confusion: tuple[tuple[int, ...], ...]


def measure(logits: NDArray[np.float32], labels: Labels, layout: MetricLayout) -> Vector:
    """The metric vector, float64 [layout.size], of logits [n, classes] and labels [n]; n may be 0.

    Every coordinate but `loss_sum` is a whole number, at most n; `loss_sum` is at most LARGEST_LOSS * n.
    Raises `NonFiniteLogits`; `ValueError` for shapes and labels that do not fit the layout.
    """
    _check(logits, labels, layout)
    exact = logits.astype(np.float64)
    rows = np.arange(len(labels))
    losses = np.minimum(_log_sum_exp(exact) - exact[rows, labels], LARGEST_LOSS)
    cells = labels * layout.classes + exact.argmax(axis=1)
    parts = [np.array([losses.sum(), len(labels)]), np.bincount(cells, minlength=layout.classes**2)]
    for k in layout.scored:
        bins = _bins(margin(exact, k), layout.bins)
        parts += [np.bincount(bins[chosen], minlength=layout.bins) for chosen in (labels == k, labels != k)]
    return np.concatenate(parts).astype(np.float64)


def read(vector: Vector, layout: MetricLayout) -> Metrics:
    """Metrics from a vector or a sum of vectors, float64 [layout.size].

    Raises `NoImages` if it counts none; `ValueError` if it is no sum of what `measure` returns.
    """
    if vector.shape != (layout.size,) or not np.isfinite(vector).all() or vector.min() <= -0.5:
        raise ValueError("not a metric vector of this layout")
    counts = np.rint(vector[1:]).astype(np.int64)  # a sum taken in fixed point may be off by rounding
    count = int(counts[0])
    if count == 0:
        raise NoImages("the metrics are a sum over no image")
    cells, histograms = np.split(counts[1:], [layout.classes**2])
    confusion = cells.reshape(layout.classes, layout.classes)
    auroc, resolution = _mean_auroc(histograms.reshape(-1, 2, layout.bins))
    return Metrics(
        count=count,
        loss=float(vector[0]) / count,
        accuracy=float(confusion.trace()) / count,
        auroc=auroc,
        auroc_resolution=resolution,
        balanced_accuracy=_balanced_accuracy(confusion),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def _check(logits: NDArray[np.float32], labels: Labels, layout: MetricLayout) -> None:
    if labels.ndim != 1 or logits.shape != (len(labels), layout.classes):
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}: not [n, {layout.classes}] and [n]")
    if len(labels) and not 0 <= labels.min() <= labels.max() < layout.classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} in {layout.classes} classes")
    if not np.isfinite(logits).all():
        raise NonFiniteLogits("the model answers NaN or infinity")


def _log_sum_exp(values: Vector) -> Vector:
    peak = values.max(axis=1)
    total: Vector = peak + np.log(np.exp(values - peak[:, None]).sum(axis=1))
    return total


def margin(logits: Vector, k: int) -> Vector:
    """The log-odds of class k against all others, [n]: orders images exactly as the softmax probability does."""
    margin: Vector = logits[:, k] - _log_sum_exp(np.delete(logits, k, axis=1))
    return margin


def _squash(margin: Vector) -> Vector:
    """Log-odds to [0, 1], monotonically: linear near 0, logarithmic beyond LINEAR_MARGIN, clipped at LARGEST_MARGIN.

    Equal bins of the probability itself would put every image that the network is sure of (log-odds beyond 4)
    into the two outermost bins, and an AUROC cannot see order within a bin. With asinh a bin is a constant
    share of the score (11 % with 128 bins, 25 % with 64) wherever scores lie, and 0.05 wide around 0 (64 bins).
    """
    share: Vector = np.arcsinh(margin / LINEAR_MARGIN) / np.arcsinh(LARGEST_MARGIN / LINEAR_MARGIN)
    return np.clip(0.5 + 0.5 * share, 0.0, 1.0)


def _bins(margin: Vector, bins: int) -> NDArray[np.int64]:
    return np.minimum((_squash(margin) * bins).astype(np.int64), bins - 1)


def _mean_auroc(histograms: NDArray[np.int64]) -> tuple[float | None, float | None]:
    """AUROC and its resolution, averaged over classes, from counts [class, positive/negative, bin]."""
    if (histograms.sum(axis=2) == 0).any():
        return None, None
    pairs = np.array([_auroc(positive, negative) for positive, negative in histograms])
    auroc, resolution = pairs.mean(axis=0)
    return float(auroc), float(resolution)


def _auroc(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> tuple[float, float]:
    """P(s+ > s-) + P(same bin) / 2, and P(same bin) / 2: pairs in one bin may be in either order."""
    below = np.cumsum(negative) - negative
    pairs = float(positive.sum()) * float(negative.sum())
    tied = float((positive * negative).sum()) / pairs / 2
    return float((positive * below).sum()) / pairs + tied, tied


def _balanced_accuracy(confusion: NDArray[np.int64]) -> float | None:
    present = confusion.sum(axis=1)
    return float((confusion.diagonal() / present).mean()) if present.all() else None

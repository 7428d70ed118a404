"""How sure one hospital can be that one network does better than another on its own patients: the bootstrap.

Patients are drawn with replacement and not images, because images of one patient are alike (Efron & Tibshirani 1993,
"An introduction to the bootstrap", chapters 6 and 13: percentile intervals). All networks are looked at on the same
draws, so that the interval of a difference is that of a paired comparison.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from boundary.layout import COMPARED, OUTCOMES
from models.dice import DiceLayout
from models.errors import TrainingCancelled
from models.measuring import Layout, measure
from models.metrics import Labels, MetricLayout, Vector, margin
from models.training import VOXELS_AT_ONCE, LocalData, batch

DRAWS = 1000
TAILS = (2.5, 97.5)  # percentiles: an interval of 95 %
FEWEST_PATIENTS = 10  # held back; of fewer the bootstrap's intervals are too narrow to be called 95 %
MOST_UNDEFINED = 0.1  # of the draws, in which a class is absent
Figure = Callable[[Vector], float]
"""A figure of merit under weights of the images, float64 [n]; NaN where a class is absent."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure on all patients, and the ends of its 95 % interval, None where there is none to be had."""

    value: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str | None:
        """Of a difference: `better` or `worse` if the interval excludes 0, else `same`; None if nobody can tell."""
        if self.low is None or self.high is None:
            return None
        return "better" if self.low > 0 else "worse" if self.high < 0 else "same"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One hospital's own. `figures` by network; `differences` by pair, first less second. Undefined ones are left out.

    `patients` are those held back.
    """

    patients: int
    figures: dict[str, Estimate]
    differences: dict[tuple[str, str], Estimate]

    def outcomes(self) -> Vector:
        """What goes into the masked sum (`boundary.layout.OUTCOMES` of each pair), float64 [12]."""
        told = [self._outcome(pair) for pair in COMPARED]
        return np.array(told, dtype=np.float64).reshape(-1)

    def _outcome(self, pair: tuple[str, str]) -> list[float]:
        found = self.differences.get(pair)
        if found is None or found.verdict is None:
            return [0.0] * len(OUTCOMES)
        return [*(float(found.verdict == name) for name in OUTCOMES[:-1]), found.value]


def compare(figures: Mapping[str, Figure], patients: NDArray[np.int64], seed: int) -> Comparison:
    """Bootstrap all figures together. `patients` says which images belong together, int64 [n]; nothing leaves here."""
    known, who = np.unique(patients, return_inverse=True)
    names = [*figures]
    values = {name: figures[name](np.ones(len(who))) for name in names}
    weights = _draws(who, len(known), seed) if len(known) >= FEWEST_PATIENTS else ()
    drawn = np.array([[figures[name](one) for name in names] for one in weights]).reshape(-1, len(names))
    of = dict(zip(names, drawn.T, strict=True))
    pairs = [(one, other) for one, other in COMPARED if one in of and other in of]
    return Comparison(
        len(known),
        {name: _estimate(values[name], of[name]) for name in names if np.isfinite(values[name])},
        {
            (one, other): _estimate(values[one] - values[other], of[one] - of[other])
            for one, other in pairs
            if np.isfinite(values[one] - values[other])
        },
    )


def _draws(who: NDArray[np.intp], patients: int, seed: int) -> Iterator[Vector]:
    """How often each image is in each draw of as many patients, with replacement; float64 [n]."""
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        drawn = np.bincount(generator.integers(patients, size=patients), minlength=patients)
        yield drawn[who].astype(np.float64)


def _estimate(value: float, drawn: Vector) -> Estimate:
    defined = drawn[np.isfinite(drawn)]
    if not len(drawn) or len(defined) < (1 - MOST_UNDEFINED) * len(drawn):
        return Estimate(value, None, None)
    low, high = np.percentile(defined, TAILS)
    return Estimate(value, float(low), float(high))


# --- figures -------------------------------------------------------------------------------------------------
def figure_of(
    module: nn.Module, data: LocalData, layout: Layout, *, should_stop: Callable[[], bool], device: str
) -> Figure:
    """The plan's figure of merit for the module on `data`: the exact AUROC, macro over classes, or the mean Dice.

    Each image goes through the network once, however often it is drawn. Raises `NonFiniteLogits`, `TrainingCancelled`.
    """
    module.to(device).eval()
    at_once = max(1, min(256, VOXELS_AT_ONCE // data.voxels))
    kept: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(data), at_once):
            if should_stop():
                raise TrainingCancelled(start // at_once)
            rows = np.arange(start, min(start + at_once, len(data)))
            logits = module(batch(data, rows, device)[0]).cpu().numpy()
            kept += _kept(logits, data.labels[rows], layout)
    match layout:
        case MetricLayout():
            return Areas(np.array(kept).reshape(-1, layout.classes), data.labels, layout.scored)
        case DiceLayout():
            return Overlaps(np.array(kept).reshape(-1, layout.classes - 1, 2))


def _kept(logits: NDArray[np.float32], labels: Labels, layout: Layout) -> list[NDArray[np.float64]]:
    """Of each image its logits, or its Dice by class: no more of a volume is held than that."""
    measured = [measure(logits[at : at + 1], labels[at : at + 1], layout) for at in range(len(labels))]
    match layout:
        case MetricLayout():
            return [*logits.astype(np.float64)]
        case DiceLayout():
            return [one[2:].reshape(layout.classes - 1, -1)[:, 3:5] for one in measured]


class Areas:
    """The exact area under the ROC curve of each class against the others, their mean; ties count one half."""

    def __init__(self, logits: NDArray[np.float64], labels: Labels, scored: tuple[int, ...]) -> None:
        self._classes = [_Ranked(margin(logits, k), labels == k) for k in scored]

    def __call__(self, weights: Vector) -> float:
        return float(np.mean([one.area(weights) for one in self._classes]))


class _Ranked:
    """One class: the images in the order of their scores, equal ones in one group."""

    def __init__(self, scores: Vector, positive: NDArray[np.bool_]) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else self._order
        self._positive = positive[self._order]

    def area(self, weights: Vector) -> float:
        if not len(self._order):
            return float("nan")
        ordered = weights[self._order]
        positive, negative = (
            np.add.reduceat(np.where(here, ordered, 0.0), self._starts) for here in (self._positive, ~self._positive)
        )
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / pairs) if pairs > 0 else float("nan")


class Overlaps:
    """Mean Dice: of each class over the images that show it, then over the classes (`models.dice`).

    Over those that any image shows: a draw without one of them has another mean, of fewer classes, and so none at all.
    """

    def __init__(self, shown: NDArray[np.float64]) -> None:
        """`shown` is [n, classes - 1, 2]: whether the image shows the class, and its Dice if so."""
        there = shown[..., 0].any(axis=0)
        self._shown, self._dice = shown[:, there, 0], shown[:, there, 1]

    def __call__(self, weights: Vector) -> float:
        images = weights @ self._shown
        return float(np.mean(weights @ self._dice / images)) if len(images) and images.all() else float("nan")

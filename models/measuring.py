"""How well a network does, by the plan's task: where things lie in the metric vector, what fills it, what is read.

Classification is in `models.metrics`, segmentation in `models.dice`. Numpy only.
"""

from typing import overload

import numpy as np
from numpy.typing import NDArray

from boundary.plan import StudyPlan
from models import dice, metrics
from models.dice import DiceLayout, SegmentationMetrics
from models.metrics import Labels, MetricLayout, Metrics, Vector

Layout = MetricLayout | DiceLayout


def layout_of(plan: StudyPlan) -> Layout:
    """Where things lie in the plan's metric vector: hospitals and coordinator both ask here."""
    classes = len(plan.labels.classes)
    match plan.task:
        case "classification":
            return MetricLayout(classes)
        case "segmentation":
            return DiceLayout(classes)


def measure(logits: NDArray[np.float32], labels: Labels, layout: Layout) -> Vector:
    """The metric vector, float64 [layout.size], of logits [n, classes, ...] and what is true of the images.

    Raises `NonFiniteLogits`; `ValueError` for shapes and labels that do not fit the layout.
    """
    match layout:
        case MetricLayout():
            return metrics.measure(logits, labels, layout)
        case DiceLayout():
            return dice.measure(logits, labels, layout)


@overload
def read(vector: Vector, layout: MetricLayout) -> Metrics: ...
@overload
def read(vector: Vector, layout: DiceLayout) -> SegmentationMetrics: ...
def read(vector: Vector, layout: Layout) -> Metrics | SegmentationMetrics:
    """Metrics from a vector or a sum of vectors; raises `NoImages`, or `ValueError` if it is no such sum."""
    match layout:
        case MetricLayout():
            return metrics.read(vector, layout)
        case DiceLayout():
            return dice.read(vector, layout)


def guess_of(plan: StudyPlan) -> float:
    """The mean loss in nats of a network without a clue, to which classes are alike; of masks all of Dice's is lost."""
    guess = float(np.log(len(plan.labels.classes)))
    return guess + 1 if plan.task == "segmentation" else guess


def mean_loss_of(vector: Vector) -> float | None:
    """The mean loss in nats of a metric vector of either layout, which both begin with; None if it counts no image."""
    return float(vector[0] / vector[1]) if vector[1] > 0 else None

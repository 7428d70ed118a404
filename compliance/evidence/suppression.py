"""Small cells: counts of people, files and images are told in tens only, and none below ten. Rates have 3 decimals."""

from dataclasses import dataclass

from compliance import intervals
from compliance.events import CELL, in_tens
from compliance.records import GlobalMetrics, SegmentationMetrics


def up_to(count: int) -> str:
    """A count of people or files, of which only the next ten upwards is told."""
    return "none" if count == 0 else f"up to {in_tens(count)}"


@dataclass(frozen=True, slots=True)
class Reported:
    """Of a round's metrics what may be told. `confusion` only as a whole: one cell follows from the others.

    Intervals are 95 %: `compliance.intervals`, for the fewest images that `count` allows.
    """

    count: str
    loss: float | None
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    auroc: float | None
    auroc_interval: tuple[float, float] | None
    balanced_accuracy: float | None
    confusion: tuple[tuple[int, ...], ...] | None


def reported(metrics: GlobalMetrics) -> Reported:
    """With fewer than ten images nothing; with a cell below ten no confusion matrix; three decimals of the rest."""
    if metrics.count < CELL:
        return Reported(f"fewer than {CELL}", None, None, None, None, None, None, None)
    fewest = in_tens(metrics.count) - CELL + 1
    cells = [cell for row in metrics.confusion for cell in row]
    confusion = metrics.confusion if cells and min(cells) >= CELL else None
    return Reported(
        count=up_to(metrics.count),
        loss=round(metrics.loss, 3),
        accuracy=round(metrics.accuracy, 3),
        accuracy_interval=_rounded(*intervals.wilson(metrics.accuracy, fewest)),
        auroc=None if metrics.auroc is None else round(metrics.auroc, 3),
        auroc_interval=_auroc(metrics.auroc, confusion),
        balanced_accuracy=None if metrics.balanced_accuracy is None else round(metrics.balanced_accuracy, 3),
        confusion=None if confusion is None else tuple(tuple(map(in_tens, row)) for row in confusion),
    )


@dataclass(frozen=True, slots=True)
class ReportedDice:
    """Of a segmentation's metrics what may be told. `classes` are (name, images that show it, mean, pooled)."""

    count: str
    loss: float | None
    dice: float | None
    classes: tuple[tuple[str, str, float | None, float | None], ...]


def reported_dice(metrics: SegmentationMetrics) -> ReportedDice:
    """With fewer than ten images nothing; of a class that fewer than ten show no Dice, nor the mean it is in."""
    if metrics.count < CELL:
        return ReportedDice(f"fewer than {CELL}", None, None, ())
    rare = [one for one in metrics.classes if 0 < one.images < CELL]
    classes = tuple(
        (one.name, f"fewer than {CELL}", None, None)
        if one in rare
        else (one.name, up_to(one.images), _told(one.mean), _told(one.pooled))
        for one in metrics.classes
    )
    return ReportedDice(
        count=up_to(metrics.count),
        loss=round(metrics.loss, 3),
        dice=None if rare else _told(metrics.dice),
        classes=classes,
    )


def _told(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


def _auroc(area: float | None, confusion: tuple[tuple[int, ...], ...] | None) -> tuple[float, float] | None:
    """Of two classes whose numbers may be told, each taken as the fewest its tens allow."""
    if area is None or confusion is None or len(confusion) != 2:
        return None
    negative, positive = (in_tens(sum(row)) - CELL + 1 for row in confusion)
    return _rounded(*intervals.auroc(area, positive, negative))


def _rounded(low: float, high: float) -> tuple[float, float]:
    return round(max(0.0, low), 3), round(min(1.0, high), 3)

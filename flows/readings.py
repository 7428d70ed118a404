"""What is told of a round's metrics, by the task of the plan: kept in its record, in tables, a sentence, for MLflow.

A table has the mean and the first classes of a segmentation; MLflow and the record have all.
"""

import re
from typing import assert_never

from boundary.plan import StudyPlan
from compliance import intervals
from compliance.records import AnyMetrics, ClassDice, GlobalMetrics, SegmentationMetrics
from flows.summing import Total
from models import dice, metrics
from models.measuring import layout_of, read

MOST_CLASSES = 4  # with columns of their own
Reading = tuple[str, float | None]


def metrics_in(total: Total, plan: StudyPlan) -> AnyMetrics:
    """What a record keeps of the metrics in a sum. Raises `NoImages`, or `ValueError` if they are no sum of such."""
    found = read(total.numbers[total.layout.where("metrics")], layout_of(plan))
    match found:
        case metrics.Metrics():
            return GlobalMetrics(
                count=found.count,
                loss=found.loss,
                accuracy=found.accuracy,
                auroc=found.auroc,
                balanced_accuracy=found.balanced_accuracy,
                confusion=found.confusion,
            )
        case dice.SegmentationMetrics():
            each = zip(plan.labels.classes[1:], found.classes, strict=True)
            return SegmentationMetrics(
                count=found.count,
                loss=found.loss,
                dice=found.dice,
                classes=tuple(
                    ClassDice(name=name, images=one.images, mean=one.mean, pooled=one.pooled) for name, one in each
                ),
            )


def headings(plan: StudyPlan) -> tuple[str, ...]:
    """The names of `readings`, also of a round that was not evaluated."""
    if plan.task == "classification":
        return "AUROC", "accuracy"
    return "Dice", *(f"Dice of {name}" for name in plan.labels.classes[1 : MOST_CLASSES + 1])


def readings(found: AnyMetrics) -> tuple[Reading, ...]:
    """(name, value) of what people look at first, the foremost first."""
    match found:
        case GlobalMetrics():
            return ("AUROC", found.auroc), ("accuracy", found.accuracy)
        case SegmentationMetrics():
            each = ((f"Dice of {one.name}", one.mean) for one in found.classes[:MOST_CLASSES])
            return ("Dice", found.dice), *each
        case _:
            assert_never(found)


def values(plan: StudyPlan, found: AnyMetrics | None) -> tuple[float | None, ...]:
    """The values of `readings`, None for each of a round that was not evaluated."""
    return tuple(value for _, value in readings(found)) if found else (None,) * len(headings(plan))


def series(found: AnyMetrics) -> dict[str, float | None]:
    """Everything but counts, by names that MLflow takes: `auroc`, or `dice_mean`, `dice_liver`, `pooled_dice_liver`."""
    match found:
        case GlobalMetrics():
            return {
                "loss": found.loss,
                "auroc": found.auroc,
                "accuracy": found.accuracy,
                "balanced_accuracy": found.balanced_accuracy,
            }
        case SegmentationMetrics():
            keys = _keys([one.name for one in found.classes])
            return {
                "loss": found.loss,
                "dice_mean": found.dice,
                **{f"dice_{key}": one.mean for key, one in zip(keys, found.classes, strict=True)},
                **{f"pooled_dice_{key}": one.pooled for key, one in zip(keys, found.classes, strict=True)},
            }
        case _:
            assert_never(found)


def bounds(found: AnyMetrics) -> dict[str, intervals.Interval]:
    """95 % intervals by the names of `series`; of a Dice there is none, its spread over images is in no sum.

    Of more than two classes the AUROC is the mean over one class against the others. Its interval is that of the rarest
    class alone, which is wider: the mean of several is never less sure than the least sure of them.
    """
    if not isinstance(found, GlobalMetrics) or found.count < 1:
        return {}
    told = {"accuracy": intervals.wilson(found.accuracy, found.count)}
    sizes = [sum(row) for row in found.confusion]
    least = min(sizes, key=lambda size: min(size, found.count - size))
    if found.auroc is not None and 0 < least < found.count:
        told["auroc"] = intervals.auroc(found.auroc, least, found.count - least)
    return told


def with_ends(found: AnyMetrics) -> dict[str, float | None]:
    """`series`, and `auroc_low`, `auroc_high` of each that has an interval."""
    told = series(found)
    for name, (low, high) in bounds(found).items():
        told |= {f"{name}_low": low, f"{name}_high": high}
    return told


def with_bounds(found: AnyMetrics) -> tuple[tuple[str, str], ...]:
    """(name, `0.912 (0.874 to 0.941)`) of `readings`, the interval where there is one."""
    ends, told = bounds(found), []
    for name, value in readings(found):
        low_high = ends.get(name.lower())
        said = "–" if value is None else f"{value:.3f}"  # noqa: RUF001 - an en dash is how "no value" is printed
        told.append((name, said if low_high is None else f"{said} ({low_high[0]:.3f} to {low_high[1]:.3f})"))
    return tuple(told)


def _keys(names: list[str]) -> list[str]:
    """Each class in letters, digits, _ and -; by its number where that is another's name too, or that of the mean."""
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", name) for name in names]
    taken = [key.lower() for key in ("mean", *plain)]
    return [
        key if taken.count(key.lower()) == 1 else f"class_{number}" for number, key in enumerate(plain, start=1)
    ]  # fmt: skip

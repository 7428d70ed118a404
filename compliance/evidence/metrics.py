"""How good the models were, by round: what section 9 tells of the held-back patients, by the plan's task."""

from dataclasses import dataclass

from compliance.evidence.facts import Facts, RoundFacts
from compliance.evidence.suppression import Reported, reported, reported_dice, up_to
from compliance.evidence.tables import Cell, Figure, Table, figure, table
from compliance.records import GlobalMetrics, SegmentationMetrics


@dataclass(frozen=True, slots=True)
class Measured:
    """Tables and figures, with a note on what they leave out."""

    note: str
    tables: list[Table]
    figures: list[Figure]


def metrics(facts: Facts) -> Measured:
    """Of every round that was evaluated."""
    return _segmentation(facts) if facts.plan.task == "segmentation" else _classification(facts)


def _classification(facts: Facts) -> Measured:
    told = [
        (one, reported(one.record.metrics))
        for one in facts.rounds
        if one.record and isinstance(one.record.metrics, GlobalMetrics)
    ]
    columns = ("round", "images", "loss", "accuracy", "interval", "AUROC", "interval", "balanced accuracy")
    rows = [_metrics(one, said) for one, said in told]
    areas = [[one.number, said.auroc] for one, said in told if said.auroc is not None]
    figures = [
        figure("auroc", "AUROC over the held-back patients, by round", points=areas),
        _losses([(one.number, said.loss) for one, said in told]),
    ]
    note = "Intervals are 95 %, for the fewest images the count allows."
    return Measured(note, [table("Metrics by round", columns, rows), _confusion(facts, told)], figures)


def _segmentation(facts: Facts) -> Measured:
    told = [
        (one.number, reported_dice(one.record.metrics))
        for one in facts.rounds
        if one.record and isinstance(one.record.metrics, SegmentationMetrics)
    ]
    rounds = table(
        "Metrics by round",
        ("round", "images", "loss", "mean Dice"),
        [[number, said.count, said.loss, said.dice] for number, said in told],
    )
    classes = table(
        "Dice by class and round: the mean over the images that show the class, and of all their voxels together",
        ("round", "class", "images that show it", "mean Dice", "pooled Dice"),
        [[number, *one] for number, said in told for one in said.classes],
    )
    figures = [
        figure(
            "dice",
            "Dice over the held-back patients, the mean of the classes, by round",
            points=[[number, said.dice] for number, said in told if said.dice is not None],
        ),
        _losses([(number, said.loss) for number, said in told]),
    ]
    note = "Of a class that fewer than ten images show no Dice is told, nor a mean that it is in."
    return Measured(note, [rounds, classes], figures)


def _losses(told: list[tuple[int, float | None]]) -> Figure:
    points = [[number, loss] for number, loss in told if loss is not None]
    return figure("loss", "Loss over the held-back patients, by round", points=points)


def _metrics(one: RoundFacts, said: Reported) -> list[Cell]:
    interval, area = _interval(said.accuracy_interval), _interval(said.auroc_interval)
    return [one.number, said.count, said.loss, said.accuracy, interval, said.auroc, area, said.balanced_accuracy]


def _interval(found: tuple[float, float] | None) -> str | None:
    return None if found is None else f"{found[0]} to {found[1]}"


def _confusion(facts: Facts, told: list[tuple[RoundFacts, Reported]]) -> Table:
    """Of the last round that has one to tell, in tens."""
    matrix = next((said.confusion for _, said in reversed(told) if said.confusion), None)
    classes = facts.plan.labels.classes
    title = "Confusion matrix of the last round, in tens (not shown if any cell is below ten)"
    if matrix is None:
        return table(title, ("true class",), [])
    columns = ("true class", *(f"taken for {name}" for name in classes))
    return table(title, columns, [[name, *map(up_to, row)] for name, row in zip(classes, matrix, strict=True)])

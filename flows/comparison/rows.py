"""What is compared of each study, from its plan and its committed rounds. Pure values: no store, no drawing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from boundary.guarantee import EPSILON_BANDS, PatientPrivacy
from boundary.parties import trainers
from boundary.plan import StudyPlan, to_json
from compliance.intervals import Interval
from compliance.records import AnyMetrics, RoundRecord
from flows import readings
from flows.records import Measurement
from flows.store.studies import Study

ABSENT = "–"  # noqa: RUF001 - an en dash is how "no value" is printed
_NOT_COMPARED = {"name", "revision", "version", "purpose", "hospitals", "evidence"}  # of a plan: no part of the method


class NotComparable(ValueError):
    """Studies whose results are of different kinds, or that have none."""


@dataclass(frozen=True, slots=True)
class Point:
    """The first of `readings.readings` after a round, and its 95 % interval, where there are such."""

    round: int
    value: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One study. Bytes are means over the rounds and the hospitals in them."""

    study: Study
    records: tuple[RoundRecord, ...]
    external: tuple[Measurement, ...]

    @property
    def label(self) -> str:
        return self.study.label

    @property
    def plan(self) -> StudyPlan:
        return self.study.plan

    @property
    def points(self) -> tuple[Point, ...]:
        """On the patients whom hospitals that train hold back."""
        told = ((record.round, record.metrics) for record in self.records if record.metrics is not None)
        return tuple(_points(told))

    @property
    def external_points(self) -> tuple[Point, ...]:
        """On the patients of hospitals that only validate."""
        return tuple(_points((one.round, one.metrics) for one in self.external if one.phase == "validate"))

    @property
    def last(self) -> RoundRecord | None:
        """The last round that was measured."""
        return next((record for record in reversed(self.records) if record.metrics is not None), None)

    @property
    def counting(self) -> RoundRecord | None:
        """The last round whose model counts."""
        return next((record for record in reversed(self.records) if record.rolled_back is None), None)

    @property
    def measured_on(self) -> tuple[tuple[str, ...], int] | None:
        """The hospitals and the number of images of the last measured round."""
        last = self.last
        if last is None or last.metrics is None or last.evaluate is None:
            return None
        return last.evaluate.members, last.metrics.count

    @property
    def method(self) -> str:
        """`fedavg, pull 0.01 (FedProx), at home *norm*`: the strategy in a few words."""
        training, model = self.plan.training, self.plan.model
        said: list[str] = [training.strategy]
        said += [f"pull {training.proximal:g} (FedProx)"] if training.proximal else []
        said += [f"trained {' '.join(model.trained)}"] if "*" not in model.trained else []
        said += [f"at home {' '.join(model.home)}"] if model.home else []
        return ", ".join(said)

    @property
    def privacy(self) -> str:
        """What the plan promises, and how many hospitals are known to be below which epsilon."""
        privacy = self.plan.privacy
        if not isinstance(privacy, PatientPrivacy):
            return "none"
        noise = f"noise {privacy.noise_multiplier:g}"
        said = noise if privacy.epsilon is None else f"epsilon {privacy.epsilon:g}"
        if not self.records or not self.records[-1].below:
            return said
        below = zip(self.records[-1].below, EPSILON_BANDS, strict=True)
        return f"{said} ({', '.join(f'{count} below {band}' for count, band in below)})"

    @property
    def up(self) -> float:
        return self._mean_bytes("up")

    @property
    def down(self) -> float:
        return self._mean_bytes("down")

    def _mean_bytes(self, way: str) -> float:
        moved = [getattr(traffic, way) for record in self.records for traffic in record.traffic.values()]
        return sum(moved) / len(moved) if moved else 0.0

    @property
    def partial(self) -> int:
        """Rounds without some hospital that should have trained."""
        return sum(record.is_partial for record in self.records)

    @property
    def rolled_back(self) -> int:
        return sum(record.rolled_back is not None for record in self.records)

    @property
    def unmeasured(self) -> int:
        """Rounds whose model counts and has no metrics."""
        return sum(record.metrics is None and record.rolled_back is None for record in self.records)

    @property
    def hours(self) -> float:
        return sum(record.timing.total for record in self.records) / 3600


def _points(told: Any) -> Iterator[Point]:
    for number, metrics in told:
        name, value = readings.readings(metrics)[0]
        if value is not None:
            yield Point(number, value, readings.bounds(metrics).get(name.lower()))


def check_comparable(studies: Sequence[Compared]) -> None:
    """Raises `NotComparable`."""
    labels = [one.label for one in studies]
    if len(studies) < 2 or len(set(labels)) != len(labels):
        raise NotComparable("name two studies or more, each once")
    aims = {(one.plan.task, one.plan.labels.classes) for one in studies}
    if len(aims) > 1:
        raise NotComparable(f"{', '.join(labels)} tell different classes apart: their figures mean different things")
    without = [one.label for one in studies if not one.points]
    if without:
        raise NotComparable(f"no round of {', '.join(without)} was measured: run federated-training first")


def cautions(studies: Sequence[Compared]) -> list[str]:
    """Why figures that stand side by side may not be about the same; none if nothing speaks against it."""
    said = []
    if len({one.measured_on for one in studies}) > 1:
        each = "; ".join(
            f"{one.label} on {one.measured_on[1]} images of {', '.join(one.measured_on[0])}"
            for one in studies
            if one.measured_on is not None
        )
        said.append(f"They were measured on different images: {each}.")
    unfinished = [one.label for one in studies if len(one.records) < one.plan.training.rounds]
    if unfinished:
        said.append(f"Not finished yet: {', '.join(unfinished)}.")
    absent = [f"{one.label} {one.partial}" for one in studies if one.partial]
    if absent:
        said.append(f"Rounds without some hospital: {', '.join(absent)}.")
    stale = [one.label for one in studies if one.unmeasured and one.last is not one.counting]
    if stale:
        said.append(f"The last round was not measured, an earlier one is shown: {', '.join(stale)}.")
    return said


def verdict(studies: Sequence[Compared]) -> str:
    """One sentence about the last rounds. It never calls one better than another within their intervals."""
    name = readings.headings(studies[0].plan)[0]
    ranked = sorted(studies, key=lambda one: -one.points[-1].value)
    best, ends = ranked[0].points[-1], ranked[0].points[-1].interval
    first = f"{ranked[0].label} has the highest {name} after its last measured round, {best.value:.3f}"
    if ends is None:
        return f"{first}. What a masked sum holds gives no interval for it, so small differences may be chance."
    near = [one.label for one in ranked[1:] if (theirs := one.points[-1].interval) is not None and theirs[1] >= ends[0]]
    first += f" ({ends[0]:.3f} to {ends[1]:.3f})"
    if not near:
        return f"{first}; its interval lies above all others."
    return (
        f"{first}. The intervals of {', '.join(near)} overlap with it: these figures alone do not say which is better."
    )


def differences(studies: Sequence[Compared]) -> list[tuple[str, tuple[str, ...]]]:
    """(key of the plan, its value in each study) wherever the plans differ in how they learn."""
    flat = [dict(_flat(json.loads(to_json(one.plan)))) for one in studies]
    keys = sorted({key for plan in flat for key in plan if key.partition(".")[0] not in _NOT_COMPARED})
    found = [(key, tuple(plan.get(key, ABSENT) for plan in flat)) for key in keys]
    hospitals = tuple(", ".join(trainers(one.plan)) for one in studies)
    return [(key, values) for key, values in [("hospitals that train", hospitals), *found] if len(set(values)) > 1]


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        yield place, " ".join(map(str, value)) or ABSENT
    else:
        yield place, ABSENT if value is None else str(value)


def interval_told(value: float | None, interval: Interval | None) -> str:
    """`0.912 (0.874 to 0.941)`."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def final_told(metrics: AnyMetrics | None) -> tuple[tuple[str, str], ...]:
    return () if metrics is None else readings.with_bounds(metrics)

"""What a benchmark says: rows, each with what it is held against and what it should be."""

from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a row's value, or on its ratio to what was measured beside it."""

    of: Literal["value", "ratio"]
    sense: Literal["at most", "at least"]
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.sense} {self.bound:g}"

    def is_met(self, found: float) -> bool:
        return found <= self.bound if self.sense == "at most" else found >= self.bound


def at_most(bound: float) -> Target:
    return Target("value", "at most", bound)


def ratio_at_most(bound: float) -> Target:
    return Target("ratio", "at most", bound)


def ratio_at_least(bound: float) -> Target:
    return Target("ratio", "at least", bound)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `reference` is the limit or peer it is compared with, in the same unit; `against` names it.

    A peer is measured in the same run wherever that can be done; a constant says so and names its source.
    """

    figure: str
    value: float
    unit: str
    against: str = ""
    reference: float | None = None
    target: Target | None = None
    runs: tuple[float, ...] = ()

    @classmethod
    def of_runs(
        cls, figure: str, runs: list[float], unit: str, *,
        against: str = "", reference: float | None = None, target: Target | None = None,
    ) -> Self:  # fmt: skip
        """Make a row of the median of several runs, which it keeps."""
        return cls(figure, median(runs), unit, against, reference, target, tuple(runs))

    @property
    def ratio(self) -> float | None:
        return None if not self.reference else self.value / self.reference

    @property
    def met(self) -> bool | None:
        """None when there is no target, or nothing to hold the figure against."""
        found = self.value if self.target is None or self.target.of == "value" else self.ratio
        return None if self.target is None or found is None else self.target.is_met(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "value": self.value,
            "unit": self.unit,
            "against": self.against,
            "reference": self.reference,
            "ratio": self.ratio,
            "target": None if self.target is None else str(self.target),
            "met": self.met,
            "runs": list(self.runs),
        }

"""Bars against a common scale, as places of shapes. A template draws them, with the same numbers as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, ROW, BAR = 640.0, 26.0, 16.0  # CSS pixels
LABELS, NUMBERS = 190.0, 150.0  # what is kept free left and right of the bars
_TOP = 4.0
SPACE = WIDTH - LABELS - NUMBERS
Tone = Literal["plain", "good", "warning"]


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is drawn, `told` is what is written behind it; `mark` is a line across: a cap. All in one unit."""

    label: str
    value: float
    told: str
    tone: Tone = "plain"
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """One row at its place."""

    row: Row
    y: float
    width: float
    mark: float | None

    @property
    def base(self) -> float:
        """The base line of its texts."""
        return self.y + BAR * 0.78


@dataclass(frozen=True, slots=True)
class Chart:
    """`title` names it, `description` says all of it in words, for who does not see it."""

    name: str
    title: str
    description: str
    height: float
    bars: tuple[Bar, ...]

    width: float = WIDTH
    labels: float = LABELS
    thickness: float = BAR
    numbers: float = WIDTH - NUMBERS + 12


def chart(name: str, title: str, rows: Sequence[Row]) -> Chart | None:
    """All rows on one scale from 0; None if there is nothing to draw. `name` is unique on its page."""
    highest = max((max(row.value, row.mark or 0) for row in rows), default=0)
    if highest <= 0:
        return None
    bars = tuple(
        Bar(
            row,
            _TOP + index * ROW,
            round(_along(row.value, highest), 2),
            None if row.mark is None else round(LABELS + _along(row.mark, highest), 2),
        )
        for index, row in enumerate(rows)
    )
    said = "; ".join(f"{row.label}: {row.told}" for row in rows)
    return Chart(name, title, said, 2 * _TOP + len(rows) * ROW, bars)


def _along(value: float, highest: float) -> float:
    return SPACE * max(0.0, value) / highest

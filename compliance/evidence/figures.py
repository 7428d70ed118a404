"""The report's figures, drawn from its own data: epsilon and metrics over rounds, who took part, bytes that left."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from compliance.evidence.drawing import (
    BLACK,
    COLOURS,
    DASHES,
    GREY,
    PALE,
    WHITE,
    Box,
    Dot,
    Drawing,
    Line,
    Shape,
    Word,
    apart,
    width_of,
)
from compliance.evidence.tables import Figure

WIDTH = 720.0
MOST_LINES = len(DASHES)
MOST_ROWS, MOST_COLUMNS, MOST_BARS = 40, 40, 30
_TOP, _BOTTOM, _LEFT = 28.0, 42.0, 58.0
_CELL = 14.0


def draw(figure: Figure) -> Drawing | None:
    """None where there is nothing to draw."""
    return _KINDS[figure["kind"]](figure["title"], figure["data"])


@dataclass(frozen=True, slots=True)
class _Axes:
    """A plot area with rounds along it and values from `low` to `high` up it."""

    first: int
    last: int
    low: float
    high: float
    right: float
    height: float = 270.0

    def x(self, number: float) -> float:
        return _LEFT + (number - self.first) / max(1, self.last - self.first) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - (value - self.low) / (self.high - self.low) * (self.height - _BOTTOM - _TOP)

    def frame(self, label: str) -> list[Shape]:
        shapes: list[Shape] = []
        for value in _ticks(self.low, self.high):
            shapes.append(Line(((_LEFT, self.y(value)), (self.right, self.y(value))), PALE))
            shapes.append(Word(_LEFT - 6, self.y(value) + 4, f"{value:g}", anchor="end"))
        for number in _whole_ticks(self.first, self.last):
            shapes.append(Line(((self.x(number), self.y(self.low)), (self.x(number), self.y(self.low) + 4))))
            shapes.append(Word(self.x(number), self.y(self.low) + 17, str(number), anchor="middle"))
        shapes.append(Line(((_LEFT, _TOP), (_LEFT, self.y(self.low)), (self.right, self.y(self.low)))))
        shapes.append(Word((_LEFT + self.right) / 2, self.height - 8, "round", anchor="middle"))
        shapes.append(Word(4, 12, label))
        return shapes


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high."""
    rough = (high - low) / about
    step = next(
        base * 10.0**power
        for power in range(math.floor(math.log10(rough)), 12)
        for base in (1, 2, 5)
        if base * 10.0**power >= rough * 0.999
    )
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _whole_ticks(first: int, last: int) -> list[int]:
    if last - first < 12:
        return list(range(first, last + 1))
    return [int(value) for value in _ticks(first, last, 8) if value == int(value) and first <= value <= last]


def _epsilon(title: str, data: dict[str, Any]) -> Drawing | None:
    """The hospitals that spent most, each named at its end; the cap as a thick dashed line."""
    lines = sorted(data["lines"], key=lambda line: (-line["points"][-1][1], line["name"]))
    if not lines:
        return None
    shown, cap = lines[:MOST_LINES], data["cap"]
    numbers = [point[0] for line in shown for point in line["points"]]
    highest = max([point[1] for line in shown for point in line["points"]] + ([cap] if cap else []))
    names = max(width_of(line["name"]) for line in shown)
    axes = _Axes(min(numbers), max(numbers), 0, highest * 1.08, WIDTH - names - 34)
    shapes = axes.frame("epsilon")
    if cap:
        shapes.append(Line(((_LEFT, axes.y(cap)), (axes.right, axes.y(cap))), BLACK, 2.4, (10, 5)))
        shapes.append(Word(_LEFT + 6, axes.y(cap) - 5, f"cap of the plan: {cap:g}", is_bold=True))
    ends = apart([axes.y(line["points"][-1][1]) for line in shown], 13, _TOP, axes.height - _BOTTOM)
    for index, (line, end) in enumerate(zip(shown, ends, strict=True)):
        shapes += _line(axes, line["points"], index)
        last = line["points"][-1]
        shapes.append(Line(((axes.x(last[0]) + 4, axes.y(last[1])), (axes.right + 16, end)), GREY, 0.6))
        shapes.append(Word(axes.right + 20, end + 4, line["name"], colour=COLOURS[index]))
    if len(lines) > len(shown):
        shapes.append(Word(WIDTH - 4, axes.height - 8, f"the {MOST_LINES} highest of {len(lines)}", anchor="end"))
    return Drawing(WIDTH, axes.height, title, tuple(shapes))


def _line(axes: _Axes, points: Iterable[tuple[int, float]], index: int) -> list[Shape]:
    at = [(axes.x(number), axes.y(value)) for number, value in points]
    colour = COLOURS[index]
    shapes: list[Shape] = [Line(tuple(at), colour, 1.8, DASHES[index])] if len(at) > 1 else []
    return shapes + [Dot(x, y, colour, index % 2 == 0) for x, y in at]


def _auroc(title: str, data: dict[str, Any]) -> Drawing | None:
    """With the line of a coin at one half."""
    values = [value for _, value in data["points"]]
    low = min([0.5, *(math.floor(value * 10) / 10 for value in values)])
    return _metric(title, data["points"], "AUROC", (low, 1.0), chance=0.5)


def _dice(title: str, data: dict[str, Any]) -> Drawing | None:
    return _metric(title, data["points"], "Dice", (0.0, 1.0))


def _loss(title: str, data: dict[str, Any]) -> Drawing | None:
    highest = max([value for _, value in data["points"]], default=1.0)
    return _metric(title, data["points"], "loss", (0.0, max(highest * 1.1, 1e-3)))


def _metric(
    title: str, points: list[tuple[int, float]], label: str, span: tuple[float, float], chance: float | None = None
) -> Drawing | None:
    if not points:
        return None
    axes = _Axes(points[0][0], points[-1][0], *span, right=WIDTH - 90, height=230.0)
    shapes = axes.frame(label)
    if chance is not None:
        shapes.append(Line(((_LEFT, axes.y(chance)), (axes.right, axes.y(chance))), GREY, 1.2, (3, 3)))
        shapes.append(Word(axes.right + 8, axes.y(chance) + 4, "a coin"))
    shapes += _line(axes, points, 0)
    number, value = points[-1]
    shapes.append(Word(axes.x(number) + 8, axes.y(value) + 4, f"{value:.3f}", is_bold=True))
    return Drawing(WIDTH, axes.height, title, tuple(shapes))


def _cohort(title: str, data: dict[str, Any]) -> Drawing | None:
    """A filled square contributed, a crossed one refused, an empty one was absent, a dash was not drawn."""
    rows, numbers = data["rows"][:MOST_ROWS], data["rounds"][-MOST_COLUMNS:]
    if not rows or not numbers:
        return None
    left = max(width_of(row["name"]) for row in rows) + 14
    step = min(40.0, (WIDTH - left - 10) / len(numbers))
    shapes: list[Shape] = [Word(4, 14, "round")]
    every = math.ceil(len(numbers) / 20)
    for index, number in enumerate(numbers):
        if index % every == 0:
            shapes.append(Word(left + (index + 0.5) * step, 14, str(number), anchor="middle"))
    for down, row in enumerate(rows):
        y = 24 + down * 20
        shapes.append(Word(4, y + 11, row["name"]))
        for index, cell in enumerate(row["cells"][-len(numbers) :]):
            shapes += _mark(cell, left + (index + 0.5) * step - _CELL / 2, y)
    bottom = 24 + len(rows) * 20 + 10
    at = 4.0
    told = {cell for row in rows for cell in row["cells"]}
    for cell in ("contributed", "refused", "absent", *(["not drawn"] if "not drawn" in told else [])):
        shapes += [*_mark(cell, at, bottom), Word(at + 20, bottom + 11, cell)]
        at += 110
    if len(rows) < len(data["rows"]) or len(numbers) < len(data["rounds"]):
        said = f"{len(rows)} of {len(data['rows'])} hospitals, the last {len(numbers)} of {len(data['rounds'])} rounds"
        shapes.append(Word(WIDTH - 4, bottom + 11, said, anchor="end"))
    return Drawing(WIDTH, bottom + 22, title, tuple(shapes))


def _mark(cell: str, x: float, y: float) -> list[Shape]:
    if cell == "contributed":
        return [Box(x, y, _CELL, _CELL, COLOURS[0])]
    if cell == "not drawn":
        return [Line(((x + 3, y + _CELL / 2), (x + _CELL - 3, y + _CELL / 2)), GREY, 2)]
    empty: list[Shape] = [Box(x, y, _CELL, _CELL, WHITE, GREY)]
    if cell == "absent":
        return empty
    far_x, far_y = x + _CELL, y + _CELL
    crossed = Line(((x, y), (far_x, far_y)), COLOURS[1], 2), Line(((x, far_y), (far_x, y)), COLOURS[1], 2)
    return [*empty, *crossed]


def _bytes(title: str, data: dict[str, Any]) -> Drawing | None:
    bars = sorted(data["bars"], key=lambda bar: (-bar[1], bar[0]))
    largest = max((size for _, size in bars), default=0)
    if not largest:
        return None
    shown = bars[:MOST_BARS]
    left = max(width_of(name) for name, _ in shown) + 14
    right = WIDTH - 110
    shapes: list[Shape] = []
    for down, (name, size) in enumerate(shown):
        y = 6 + down * 22
        length = size / largest * (right - left)
        shapes.append(Word(4, y + 12, name))
        shapes.append(Box(left, y, max(length, 0.5), 15, COLOURS[0]))
        shapes.append(Word(left + length + 6, y + 12, _size(size)))
    bottom = 6 + len(shown) * 22
    shapes.append(Line(((left, 2), (left, bottom))))
    if len(shown) < len(bars):
        shapes.append(Word(WIDTH - 4, bottom + 12, f"the {len(shown)} largest of {len(bars)}", anchor="end"))
    return Drawing(WIDTH, bottom + 18, title, tuple(shapes))


def _size(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


_KINDS: dict[str, Callable[[str, dict[str, Any]], Drawing | None]] = {
    "epsilon": _epsilon,
    "auroc": _auroc,
    "dice": _dice,
    "loss": _loss,
    "cohort": _cohort,
    "bytes": _bytes,
}

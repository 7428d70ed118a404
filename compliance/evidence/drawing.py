"""A picture as a list of shapes, so that HTML and PDF show the same one. Origin at the top left, unit a CSS pixel.

Nothing is told by colour alone: lines differ in dash and marker and are named at their end, cells differ in shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, assert_never

Point = tuple[float, float]
BLACK, GREY, PALE, WHITE = "#000000", "#555555", "#d0d0d0", "#ffffff"
# Okabe and Ito (2008), "Color universal design": told apart by the colour-blind, and dark enough on white.
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#7a4a8f", "#8a6d00", "#000000", "#56708a", "#a03060")
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 3), (9, 3, 2, 3), (4, 2), (12, 4), (1, 2), (6, 2, 2, 2))


@dataclass(frozen=True, slots=True)
class Line:
    """Through all points."""

    points: tuple[Point, ...]
    colour: str = BLACK
    width: float = 1
    dash: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its top left corner."""

    x: float
    y: float
    width: float
    height: float
    fill: str = WHITE
    stroke: str = BLACK


@dataclass(frozen=True, slots=True)
class Dot:
    """A marker around a point: a circle or a filled one."""

    x: float
    y: float
    colour: str
    is_filled: bool = True
    radius: float = 2.6


@dataclass(frozen=True, slots=True)
class Word:
    """A line of text; `y` is its base line."""

    x: float
    y: float
    text: str
    size: float = 11
    anchor: Literal["start", "middle", "end"] = "start"
    is_bold: bool = False
    colour: str = BLACK


Shape = Line | Box | Dot | Word


@dataclass(frozen=True, slots=True)
class Drawing:
    """`title` is also what a screen reader says."""

    width: float
    height: float
    title: str
    shapes: tuple[Shape, ...]


def svg(drawing: Drawing) -> str:
    """Inline SVG without style, script or reference."""
    size = f'viewBox="0 0 {_n(drawing.width)} {_n(drawing.height)}" width="{_n(drawing.width)}"'
    body = "".join(map(_shape, drawing.shapes))
    return f'<svg role="img" {size} height="{_n(drawing.height)}"><title>{escape(drawing.title)}</title>{body}</svg>'


def _shape(shape: Shape) -> str:
    match shape:
        case Line():
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            dash = f' stroke-dasharray="{" ".join(map(str, shape.dash))}"' if shape.dash else ""
            stroke = f'stroke="{shape.colour}" stroke-width="{_n(shape.width)}"{dash}'
            return f'<polyline points="{points}" fill="none" {stroke}/>'
        case Box():
            at = f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}"'
            return f'<rect {at} fill="{shape.fill}" stroke="{shape.stroke}"/>'
        case Dot():
            fill = shape.colour if shape.is_filled else WHITE
            at = f'cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.radius)}"'
            return f'<circle {at} fill="{fill}" stroke="{shape.colour}" stroke-width="1.4"/>'
        case Word():
            bold = ' font-weight="bold"' if shape.is_bold else ""
            at = f'x="{_n(shape.x)}" y="{_n(shape.y)}" font-size="{_n(shape.size)}" text-anchor="{shape.anchor}"'
            return f'<text {at} fill="{shape.colour}"{bold}>{escape(shape.text)}</text>'
        case _:
            assert_never(shape)


def _n(number: float) -> str:
    """Two decimals at most, and no minus zero."""
    return f"{round(number, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def width_of(text: str, size: float = 11) -> float:
    """About how wide a text is in a common sans serif; rather too wide."""
    return len(text) * size * 0.58


def apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, in the same order from low to high, no two nearer than `least` if there is room."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    at = low
    for index in order:
        at = placed[index] = max(at, wanted[index])
        at += least
    limit = high
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - least
    return placed

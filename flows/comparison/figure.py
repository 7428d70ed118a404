"""The comparison drawn: by round with bands, after the last round with bars; also for the colour-blind."""

import io
from collections.abc import Sequence
from typing import Any

from flows import readings
from flows.comparison.rows import Compared, Point

# Okabe and Ito 2008, "Color Universal Design"; with more studies they begin again, with other marks
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "os^Dv"


def draw(studies: Sequence[Compared]) -> Any:
    """A matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    name = readings.headings(studies[0].plan)[0]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_round, final = figure.subplots(1, 2, width_ratios=[3, 2])
    for place, one in enumerate(studies):
        colour, mark = _COLOURS[place % len(_COLOURS)], _MARKS[place // len(_COLOURS) % len(_MARKS)]
        _line(by_round, one.points, colour, f"{mark}-", one.label)
        if one.external_points:
            _line(by_round, one.external_points, colour, f"{mark}--", f"{one.label}, external")
        _bar(final, len(studies) - place, one.points[-1], colour, mark)
        if one.external_points:
            _bar(final, len(studies) - place - 0.25, one.external_points[-1], colour, "x")
    by_round.set(xlabel="round", ylabel=name, title=f"{name} on held-back patients, 95 % band")
    by_round.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    by_round.legend(loc="lower right", frameon=False)
    final.set(xlabel=name, title="After the last measured round", ylim=(0.4, len(studies) + 0.6))
    final.set_yticks(range(len(studies), 0, -1), [one.label for one in studies])
    for axes in (by_round, final):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _line(axes: Any, points: Sequence[Point], colour: str, style: str, label: str) -> None:
    rounds = [point.round for point in points]
    axes.plot(rounds, [point.value for point in points], style, color=colour, label=label, markersize=4)
    ends = [(point.round, *point.interval) for point in points if point.interval is not None]
    if ends:
        at, low, high = zip(*ends, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)


def _bar(axes: Any, place: float, point: Point, colour: str, mark: str) -> None:
    low, high = point.interval or (point.value, point.value)
    axes.errorbar(
        [point.value], [place], xerr=[[point.value - low], [high - point.value]], fmt=mark, color=colour, capsize=4
    )


def png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(data)
    return data.getvalue()

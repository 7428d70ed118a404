"""The figures of a study: a line for what is known, and none for what a guarantee keeps."""

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from compliance.records import RoundRecord
from flows.mlflow_client import _draw_auroc, _draw_loss, _draw_privacy, _values

Make = Callable[..., RoundRecord]
BELOW = {1: (3, 3, 3, 3), 2: (1, 2, 3, 3), 3: (0, 1, 3, 3)}


@pytest.fixture
def plain(round_record: Make) -> list[RoundRecord]:
    return [round_record(number) for number in (1, 2, 3)]


@pytest.fixture
def private(round_record: Make) -> list[RoundRecord]:
    return [round_record(number, train_loss=None, below=BELOW[number]) for number in (1, 2, 3)]


def drawn(draw: Callable[[Any, list[RoundRecord]], None], records: list[RoundRecord]) -> Any:
    axes = Figure().subplots()
    draw(axes, records)
    return axes


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines}


def test_the_loss_figure_has_a_line_for_training_and_one_for_held_back_patients(plain: list[RoundRecord]) -> None:
    assert lines(drawn(_draw_loss, plain)) == {
        "training": [(1, 1), (2, 1 / 2), (3, 1 / 3)],
        "held-back patients": [(1, 0.5), (2, 0.25), (3, 0.5 / 3)],
    }


def test_with_a_guarantee_the_loss_figure_has_no_line_for_training(private: list[RoundRecord]) -> None:
    axes = drawn(_draw_loss, private)
    assert list(lines(axes)) == ["held-back patients"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["held-back patients"]


def test_a_loss_figure_of_which_nothing_is_known_is_empty_and_warns_nobody(private: list[RoundRecord]) -> None:
    """Warnings are errors here: matplotlib warns of a legend for nothing."""
    axes = drawn(_draw_loss, [record.model_copy(update={"metrics": None}) for record in private])
    assert not axes.lines
    assert axes.get_legend() is None


def test_the_privacy_figure_counts_hospitals_below_each_band(private: list[RoundRecord]) -> None:
    axes = drawn(_draw_privacy, private)
    assert lines(axes) == {
        "below epsilon 1": [(1, 3), (2, 1), (3, 0)],
        "below epsilon 2": [(1, 3), (2, 2), (3, 1)],
        "below epsilon 4": [(1, 3), (2, 3), (3, 3)],
        "below epsilon 8": [(1, 3), (2, 3), (3, 3)],
    }
    assert axes.get_ylim()[1] > 3


@pytest.mark.parametrize("draw", [_draw_loss, _draw_auroc, _draw_privacy])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_there_is_no_tick_between_two_rounds(draw: Any, count: int, private: list[RoundRecord]) -> None:
    ticks = [float(tick) for tick in drawn(draw, private[:count]).get_xticks()]
    assert ticks == [round(tick) for tick in ticks]
    assert count in ticks


def test_the_metrics_of_a_private_round_have_bands_and_no_training_loss(
    private: list[RoundRecord], plain: list[RoundRecord]
) -> None:
    told, usual = _values(private[1]), _values(plain[1])
    assert told.keys() - usual.keys() == {f"privacy/hospitals_below_epsilon_{band}" for band in (1, 2, 4, 8)}
    assert usual.keys() - told.keys() == {"global/train_loss"}
    assert [told[f"privacy/hospitals_below_epsilon_{band}"] for band in (1, 2, 4, 8)] == [1, 2, 3, 3]

"""Bars that say what their numbers say."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from silo_agent.console.charts import LABELS, NUMBERS, SPACE, WIDTH, Row, chart
from silo_agent.console.intake_view import funnel, intake_view
from silo_agent.intake.refusals import Refusal

AMOUNT = st.floats(0, 1e9) | st.integers(0, 10**9)
ROWS = st.lists(st.builds(Row, st.just("a"), AMOUNT, st.just("1"), mark=st.none() | AMOUNT), max_size=30)


@given(ROWS)
def test_every_bar_and_cap_is_inside_and_in_proportion(rows: list[Row]) -> None:
    drawn = chart("name", "title", rows)
    highest = max((max(row.value, row.mark or 0) for row in rows), default=0)
    if highest == 0:
        assert drawn is None
        return
    assert drawn is not None
    assert len(drawn.bars) == len(rows)
    for bar in drawn.bars:
        assert abs(bar.width - SPACE * bar.row.value / highest) < 0.01
        assert 0 <= bar.y < drawn.height
        assert bar.mark is None or LABELS <= bar.mark <= WIDTH - NUMBERS + 0.01


@given(ROWS)
def test_no_two_bars_overlap(rows: list[Row]) -> None:
    drawn = chart("name", "title", rows)
    places = [] if drawn is None else [bar.y for bar in drawn.bars]
    assert all(below - above >= 20 for above, below in pairwise(places))


def test_the_description_says_every_row() -> None:
    drawn = chart("name", "title", [Row("used", 3, "3"), Row("lost", 1, "1 of 4")])
    assert drawn is not None
    assert drawn.description == "used: 3; lost: 1 of 4"


COUNTS = st.dictionaries(st.sampled_from([*Refusal]).map(str), st.integers(1, 1000), max_size=8)


@given(COUNTS, st.integers(0, 500), st.integers(0, 500))
def test_the_funnel_only_narrows_and_its_end_is_what_is_used(refused: dict[str, int], train: int, held: int) -> None:
    report: dict[str, Any] = {
        "files": sum(refused.values()) + train + held, "used": train + held, "refused": refused, "problems": [],
        "images": {"training": {"0": train}, "holdout": {"0": held}}, "patients": {"training": 1, "holdout": 1},
    }  # fmt: skip
    view = intake_view(report)
    values = [row.value for row in funnel(report, view.refused)]
    assert values[0] >= values[1] >= values[2] == values[3] + values[4]
    assert sum(one.count for one in view.refused) == report["files"] - report["used"]


def test_a_code_of_an_older_agent_is_shown_and_counts_as_lost() -> None:
    report: dict[str, Any] = {
        "files": 4, "used": 1, "refused": {"NO_LABEL": 3}, "problems": [],
        "images": {"training": {"0": 1}, "holdout": {}}, "patients": {"training": 1},
    }  # fmt: skip
    (one,) = intake_view(report).refused
    assert (one.code, one.count, one.was_meant) == ("NO_LABEL", 3, True)
    assert "refused.csv" in one.explanation

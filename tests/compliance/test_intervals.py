"""Intervals hold what they promise, and agree with the textbook."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance import intervals


def test_wilson_is_that_of_the_textbook() -> None:
    assert intervals.wilson(0.81, 100) == pytest.approx((0.7222, 0.8749), abs=1e-4)
    assert intervals.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@given(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), st.integers(1, 10_000), st.integers(1, 10_000))
def test_an_end_lies_1_96_of_its_own_errors_away(area: float, positives: int, negatives: int) -> None:
    """Newcombe's equation, with the variance written out as in his paper."""
    low, high = intervals.auroc(area, positives, negatives)
    assert 0 <= low <= area <= high <= 1
    half = (positives + negatives) / 2
    for end in (low, high):
        if 0 < end < 1:
            spread = 1 + (half - 1) * ((1 - end) / (2 - end) + end / (1 + end))
            error = math.sqrt(end * (1 - end) * spread / (positives * negatives))
            assert abs(end - area) == pytest.approx(intervals.Z * error, rel=1e-3, abs=1e-9)


def test_an_auroc_of_one_has_an_interval() -> None:
    assert intervals.auroc(1.0, 20, 20) == pytest.approx((0.8987, 1.0), abs=1e-4)


@pytest.mark.parametrize(("apart", "positives", "negatives"), [(0.0, 15, 40), (1.0, 30, 30), (2.2, 12, 60)])
def test_it_holds_the_true_area_about_as_often_as_it_says(apart: float, positives: int, negatives: int) -> None:
    """Two normal distributions `apart` standard deviations from each other: the true area is known."""
    true, draw, trials = 0.5 * (1 + math.erf(apart / 2)), np.random.default_rng(7), 1000
    held = 0
    for _ in range(trials):
        up, down = draw.normal(apart, 1, positives), draw.normal(0, 1, negatives)
        low, high = intervals.auroc(float((up[:, None] > down).mean()), positives, negatives)
        held += low <= true <= high
    assert held / trials > 0.93

"""Which ring, which scale: from the plan and the last sum, and never coarser than the steward approved."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import CallerFault, NotApproved
from boundary.plan import StudyPlan, parse_plan
from boundary.secagg.ring import Encoding, check_encoding, exponent_for, first_encoding, next_encoding
from infra.golden import plan as golden_plan

RINGS = st.sampled_from([16, 32])
HEADROOM = 16


def plan_with(weighting: str = "images", **aggregation: Any) -> StudyPlan:
    """The golden plan: three hospitals, a ring of 16 bits, changes of at most 0.5 times a weight of at most 2000."""
    value = golden_plan().model_dump(mode="json")
    value["aggregation"] |= aggregation
    value["training"] |= {"weighting": weighting}
    return parse_plan(value)


# --- the scale that holds a bound ---------------------------------------------------------------------------
@given(st.floats(1e-9, 1e9) | st.floats(0, 1e12, exclude_min=True), RINGS, st.integers(3, 200))
def test_the_exponent_is_the_largest_that_holds_the_bound(bound: float, ring: Any, most: int) -> None:
    exponent = exponent_for(bound, ring, most)
    assert Encoding(ring=ring, exponent=exponent, most=most).bound >= bound
    if exponent < 60:
        assert Encoding(ring=ring, exponent=exponent + 1, most=most).bound < bound


@pytest.mark.parametrize("bound", [0.0, -1.0, np.inf, np.nan, 1e40])
def test_a_bound_that_cannot_be_is_refused(bound: float) -> None:
    with pytest.raises(CallerFault):
        exponent_for(bound, 32, 5)


@pytest.mark.parametrize("bound", [5e-324, 1e-320, 1e-300])
def test_the_smallest_bound_a_plan_can_name_has_the_finest_scale(bound: float) -> None:
    """Found here: the ring divided by such a bound is infinite, and has no logarithm that could be rounded."""
    assert first_encoding(plan_with(delta_bound=bound, max_weight=1)).exponent == 60


# --- the first round ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("weighting", "largest"), [("images", 2000), ("patients", 2000), ("equal", 1)])
def test_the_largest_weight_of_a_hospital_is_in_the_plan(weighting: str, largest: int) -> None:
    plan = plan_with(weighting)
    assert plan.aggregation.largest_weight(plan.training) == largest
    assert largest * 0.5 <= first_encoding(plan).bound < 2 * largest * 0.5


@given(st.data())
def test_every_plan_has_a_first_encoding_that_holds_all_it_allows(
    strategies: SimpleNamespace, data: st.DataObject
) -> None:
    plan: StudyPlan = data.draw(strategies.plans)
    first = first_encoding(plan)
    assert (first.ring, first.most) == (plan.aggregation.ring, len(plan.hospitals))
    assert first.bound >= plan.aggregation.delta_bound * plan.aggregation.largest_weight(plan.training)
    check_encoding(first, plan)


# --- the rounds after it ------------------------------------------------------------------------------------
@given(
    st.data(),
    st.integers(-60, 60),
    st.floats(0, 2.0**90),
    st.integers(0, 10**9),
)
def test_the_next_encoding_is_never_one_that_the_plan_does_not_allow(
    strategies: SimpleNamespace, data: st.DataObject, exponent: int, share: float, clipped: int
) -> None:
    plan: StudyPlan = data.draw(strategies.plans)
    first = first_encoding(plan)
    before = first.model_copy(update={"exponent": max(first.exponent, exponent)})
    most_there_can_be = before.bound * before.most
    after = next_encoding(plan, before, largest=min(share, most_there_can_be), clipped=clipped)
    check_encoding(after, plan)
    Encoding.model_validate(after.model_dump())


@given(st.floats(2.0**-40, 1000.0), RINGS)
def test_the_scale_follows_the_last_sum_with_room_above_it(largest: float, ring: int) -> None:
    plan = plan_with(ring=ring)
    first = first_encoding(plan)
    after = next_encoding(plan, first, largest=largest, clipped=0)
    wanted = HEADROOM * largest
    assert after.bound >= min(wanted, first.bound)
    assert after.exponent in {60, first.exponent} or after.bound < 2 * wanted * (1 + 2**-6)


FIRST = first_encoding(plan_with())  # exponent 3
NEXT: dict[str, tuple[int, float, int, int]] = {  # exponent before, largest of the sum, clipped, exponent after
    "a small sum makes it finer": (3, 1.0, 0, math.floor(math.log2(FIRST.largest / 16))),
    "a larger sum makes it coarser again": (9, 4.0, 0, math.floor(math.log2(FIRST.largest / 64))),
    "a sum as large as the plan's bound leaves it at the plan's": (9, 1000.0, 0, 3),
    "a sum of nothing but zeros leaves it": (9, 0.0, 0, 9),
    "one clipped weight makes the bound 16 times as large": (12, 1.0, 1, 8),
    "clipping counts for more than what the sum says": (12, 0.001, 5, 8),
    "clipping does not lead beyond the plan's bound": (5, 1.0, 1, 3),
    "clipping in the first round leaves it at the plan's": (3, 1.0, 10**6, 3),
    "clipping of a sum of zeros": (12, 0.0, 1, 8),
    "a sum that hardly is": (12, 2.0**-60, 0, 60),
}


@pytest.mark.parametrize(("before", "largest", "clipped", "after"), NEXT.values(), ids=NEXT)
def test_the_next_encoding(before: int, largest: float, clipped: int, after: int) -> None:
    encoding = FIRST.model_copy(update={"exponent": before})
    next_one = next_encoding(plan_with(), encoding, largest=largest, clipped=clipped)
    assert next_one == FIRST.model_copy(update={"exponent": after})


def test_the_plans_scale_is_reached_again_within_rounds_of_clipping() -> None:
    """However fine the scale became, 57 bits are given back in fifteen rounds."""
    plan, encoding = plan_with(), FIRST.model_copy(update={"exponent": 60})
    for _ in range(15):
        encoding = next_encoding(plan, encoding, largest=encoding.bound, clipped=1)
    assert encoding == FIRST


# --- what a hospital agrees to ------------------------------------------------------------------------------
@given(st.data(), st.integers(-60, 60))
def test_a_hospital_agrees_to_a_finer_scale_and_to_no_coarser_one(
    strategies: SimpleNamespace, data: st.DataObject, exponent: int
) -> None:
    plan: StudyPlan = data.draw(strategies.plans)
    first = first_encoding(plan)
    encoding = first.model_copy(update={"exponent": exponent})
    if exponent >= first.exponent:
        check_encoding(encoding, plan)
    else:
        with pytest.raises(NotApproved):
            check_encoding(encoding, plan)


NOT_APPROVED: dict[str, dict[str, Any]] = {
    "another ring": {"ring": 32},
    "another ring and a finer scale": {"ring": 32, "exponent": 20},
    "a sum of more hospitals than the plan has": {"most": 4},
    "the largest sum there is": {"most": 200},
    "a scale that is coarser by one bit": {"exponent": 2},
    "the coarsest scale, in which every change is nothing": {"exponent": -60},
}


@pytest.mark.parametrize("changes", NOT_APPROVED.values(), ids=NOT_APPROVED)
def test_an_encoding_the_plan_does_not_allow_is_refused(changes: dict[str, Any]) -> None:
    check_encoding(FIRST, plan_with())
    with pytest.raises(NotApproved, match="another encoding"):
        check_encoding(Encoding.model_validate(FIRST.model_dump() | changes), plan_with())

"""Who trains in a round: a draw that anybody can repeat, fair by counting; and plans whose selection is refused."""

import copy
import json
from collections import Counter
from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.canonical import digest
from boundary.drawing import Selection, drawn, passed_over, ranked
from boundary.errors import InvalidPlan
from boundary.plan import digest_of, parse_plan, to_json
from infra import golden

PLAN = digest(b"a plan")
SILOS = tuple("abcdefgh")
some = st.frozensets(st.sampled_from(SILOS))
numbers = st.integers(1, 10_000)


# --- the draw ----------------------------------------------------------------------------------------
@given(number=numbers, consenting=some, count=st.none() | st.integers(1, 8), without=some, least=st.integers(0, 8))
def test_laws_of_the_draw(
    number: int, consenting: frozenset[str], count: int | None, without: frozenset[str], least: int
) -> None:
    found = drawn(PLAN, number, consenting, count, without=without, least=least)
    others = consenting - without
    assert list(found) == sorted(set(found)), "by name, nobody twice"
    assert set(found) <= consenting
    wanted = len(others) if count is None else min(count, len(others))
    assert len(found) == max(wanted, min(least, len(others & set(found)) + len(consenting & without)))
    if set(found) & without:
        assert len(found) <= least, "who rests is drawn only for the least"
    assert found == drawn(PLAN, number, sorted(consenting, reverse=True), count, without=without, least=least)


@given(number=numbers, count=st.integers(1, 8))
def test_one_that_joins_or_leaves_displaces_at_most_one(number: int, count: int) -> None:
    for gone in SILOS:
        before = set(drawn(PLAN, number, SILOS, count))
        after = set(drawn(PLAN, number, set(SILOS) - {gone}, count))
        assert len(before - after) <= 1


def test_over_many_rounds_every_hospital_and_every_pair_is_drawn_alike() -> None:
    rounds, count = 3000, 3
    draws = [drawn(PLAN, number, SILOS, count) for number in range(1, rounds + 1)]
    single = Counter(silo for one in draws for silo in one)
    pairs = Counter((a, b) for one in draws for a in one for b in one if a < b)
    for seen, chance, kinds in ((single, 3 / 8, 8), (pairs, 3 / 28, 28)):
        assert len(seen) == kinds
        scatter = sqrt(rounds * chance * (1 - chance))
        assert max(abs(times - rounds * chance) for times in seen.values()) < 4.5 * scatter


def test_another_plan_draws_others() -> None:
    draws = [[drawn(digest(name), number, SILOS, 4) for number in range(1, 30)] for name in (b"one", b"two")]
    assert draws[0] != draws[1]


def test_the_draw_is_this_one() -> None:
    """It may not change: reviewers repeat it in ten years."""
    assert ranked(PLAN, 7, SILOS) == ("c", "g", "b", "e", "h", "f", "d", "a")


@given(number=numbers, asked=some, silos=st.just(SILOS))
def test_nobody_is_passed_over_by_the_draw_and_a_favourite_shows(
    number: int, asked: frozenset[str], silos: tuple[str, ...]
) -> None:
    for count in range(len(silos)):
        assert passed_over(PLAN, number, silos, drawn(PLAN, number, silos, count)) == ()
    expected = bool(asked) and asked != set(drawn(PLAN, number, silos, len(asked)))
    assert bool(passed_over(PLAN, number, silos, asked)) == expected


# --- lateness ----------------------------------------------------------------------------------------
def test_an_update_weighs_less_the_later_it_comes() -> None:
    assert [Selection(staleness=0.5).factor(late) for late in (0, 1, 3)] == pytest.approx([1, 2**-0.5, 0.5])
    assert Selection(staleness=0).factor(5) == 1


# --- plans -------------------------------------------------------------------------------------------
def _set(section: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan[section].update(values)


def plan_with(selection: dict[str, Any], *changes: Callable[[dict[str, Any]], None]) -> Any:
    """The golden plan, made one that may have a selection, then changed."""
    plan = copy.deepcopy(json.loads(to_json(golden.plan())))
    _set("model", home=[])(plan)
    _set("aggregation", random_share=1.0, error_feedback=False)(plan)
    _set("training", weighting="equal")(plan)
    _set("preprocessing", normalise="none")(plan)
    plan["selection"] = selection
    for change in changes:
        change(plan)
    return parse_plan(plan)


LATE = {"late": "next-round"}
GUARANTEE = {"mechanism": "patient-dp", "epsilon": 3.0}
REFUSED: dict[str, tuple[Any, ...]] = {
    "selection.over: asks more than a sample": ({"over": 1},),
    "selection.hospitals: fewer than aggregation.quorum": ({"hospitals": 2},),
    "selection: hospitals and over come to more than there are": ({"hospitals": 3, "over": 1},),
    "how many images or patients each": ({"hospitals": 3}, _set("training", weighting="images")),
    "training.weighting: sums over other hospitals": (LATE, _set("training", weighting="patients")),
    "training.strategy: fednova needs the same": (LATE, _set("training", strategy="fednova", proximal=0)),
    "training.strategy: scaffold needs the same": ({"hospitals": 3}, _set("training", strategy="scaffold", proximal=0)),
    "take refuse with a guarantee per patient": (LATE, lambda plan: plan.update(privacy=GUARANTEE)),
    "take refuse with model.home": (LATE, _set("model", home=["*norm*"])),
    "take refuse with aggregation.random_share": (LATE, _set("aggregation", random_share=0.5)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_selection_that_is_unsafe_or_senseless_is_refused(reason: str) -> None:
    with pytest.raises(InvalidPlan, match=reason.replace(".", r"\.")):
        plan_with(*REFUSED[reason])


ALLOWED: dict[str, tuple[Any, ...]] = {
    "a sample": ({"hospitals": 3},),
    "a sample with a guarantee": ({"hospitals": 3}, lambda plan: plan.update(privacy=GUARANTEE)),
    "a sample of parts that stay home": ({"hospitals": 3}, _set("model", home=["*norm*"])),
    "late": (LATE | {"staleness": 1.0, "most_stale": 3},),
    "only grace, with any weights": ({"grace_minutes": 5}, _set("training", weighting="images")),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_sound_is_allowed(case: str) -> None:
    plan = plan_with(*ALLOWED[case])
    assert digest_of(plan) != digest_of(plan_with({}))
    assert plan.selection.varies == (case != "only grace, with any weights")

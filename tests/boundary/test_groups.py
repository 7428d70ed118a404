"""Groups of hospitals in a plan: the parting, and plans whose groups are refused."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import InvalidPlan
from boundary.groups import are_whole, fewest_groups, group_of, groups_of, has_groups
from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan, to_json
from infra import golden

SILOS = tuple(f"h{number:02d}" for number in range(28))
KEYS = {silo: SigningIdentity.generate().public.text for silo in SILOS}


def draft(groups: dict[str, int | None]) -> dict[str, Any]:
    """A plan's value with these hospitals; None for one without a group."""
    value: dict[str, Any] = copy.deepcopy(json.loads(to_json(golden.plan())))
    value["hospitals"] = [{"silo": silo, "signing_key": KEYS[silo], "group": group} for silo, group in groups.items()]
    value["aggregation"]["quorum"] = 3
    value["training"]["weighting"] = "equal"
    value["model"]["home"], value["aggregation"]["error_feedback"] = [], False
    value["aggregation"]["random_share"] = 1.0
    return value


def dealt(count: int = 12, groups: int = 3) -> dict[str, int | None]:
    return {silo: place % groups + 1 for place, silo in enumerate(SILOS[:count])}


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    return parse_plan(draft(dealt()))


@given(silos=st.frozensets(st.sampled_from(SILOS[:12])))
def test_groups_part_whom_they_are_given(plan: StudyPlan, silos: frozenset[str]) -> None:
    groups = groups_of(plan, "train", silos)
    assert sorted(silo for group in groups for silo in group) == sorted(silos)
    assert all(list(group) == sorted(group) and group for group in groups)
    for group in groups:
        for silo in group:
            assert set(group) == group_of(plan, "train", silo) & silos
    assert groups_of(plan, "evaluate", silos) == (tuple(sorted(silos)),), "only a training has groups"
    sizes = [len(group) for group in groups]
    assert are_whole(plan, "train", silos) == (len(sizes) >= 3 and min(sizes) >= 3)
    assert are_whole(plan, "evaluate", silos) == (len(silos) >= 3)


def test_a_plan_without_groups_has_one_of_all() -> None:
    plain = parse_plan(draft(dict.fromkeys(SILOS)))
    assert not has_groups(plain)
    assert groups_of(plain, "train", SILOS) == (SILOS,)
    assert (group_of(plain, "train", "h00"), fewest_groups(plain, "train")) == (frozenset(SILOS), 1)


@pytest.mark.parametrize(("count", "fewest"), [(3, 3), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_more_than_half_of_the_groups_and_three_are_needed(count: int, fewest: int) -> None:
    assert fewest_groups(parse_plan(draft(dealt(4 * count, count))), "train") == fewest


def test_somebody_who_is_in_no_group_is_summed_with_nobody(plan: StudyPlan) -> None:
    assert group_of(plan, "train", "elsewhere") == frozenset()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two groups": ({"groups": dealt(12, 2)}, "median of fewer than 3"),
    "one too small": ({"groups": dealt(8)}, r"one has 2 hospitals, 3 are needed"),
    "one of which none can be missed": ({"groups": dealt(12, 4)}, "one has 3 hospitals, of which none could be missed"),
    "one without": ({"groups": dealt() | {"h03": None}}, "h03 needs one"),
    "rfa": ({"training": {"strategy": "rfa"}}, "strategy: rfa counts on the mean of all"),
    "scaffold": ({"training": {"strategy": "scaffold", "optimizer": "sgd"}}, "scaffold"),
    "a sample": ({"selection": {"hospitals": 9}}, "selection: a sample"),
    "late updates": ({"selection": {"late": "next-round"}}, "selection: a sample or a late"),
    "leave_out": ({"robustness": {"vote": True, "leave_out": True}}, r"leave_out: groups stand"),
    "group nought": ({"groups": dealt() | {"h00": 0}}, "greater than or equal to 1"),
}


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED)
def test_groups_that_are_refused(changes: dict[str, Any], why: str) -> None:
    sections = dict(changes)
    value = draft(sections.pop("groups", dealt()))
    for section, change in sections.items():
        value[section] |= change
    with pytest.raises(InvalidPlan, match=why):
        parse_plan(value)


def test_who_only_validates_is_in_no_group() -> None:
    value = draft(dealt())
    value["hospitals"][0]["role"] = "validate"
    with pytest.raises(InvalidPlan, match="h00 can have none"):
        parse_plan(value)


def test_a_plan_that_trains_nothing_has_no_groups() -> None:
    value = draft(dealt())
    value["training"]["rounds"], value["evaluation"] = 0, {"models": ["sha256:" + "a" * 64]}
    value["preprocessing"]["normalise"], value["model"]["trained"] = "none", ["*"]
    value["robustness"], value["selection"], value["personalisation"] = {}, {}, None
    with pytest.raises(InvalidPlan, match="nothing to take the median of"):
        parse_plan(value)

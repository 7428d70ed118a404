"""Votes and lengths: what one hospital says of a model, and what all of them add up to."""

import math
from itertools import product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import InvalidPlan
from boundary.plan import StudyPlan, parse_plan
from boundary.robustness import Robustness, RolledBack, Vote, counted
from boundary.secagg.encoding import Quantiser, decode_mean
from boundary.secagg.ring import Encoding, exponent_for
from infra import golden

LOSSES = st.floats(0, 100)


@given(before=LOSSES, loss=LOSSES, tolerance=st.floats(0, 10), guess=st.floats(0.5, 5))
def test_a_hospital_votes_against_what_is_worse_than_it_tolerates(
    before: float, loss: float, tolerance: float, guess: float
) -> None:
    robustness = Robustness(vote=True, tolerance=tolerance)
    is_worse = robustness.is_worse(loss, before, guess)
    assert is_worse or loss <= (1 + tolerance) * before
    if is_worse:
        assert loss > before
        assert loss > (1 + tolerance) * min(before, guess)
    assert not robustness.is_worse(before, before, guess)


def test_a_model_that_is_worse_than_a_guess_may_not_get_worse_by_and_by() -> None:
    robustness, guess = Robustness(vote=True, tolerance=0.25), math.log(2)
    assert not robustness.is_worse(0.8, 0.7, guess), "a young model that goes up and down beside the guess"
    assert robustness.is_worse(0.9, 0.8, guess)
    assert robustness.is_worse(3.1, 3.0, guess)
    assert not robustness.is_worse(3.0, 3.1, guess), "it gets better"
    assert not robustness.is_worse(0.36, 0.3, guess), "within the tolerance, and far better than a guess"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_is_worse_than_anything(loss: float) -> None:
    assert Robustness(vote=True, tolerance=10).is_worse(loss, 100.0, 0.7)


@given(votes=st.lists(st.sampled_from([(0, 0), (0, 1), (1, 1)]), min_size=1, max_size=12), rise=st.floats(-9, 9))
def test_honest_votes_are_counted_and_bring_down_what_is_worse_for_most_and_for_all(
    votes: list[tuple[int, int]], rise: float
) -> None:
    against, voted = (sum(one[place] for one in votes) for place in (0, 1))
    vote = counted(against + 1e-7, voted - 1e-7, rise, len(votes))  # a sum in fixed point
    if voted == 0:
        assert vote is None
    else:
        assert vote == Vote(against=against, voted=voted, rise=rise)
        assert vote.is_against == (against > voted - against and rise > 0)


IMPOSSIBLE = {
    "fewer than none against": (-1.0, 3.0, 1.0),
    "more against than voted": (3.0, 2.0, 1.0),
    "more voted than were asked": (0.0, 6.0, 1.0),
    "nobody voted": (0.0, 0.0, 1.0),
    "no number": (math.nan, 3.0, 1.0),
    "endless": (0.0, math.inf, 1.0),
    "a rise that is no number": (0.0, 3.0, math.nan),
}


@pytest.mark.parametrize("sums", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_no_honest_votes_add_up_to_is_no_vote(sums: tuple[float, float, float]) -> None:
    assert counted(*sums, 5) is None


def test_one_hospital_decides_nothing_among_honest_ones() -> None:
    for hospitals, bit in product(range(3, 30), (0, 1)):
        all_others = Vote(against=(hospitals - 1) * (1 - bit) + bit, voted=hospitals, rise=1.0)
        assert all_others.is_against == (bit == 0)


def test_a_mean_that_is_longer_than_any_change_may_be_is_too_long() -> None:
    robustness = Robustness(clip=2.0)
    assert not robustness.is_too_long(2.0 * (1 + 1e-4)), "rounding"
    assert robustness.is_too_long(2.01)
    assert not Robustness().is_too_long(1e30)


def test_a_reason_to_roll_back_is_of_what_the_plan_has() -> None:
    voting, clipping = Robustness(vote=True), Robustness(clip=1.0)
    assert {why for why in RolledBack if voting.knows(why)} == set(RolledBack) - {RolledBack.TOO_LONG}
    assert {why for why in RolledBack if clipping.knows(why)} == {RolledBack.TOO_LONG, RolledBack.MODEL_TOO_LARGE}
    assert not any(Robustness().knows(why) for why in RolledBack)


def robust(ring: int = 32, **changes: object) -> StudyPlan:
    plan = golden.plan().model_dump(mode="json")
    return parse_plan(plan | {"robustness": changes, "aggregation": plan["aggregation"] | {"ring": ring}})


def test_a_plan_rolls_back_only_if_it_says_so() -> None:
    assert not golden.plan().robustness.may_roll_back
    assert robust(vote=True).robustness.may_roll_back
    assert robust(clip=1.0).robustness.may_roll_back


@pytest.mark.parametrize("changes", [{"clip": 0.0}, {"clip": math.inf}, {"tolerance": -0.1}, {"krum": True}])
def test_what_makes_no_sense_is_no_plan(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan, match="robustness"):
        robust(**changes)


@pytest.mark.parametrize(("ring", "is_too_long"), [(16, True), (32, False)])
def test_rounding_to_few_bits_makes_an_honest_sum_too_long(ring: Literal[16, 32], is_too_long: bool) -> None:
    """Three hospitals send the same change, as long as the limit: of 16 bits each the mean comes out 1 % longer."""
    size, clip, bound = 100_000, 0.05, 1.0
    encoding = Encoding(ring=ring, exponent=exponent_for(bound, ring, 3), most=3)
    change = np.random.default_rng(5).normal(size=size).astype(np.float32)
    change *= np.float32(clip) / np.linalg.norm(change)
    total = np.zeros(size, f"<u{ring // 8}")
    for hospital in range(3):
        words = np.empty_like(total)
        Quantiser(encoding, bytes([hospital]) * 32).encode(change, words)
        total += words
    mean, _ = decode_mean(total, encoding, 3.0)
    assert Robustness(clip=clip).is_too_long(float(np.linalg.norm(mean))) is is_too_long


def test_a_limit_of_length_wants_a_sum_that_rounding_makes_no_longer() -> None:
    with pytest.raises(InvalidPlan, match=r"robustness.clip: .* take aggregation.ring = 32"):
        robust(ring=16, clip=1.0)
    robust(ring=16, vote=True)


def test_a_plan_with_a_guarantee_clips_patients_and_not_hospitals() -> None:
    private = golden.private_plan().model_dump(mode="json")
    parse_plan(private | {"robustness": {"vote": True}})
    with pytest.raises(InvalidPlan, match="every patient's part is clipped already"):
        parse_plan(private | {"robustness": {"clip": 1.0}})


def test_hospitals_are_left_out_only_where_something_is_rolled_back_and_no_true_count_is_summed() -> None:
    with pytest.raises(InvalidPlan, match="nothing is ever rolled back"):
        robust(leave_out=True)
    with pytest.raises(InvalidPlan, match="take equal or declared"):
        robust(leave_out=True, vote=True)
    plan = golden.plan().model_dump(mode="json")
    plan["training"]["weighting"] = "equal"
    assert parse_plan(plan | {"robustness": {"leave_out": True, "vote": True}}).varies
    steps = plan | {"training": plan["training"] | {"strategy": "fednova", "optimizer": "sgd", "proximal": 0.0}}
    parse_plan(steps | {"robustness": {"vote": True}})
    with pytest.raises(InvalidPlan, match="fednova's steps over other hospitals would tell how many images"):
        parse_plan(steps | {"robustness": {"leave_out": True, "vote": True}})
    assert not parse_plan(plan | {"robustness": {"vote": True}}).varies


def test_the_first_rounds_count_whatever_the_votes_say() -> None:
    vote, robustness = Vote(against=3, voted=3, rise=1.0), Robustness(vote=True, warm_up=2)
    assert [robustness.is_down(vote, number) for number in (1, 2, 3, 4)] == [False, False, True, True]
    assert not robustness.is_down(Vote(against=1, voted=3, rise=1.0), 4)

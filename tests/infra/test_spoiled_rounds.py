"""Rounds that somebody spoils, in the simulation, and the rows of the benchmark about them."""

from functools import partial

import numpy as np
import pytest

from boundary.learning import Training
from boundary.robustness import Robustness, RolledBack
from boundary.tensors import Vector
from infra.bench.robustness import CASES, LOST, PEACE, Case, rows
from infra.simulation.comparison import Arm, plan_of
from infra.simulation.rounds import Learned, Simulation, Site, Spoiler
from tests.infra.bright_corners import images

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("north", "south", "west", "east")
TRAINING = Training(rounds=6, batch_size=8, learning_rate=1e-2, weighting="equal")
VOTE = Robustness(vote=True, warm_up=0)
clear = partial(images, noise=0.3, brighter=0.6, images_per_patient=1)


def sites() -> list[Site]:
    return [Site(clear(32, seed), held_back=clear(12, 10 + seed)) for seed in range(len(NAMES))]


def played(robustness: Robustness, spoiler: Spoiler | None = None, *, encoded: bool = True) -> Learned:
    plan = plan_of(Arm("fedavg", TRAINING, robustness=robustness), NAMES, seed=1)
    return Simulation(plan, sites(), 3, encoded=encoded, spoiler=spoiler).run()


def moved(learned: Learned) -> Vector:
    return learned.moving - learned.parts.moving_of(learned.base)


def every(_: int) -> bool:
    return True


def test_an_honest_study_is_the_same_with_a_vote() -> None:
    voted = played(VOTE)
    assert not voted.rolled_back
    np.testing.assert_array_equal(voted.moving, played(Robustness()).moving)


def test_rounds_that_one_hospital_spoils_are_voted_down_and_leave_no_trace() -> None:
    learned = played(VOTE, Spoiler(1, -30.0, lambda number: number > 3))
    assert set(learned.rolled_back) == {4, 5, 6}
    assert set(learned.rolled_back.values()) == {RolledBack.VOTED_DOWN}
    short = TRAINING.model_copy(update={"rounds": 3})
    plan = plan_of(Arm("fedavg", short, robustness=VOTE), NAMES, seed=1)
    np.testing.assert_array_equal(learned.moving, Simulation(plan, sites(), 3).run().moving)


def test_a_change_that_no_agent_shortened_shows_in_the_sum() -> None:
    longest = 2 * float(np.linalg.norm(moved(played(Robustness()))))
    limit = Robustness(clip=longest)
    assert not played(limit).rolled_back
    ours = played(limit, Spoiler(1, -1000.0, every, clipped=True))
    assert RolledBack.TOO_LONG not in ours.rolled_back.values()
    theirs = played(limit, Spoiler(1, -1000.0, every))
    assert set(theirs.rolled_back) == set(range(1, 7))
    assert set(theirs.rolled_back.values()) == {RolledBack.TOO_LONG}
    assert not moved(theirs).any()


def test_whoever_spoils_every_round_is_left_out_and_the_others_learn() -> None:
    limit = Robustness(clip=50.0, vote=True, warm_up=0, leave_out=True)
    learned = played(limit, Spoiler(2, -1000.0, every))
    assert 1 in learned.rolled_back
    assert len(learned.rolled_back) < TRAINING.rounds
    assert moved(learned).any()


def test_the_median_of_groups_stands_what_a_mean_does_not() -> None:
    names, short = [f"h{number}" for number in range(12)], TRAINING.model_copy(update={"rounds": 2})
    twelve = [Site(clear(16, seed)) for seed in range(len(names))]

    def moved_by(groups: int, spoiler: Spoiler | None) -> float:
        plan = plan_of(Arm("fedavg", short), names, seed=1, groups=groups)
        return float(np.linalg.norm(moved(Simulation(plan, twelve, 3, spoiler=spoiler).run())))

    spoiler = Spoiler(4, -1000.0, every)
    in_peace = moved_by(3, None)
    assert moved_by(3, spoiler) < 2 * in_peace
    assert moved_by(0, spoiler) > 5 * in_peace
    with pytest.raises(ValueError, match="fixed point"):
        Simulation(plan_of(Arm("fedavg", short), names, seed=1, groups=3), twelve, 3, encoded=False)


def test_a_site_that_is_to_vote_needs_patients_held_back() -> None:
    plan = plan_of(Arm("fedavg", TRAINING, robustness=VOTE), NAMES, seed=1)
    with pytest.raises(ValueError, match="held back"):
        Simulation(plan, [Site(clear(8, seed)) for seed in range(len(NAMES))], 3).run()


def test_rows_tell_what_each_case_loses_in_the_mean() -> None:
    lost = {PEACE: 0.0, **{case: 0.01 * number for number, case in enumerate(CASES)}}

    def found(case: Case) -> list[tuple[float, int]]:
        return [(0.9 - lost[case] + seed / 100, seed) for seed in range(5)]

    made = rows(found, "breast")
    assert made[0].value == pytest.approx(0.92)
    assert [row.value for row in made[1:]] == pytest.approx([0.01 * number for number in range(len(CASES))])
    assert "2.0 rolled back" in made[1].figure
    judged = {case.name: row.target for case, row in zip(CASES, made[1:], strict=True)}
    for name, target in judged.items():
        is_for_comparison = "undefended" in name or "without the one" in name
        assert (target is None) == is_for_comparison, name
        assert target is None or target.bound == LOST

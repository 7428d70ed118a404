"""The median of groups of hospitals: exact on real masks, and it stands a hospital that spoils its group's sum."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.messages import Collection
from boundary.robustness import Median, Robustness, RolledBack
from compliance.events import SumOpened, UnmaskingHelped
from compliance.records import RoundRecord
from compliance.trail import read_leaf
from flows import medians, pages
from flows.collecting import CollectionFailed
from flows.driver import StudyDriver
from flows.engine import Reason
from flows.medians import median_of
from flows.readiness import readiness_problems
from flows.round_work import RoundWork
from flows.summing import TrainSum
from infra.driving import EXACT, PARAMETERS, collect, mean_of, run, trail, train_only, weights, work_of
from infra.federation import SimulatedFederation, Work, make_federation

SIXTEEN = {f"h{number:02}": (number - 1) // 4 + 1 for number in range(1, 17)}  # h01 to h04, h05 to h08, ...
TWELVE = {silo: group for silo, group in SIXTEEN.items() if group <= 3}
MEANS = tuple(mean_of(*range(first, first + 4)) for first in (1, 5, 9))


def sending(number: int, scale: float = 1.0, weight: float = 1.0, *, clips: bool = False) -> Work:
    """Hospital `number` of `infra.driving` with a change, or a weight, of another size than it should have."""
    plain = work_of(number)

    def work(collection: Collection) -> tuple[np.ndarray, np.ndarray | None]:
        numbers, moved = plain(collection)
        if moved is None:
            return numbers, None
        numbers = numbers * [1, 1, weight, 1]
        return np.array([*numbers, 0.0]) if clips else numbers, scale * moved

    return work


Made = Callable[..., SimulatedFederation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Made]:
    made: list[SimulatedFederation] = []

    def build(groups: dict[str, int], bad: dict[str, Work] | None = None, **changes: Any) -> SimulatedFederation:
        works = {silo: work_of(int(silo[1:])) for silo in groups} | (bad or {})
        quorum = {"quorum": 4} if groups else {}
        made.append(make_federation(tmp_path, works, parameters=PARAMETERS, groups=groups, **quorum, **changes))
        return made[-1]

    yield build
    for one in made:
        one.close()


def one(federation: SimulatedFederation) -> RoundRecord:
    return run(federation, train_only)  # type: ignore[no-any-return]


def moved_by(value: float) -> Any:
    return pytest.approx(np.full(PARAMETERS, value), rel=EXACT)


def helped(federation: SimulatedFederation, silo: str) -> tuple[str, ...]:
    events = [read_leaf(leaf).event for leaf in federation.hospitals[silo].journal.trail()]
    (said,) = (event for event in events if isinstance(event, UnmaskingHelped))
    return said.surviving


def test_the_model_moves_by_the_median_of_the_groups_means(make: Made) -> None:
    federation = make(TWELVE)
    record = one(federation)
    assert weights(federation, record) == moved_by(sorted(MEANS)[1])
    assert record.median == Median(groups=3)
    assert (record.contributing, record.is_partial) == (tuple(TWELVE), False)
    (opened,) = (event for event in trail(federation) if isinstance(event, SumOpened))
    assert opened.surviving == tuple(TWELVE)
    assert helped(federation, "h05") == ("h05", "h06", "h07", "h08"), "nobody holds a share of another group"
    assert "median of 3 groups" in pages.round_page(federation.study, record)


@pytest.mark.parametrize(
    "bad",
    [sending(5, scale=-1000.0), sending(5, weight=-100.0), sending(5, scale=-10.0)],
    ids=["outweighs", "weighs less than nothing", "turns round"],
)
def test_one_hospital_spoils_its_groups_mean_and_not_the_model(make: Made, bad: Work) -> None:
    federation = make(TWELVE, {"h05": bad})
    record = one(federation)
    low, high = MEANS[0], MEANS[2]
    moved = weights(federation, record)
    assert ((low * (1 - EXACT) <= moved) & (moved <= high * (1 + EXACT))).all(), "between two sound groups"
    assert record.median is not None
    assert record.rolled_back is None


def test_a_group_whose_sum_is_too_long_is_not_taken(make: Made) -> None:
    longest = 1.1 * MEANS[2] * PARAMETERS**0.5
    works = {silo: sending(int(silo[1:]), clips=True) for silo in TWELVE} | {"h12": sending(12, 30.0, clips=True)}
    federation = make(TWELVE, works, changes={"robustness": {"clip": longest}})
    record = one(federation)
    assert weights(federation, record) == moved_by((MEANS[0] + MEANS[1]) / 2)
    assert (record.median, record.rolled_back) == (Median(groups=3, spoiled=1), None)
    assert "without 1 whose sum was too long" in pages.round_page(federation.study, record)


def test_two_of_three_that_are_too_long_are_rolled_back(make: Made) -> None:
    longest = 1.1 * MEANS[2] * PARAMETERS**0.5
    works = {silo: sending(int(silo[1:]), clips=True) for silo in TWELVE}
    works |= {"h01": sending(1, 2000.0, clips=True), "h12": sending(12, 30.0, clips=True)}
    record = one(make(TWELVE, works, changes={"robustness": {"clip": longest}}))
    assert (record.median, record.rolled_back) == (Median(groups=3, spoiled=2), RolledBack.TOO_LONG)


def test_a_group_that_is_not_whole_waits_for_the_next_round(make: Made) -> None:
    """Three of its four are ready, and the plan wants four."""
    federation = make(SIXTEEN)
    federation.hospitals["h16"].refuse("train")
    record = one(federation)
    assert record.median == Median(groups=3)
    assert record.contributing == tuple(TWELVE)
    assert record.absent == dict.fromkeys(("h13", "h14", "h15"), "GROUP_TOO_SMALL") | {"h16": "NO_IMAGES"}
    assert weights(federation, record) == moved_by(sorted(MEANS)[1])


def test_nobody_trains_whose_group_has_not_approved(make: Made) -> None:
    """It would spend its patients' guarantee in every round, and be in none."""
    federation = make(SIXTEEN)
    federation.hospitals["h16"].silence()
    record = one(federation)
    assert record.contributing == tuple(TWELVE)
    assert record.absent == dict.fromkeys(("h13", "h14", "h15"), "GROUP_TOO_SMALL") | {"h16": "NOT_APPROVED"}
    assert not record.not_drawn
    assert [federation.hospitals[silo].worked for silo in ("h13", "h14")] == [[], []]


def test_approvals_are_enough_if_enough_groups_are_whole(make: Made) -> None:
    federation = make(TWELVE)
    federation.hospitals["h12"].silence()

    async def story(driver: StudyDriver) -> list[str]:
        return readiness_problems(driver)

    (approvals, alive) = run(federation, story)
    assert "11 approvals, 4 are needed in every sum, which is in each of 3 groups; not yet: h12" in approvals
    assert "11 hospitals give signs of life" in alive


def test_with_too_few_groups_there_is_no_round(make: Made) -> None:
    federation = make(TWELVE, ready_minutes=0.05)
    federation.hospitals["h12"].refuse("train")

    async def story(driver: StudyDriver) -> CollectionFailed:
        work = driver.open_round(1)
        with pytest.raises(CollectionFailed) as failed:
            await collect(work, "train", work.model_in)
        return failed.value

    assert run(federation, story).reason is Reason.TOO_MANY_REFUSED


def test_half_of_the_groups_whose_sums_are_none_of_changes_fail_the_attempt(make: Made) -> None:
    federation = make(TWELVE, {"h01": sending(1, weight=-100.0), "h12": sending(12, weight=-100.0)})

    assert run(federation, unreadable).reason is Reason.CANNOT_UNMASK


def test_a_sum_that_is_none_of_changes_fails_the_attempt_without_groups_too(make: Made) -> None:
    works = {"h1": sending(1, weight=-9.0), "h2": work_of(2), "h3": work_of(3)}
    federation = make({}, works)

    assert run(federation, unreadable).reason is Reason.CANNOT_UNMASK


async def unreadable(driver: StudyDriver) -> CollectionFailed:
    work = driver.open_round(1)
    gathered = await collect(work, "train", work.model_in)
    with pytest.raises(CollectionFailed) as failed:
        RoundWork.aggregate(work, gathered)
    return failed.value


# --- the median itself -------------------------------------------------------------------------------
def summed(delta: Sequence[float], **more: Any) -> TrainSum:
    said = {"mean_loss": 1.0, "mean_steps": None, "weight": 1.0, "largest": 1.0, "clipped": 0, "bands": ()} | more
    return TrainSum(np.array(delta, np.float32), **said)


rows = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=9)


@given(rows=rows)
def test_it_is_numpys_median_whatever_the_pieces(rows: list[list[float]]) -> None:
    found = median_of([summed(row) for row in rows]).mean_delta
    np.testing.assert_allclose(found, np.median(np.array(rows, np.float64), axis=0), rtol=1e-6, atol=1e-30)
    assert found.dtype == np.float32


@given(rows=st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5), bad=st.sampled_from([-1e30, 0.0, 1e30]))
def test_what_decides_how_it_goes_on_is_within_what_most_say(rows: list[float], bad: float) -> None:
    sums = [
        summed([row], mean_loss=row, largest=abs(row), clipped=3, shortened=1, late=0, bands=(1, 2)) for row in rows
    ]
    huge = summed([bad], mean_loss=bad, largest=abs(bad), clipped=10**9, shortened=3, late=3, bands=(3, 3))
    found = median_of([*sums[:4], huge])
    assert min(rows[:4]) <= found.mean_delta[0] <= max(rows[:4])
    assert found.mean_loss is not None
    assert min(rows[:4]) <= found.mean_loss <= max(rows[:4])
    assert found.largest <= max(map(abs, rows))
    assert (found.clipped, found.shortened, found.late, found.bands) == (3, 7, 3, (7, 11))


def test_what_a_plan_does_not_count_stays_unknown() -> None:
    found = median_of([summed([1.0], mean_loss=None), summed([2.0], mean_loss=None)])
    assert (found.mean_loss, found.shortened, found.late, found.mean_delta[0]) == (None, None, None, 1.5)


def test_hospitals_of_a_group_that_is_too_long_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the page says of all hospitals in the sum that fewer are below an epsilon than are."""
    monkeypatch.setattr(medians, "_read", lambda total, **_: total)
    sums: list[Any] = [summed([length], bands=(2, 3), shortened=1) for length in (1.0, 1.5, 9.0)]
    groups = (("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i"))
    found, said = medians.read_groups(sums, groups, Robustness(clip=2.0))
    assert (found.mean_delta[0], said) == (1.25, Median(groups=3, spoiled=1))
    assert (found.bands, found.shortened) == ((6, 9), 3)


def test_most_of_the_sums_have_to_be_sound() -> None:
    assert [Median(groups=4, spoiled=spoiled).has_majority for spoiled in range(4)] == [True, True, False, False]

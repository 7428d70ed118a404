"""A training that came too late: into which round it goes, that it is in one sum ever, and what it outlives."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from silo_agent_tests_benches import approved, bench_of, codes
from silo_agent_tests_one_hospital import NEXT_MODEL, OTHERS, SILO

from boundary.messages import StudyClosed
from boundary.protocol import Step
from compliance.events import GatesPassed, LateUpdateOffered, TrainingStarted
from compliance.trail import read_leaf
from silo_agent.errors import StoredFileLost, WorkFailed
from silo_agent.late import find, offer, spared, staleness
from silo_agent.results import StoredResult, result_folder
from silo_agent.workbench import Workbench, is_whole

LATE = {"late": "next-round", "most_stale": 1}
TRAINED = [("vector", [5, 7]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})]


def late_plan(**selection: Any) -> dict[str, Any]:
    return {"selection": LATE | selection, "training__weighting": "equal"}


@pytest.fixture
def late_site(make_site: Callable[..., Any]) -> Any:
    site = make_site(changes=late_plan())
    site.approve()
    return site


def left_out(site: Any, number: int = 1) -> Path:
    """Our training of this round is ready, and the sum goes on without us; the round is over."""
    kept = site.ready(number)
    site.hear(site.closing(kept, members=OTHERS, absent=(SILO,)))
    site.hear(site.committed(number))
    assert site.kept(number).step is Step.OVER
    return Path(kept.result or "")


def offered(site: Any, number: int, begin: Callable[[], object] = lambda: None) -> bool:
    order = site.ordered(number, model=NEXT_MODEL)
    return offer(site.journal, site.folder, order, NEXT_MODEL.digest, begin, site.now)  # type: ignore[arg-type]


def entries(site: Any, *kinds: type) -> list[Any]:
    return [event for leaf in site.journal.trail() if isinstance(event := read_leaf(leaf).event, kinds)]


def test_it_is_moved_into_the_next_round_and_stays_the_same_result(late_site: Any) -> None:
    folder = left_out(late_site)
    before = StoredResult.load(folder)
    assert offered(late_site, 2)
    target = result_folder(late_site.folder, late_site.study, 2, "train", NEXT_MODEL.digest)
    after = StoredResult.load(target)
    assert (after.identity, after.made_in, after.vector) == (before.identity, 1, target / "vector")
    assert not folder.exists()
    assert staleness(late_site.plan, late_site.collection(2), after) == 1
    (said,) = entries(late_site, LateUpdateOffered)
    assert (said.round, said.made_in, said.order) == (2, 1, late_site.kept(2).digest)


def test_asked_again_in_another_attempt_it_is_the_same_and_said_once(late_site: Any) -> None:
    left_out(late_site)
    assert offered(late_site, 2)
    late_site.ordered(2, attempt=2, model=NEXT_MODEL)
    target = result_folder(late_site.folder, late_site.study, 2, "train", NEXT_MODEL.digest)
    assert is_whole(target), "the next attempt finds it there"
    assert find(late_site.journal, late_site.folder, late_site.study, 2) is None
    assert len(entries(late_site, LateUpdateOffered)) == 1


def test_a_kill_before_it_is_moved_loses_nothing_and_does_not_double_it(
    late_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = left_out(late_site)
    order = late_site.ordered(2, model=NEXT_MODEL)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    about = (late_site.folder, order, NEXT_MODEL.digest, lambda: None, late_site.now)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            offer(late_site.journal, *about)
    late_site.restart()
    assert is_whole(folder)
    assert offer(late_site.journal, *about)
    assert [place.name[:10] for place in (late_site.folder.work / late_site.study).iterdir()] == ["0002-train"]
    assert len(entries(late_site, LateUpdateOffered)) == 2, "it was begun twice"


def test_what_the_gates_refuse_is_not_offered_and_not_lost(late_site: Any) -> None:
    folder = left_out(late_site)

    def no() -> None:
        raise WorkFailed("OUTSIDE_HOURS", "a gate")

    with pytest.raises(WorkFailed):
        offered(late_site, 2, no)
    assert is_whole(folder)
    assert entries(late_site, LateUpdateOffered) == []


def masked_and_left_out(site: Any) -> None:
    """Our vector had left, and did not arrive in time."""
    kept = site.masked(1)
    folder, again = Path(kept.result), site.folder.root / "kept"
    shutil.copytree(folder, again)
    site.hear(site.naming(kept, surviving=OTHERS))
    site.hear(site.committed(1))
    assert not folder.exists(), "nothing that has left is kept"
    again.rename(folder)  # and if it were, it would not be offered


def old(site: Any) -> None:
    folder = left_out(site)
    again = site.folder.root / "kept"
    shutil.copytree(folder, again)
    site.hear(site.committed(2))
    assert not folder.exists(), "what is too old is not kept"
    again.rename(folder)


def unfinished(site: Any) -> None:
    (left_out(site) / "result.json").unlink()


def without_its_vector(site: Any) -> None:
    (left_out(site) / "vector").unlink()


def spent(site: Any) -> None:
    identity = StoredResult.load(left_out(site)).identity
    with site.journal.transaction():
        site.journal.spend(identity, "elsewhere", frozenset(OTHERS))


NOT_OFFERED: dict[str, tuple[Callable[[Any], object], int]] = {
    "its masked vector had left": (masked_and_left_out, 2),
    "it is older than the plan allows": (old, 3),
    "it was never finished": (unfinished, 2),
    "its vector is gone": (without_its_vector, 2),
    "it was unmasked": (spent, 2),
    "there is none": (lambda _: None, 1),
}


@pytest.mark.parametrize("case", NOT_OFFERED)
def test_it_is_not_offered_if(case: str, late_site: Any) -> None:
    act, number = NOT_OFFERED[case]
    act(late_site)
    assert not offered(late_site, number)
    assert entries(late_site, LateUpdateOffered) == []


def test_a_plan_that_does_not_say_so_throws_it_away(make_site: Callable[..., Any]) -> None:
    site = make_site()
    site.approve()
    folder = left_out(site)
    assert not folder.exists()
    assert spared(site.journal, site.study, 1) == frozenset()
    assert not offered(site, 2)
    assert site.unwanted, "a training that was under way would have been stopped"


def test_it_is_summed_in_no_round_that_the_plan_does_not_allow(late_site: Any) -> None:
    result = StoredResult.load(left_out(late_site))
    with pytest.raises(StoredFileLost, match="of round 1: it may not go into round 3"):
        staleness(late_site.plan, late_site.collection(3), result)
    assert staleness(late_site.plan, late_site.collection(3, "evaluate"), result) == 0


def test_it_waits_for_a_round_that_asks_us(make_site: Callable[..., Any]) -> None:
    site = make_site(changes=late_plan(most_stale=2))
    site.approve()
    folder = left_out(site)
    site.hear(site.committed(2))  # we were not drawn
    assert is_whole(folder)
    assert offered(site, 3)
    result = StoredResult.load(result_folder(site.folder, site.study, 3, "train", NEXT_MODEL.digest))
    assert staleness(site.plan, site.collection(3), result) == 2


def test_nothing_of_it_outlives_the_study(late_site: Any) -> None:
    folder = left_out(late_site)
    late_site.hear(StudyClosed(study=late_site.study, code="COMPLETED"))
    assert not folder.exists()


def test_more_hospitals_than_the_plan_draws_are_no_cohort(make_site: Callable[..., Any]) -> None:
    site = make_site(changes={"selection": {"hospitals": 3}, "training__weighting": "equal"})
    site.approve()
    site.hear(site.closing(site.ready(1)))
    assert site.kept(1).step is Step.REFUSED
    assert codes(site)[-1] == "NOT_APPROVED"


# --- a training that is under way --------------------------------------------------------------------
def test_a_training_goes_on_behind_its_round_and_its_result_is_the_next_ones(
    make_site: Callable[..., Any], impatient: Any, stub_child: Any
) -> None:
    """Evaluating is refused meanwhile, so that nobody waits; and the gates are asked again for what is offered."""
    site = make_site(changes=late_plan())
    impatient(site.folder)
    approved(site)

    seen: dict[str, Any] = {}  # looked at when all is over: a training that is left behind would hang here

    async def act(table: Workbench) -> None:
        kept = site.ordered(1)
        working = asyncio.create_task(table.do_next())
        await asyncio.sleep(0)  # it runs until it waits for the child
        seen["current"] = table.current
        site.hear(site.closing(kept, members=OTHERS, absent=(SILO,)))
        table.say_busy()
        site.ordered(1, "evaluate")
        table.say_busy()
        seen["evaluating"] = site.kept(1, "evaluate").step
        site.hear(site.committed(1))
        site.ordered(2, model=NEXT_MODEL)
        table.say_busy()
        seen["training"] = site.kept(2).step
        seen["stopped"] = [what for what in site.unwanted if "/train/" in what]
        await working
        await table.do_next()

    bench_of(site)(stub_child(train=[("sleep", 0.5), *TRAINED]), act)
    assert seen == {
        "current": site.kept(1).collection, "evaluating": Step.REFUSED, "training": Step.WORKING, "stopped": [],
    }  # fmt: skip
    assert codes(site) == ["BUSY", "trail-shown", "ready"]
    assert site.kept(2).step is Step.READY
    said = [event.event for event in entries(site, GatesPassed, TrainingStarted, LateUpdateOffered)]
    assert said == ["gates-passed", "training-started", "gates-passed", "late-update-offered"]


@pytest.mark.parametrize("most_stale", [1, 2])
def test_no_training_goes_on_behind_the_last_round(make_site: Callable[..., Any], most_stale: int) -> None:
    """There is no round that would take it, and while it lasts the hospital could not personalise."""
    site = make_site(changes=late_plan(most_stale=most_stale))
    site.approve()
    site.hear(site.committed(1))
    earlier = site.ordered(2)
    site.hear(site.closing(earlier, members=OTHERS, absent=(SILO,)))
    site.hear(site.committed(2))
    assert site.unwanted == []
    site.hear(site.committed(3))
    assert site.unwanted == [earlier.collection]


def test_a_training_that_comes_too_late_for_the_last_round_is_stopped_at_once(late_site: Any) -> None:
    late_site.hear(late_site.committed(1))
    late_site.hear(late_site.committed(2))
    kept = late_site.ordered(3)
    late_site.hear(late_site.closing(kept, members=OTHERS, absent=(SILO,)))
    assert late_site.unwanted == [kept.collection]


def test_without_late_updates_a_training_ends_with_the_order_to_evaluate(make_site: Callable[..., Any]) -> None:
    site = make_site()
    site.approve()
    kept = site.ordered(1)
    site.ordered(1, "evaluate")
    assert site.unwanted == [kept.collection]


def test_a_training_that_no_round_would_take_any_more_is_stopped(late_site: Any) -> None:
    kept = late_site.ordered(1)
    late_site.hear(late_site.closing(kept, members=OTHERS, absent=(SILO,)))
    late_site.hear(late_site.committed(1))
    assert late_site.unwanted == []
    late_site.hear(late_site.committed(2))
    assert late_site.unwanted == [kept.collection]

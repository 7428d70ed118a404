"""The next thing to do, with a child that is only a script: what is worked on, what is not, and what is said then."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from silo_agent_tests_benches import REPORT, SCANNED, WARM, Relay, approved, bench_of, codes

from boundary.canonical import digest
from boundary.errors import MalformedMessage
from boundary.messages import BlobRef, StudyClosed
from boundary.plan import study_id
from boundary.protocol import Step
from silo_agent.errors import RelayRefused, RelayUnreachable
from silo_agent.results import StoredResult
from silo_agent.steward import decline
from silo_agent.workbench import MOST_STARTS, Workbench

TRAINED = [("vector", [4, 7]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})]


@pytest.fixture
def bench(site: Any, impatient: Any) -> Callable[..., Any]:
    impatient(site.folder)
    return bench_of(site)


# --- proposed plans ----------------------------------------------------------------------------------
SCANS: dict[str, tuple[list[Any], str, str | None]] = {
    "the data are fit": ([SCANNED], "scanned", None),
    "the data are not": (
        [("say", {"event": "done", "result": REPORT | {"problems": ["no '1'", "one patient"]}})],
        "unsuitable",
        "no '1'; one patient",
    ),
    "the archive is not there": (
        [("say", {"event": "failed", "code": "ARCHIVE_MISSING", "detail": "/data", "retryable": False})],
        "unsuitable",
        "ARCHIVE_MISSING: /data",
    ),
    "the child was killed": ([("kill", None)], "unsuitable", "OUT_OF_MEMORY"),
}


@pytest.mark.parametrize(("script", "state", "reason"), SCANS.values(), ids=SCANS)
def test_a_proposed_plan_is_checked_against_our_data(
    site: Any, bench: Any, stub_child: Any, script: list[Any], state: str, reason: str | None
) -> None:
    site.propose()
    assert bench(stub_child(scan=script))
    kept = site.journal.plan(site.study)
    assert kept.state == state
    assert (kept.reason or "").startswith(reason or "")
    assert site.outbox() == [], "what our data are like is nobody's business"


@pytest.mark.parametrize("how", ["closed", "declined"])
def test_a_scan_that_ends_late_does_not_undo_a_decision(site: Any, bench: Any, stub_child: Any, how: str) -> None:
    """Found by reading: a study that was closed during its scan could be approved afterwards, and its cache stayed."""
    site.propose()

    async def act(table: Workbench) -> None:
        scanning = asyncio.create_task(table.do_next())
        await asyncio.sleep(0.05)
        site.journal.set_plan(site.study, how)
        (site.folder.cache / site.study).mkdir()
        await scanning

    bench(stub_child(scan=[("sleep", 0.3), SCANNED]), act)
    assert site.journal.plan(site.study).state == how
    assert not (site.folder.cache / site.study).exists()


def test_closing_a_study_stops_its_scan(site: Any, bench: Any, stub_child: Any) -> None:
    site.propose()

    async def act(table: Workbench) -> bool:
        scanning = asyncio.create_task(table.do_next())
        await asyncio.sleep(0.05)
        site.hear(StudyClosed(study=site.study, code="COMPLETED"))
        await table.drop(site.study)
        return await scanning

    assert bench(stub_child(scan=[("sleep", 60)]), act) is False


def test_a_plan_for_a_data_set_we_do_not_have_is_unsuitable(
    site: Any, bench: Any, stub_child: Any, make_plan_for: Any
) -> None:
    site.plan = make_plan_for(site.cards, dataset__name="brain-mr")
    site.study = study_id(site.plan)
    site.propose()
    bench(stub_child())
    assert "names no data set brain-mr" in site.journal.plan(site.study).reason


def test_a_plan_whose_network_does_not_fit_is_unsuitable_before_our_data_are_looked_at(
    site: Any, bench: Any, stub_child: Any, make_plan_for: Any
) -> None:
    site.plan = make_plan_for(site.cards, model__name="unet-small-2d")
    site.study = study_id(site.plan)
    site.propose()
    bench(stub_child())
    kept = site.journal.plan(site.study)
    assert kept.state == "unsuitable"
    assert kept.reason.startswith("WRONG_NETWORK: unet-small-2d v1 is for segmentation of 2-D images")


# --- orders ------------------------------------------------------------------------------------------
def test_an_order_is_worked_on_and_the_result_kept(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    site.ordered()
    assert bench(stub_child(train=TRAINED))
    assert site.kept().step is Step.READY
    assert codes(site) == ["ready"]
    site.hear(site.closing(site.kept()))
    site.hear(site.routing(site.kept()))
    assert site.kept().step is Step.MASKED


def test_another_attempt_on_the_same_model_is_answered_without_training_again(
    site: Any, bench: Any, stub_child: Any
) -> None:
    approved(site)
    site.ordered(1, attempt=1)
    relay = Relay()
    bench(stub_child(train=TRAINED), relay=relay)
    site.ordered(1, attempt=2)
    bench(stub_child(train=[("exit", 1)]), relay=relay)
    assert site.kept(1, attempt=2).step is Step.READY
    assert (relay.asked, site.kept(1, attempt=2).starts) == (1, 0)
    assert site.kept(1, attempt=2).result == site.kept(1, attempt=1).result


def test_a_result_that_was_finished_before_a_crash_is_not_trained_again(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    site.ordered()
    site.store_result()
    bench(stub_child(train=[("exit", 1)]))
    assert site.kept().step is Step.READY


def test_the_oldest_order_comes_first_whatever_the_newer_ones_do(
    site: Any, bench: Any, stub_child: Any, make_plan_for: Any
) -> None:
    """Found by reading: the newest order was taken first, and one busy study could starve another."""
    approved(site)
    first = site.ordered()
    site.plan = make_plan_for(site.cards, revision=2)
    site.study = study_id(site.plan)
    approved(site)
    second = site.ordered()
    bench(stub_child(train=TRAINED))
    steps = [site.journal.order(kept.collection).step for kept in (first, second)]
    assert steps == [Step.READY, Step.WORKING]


@pytest.mark.parametrize("gone", ["vector", "result.json"])
def test_a_stored_result_that_is_not_whole_is_computed_anew(site: Any, bench: Any, stub_child: Any, gone: str) -> None:
    approved(site)
    old = StoredResult.load(site.store_result())
    (old.vector.parent / gone).unlink()
    site.ordered()
    bench(stub_child(train=TRAINED))
    assert codes(site) == ["ready"]
    assert StoredResult.load(old.vector.parent).identity != old.identity, (
        "another result, whatever was spent of the old"
    )


def test_work_on_a_result_that_is_spent_is_done_anew(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    site.revealed(1, surviving=("st-olavs", "charite", "utrecht"))
    site.hear(site.naming(site.masked(1, attempt=2)))
    assert codes(site)[-1] == "RESULT_SPENT"
    site.ordered(1, attempt=3)
    bench(stub_child(train=TRAINED))
    kept = site.kept(1, attempt=3)
    assert (kept.step, kept.starts) == (Step.READY, 1)
    site.hear(site.closing(kept))
    site.hear(site.routing(kept))
    site.hear(site.naming(kept))
    assert site.kept(1, attempt=3).step is Step.AGREED


FAILURES: dict[str, tuple[list[Any], str, bool]] = {
    "killed for memory": ([("kill", None)], "OUT_OF_MEMORY", True),
    "died": ([("exit", 1)], "CHILD_DIED", True),
    "says garbage": ([("raw", "garbage\n")], "INTERNAL", False),
    "names no length": ([("say", {"event": "done", "result": {}})], "INTERNAL", False),
    "says more than a length": (
        [("say", {"event": "done", "result": {"parameters": 7, "metrics": 0, "patients": 12}})],
        "INTERNAL",
        False,
    ),
    "diverged": (
        [("say", {"event": "failed", "code": "NON_FINITE_LOSS", "detail": "step 3", "retryable": False})],
        "NON_FINITE_LOSS",
        False,
    ),
}


@pytest.mark.parametrize(("script", "code", "retryable"), FAILURES.values(), ids=FAILURES)
def test_a_child_that_fails_is_a_refusal(
    site: Any, bench: Any, stub_child: Any, script: list[Any], code: str, retryable: bool
) -> None:
    approved(site)
    site.ordered()
    bench(stub_child(train=script))
    assert codes(site) == [code]
    assert site.outbox()[-1].retryable is retryable


MODELS: dict[str, tuple[BaseException, str, bool]] = {
    "our disk is full": (OSError(28, "No space left on device"), "DISK_FULL", True),
    "our disk fails": (OSError(5, "Input/output error"), "INTERNAL", True),
    "the relay does not have it": (RelayRefused(404, "UNKNOWN_BLOB", "no"), "MODEL_UNAVAILABLE", False),
    "what came is something else": (MalformedMessage("another digest"), "MODEL_UNAVAILABLE", True),
}


@pytest.mark.parametrize(("failure", "code", "retryable"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_fetched_is_a_refusal(
    site: Any, bench: Any, stub_child: Any, failure: BaseException, code: str, retryable: bool
) -> None:
    approved(site)
    site.ordered()
    bench(stub_child(), relay=Relay(failure))
    assert codes(site) == [code]
    assert site.outbox()[-1].retryable is retryable


def test_the_part_that_is_not_trained_is_fetched_and_outlives_the_models_of_rounds(
    make_site: Any, impatient: Any, stub_child: Any, tmp_path: Path
) -> None:
    site = make_site(changes={"model": {"name": "cnn-small", "version": 1, "trained": ["5.*"]}})
    impatient(site.folder)
    bench = bench_of(site)
    approved(site)
    first, other = (BlobRef(digest=digest(name), size=9) for name in (b"the base", b"another base"))
    asked = [("record", str(tmp_path / "asked")), *TRAINED]
    site.ordered(base=first)
    bench(stub_child(train=asked), relay=Relay())
    told = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert {Path(one["base"]).name for one in told} == {f"{site.study}.base.{first.digest[7:]}.safetensors"}
    site.hear(site.committed(1))
    assert Path(told[0]["base"]).exists()
    site.hear(site.order(2, base=other))
    assert codes(site)[-1] == "OUT_OF_TURN"


def test_a_relay_that_is_away_is_waited_for(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    site.ordered()
    away = [RelayUnreachable("down"), RelayRefused(401, "STALE", "clock"), RelayRefused(409, "REPLAYED", "again")]
    bench(stub_child(train=TRAINED), relay=Relay(*away))
    assert codes(site) == ["ready"]


def test_but_not_longer_than_the_work_is_wanted(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    site.ordered(due=site.now + timedelta(minutes=1))

    async def act(table: Workbench) -> None:
        working = asyncio.create_task(table.do_next())
        await asyncio.sleep(0.01)
        site.now += timedelta(minutes=2)
        await working

    bench(stub_child(), act, Relay(*[RelayUnreachable("down") for _ in range(100)]))
    assert codes(site) == ["MODEL_UNAVAILABLE"]


def test_work_that_was_due_before_it_could_begin_is_not_begun(site: Any, bench: Any, stub_child: Any) -> None:
    """Found by reading: after two days without power, the agent trained for hours for a round that was over."""
    approved(site)
    site.ordered()
    site.now += timedelta(days=2)
    bench(stub_child(train=[("exit", 1)]))
    assert codes(site) == ["STALE"]


def test_other_data_than_the_approved_are_not_trained_on(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    (site.folder.cache / site.study / "report.json").write_text(json.dumps({"dataset_digest": digest(b"grown")}))
    site.ordered()
    bench(stub_child(train=TRAINED))
    assert codes(site) == ["DATASET_CHANGED"]


def test_a_lost_cache_is_built_again_and_compared(site: Any, bench: Any, stub_child: Any) -> None:
    site.approve()
    site.ordered()
    bench(stub_child(scan=[SCANNED], train=TRAINED))
    assert codes(site) == ["ready"]


def test_work_that_always_ends_its_child_is_given_up(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)
    kept = site.ordered()
    for _ in range(MOST_STARTS):
        site.journal.starting(kept.collection)
    bench(stub_child(train=[("exit", 1)]))
    assert codes(site) == ["TOO_MANY_STARTS"]


# --- people change their minds -----------------------------------------------------------------------
def while_training(
    site: Any, bench: Any, stub_child: Any, act: Callable[[Workbench], Coroutine[Any, Any, None]]
) -> None:
    approved(site)
    site.ordered()

    async def work(table: Workbench) -> None:
        working = asyncio.create_task(table.do_next())
        for _ in range(500):
            if table.activity is not None and table.activity.steps:
                break
            await asyncio.sleep(0.01)
        assert table.activity is not None
        assert (table.activity.step, table.activity.steps, table.activity.phase) == (1, 9, "train")
        await act(table)
        await working
        assert table.activity is None

    bench(stub_child(train=[("say", {"event": "progress", "step": 1, "steps": 9}), ("obey", None)]), work)


def test_a_newer_order_stops_the_older_work(site: Any, bench: Any, stub_child: Any) -> None:
    async def newer(table: Workbench) -> None:
        site.ordered(2)
        await table.drop(site.kept(1).collection)

    while_training(site, bench, stub_child, newer)
    assert (site.kept(1).step, codes(site)) == (Step.OVER, [])


def test_work_that_goes_on_for_a_second_attempt_is_stopped_when_that_one_is_over(
    site: Any, bench: Any, stub_child: Any
) -> None:
    """Found by reading: the child trained on for an attempt that was over, and held up the next round."""

    async def end(table: Workbench) -> None:
        site.ordered(1, attempt=2)
        assert site.unwanted == []
        site.ordered(2)
        for what in site.unwanted:
            await table.drop(what)

    while_training(site, bench, stub_child, end)
    assert {kept.step for kept in site.journal.orders_of(site.study) if kept.round == 1} == {Step.OVER}


def test_a_closed_study_stops_its_work_and_says_nothing(site: Any, bench: Any, stub_child: Any) -> None:
    async def close(table: Workbench) -> None:
        site.hear(StudyClosed(study=site.study, code="COMPLETED"))
        await table.drop(site.kept(1).collection)

    while_training(site, bench, stub_child, close)
    assert (site.kept(1).step, codes(site)) == (Step.OVER, [])


def test_a_steward_in_another_process_stops_the_work(site: Any, bench: Any, stub_child: Any) -> None:
    """Found by reading: the child went on training a study that the hospital had left."""

    async def say_no(table: Workbench) -> None:
        await table.drop_unapproved()  # nothing to stop yet
        decline(site.journal, site.outbound, site.study, "stop")
        await table.drop_unapproved()

    while_training(site, bench, stub_child, say_no)
    assert site.kept(1).step is Step.WORKING
    bench(stub_child(train=[("exit", 1)]))
    assert codes(site) == ["DECLINED_BY_STEWARD", "NOT_APPROVED"]


# --- nothing to do -----------------------------------------------------------------------------------
def test_an_approved_plan_warms_the_child_once(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)

    async def act(table: Workbench) -> list[bool]:
        return [await table.do_next() for _ in range(3)]

    assert bench(stub_child(warm=WARM), act) == [True, False, False]


def test_a_model_that_cannot_be_built_is_said_and_not_tried_for_ever(
    site: Any, bench: Any, stub_child: Any, caplog: pytest.LogCaptureFixture
) -> None:
    approved(site)

    async def act(table: Workbench) -> list[bool]:
        return [await table.do_next() for _ in range(2)]

    assert bench(stub_child(warm=[("exit", 1)]), act) == [True, False]
    assert "cannot be built here yet" in caplog.text


def test_the_child_goes_when_all_studies_are_over(site: Any, bench: Any, stub_child: Any) -> None:
    approved(site)

    async def act(table: Workbench) -> None:
        await table.do_next()
        assert table.worker.pid is not None
        site.hear(StudyClosed(study=site.study, code="COMPLETED"))
        await table.do_next()
        assert table.worker.pid is None

    bench(stub_child(warm=WARM), act)

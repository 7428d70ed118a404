"""Work on plans with a guarantee per patient: nothing is trained that was not spent before, whoever asks how often."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from silo_agent_tests_benches import REPORT, SCANNED, WARM, approved, bench_of, codes

from boundary.canonical import digest
from boundary.messages import BlobRef
from boundary.protocol import Step
from compliance.privacy import PoissonGaussian, parse_event
from compliance.trail import read_leaf
from silo_agent.budget import terms_of
from silo_agent.cost import TIGHT
from silo_agent.journal import Journal
from silo_agent.releases import reserve
from silo_agent.steward import decline
from silo_agent.workbench import Workbench

ANOTHER = BlobRef(digest=digest(b"another model"), size=9)
PRIVATELY = [("vector", [6, 7]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})]
MEASURED = [("vector", [9, 0]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 9}})]
COSTS = [("say", {"event": "done", "result": {"epsilon": 0.61, "upper": 0.62}})]


@pytest.fixture
def careful(private_site: Any, impatient: Any) -> Any:
    """A hospital that declares 100 patients; a round of the plan costs 0.42, three 0.68."""
    impatient(private_site.folder)
    return private_site


def ledger(site: Any) -> list[tuple[str, str]]:
    """Slot and state of every entry; the slots without the study."""
    rows = site.journal._db.execute("SELECT slot, state FROM budget ORDER BY position")
    return [(slot.removeprefix(f"{site.study}/"), state) for slot, state in rows]


def asked(path: Path) -> list[Any]:
    """Every command that the child wrote down."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trains(site: Any, stub_child: Any, script: list[Any] | None = None, attempt: int = 1, number: int = 1) -> None:
    """Order a training and do it."""
    site.ordered(number, attempt=attempt)
    bench_of(site)(stub_child(train=PRIVATELY if script is None else script))


def test_a_private_training_is_reserved_before_the_child_is_asked_and_committed_when_its_result_is_kept(
    careful: Any, stub_child: Any, tmp_path: Path
) -> None:
    approved(careful)
    seen = tmp_path / "as-the-child-saw-it.sqlite"
    trains(careful, stub_child, [("copy", [str(careful.folder.journal), str(seen)]), *PRIVATELY])
    journal = Journal(seen, "st-olavs")
    assert [state for (state,) in journal._db.execute("SELECT state FROM budget")] == ["reserved"]
    last = [read_leaf(leaf).event.event for leaf in journal.trail()[-3:]]
    assert last == ["gates-passed", "budget-reserved", "training-started"]
    journal.close()
    assert ledger(careful) == [("1/train/1#1", "committed")]
    assert careful.events()[2:] == [
        "heads-witnessed", "gates-passed", "budget-reserved", "training-started", "budget-committed", "work-done",
    ]  # fmt: skip
    assert codes(careful) == ["ready"]
    careful.hear(careful.closing(careful.kept()))
    careful.hear(careful.routing(careful.kept()))
    assert careful.kept().step is Step.MASKED, "the layout with bands is the coordinator's as well"


def test_what_was_trained_but_not_kept_stays_reserved(careful: Any, stub_child: Any) -> None:
    approved(careful)
    trains(careful, stub_child, PRIVATELY[1:])  # there is no folder to keep the result in
    assert (ledger(careful), codes(careful)) == ([("1/train/1#1", "reserved")], ["INTERNAL"])


def test_a_child_that_dies_leaves_it_reserved_and_the_next_attempt_reserves_again(
    careful: Any, stub_child: Any
) -> None:
    approved(careful)
    trains(careful, stub_child, [("kill", None)])
    assert (ledger(careful), codes(careful)) == ([("1/train/1#1", "reserved")], ["OUT_OF_MEMORY"])
    trains(careful, stub_child, attempt=2)
    assert ledger(careful) == [("1/train/1#1", "reserved"), ("1/train/2#1", "committed")]


def test_an_agent_that_is_killed_in_a_training_reserves_again_at_its_next_start(
    careful: Any, stub_child: Any, until_async: Any
) -> None:
    approved(careful)
    careful.ordered()

    async def be_killed(table: Workbench) -> None:
        working = asyncio.create_task(table.do_next())
        await until_async(lambda: ledger(careful))
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working

    bench_of(careful)(stub_child(train=[("sleep", 60)]), be_killed)
    careful.restart()
    assert (ledger(careful), careful.kept().step) == ([("1/train/1#1", "reserved")], Step.WORKING)
    bench_of(careful)(stub_child(train=PRIVATELY))
    assert ledger(careful) == [("1/train/1#1", "reserved"), ("1/train/1#2", "committed")]
    assert codes(careful) == ["ready"]


def test_a_training_that_is_stopped_stays_reserved(careful: Any, stub_child: Any, until_async: Any) -> None:
    approved(careful)
    careful.ordered()

    async def stop(table: Workbench) -> None:
        working = asyncio.create_task(table.do_next())
        await until_async(lambda: ledger(careful))
        assert table.activity is not None
        assert table.activity.steps == 0, "how far a private training is, is told nobody outside"
        decline(careful.journal, careful.outbound, careful.study, "stop")
        await table.drop_unapproved()
        await working

    bench_of(careful)(stub_child(train=[("say", {"event": "progress", "step": 1, "steps": 9}), ("obey", None)]), stop)
    assert ledger(careful) == [("1/train/1#1", "reserved")]


CAPS = {"of the study": {"study_epsilon": 0.5}, "of all studies on these people": {"lifetime_epsilon": 0.5}}


@pytest.mark.parametrize("caps", CAPS.values(), ids=CAPS)
def test_over_a_cap_the_child_is_never_asked(
    careful: Any, stub_child: Any, tmp_path: Path, caps: dict[str, float]
) -> None:
    careful.allow(**caps)
    approved(careful)
    record = [("record", str(tmp_path / "asked")), *PRIVATELY]
    trains(careful, stub_child, record, number=1)
    trains(careful, stub_child, record, number=2)
    assert len(asked(tmp_path / "asked")) == 1
    assert codes(careful) == ["ready", "BUDGET_SPENT"]
    refused = careful.outbox()[-1]
    assert not refused.retryable
    assert set(refused.model_dump()) == {"collection", "order", "code", "reference", "retryable"}, "no number leaves"
    assert ledger(careful) == [("1/train/1#1", "committed")]
    assert careful.events()[-3:] == ["gate-refused", "budget-refused", "work-refused"]


def test_what_is_not_a_training_spends_nothing(careful: Any, stub_child: Any, tmp_path: Path) -> None:
    approved(careful)
    careful.ordered(phase="evaluate")
    bench_of(careful)(stub_child(evaluate=[("record", str(tmp_path / "asked")), *MEASURED]))
    assert careful.kept(phase="evaluate").step is Step.READY
    assert (ledger(careful), "private" in asked(tmp_path / "asked")[0]) == ([], False)


def test_a_stored_result_of_another_attempt_is_not_reserved_again(careful: Any, stub_child: Any) -> None:
    """The same noise on the same sum: nothing more is known than before."""
    approved(careful)
    trains(careful, stub_child)
    trains(careful, stub_child, [("exit", 1)], attempt=2)
    assert careful.kept(attempt=2).step is Step.READY
    assert ledger(careful) == [("1/train/1#1", "committed")]


def test_a_result_that_was_kept_before_a_crash_is_released_under_its_reservation(careful: Any, stub_child: Any) -> None:
    """Killed between the result and the commitment: it leaves, and it is counted."""
    approved(careful)
    careful.ordered()
    terms = terms_of(careful.plan, careful.permission().dataset(careful.plan))
    assert terms is not None
    reserve(careful.journal, terms, careful.collection(), 1, careful.now)
    careful.store_result()
    careful.restart()
    bench_of(careful)(stub_child(train=[("exit", 1)]))
    assert (codes(careful), ledger(careful)) == (["ready"], [("1/train/1#1", "reserved")])


def test_the_child_is_told_nothing_that_comes_from_how_many_patients_there_are(
    make_site: Any, private: Any, impatient: Any, stub_child: Any, tmp_path: Path
) -> None:
    told = []
    for training in (3, 97):
        site = make_site(most_patients=100, changes=private())
        impatient(site.folder)
        approved(site)
        report = REPORT | {"patients": {"training": training, "holdout": 1}}
        (site.folder.cache / site.study / "report.json").write_text(json.dumps(report))
        path = tmp_path / f"asked-{training}"
        trains(site, stub_child, [("record", str(path)), *PRIVATELY])
        told.append(asked(path)[0])
    assert told[0]["private"] == told[1]["private"]
    assert told[0]["private"]["denominator"] == 10.0
    assert (told[0]["declared"], told[0]["at_once"]) == (100, 16)


# --- a coordinator that asks again and again ---------------------------------------------------------
def in_a_sum(site: Any, attempt: int, surviving: tuple[str, ...] | None = None, *, revealed: bool = False) -> None:
    """Go through a masked sum with the result of this attempt, to the naming of survivors or to the end."""
    for step in ("closing", "routing"):
        site.hear(getattr(site, step)(site.kept(attempt=attempt)))
    site.hear(site.naming(site.kept(attempt=attempt), surviving))
    if revealed:
        site.hear(site.agreement(site.kept(attempt=attempt)))


def test_an_attack_that_has_a_round_trained_anew_spends_each_time_until_the_cap(
    careful: Any, stub_child: Any, tmp_path: Path
) -> None:
    """Its result is unmasked in one sum and asked for in another: it is trained again, with other noise."""
    careful.allow(study_epsilon=0.6)  # two trainings
    approved(careful)
    record = [("record", str(tmp_path / "asked")), *PRIVATELY]
    trains(careful, stub_child, record, attempt=1)
    in_a_sum(careful, 1, revealed=True)
    for attempt in (2, 4):
        trains(careful, stub_child, record, attempt=attempt)
        in_a_sum(careful, attempt, ("st-olavs", "charite", "utrecht"))
        assert codes(careful)[-1] == "RESULT_SPENT"
        trains(careful, stub_child, record, attempt=attempt + 1)
        if attempt == 2:
            in_a_sum(careful, 3, revealed=True)
    assert codes(careful)[-1] == "BUDGET_SPENT"
    assert ledger(careful) == [("1/train/1#1", "committed"), ("1/train/3#1", "committed")]
    assert len(asked(tmp_path / "asked")) == 2


def test_an_attack_with_weights_that_are_no_model_is_found_before_anything_is_spent(
    careful: Any, stub_child: Any
) -> None:
    approved(careful)
    failure = {"event": "failed", "code": "BAD_TENSORS", "detail": "a pickle", "retryable": False}
    for attempt in (1, 2, 3, 4):
        careful.ordered(1, attempt=attempt)
        bench_of(careful)(stub_child(check=[("say", failure)], train=PRIVATELY))
    assert codes(careful) == ["BAD_TENSORS"] * 4
    assert ledger(careful) == []


def test_an_attack_with_another_model_for_the_same_round_is_refused_and_spends_nothing(
    careful: Any, stub_child: Any
) -> None:
    approved(careful)
    trains(careful, stub_child)
    careful.ordered(attempt=2, model=ANOTHER)
    assert bench_of(careful)(stub_child(train=[("exit", 1)], warm=WARM))
    assert codes(careful) == ["ready", "OUT_OF_TURN"]
    assert ledger(careful) == [("1/train/1#1", "committed")]


def test_an_order_that_comes_twice_is_reserved_once(careful: Any, stub_child: Any) -> None:
    approved(careful)
    trains(careful, stub_child)
    trains(careful, stub_child, [("exit", 1)])
    careful.restart()
    trains(careful, stub_child, [("exit", 1)])
    assert ledger(careful) == [("1/train/1#1", "committed")]


def test_the_same_model_in_another_round_is_another_training_and_is_reserved(careful: Any, stub_child: Any) -> None:
    approved(careful)
    trains(careful, stub_child, number=1)
    trains(careful, stub_child, number=2)
    assert ledger(careful) == [("1/train/1#1", "committed"), ("2/train/1#1", "committed")]


def test_a_ledger_that_cannot_be_read_stops_private_work_at_once(careful: Any, stub_child: Any, tmp_path: Path) -> None:
    """Found by reading: the daemon tried again until the order had too many starts, and nobody learnt why."""
    approved(careful)
    trains(careful, stub_child)
    for statement in ("DROP TRIGGER budget_is_never_refunded", "DELETE FROM budget"):
        careful.journal._db.execute(statement)
    trains(careful, stub_child, [("record", str(tmp_path / "asked")), *PRIVATELY], number=2)
    assert (codes(careful), asked(tmp_path / "asked")) == (["ready", "INTERNAL"], [])
    assert careful.kept(2).starts == 1


# --- plans that ask for a guarantee, and hospitals that do -------------------------------------------
PEOPLE: dict[str, tuple[dict[str, int], str]] = {
    "as many as are declared": ({"training": 80, "holdout": 20}, "scanned"),
    "one more, held back": ({"training": 80, "holdout": 21}, "unsuitable"),
    "one more, to be trained on": ({"training": 101, "holdout": 0}, "unsuitable"),
}


@pytest.mark.parametrize(("patients", "state"), PEOPLE.values(), ids=PEOPLE)
def test_no_more_patients_take_part_than_are_declared(
    careful: Any, stub_child: Any, patients: dict[str, int], state: str
) -> None:
    careful.propose()
    (careful.folder.cache / careful.study).mkdir()
    scan = [("say", {"event": "done", "result": REPORT | {"patients": patients}})]
    bench_of(careful)(stub_child(scan=scan, cost=COSTS))
    kept = careful.journal.plan(careful.study)
    assert kept.state == state
    if state == "unsuitable":
        assert kept.reason.startswith("there are 101 patients, more than the 100 that the policy declares")
    assert careful.outbox() == []


TOO_FEW_WORDS: dict[str, tuple[int | None, dict[str, Any], str]] = {
    "no guarantee where one is required": (100, {}, "GUARANTEE_REQUIRED: the policy asks for a guarantee"),
    "a data set that is not named": (100, {"dataset__name": "mr"}, "DATASET_NOT_ALLOWED: the policy names no data set"),
}


@pytest.mark.parametrize(("most", "changes", "reason"), TOO_FEW_WORDS.values(), ids=TOO_FEW_WORDS)
def test_a_plan_that_does_not_go_with_the_policy_is_unsuitable_before_a_file_is_read(
    make_site: Any, stub_child: Any, tmp_path: Path, most: int | None, changes: dict[str, Any], reason: str
) -> None:
    site = make_site(most_patients=most, changes=changes)
    site.propose()
    bench_of(site)(stub_child(scan=[("record", str(tmp_path / "asked")), SCANNED]))
    kept = site.journal.plan(site.study)
    assert (kept.state, asked(tmp_path / "asked")) == ("unsuitable", [])
    assert kept.reason.startswith(reason)


def test_a_plan_without_a_guarantee_is_no_longer_worked_on_when_one_is_required(
    site: Any, stub_child: Any, impatient: Any, tmp_path: Path
) -> None:
    """Approved before the hospital's people asked for one."""
    impatient(site.folder)
    approved(site)
    site.allow(required=True)
    site.ordered()
    bench_of(site)(stub_child(train=[("record", str(tmp_path / "asked")), *PRIVATELY]))
    assert (codes(site), asked(tmp_path / "asked")) == (["GUARANTEE_REQUIRED"], [])


def test_a_second_opinion_on_the_cost_is_kept_for_the_steward(careful: Any, stub_child: Any, tmp_path: Path) -> None:
    careful.propose()
    folder = careful.folder.cache / careful.study
    folder.mkdir()
    bench_of(careful)(stub_child(scan=[SCANNED], cost=[("record", str(tmp_path / "asked")), *COSTS]))
    assert careful.journal.plan(careful.study).state == "scanned"
    (question,) = asked(tmp_path / "asked")
    event = PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.1, steps=15)
    assert (parse_event(question["event"].encode()), question["delta"]) == (event, 1e-3)
    kept = json.loads((folder / TIGHT).read_bytes())
    assert kept == {"epsilon": 0.61, "upper": 0.62, "event": question["event"], "delta": 1e-3}
    assert (folder / TIGHT).stat().st_mode & 0o777 == 0o600


def test_a_plan_is_not_unsuitable_for_want_of_a_second_opinion(
    careful: Any, stub_child: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by reading: a child without memory for the closer estimate made the plan one of another contract."""
    careful.propose()
    (careful.folder.cache / careful.study).mkdir()
    bench_of(careful)(stub_child(scan=[SCANNED], cost=[("kill", None)]))
    assert careful.journal.plan(careful.study).state == "scanned"
    assert "there is no closer estimate" in caplog.text


def test_nothing_is_estimated_for_data_that_do_not_fit(careful: Any, stub_child: Any, tmp_path: Path) -> None:
    careful.propose()
    scan = [("say", {"event": "done", "result": REPORT | {"problems": ["no '1'"]}})]
    bench_of(careful)(stub_child(scan=scan, cost=[("record", str(tmp_path / "asked")), *COSTS]))
    assert (careful.journal.plan(careful.study).state, asked(tmp_path / "asked")) == ("unsuitable", [])

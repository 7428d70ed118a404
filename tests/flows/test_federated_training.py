"""The flow on a real Prefect server: states a person can read, partial success that shows, runs that go on."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.messages import Collection
from flows.driver import StudyDriver
from flows.store import rounds, witnessed
from flows.store.database import reading, writing
from infra.driving import PARAMETERS, work_of
from infra.driving import run as drive
from infra.federation import SimulatedFederation, SimulatedHospital, make_federation
from models.metrics import MetricLayout, measure
from silo_agent.journal import KeptOrder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


def work(collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    if collection.phase == "evaluate":
        return measure(np.eye(2, dtype=np.float32), np.array([0, 1]), MetricLayout(2)), None
    return np.array([0.5, 1.0, 1.0, 0.0]), np.ones(10, np.float32)


@pytest.fixture
def federation(tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch) -> SimulatedFederation:
    made = make_federation(tmp_path / "home", {f"h{n}": work for n in (1, 2, 3, 4)}, rounds=3)
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))
    return made


def run(federation: SimulatedFederation, plan: str | None = None, *, count: int = 10, dry: bool = False) -> Any:
    """Run the flow with the hospitals answering beside it; returns its final state."""
    from flows.federated_training import federated_training

    async def together() -> Any:
        turning = asyncio.create_task(federation.keep_turning())
        try:
            return await federated_training(plan or federation.plan.label, count, dry, return_state=True)
        finally:
            turning.cancel()
            with suppress(asyncio.CancelledError):
                await turning

    return asyncio.run(asyncio.wait_for(together(), 120))


def committed(federation: SimulatedFederation) -> list[int]:
    with reading(federation.coordinator.store) as connection:
        return [record.round for record in rounds.committed(connection, federation.study.study)]


def ask(question: Callable[[Any], Any]) -> Any:
    """Ask the Prefect server something."""
    from prefect.client.orchestration import get_client

    async def answer() -> Any:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(answer())


def test_a_study_runs_some_rounds_at_a_time_and_ends(federation: SimulatedFederation) -> None:
    first = run(federation, count=2)
    assert (first.name, first.message) == ("RoundsDone", "2 of 3 rounds are committed")
    assert committed(federation) == [1, 2]
    last = run(federation)
    assert (last.name, last.message) == ("Completed", "all 3 rounds with all 4 hospitals")
    assert committed(federation) == [1, 2, 3]
    again = run(federation)
    assert again.is_completed()
    assert committed(federation) == [1, 2, 3]


def test_the_timeline_reads_like_the_study(federation: SimulatedFederation) -> None:
    run(federation, count=1)

    async def names(client: Any) -> tuple[set[str], set[str], set[str]]:
        flows = {one.name for one in await client.read_flow_runs(limit=200)}
        tasks = {one.name for one in await client.read_task_runs(limit=200)}
        artifacts = {one.key for one in await client.read_artifacts(limit=200)}
        return flows, tasks, artifacts

    flows, tasks, artifacts = ask(names)
    study = federation.study.study
    assert {f"simulated · study {study[-8:]}", "round 01 of 3"} <= flows
    assert {"h1 · approval", "h1 · train", "h2 · evaluate", "aggregate", "commit"} <= tasks
    steps = ("keys shared", "masked vectors", "same survivors seen", "shares revealed")
    assert {f"{phase} · {step}" for phase in ("train", "evaluate") for step in steps} <= tasks
    assert {f"{study}-summary", f"{study}-round-001"} <= artifacts


def test_a_round_without_some_hospital_is_never_called_a_plain_success(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(tmp_path / "home", {f"h{n}": work for n in (1, 2, 3, 4)}, rounds=2)
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flows.driver.WITNESS_SECONDS", 3.0)  # nobody shows h4's log while it is away
    run(federation, count=1)
    federation.hospitals["h4"].silence()
    state = run(federation)
    assert state.name == "QuorumMet"
    assert "1 of 2 rounds ran without some hospital" in state.message

    async def page(client: Any) -> str:
        found = await client.read_artifacts(limit=200)
        return next(one.data for one in found if one.key == f"{federation.study.study}-round-002")

    assert re.search(r"4 registered, 3 ready, 3 contributing", ask(page))
    assert "| h4 | no: SILENT |" in ask(page)


def test_a_plan_counts_all_hospitals_images_first_and_has_them_personalise_last(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = {f"h{n}": work_of(n) for n in (1, 2, 3)}
    made = make_federation(
        tmp_path / "home", works, parameters=PARAMETERS, rounds=2, normalise="federated", attempts=1,
        changes={"personalisation": {}},
    )  # fmt: skip
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))
    assert run(made, count=1).name == "RoundsDone"
    made.hospitals["h2"].refuse("personalise", "OUT_OF_MEMORY")
    state = run(made, count=1)
    assert state.name == "NotPersonalised"
    assert "all 2 rounds are committed; not personalised: too few hospitals in every attempt" in state.message
    made.hospitals["h2"].relent()
    assert run(made).name == "Completed", "all is repeated that is missing, and nothing else"
    assert committed(made) == [1, 2]

    async def seen(client: Any) -> tuple[list[str], list[str]]:
        runs = [one for one in await client.read_flow_runs(limit=200) if one.start_time >= made.made_at]
        counted.update(one.state.message for one in runs if one.name == "statistics")
        flows = [one.name for one in runs]
        return flows, [one.data for one in await client.read_artifacts(limit=200) if one.key == page]

    page, counted = f"{made.study.study}-statistics", set[str]()
    flows, pages = ask(seen)
    assert flows.count("statistics") == 1
    assert counted == {"fewer than 10 training images of 3 hospitals"}
    assert ["fewer than 10 training images of 3 hospitals" in data for data in pages] == [True]
    page = f"{made.study.study}-personalised"
    flows, pages = ask(seen)
    assert flows.count("personalise") == 2
    said = "2 of 3 hospitals: federated better than alone, 1: same; mean difference +0.200"
    assert [said in data for data in pages] == [True]


def test_a_step_says_who_is_missing_in_it(federation: SimulatedFederation) -> None:
    federation.hospitals["h4"].fall_silent_before("masked-vector")
    assert run(federation, count=1).name == "RoundsDone"
    assert said_by_task("train · masked vectors", federation) == [("Without", "3 hospitals; without h4 (SILENT)")]


def test_a_step_with_too_few_says_how_many_and_the_next_attempt_goes_through(federation: SimulatedFederation) -> None:
    for silo in ("h3", "h4"):
        federation.hospitals[silo].fall_silent_before("shares")
    federation.when_silent({"h3", "h4"}, SimulatedHospital.restart)
    assert run(federation, count=1).name == "RoundsDone"
    first, second = said_by_task("train · masked vectors", federation)
    assert first == ("TooFew", "2 of 3 needed; not h3 (KEYS_LOST), h4 (KEYS_LOST)")
    assert second == ("Completed", "all 4 hospitals")


def test_a_run_goes_on_behind_what_an_earlier_one_decided(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a hospital that the cohort was closed without gives signs of life again: nobody waits for it."""
    works = {f"h{n}": work for n in (1, 2, 3, 4)}
    made = make_federation(tmp_path / "home", works, rounds=3, ready_minutes=30.0)
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))

    async def die(driver: StudyDriver) -> None:
        made.hospitals["h4"].silence()
        opened = driver.open_round(1)
        async with opened.collecting("train", opened.model_in) as masked:
            await masked.close_cohort()
            await masked.route_shares()

    drive(made, die)
    made.hospitals["h4"].speak()
    assert run(made, count=1).name == "RoundsDone"
    ((state, _),) = said_by_task("train · keys shared", made)
    assert state in {"Found", "Completed"}  # the watch may or may not have looked before the step was over
    assert said_by_task("train · masked vectors", made) == [("Completed", "all 3 hospitals")]


def said_by_task(name: str, federation: SimulatedFederation) -> list[tuple[str, str]]:
    """(state, message) of the tasks of this name in this federation's rounds, in their order."""
    from prefect.client.schemas.sorting import TaskRunSort

    async def states(client: Any) -> list[tuple[str, str]]:
        runs = await client.read_task_runs(limit=200, sort=TaskRunSort.EXPECTED_START_TIME_DESC)
        flows = {one.id for one in await client.read_flow_runs(limit=200) if one.start_time >= federation.made_at}
        return [
            (one.state.name, one.state.message)
            for one in reversed(runs)
            if one.name == name and one.flow_run_id in flows
        ]

    return ask(states)  # type: ignore[no-any-return]


def test_without_a_quorum_the_run_fails_by_name_and_the_next_one_goes_on(federation: SimulatedFederation) -> None:
    for silo in ("h1", "h2"):
        federation.hospitals[silo].refuse("train")
    state = run(federation, count=1)
    assert (state.name, committed(federation)) == ("NoQuorum", [])
    for silo in ("h1", "h2"):
        federation.hospitals[silo].relent()
    assert run(federation, count=1).name == "RoundsDone"
    assert committed(federation) == [1]


def test_who_declines_in_the_middle_is_named_and_the_others_did_not_crash(
    federation: SimulatedFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four have to be in the sum, and two stewards take their approvals back while the others train."""
    study, work_on = federation.study, SimulatedHospital._work

    def turned(self: SimulatedHospital, order: KeptOrder) -> None:
        if self.silo not in {"h1", "h2"}:
            return work_on(self, order)
        if self.journal.plan(study.study).state == "approved":
            self.outbound.decline(study.study, study.plan_digest, "DECLINED_BY_STEWARD", "a test")
        return self.outbound.refuse(
            order, Collection.parse(order.collection), "NOT_APPROVED", "a test", retryable=False
        )

    monkeypatch.setattr(SimulatedHospital, "_work", turned)
    state = run(federation, count=1)
    assert (state.name, committed(federation)) == ("NoQuorum", [])
    assert "h1, h2 declined" in state.message
    said = [said_by_task(f"{silo} · train", federation) for silo in ("h1", "h2", "h3", "h4")]
    assert [{state for state, _ in one} for one in said] == [{"Refused"}, {"Refused"}, {"Ready"}, {"Ready"}]
    assert run(federation, count=1).name == "NotApproved"


def test_a_log_in_doubt_stops_the_study_by_name_until_somebody_has_looked(federation: SimulatedFederation) -> None:
    h1 = federation.hospitals["h1"]
    h1.lie("trail-shown", lambda true: true.model_copy(update={"first": true.first + 1}))
    run(federation, count=1)
    for _ in range(2):
        state = run(federation)
        assert state.name == "LogInDoubt"
        assert "round 2: incident 1 about the log of h1 is open (LOG_INCONSISTENT)" in state.message
    assert committed(federation) == [1]
    with writing(federation.coordinator.store) as connection:
        witnessed.close_incident(connection, 1, "ACCEPTED", federation.coordinator.now())
    assert run(federation, count=1).name == "RoundsDone"
    assert committed(federation) == [1, 2]


def test_an_unknown_plan_names_those_there_are(federation: SimulatedFederation) -> None:
    state = run(federation, "nothing@1")
    assert state.name == "UnknownPlan"
    assert "simulated@1" in state.message


def test_too_few_approvals_start_nothing(federation: SimulatedFederation) -> None:
    for silo in ("h1", "h2"):
        federation.hospitals[silo].declines = True
    state = run(federation)
    assert state.name == "NotApproved"
    assert committed(federation) == []


def test_a_dry_run_checks_and_trains_nothing(federation: SimulatedFederation) -> None:
    state = run(federation, dry=True)
    assert state.name == "NotReady"
    assert "0 approvals, 3 are needed in every sum" in state.message
    run(federation, count=1)
    assert run(federation, dry=True).name == "Ready"
    assert committed(federation) == [1]


def test_the_form_offers_the_published_plans(federation: SimulatedFederation) -> None:
    from flows.deployment import _offer, offers

    class Runner:
        def __init__(self) -> None:
            self.offered: dict[str, Any] = {}

        async def aadd_deployment(self, deployment: Any) -> None:
            self.offered[deployment.entrypoint] = deployment._parameter_openapi_schema

    runner = Runner()
    asyncio.run(_offer(runner, *offers(federation.coordinator)))
    assert all(schema.properties["plan"]["enum"] == ["simulated@1"] for schema in runner.offered.values())
    assert runner.offered["flows.federated_training.federated_training"].required == ["plan", "rounds"]
    assert {"flows.review.compliance_review", "flows.review.model_release"} < set(runner.offered)


def test_a_study_that_is_over_is_offered_for_review_and_no_longer_for_training(
    federation: SimulatedFederation,
) -> None:
    from flows.deployment import offers

    before = offers(federation.coordinator)
    assert before == (["simulated@1"], ["simulated@1"])

    async def story(driver: StudyDriver) -> None:
        driver.finish("COMPLETED")

    drive(federation, story)
    assert offers(federation.coordinator) == ([], ["simulated@1"])
    assert offers(federation.coordinator) != before, "the form is made anew when this changes"

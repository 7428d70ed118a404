"""The flows that measure finished models and describe cohorts, on a real Prefect server."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.messages import WorkOrder
from boundary.tensors import pack
from flows.driver import StudyDriver
from infra.driving import PARAMETERS, work_of
from infra.driving import run as drive
from infra.federation import SimulatedFederation, make_federation
from tests.flows.test_federated_training import ask
from tests.flows.test_measuring import described_work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


def run(federation: SimulatedFederation, flow: Any, *arguments: Any) -> Any:
    """Run a flow with the hospitals answering beside it; returns its final state."""

    async def together() -> Any:
        turning = asyncio.create_task(federation.keep_turning())
        try:
            return await flow(federation.plan.label, *arguments, return_state=True)
        finally:
            turning.cancel()
            with suppress(asyncio.CancelledError):
                await turning

    return asyncio.run(asyncio.wait_for(together(), 120))


def page(federation: SimulatedFederation, of: str) -> str:
    """The newest artifact of this study."""

    async def find(client: Any) -> str:
        found = await client.read_artifacts(limit=200)
        mine = [one for one in found if one.key == f"{federation.study.study}-{of}"]
        return str(max(mine, key=lambda one: one.created).data)

    return ask(find)  # type: ignore[no-any-return]


def orders(federation: SimulatedFederation) -> int:
    return sum(len(hospital.heard(WorkOrder)) for hospital in federation.hospitals.values())


def test_a_plan_that_trains_nothing_describes_and_measures_once(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.federated_evaluation import federated_evaluation
    from flows.federated_statistics import federated_statistics
    from flows.federated_training import federated_training

    def work(number: int) -> Any:
        counts, measures = described_work(number), work_of(number)
        return lambda collection: (counts if collection.phase == "statistics" else measures)(collection)

    other = make_federation(tmp_path / "other", {f"h{n}": work_of(n) for n in (1, 2, 3)}, parameters=PARAMETERS)
    weights = pack(np.ones(PARAMETERS, np.float32), other.study.parts.whole)
    model = other.coordinator.blobs.put_bytes(weights).digest
    other.close()
    changes = {
        "training": {"rounds": 0},
        "evaluation": {"models": [model]},
        "dataset": {"name": "images", "modalities": ["CT"], "described": True},
    }
    made = make_federation(
        tmp_path / "home", {f"h{n}": work(n) for n in (1, 2, 3)}, parameters=PARAMETERS, changes=changes
    )
    assert made.coordinator.blobs.put_bytes(weights).digest == model
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))
    assert run(made, federated_training, 1).name == "TrainsNothing"
    counted = run(made, federated_statistics)
    assert counted.is_completed(), counted.message
    assert "| patients | fewer than 10 | 12 |" in page(made, "statistics")
    state = run(made, federated_evaluation)
    assert (state.name, state.message) == ("Completed", "1 of 1 models are measured")
    assert "1.000 (0.7" in page(made, "evaluation")
    before = orders(made)
    assert before == 6, "one sum of counts and one of the model, of three hospitals"
    assert run(made, federated_evaluation).is_completed()
    assert run(made, federated_statistics).is_completed()
    assert orders(made) == before, "no hospital is asked again"
    made.close()


def test_external_results_of_a_training_are_shown_beside_its_own(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.federated_evaluation import federated_evaluation
    from flows.federated_training import federated_training

    works, outside = {f"h{n}": work_of(n) for n in range(1, 7)}, ("h4", "h5", "h6")
    made = make_federation(tmp_path / "home", works, parameters=PARAMETERS, rounds=1, validating=outside)
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))
    assert run(made, federated_evaluation).name == "NothingMeasured"
    done = run(made, federated_training, 1, False)
    assert (done.name, done.message) == ("Completed", "all 1 rounds with all 3 hospitals")
    assert run(made, federated_evaluation).is_completed()
    said = page(made, "evaluation")
    assert "| 1 | 1.000 (" in said
    assert "| h4, h5, h6 |" in said
    made.close()


def test_a_run_that_was_killed_behind_the_sum_only_ends_the_study(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.federated_statistics import federated_statistics
    from flows.round_work import RoundWork
    from infra.driving import attempts

    changes = {"training": {"rounds": 0}, "dataset": {"name": "images", "modalities": ["CT"], "described": True}}
    works = {f"h{n}": described_work(n) for n in (1, 2, 3)}
    made = make_federation(tmp_path / "home", works, parameters=PARAMETERS, changes=changes)
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "home"))

    async def die(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        await attempts(work, "statistics", work.model_in, RoundWork.count)

    drive(made, die)
    before = orders(made)
    assert run(made, federated_statistics).is_completed()
    assert orders(made) == before
    from flows.deployment import offers

    assert offers(made.coordinator) == ([], ["simulated@1"])
    made.close()

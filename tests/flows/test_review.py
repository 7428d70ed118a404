"""The officer's flows on a real Prefect server and a real MLflow: evidence that can be read, a model that waits."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.identity import SigningIdentity
from boundary.messages import Collection
from boundary.names import encode_base64
from boundary.tensors import flatten, manifest_of, pack
from compliance.bundle import Trust
from compliance.decision import Decision
from compliance.evidence.files import report_files
from compliance.keys_file import keys_text
from compliance.verify_command import run as verify
from flows.driver import StudyDriver
from flows.evidence_book import copies_in
from flows.mlflow_book import Publisher
from flows.records import ModelStart
from flows.store import holdings, studies
from flows.store.database import reading, writing
from flows.store.findings import latest_decision, latest_evidence
from infra.driving import one_round, run
from infra.federation import SimulatedFederation, make_federation
from models.metrics import MetricLayout, measure
from models.parameters import initial_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning"),
]
OFFICER = SigningIdentity.generate()
PARAMETERS = 96_850  # densenet-small, so that its model can be registered


def work(collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    if collection.phase == "evaluate":
        return measure(np.eye(2, dtype=np.float32), np.array([0, 1]), MetricLayout(2)), None
    return np.array([0.5, 1.0, 1.0, 0.0]), np.zeros(PARAMETERS, np.float32)


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, prefect: None, mlflow_server: tuple[str, Callable[[], None]]
) -> SimulatedFederation:
    """A finished study of one round, published in MLflow; its coordinator knows one officer."""
    url, start = mlflow_server
    start()
    home = tmp_path_factory.mktemp("review") / "home"
    made = make_federation(home, {f"h{n}": work for n in (1, 2, 3)}, rounds=1, mlflow_url=url, name="reviewed")
    tensors = initial_tensors(made.plan.model, 2)
    manifest = manifest_of(tensors)
    model = made.coordinator.blobs.put_bytes(pack(flatten(tensors, manifest), manifest))
    with writing(made.coordinator.store) as connection:
        holdings.record(connection, model, owner="coordinator", now=made.coordinator.now())
        first = ModelStart(manifest=manifest, initial=model)
        connection.execute(studies.studies.update().values(model=first.model_dump_json().encode()))
        made.study = studies.find(connection, made.plan.label)

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        await one_round(driver, 1)
        await driver.witness_end()
        driver.finish("ALL_ROUNDS_DONE")

    run(made, story)
    with Publisher(made.coordinator, made.study) as publisher:
        publisher.catch_up()
        assert publisher.problem is None
    settings = home / "coordinator.toml"
    settings.write_text(settings.read_text() + f'\n[officers]\nanna = "{OFFICER.public.text}"\n')
    return made


@pytest.fixture
def home(done: SimulatedFederation, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARDROUND_HOME", str(done.coordinator.home))
    return done.coordinator.home


def review(plan: str) -> Any:
    from flows.review import compliance_review

    return asyncio.run(compliance_review(plan, return_state=True))


def book_of(done: SimulatedFederation) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(done.coordinator.settings.mlflow_url)
    places = [found.experiment_id for found in client.search_experiments()]
    return client, client.search_runs(places, f"tags.`wardround.study` = '{done.study.study}'")[0]


# --- compliance-review -----------------------------------------------------------------------------------
def test_the_evidence_is_in_mlflow_where_a_reader_lands_and_is_what_was_signed(
    done: SimulatedFederation, home: Path, tmp_path: Path
) -> None:
    state = review(done.plan.label)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed"), state.message
    assert "PASS" in state.message
    client, found = book_of(done)
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith("**Evidence about reviewed@1: ")
    assert "/artifacts/evidence/report/report.html" in note.splitlines()[0]
    assert int(found.data.tags["evidence.PASS"]) > 5
    assert found.data.tags["evidence.FAIL"] == "0"
    bundle = max((home / "evidence").iterdir())
    copies = copies_in(str(done.coordinator.settings.mlflow_url), bundle)
    keys = tmp_path / "keys.toml"
    trust = Trust(
        done.coordinator.key.public,
        {silo: one.key.public for silo, one in done.hospitals.items()},
        {silo: one.folder.steward.public for silo, one in done.hospitals.items()},
    )
    keys.write_text(keys_text(trust))
    said: list[str] = []
    assert verify(bundle, keys, rebuild=report_files, copies=copies, write=said.append) == 0, "".join(said)

    client.log_text(found.info.run_id, "<p>all is well</p>", "evidence/report/report.html")
    copies = copies_in(str(done.coordinator.settings.mlflow_url), bundle)
    assert verify(bundle, keys, rebuild=report_files, copies=copies, write=said.append) == 1
    (bundle / "manifest.json").write_text('{"study":"unknown-00000000"}')
    with pytest.raises(LookupError, match="has no run of"):
        copies_in(str(done.coordinator.settings.mlflow_url), bundle)


def test_an_unknown_study_is_said(home: Path) -> None:
    assert review("nothing@1").name == "UnknownPlan"


def test_without_mlflow_the_bundle_is_written_all_the_same(done: SimulatedFederation, home: Path) -> None:
    settings = home / "coordinator.toml"
    before = settings.read_text()
    settings.write_text(before.replace("mlflow_url = ", "# mlflow_url = "))
    try:
        state = review(done.plan.label)
    finally:
        settings.write_text(before)
    assert (state.type.value, state.name) == ("COMPLETED", "NotShown")
    assert "no MLflow is configured" in state.message


# --- audit-watch and retention ---------------------------------------------------------------------------
def test_the_watch_and_retention_say_what_they_did(done: SimulatedFederation, home: Path) -> None:
    from flows.review import audit_watch, retention_

    watched = asyncio.run(audit_watch(return_state=True))
    assert watched.is_completed(), watched.message
    assert "4 logs with" in watched.message
    kept = asyncio.run(retention_(return_state=True))
    assert kept.is_completed(), kept.message
    assert "were removed" in kept.message


# --- model-release ---------------------------------------------------------------------------------------
def answered(done: SimulatedFederation, answer: Callable[[Decision], dict[str, str]] | None) -> Any:
    """Run the flow; an officer answers its form with what `answer` makes of the decision. None: nobody does."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, FlowRunFilterState

    from flows.review import model_release

    with reading(done.coordinator.store) as connection:
        evidence = latest_evidence(connection, done.study.study)
    assert evidence is not None

    async def together() -> Any:
        running = asyncio.create_task(model_release(done.plan.label, return_state=True))
        while answer is not None and not running.done():
            await asyncio.sleep(0.1)
            async with get_client() as client:
                paused = await client.read_flow_runs(
                    flow_filter=FlowFilter.model_validate({"name": {"any_": ["model-release"]}}),
                    flow_run_filter=FlowRunFilter(
                        state=FlowRunFilterState.model_validate({"type": {"any_": ["PAUSED"]}})
                    ),
                )
                for one in paused:
                    decision = wanted(done, evidence.manifest)
                    await client.resume_flow_run(one.id, run_input=answer(decision))
        return await running

    return asyncio.run(asyncio.wait_for(together(), 120))


def wanted(done: SimulatedFederation, manifest: str, choice: Any = "release") -> Decision:
    from flows.store import rounds

    with reading(done.coordinator.store) as connection:
        last = rounds.committed(connection, done.study.study)[-1]
    return Decision(
        study=done.study.study, round=last.round, model=last.model_out.digest, manifest=manifest, choice=choice
    )


def signed(decision: Decision, choice: Any = "release", key: SigningIdentity = OFFICER) -> dict[str, str]:
    said = decision.model_copy(update={"choice": choice})
    return {"decision": choice, "officer": "anna", "signature": encode_base64(said.sign(key))}


def aliases(done: SimulatedFederation) -> dict[str, str]:
    client, _ = book_of(done)
    found: dict[str, str] = client.get_registered_model(done.plan.name).aliases
    return found


def test_a_model_is_released_only_with_an_officers_signature_over_the_evidence(
    done: SimulatedFederation, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.review._LOOK_SECONDS", 0.2)
    review(done.plan.label)
    stranger = answered(done, lambda decision: signed(decision, key=SigningIdentity.generate()))
    assert (stranger.type.value, stranger.name) == ("FAILED", "BadSignature")
    other = answered(done, lambda decision: signed(decision) | {"decision": "reject"})
    assert other.name == "BadSignature", "what was signed is not what the form says"
    unknown = answered(done, lambda decision: signed(decision) | {"officer": "bert"})
    assert unknown.name == "BadSignature"
    assert aliases(done) == {}
    with reading(done.coordinator.store) as connection:
        assert latest_decision(connection, done.study.study) is None

    rejected = answered(done, lambda decision: signed(decision, "reject"))
    assert (rejected.type.value, rejected.name) == ("COMPLETED", "Rejected")
    assert aliases(done) == {}

    released = answered(done, signed)
    assert (released.type.value, released.name) == ("COMPLETED", "Released"), released.message
    assert list(aliases(done)) == ["released"]
    with reading(done.coordinator.store) as connection:
        decision = latest_decision(connection, done.study.study)
    assert decision is not None
    assert (decision.decision, decision.officer) == ("release", OFFICER.public.fingerprint)

    again = answered(done, None)
    assert again.name == "Released", "what was decided is not asked again"

    review(done.plan.label)  # newer evidence: the decision was on the older one
    monkeypatch.setattr("flows.review.DECISION_SECONDS", 1)
    late = answered(done, None)
    assert late.is_failed(), "Prefect's own words for a pause that ended: never resumed"
    with reading(done.coordinator.store) as connection:
        assert latest_decision(connection, done.study.study) == decision


def test_nothing_is_released_without_evidence_or_officers(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.review import NothingToRelease, _to_decide

    made = make_federation(tmp_path / "home", {f"h{n}": work for n in (1, 2, 3)}, rounds=1, parameters=PARAMETERS)
    with pytest.raises(NothingToRelease, match="is not finished"):
        _to_decide(made.coordinator, made.plan.label)

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        await one_round(driver, 1)
        driver.finish("ALL_ROUNDS_DONE")

    run(made, story)
    with pytest.raises(NothingToRelease, match="run the flow compliance-review"):
        _to_decide(made.coordinator, made.plan.label)
    from flows.evidence import issue

    issue(made.coordinator, made.plan.label)
    with pytest.raises(NothingToRelease, match=r"names no \[officers\]"):
        _to_decide(made.coordinator, made.plan.label)
    settings = made.coordinator.settings.model_copy(update={"officers": {"anna": OFFICER.public.text}})
    study, decision = _to_decide(replace(made.coordinator, settings=settings), made.plan.label)
    assert (study.label, decision.choice) == (made.plan.label, "release")

"""MLflow as the reading room: a real server, away at first, and never a doubled point."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.guarantee import PatientPrivacy
from boundary.images import Normalisation
from boundary.tensors import flatten, manifest_of, pack
from compliance.empirical import Guesses
from compliance.records import ClassDice, CohortDecision, GlobalMetrics, RoundRecord, SegmentationMetrics
from compliance.terms import PlanTerms
from flows.comparison.compare import FIGURE, HTML, TEXT, Report, publish
from flows.comparison.figure import draw, png
from flows.comparison.page import html, markdown
from flows.comparison.rows import Compared
from flows.mlflow_book import Publisher
from flows.personalisation import Compared as Pair
from flows.personalisation import Personalised
from flows.privacy_audit import Audit, Finding, log_to_mlflow
from flows.records import Measurement, ModelStart, Statistics
from flows.store import holdings, measurements, rounds, studies
from flows.store.database import reading, writing
from infra.federation import SEGMENTATION, SimulatedFederation, make_federation
from models.parameters import initial_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning"),
]


Make = Callable[..., SimulatedFederation]
Commit = Callable[..., None]


@pytest.fixture
def make(tmp_path: Path, mlflow_server: tuple[str, Callable[[], None]]) -> Make:
    """A study over the real small network, so that its model can be registered."""

    def make(**options: Any) -> SimulatedFederation:
        made = make_federation(
            tmp_path / "home", {f"h{n}": lambda _: (np.zeros(1), None) for n in (1, 2, 3)}, rounds=2,
            mlflow_url=mlflow_server[0], name=f"book-{tmp_path.name[-8:].strip('_').lower().replace('_', '-')}",
            **options,
        )  # fmt: skip
        tensors = initial_tensors(made.plan.model, len(made.plan.labels.classes))
        manifest = manifest_of(tensors)
        model = made.coordinator.blobs.put_bytes(pack(flatten(tensors, manifest), manifest))
        with writing(made.coordinator.store) as connection:
            start = ModelStart(manifest=manifest, initial=model)
            connection.execute(studies.studies.update().values(model=start.model_dump_json().encode()))
            holdings.record(connection, model, owner="coordinator", now=made.coordinator.now())
        with reading(made.coordinator.store) as connection:
            made.study = studies.find(connection, made.plan.label)
        return made

    return make


@pytest.fixture
def federation(make: Make) -> SimulatedFederation:
    return make()


@pytest.fixture
def commit(round_record: Callable[..., RoundRecord]) -> Commit:
    def commit(federation: SimulatedFederation, number: int, **changes: object) -> None:
        now, study = federation.coordinator.now(), federation.study
        model = study.model.initial
        record = round_record(
            number, study.plan.silos, study=study.study, model_in=model.digest, model_out=model,
            transcript=model.digest, committed_at=now, **changes,
        )  # fmt: skip
        with writing(federation.coordinator.store) as connection:
            from flows.coordinator import DRIVER_LEASE

            reins = studies.take_reins(connection, study.study, "test", now, DRIVER_LEASE)
            rounds.open_round(connection, reins, number, model.digest, now)
            rounds.commit(connection, reins, record, now)

    return commit


def measured_outside(federation: SimulatedFederation) -> None:
    """The first round's model was measured by hospitals that only validate, too."""
    with writing(federation.coordinator.store) as connection:
        record = rounds.committed(connection, federation.study.study)[0]
        metrics = GlobalMetrics(
            count=60, loss=0.5, accuracy=0.8, auroc=0.75, balanced_accuracy=0.8, confusion=((24, 6), (6, 24))
        )
        found = Measurement(
            study=record.study, round=1, phase="validate", model=record.model_out.digest, decision=record.train,
            survivors=record.transcript, metrics=metrics, taken_at=record.committed_at,
        )  # fmt: skip
        reins = studies.take_reins(connection, record.study, "test", record.committed_at, timedelta(days=1))
        measurements.keep(connection, reins, found)


def compared(federation: SimulatedFederation, url: str) -> None:
    """The study beside itself under another label, as a run of its own."""
    from mlflow import MlflowClient

    with reading(federation.coordinator.store) as connection:
        study, records = federation.study, tuple(rounds.committed(connection, federation.study.study))
        external = tuple(measurements.of_study(connection, study.study))
    both = (Compared(study, records, external), Compared(replace(study, label="other@1"), records, ()))
    figure = png(draw(both))
    report = Report(both, markdown(both), html(both, figure), figure)
    page = publish(report, url)
    client = MlflowClient(url)
    run = client.get_run(page.rpartition("/runs/")[2].partition("?")[0])
    assert run.info.run_name == f"{study.label} against other@1"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {HTML, TEXT, FIGURE}
    assert run.data.metrics[study.label.replace("@", "-") + "/external_score"] == 0.75
    assert run.data.tags["mlflow.note.content"].startswith(f"# {study.label} against other@1")


def personalise(federation: SimulatedFederation) -> None:
    """What the sum after the last round leaves in the store."""
    from flows.coordinator import DRIVER_LEASE

    now, study = federation.coordinator.now(), federation.study
    decision = CohortDecision(
        phase="personalise", attempt=1, reason="ALL_THERE", members=study.plan.silos, absent={}, closed_at=now
    )
    found = Personalised(
        figure="AUROC", decision=decision, survivors=study.model.initial.digest,
        compared=(
            Pair(one="federated", other="local", better=2, same=1, worse=0, difference=0.02),
            Pair(one="personal", other="local", better=0, same=0, worse=0, difference=None),
        ),
    )  # fmt: skip
    with writing(federation.coordinator.store) as connection:
        reins = studies.take_reins(connection, study.study, "test", now, DRIVER_LEASE)
        assert studies.keep_personalised(connection, reins, found, now) == found


def test_an_outage_stops_nothing_and_is_made_up_for_without_doubled_points(
    federation: SimulatedFederation, commit: Commit, mlflow_server: tuple[str, Callable[[], None]]
) -> None:
    url, start = mlflow_server
    commit(federation, 1)
    publisher = Publisher(federation.coordinator, federation.study)
    publisher.catch_up()
    assert publisher.problem is not None
    assert url in publisher.problem

    start()
    publisher.catch_up()
    assert publisher.problem is None
    measured_outside(federation)
    commit(federation, 2)
    publisher.catch_up()
    with writing(federation.coordinator.store) as connection:  # as after a crash between sending and remembering
        connection.execute(rounds.published.delete().where(rounds.published.c.what.like("round-%")))
        connection.execute(rounds.published.delete().where(rounds.published.c.what.like("measured-%")))
    personalise(federation)
    Publisher(federation.coordinator, federation.study).catch_up()

    from mlflow import MlflowClient

    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(federation.plan.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["personalisation/federated_vs_local_better"] == 2
    assert run.data.metrics["personalisation/federated_vs_local_difference"] == 0.02
    assert "personalisation/personal_vs_local_difference" not in run.data.metrics, "no hospital could tell"
    assert "2 of 3 hospitals: federated better than alone, 1: same" in run.data.tags["mlflow.note.content"]
    for metric, values in {"global/train_loss": [1.0, 0.5], "global/loss": [0.5, 0.25], "global/auroc": [0.75]}.items():
        history = client.get_metric_history(run.info.run_id, metric)
        assert [point.value for point in sorted(history, key=lambda point: point.step)] == values, metric
    (outside,) = client.get_metric_history(run.info.run_id, "external/auroc")
    assert (outside.step, outside.value) == (1, 0.75)
    assert run.data.metrics["external/auroc_low"] < 0.75 < run.data.metrics["external/auroc_high"]
    compared(federation, url)
    assert run.data.params["plan_digest"] == federation.study.plan_digest
    assert run.info.status == "FINISHED"
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"1-plan.json", "2-roster.json", "3-dataset-digests.json", "checkpoints", "figures"} <= names
    assert len(client.list_artifacts(run.info.run_id, "checkpoints")) == 2

    assert {item.path for item in client.list_artifacts(run.info.run_id, "figures")} == {
        "figures/loss.png", "figures/auroc.png",
    }  # fmt: skip
    assert {key: said for key, said in run.data.params.items() if "privacy" in key} == {"privacy_mechanism": "none"}
    assert not [key for key in run.data.metrics if "privacy" in key]
    assert "**Privacy noise: none**" in run.data.tags["mlflow.note.content"]

    (version,) = client.search_model_versions(f"name = '{federation.plan.name}'")
    assert version.tags["wardround.model_digest"] == federation.study.model.initial.digest


def test_a_guarantee_is_shown_with_what_it_has_cost_and_no_training_loss(
    make: Make, commit: Commit, mlflow_server: tuple[str, Callable[[], None]]
) -> None:
    url, start = mlflow_server
    start()
    federation = make(privacy={"mechanism": "patient-dp", "epsilon": 3.5, "clip": 0.75, "steps": 20})
    commit(federation, 1, train_loss=None, below=(1, 2, 3, 3))
    commit(federation, 2, train_loss=None, below=(0, 1, 3, 3))
    publisher = Publisher(federation.coordinator, federation.study)
    publisher.catch_up()
    assert publisher.problem is None

    from mlflow import MlflowClient

    client = MlflowClient(url)
    (run,) = client.search_runs([client.get_experiment_by_name(federation.plan.name).experiment_id])
    assert {key: said for key, said in run.data.params.items() if "privacy" in key} == {
        "privacy_mechanism": "patient-dp", "privacy_epsilon": "3.5", "privacy_clip": "0.75", "privacy_steps": "20",
        "privacy_patients_per_step": "32", "privacy_images_per_patient": "4",
    }  # fmt: skip
    for band, counted in {1: [1, 0], 2: [2, 1], 4: [3, 3], 8: [3, 3]}.items():
        history = client.get_metric_history(run.info.run_id, f"privacy/hospitals_below_epsilon_{band}")
        assert [point.value for point in sorted(history, key=lambda point: point.step)] == counted, band
    assert "global/train_loss" not in run.data.metrics
    assert run.data.metrics["global/loss"] == 0.25
    assert {item.path for item in client.list_artifacts(run.info.run_id, "figures")} == {
        "figures/loss.png", "figures/auroc.png", "figures/privacy.png",
    }  # fmt: skip
    told = "Spent on this study after round 2, of 3 hospitals: 0 below 1, 1 below 2, 3 below 4, 3 below 8."
    assert told in run.data.tags["mlflow.note.content"]
    (version,) = client.search_model_versions(f"name = '{federation.plan.name}'")
    assert "**Privacy: per patient**, epsilon 3.5" in version.description
    assert told in version.description


def test_a_privacy_audit_is_a_run_of_its_own_with_its_curves(
    mlflow_server: tuple[str, Callable[[], None]],
) -> None:
    from mlflow import MlflowClient

    url, start = mlflow_server
    start()
    terms = PlanTerms.of(PatientPrivacy(mechanism="patient-dp", noise_multiplier=1.0, patients_per_step=9), 2, 40)
    curve = [(0.0, 0.0), (0.1, 0.8), (1.0, 1.0)]
    without = Finding("no noise", curve, 0.9, Guesses(18, 20, 100), 2.5)
    done = Audit(terms, without, Finding("private", curve, 0.55, Guesses(11, 20, 100), 0.2))
    page = log_to_mlflow(url, "trial@1", done)
    client = MlflowClient(url)
    run = client.get_run(page.split("/runs/")[1].split("?")[0])
    assert (run.info.run_name, run.info.status) == ("trial@1", "FINISHED")
    assert run.data.metrics["private/epsilon_lower_bound"] == 0.2
    assert run.data.metrics["without/area"] == 0.9
    assert (run.data.metrics["private/holds"], run.data.metrics["without/attack_works"]) == (1.0, 1.0)
    assert float(run.data.params["epsilon_promised"]) == terms.epsilon
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/privacy-audit.png"]


@pytest.mark.parametrize("scale", [None, Normalisation(mean=0.25, deviation=0.125)], ids=["plain", "normalised"])
def test_the_registered_model_loads_without_pickle_and_is_the_global_model(
    make: Make,
    commit: Commit,
    mlflow_server: tuple[str, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    scale: Normalisation | None,
) -> None:
    """It takes images as the plan's window leaves them: what all hospitals' images gave is part of it."""
    url, start = mlflow_server
    start()
    federation = make(normalise="none" if scale is None else "federated")
    if scale is not None:
        federation.study = replace(federation.study, statistics=statistics(federation, scale))
    commit(federation, 1)
    commit(federation, 2)
    publisher = Publisher(federation.coordinator, federation.study)
    publisher.catch_up()
    assert publisher.problem is None

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow
    import torch

    from boundary.tensors import unflatten, unpack
    from models.catalogue import build
    from models.parameters import load_tensors

    mlflow.set_tracking_uri(url)
    loaded = mlflow.pytorch.load_model(f"models:/{federation.plan.name}/1")
    module = build(federation.plan.model, 2).eval()
    with federation.coordinator.blobs.open(federation.study.model.initial.digest) as source:
        weights = unpack(source.read(), federation.study.model.manifest)
    load_tensors(module, unflatten(weights, federation.study.model.manifest))
    images = torch.rand(3, 1, 16, 16)
    with torch.inference_mode():
        expected = module(images if scale is None else (images - scale.mean) / scale.deviation)
        assert torch.allclose(loaded(images), expected, atol=1e-5)


def test_a_segmentation_has_its_dice_and_a_registered_model_for_volumes_of_any_sides(
    make: Make, commit: Commit, mlflow_server: tuple[str, Callable[[], None]]
) -> None:
    """The example beside it is of the smallest sides; volumes of the plan's, and of others, go through."""
    import mlflow
    import torch

    from boundary.tensors import unflatten, unpack
    from models.catalogue import build
    from models.parameters import load_tensors

    url, start = mlflow_server
    start()
    volumes = {"size": [24, 32, 40], "spacing": [5, 1, 1], "intensity": "window", "low": 0.0, "high": 1.0}
    federation = make(
        changes=SEGMENTATION | {"model": {"name": "unet-small-3d", "version": 1}, "preprocessing": volumes}
    )  # fmt: skip
    classes = tuple(ClassDice(name=name, images=5, mean=0.5, pooled=0.75) for name in ("liver", "tumour"))
    for number in (1, 2):
        commit(federation, number, metrics=SegmentationMetrics(count=5, loss=0.25, dice=0.5, classes=classes))
    publisher = Publisher(federation.coordinator, federation.study)
    publisher.catch_up()
    assert publisher.problem is None

    client = mlflow.MlflowClient(url)
    (run,) = client.search_runs([client.get_experiment_by_name(federation.plan.name).experiment_id])
    told = {"dice_mean": 0.5, "dice_liver": 0.5, "dice_tumour": 0.5, "pooled_dice_liver": 0.75, "loss": 0.25}
    assert told.items() <= {key.removeprefix("global/"): value for key, value in run.data.metrics.items()}.items()
    assert {item.path for item in client.list_artifacts(run.info.run_id, "figures")} == {
        "figures/loss.png", "figures/dice.png",
    }  # fmt: skip
    mlflow.set_tracking_uri(url)
    loaded = mlflow.pytorch.load_model(f"models:/{federation.plan.name}/1")
    module = build(federation.plan.model, 3).eval()
    with federation.coordinator.blobs.open(federation.study.model.initial.digest) as source:
        weights = unpack(source.read(), federation.study.model.manifest)
    load_tensors(module, unflatten(weights, federation.study.model.manifest))
    for count, size in ((1, (24, 32, 40)), (3, (16, 16, 16)), (2, (40, 16, 56))):
        images = torch.rand(count, 1, *size)
        with torch.inference_mode():
            assert torch.allclose(loaded(images), module(images), atol=1e-5)


def statistics(federation: SimulatedFederation, scale: Normalisation) -> Statistics:
    silos = federation.study.plan.silos
    now = federation.coordinator.now()
    decision = CohortDecision(
        phase="statistics", attempt=1, reason="ALL_THERE", members=silos, absent={}, closed_at=now
    )
    survivors = federation.study.model.initial.digest
    return Statistics(images=5, labels=(2, 3), normalisation=scale, decision=decision, survivors=survivors)


def test_without_mlflow_there_is_nothing_to_do_and_nothing_wrong(tmp_path: Path) -> None:
    made = make_federation(tmp_path / "home", {f"h{n}": lambda _: (np.zeros(1), None) for n in (1, 2, 3)})
    publisher = Publisher(made.coordinator, made.study)
    with publisher:
        publisher.wake()
    publisher.catch_up()
    assert (publisher.problem, publisher.link) == (None, None)

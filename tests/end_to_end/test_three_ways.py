"""One study of three hospitals: images from a folder, from Orthanc, and out through an HTTPS proxy with a login."""

import json
import os
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from flows.authority import Authority
from flows.coordinator import load
from flows.release import final_weights
from flows.store import rounds, studies
from flows.store.database import reading
from infra.servers import orthanc
from infra.servers.connect_proxy import Proxy
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.withdrawn import Withdrawn
from silo_agent.journal import Journal
from silo_agent.personal import own_row
from silo_agent.state import StateFolder
from silo_agent.trainer import study_key

pytestmark = pytest.mark.slow
LOGIN = "silo:a secret of the hospital"
SITES = ("site-17", "site-34", "site-50")


@pytest.fixture(scope="module")
def archive(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real hospitals' CT."""
    folder = tmp_path_factory.mktemp("archive")
    for site in SITES:
        (folder / site).symlink_to(shared_data / "ct-contrast" / site)
    return folder


@pytest.fixture(scope="module")
def hospital_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one hospital's network, with the proxy's own certificate beside it: nobody else believes it."""
    folder = tmp_path_factory.mktemp("network")
    authority = Authority.create("Hospital Network CA", clock=lambda: datetime.now(UTC), entropy=os.urandom)
    (folder / "ca.pem").write_text(authority.pem)
    authority.issue_server(["localhost"]).save(folder / "proxy.pem", folder / "proxy.key")
    return folder / "ca.pem"


@pytest.fixture(scope="module")
def proxy(hospital_ca: Path) -> Iterator[Proxy]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(hospital_ca.with_name("proxy.pem"), hospital_ca.with_name("proxy.key"))
    made = Proxy(login=LOGIN, tls=tls)
    yield made
    made.close()


@pytest.fixture(scope="module")
def study(
    archive: Path,
    proxy: Proxy,
    hospital_ca: Path,
    tmp_path_factory: pytest.TempPathFactory,
    three_ports: Callable[[], tuple[int, ...]],
) -> tuple[Path, Any]:
    """(the folder, the summary) of a study that is over."""
    if not orthanc.is_installed():
        pytest.skip(orthanc.MISSING)
    folder = tmp_path_factory.mktemp("three-ways")
    server = orthanc.Orthanc(folder / "orthanc", users=dict([LOGIN.split(":")]))
    server.start()
    try:
        for path in sorted((archive / SITES[0] / "dicom").iterdir()):
            server.upload(path.read_bytes(), LOGIN)
        script = Path(__file__).with_name("three_ways.py")
        where = (folder, archive, server.url, proxy.url, hospital_ca)
        words = [sys.executable, script, *where, LOGIN, *map(str, three_ports())]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.stop()
    return folder / "w", json.loads((folder / "out.json").read_text())


def test_all_three_contribute(study: tuple[Path, Any]) -> None:
    _, summary = study
    assert [(one["registered"], one["ready"], one["contributing"]) for one in summary["rounds"]] == [(3, 3, 3)] * 2


def test_what_stays_home_is_in_no_model_of_a_round_and_the_server_remembers(study: tuple[Path, Any]) -> None:
    coordinator = load(study[0] / "coordinator")
    with reading(coordinator.store) as connection:
        (ours,) = studies.every(connection)
        records = rounds.committed(connection, ours.study)
        kept = [rounds.candidate_of(connection, ours.study, one.round) for one in records]
    assert all("norm" in spec.name for spec in ours.parts.home.tensors)
    assert len(ours.parts.home.tensors) > 10
    for one, candidate in zip(records, kept, strict=True):
        with coordinator.blobs.open(one.model_out.digest) as source:
            names = set(safetensors.numpy.load(source.read()))
        assert names == {spec.name for spec in ours.parts.moving.tensors}
        assert not any("norm" in name for name in names)
        assert candidate is not None
        assert candidate.memory is not None
        with coordinator.blobs.open(candidate.memory.digest) as source:
            control = safetensors.numpy.load(source.read())["control"]
        assert control.shape == (ours.parts.moving.size,)
        assert np.abs(control).max() > 0
    assert final_weights(ours, records[-1], coordinator.blobs.open).shape == (ours.parts.whole.size,)


def test_the_study_begins_with_the_file_that_everybody_has(study: tuple[Path, Any]) -> None:
    coordinator = load(study[0] / "coordinator")
    with reading(coordinator.store) as connection:
        (ours,) = studies.every(connection)
    file = safetensors.numpy.load_file(coordinator.weights / "elsewhere.safetensors")
    with coordinator.blobs.open(ours.model.initial.digest) as source:
        begun = safetensors.numpy.load(source.read())
    same = {name for name, tensor in begun.items() if np.array_equal(tensor, file[f"net.{name}"])}
    assert {name for name in begun if name not in same} == {"class_layers.out.weight"}  # biases begin as 0 anywhere


def test_each_has_a_model_of_its_own_and_the_coordinator_has_counts(study: tuple[Path, Any]) -> None:
    workdir, summary = study
    with reading(load(workdir / "coordinator").store) as connection:
        (ours,) = studies.every(connection)
    assert ours.personalised is not None
    assert ours.personalised.decision.members == SITES
    rows = [own_row(StateFolder(workdir / "agents" / site), summary["study"]) for site in SITES]
    for pair in ours.personalised.compared:
        told = [
            (values[0], verdict)
            for own in rows
            if own is not None and own.row is not None
            for one, other, values, verdict in own.row.differences
            if (one, other) == (pair.one, pair.other) and verdict is not None
        ]
        counts = Counter(verdict for _, verdict in told)
        assert (pair.better, pair.same, pair.worse) == (counts["better"], counts["same"], counts["worse"])
        mean = sum(value for value, _ in told) / len(told) if told else None
        assert pair.difference == pytest.approx(mean, abs=1e-6)
    stored = [path.read_bytes() for path in (workdir / "coordinator").rglob("*") if path.is_file()]
    for own in rows:
        assert own is not None
        assert own.row is not None
        head = safetensors.numpy.load(own.model.read_bytes())["class_layers.out.weight"].tobytes()
        assert not any(head in content for content in stored), "the head is its own"
        exact = [str(value).encode() for values in own.row.figures.values() for value in values if value is not None]
        numbers = [value for value in exact if len(value) > len("0.1234567")]  # 0.5 stands everywhere
        assert not any(value in content for value in numbers for content in stored)


def test_the_data_set_is_the_one_that_its_folder_holds(study: tuple[Path, Any], archive: Path, tmp_path: Path) -> None:
    """Read once more from the folder, with the hospital's own keys."""
    workdir, summary = study
    state, folder = workdir / "agents" / SITES[0], archive / SITES[0]
    journal = Journal(state / "journal.sqlite", SITES[0])
    (kept,) = journal.plans()
    journal.close()
    master = (state / "dataset.key").read_bytes()
    report = scan(
        FolderSource(folder / "dicom", folder / "labels.csv"), kept.parsed,
        study_key(master, summary["study"]), tmp_path / "cache", lambda *_: None, withdrawn=Withdrawn(master),
    )  # fmt: skip
    assert report.used == 33
    assert kept.dataset_digest == report.dataset_digest
    assert not list(state.rglob("instance-*")), "nothing that was fetched is left"


def test_the_agent_behind_the_proxy_went_no_other_way(study: tuple[Path, Any], proxy: Proxy) -> None:
    _, summary = study
    assert proxy.url.startswith("https://")
    (target,) = {target for target, _ in proxy.asked}
    assert target.startswith("127.0.0.1:")
    assert all(has_login for _, has_login in proxy.asked)
    sent = sum(one[way][SITES[1]] for one in summary["rounds"] for way in ("bytes_up", "bytes_down"))
    assert proxy.moved > sent > 100_000, "enrolment, the model and the masked change"


def test_no_secret_of_theirs_is_in_a_log(study: tuple[Path, Any]) -> None:
    workdir, _ = study
    told = [path for path in workdir.rglob("*") if path.is_file() and not path.name.endswith(".credentials")]
    assert [path for path in told if b"a secret of the hospital" in path.read_bytes()] == []

"""Stores of each kind, and a coordinator with hospitals that have real keys.

SQLite always, PostgreSQL where its programs are installed.
"""

import gc
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Engine, create_engine, text

from boundary.api import ENROLMENT_CONTEXT, EnrolmentRequest, SignedEnrolment
from boundary.canonical import canonical_bytes
from boundary.envelope import Envelope, seal_envelope
from boundary.identity import SigningIdentity
from boundary.messages import AnyMessage, BlobRef
from boundary.names import COORDINATOR
from boundary.roster import KeyCard, SignedRoster, make_card
from boundary.sealing import UnsealingKey
from boundary.secagg.ring import Encoding
from compliance.records import CohortDecision, GlobalMetrics, RoundRecord, Timing, Traffic
from flows.authority import issue_roster
from flows.store import members
from flows.store.database import migrate, open_store, writing

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module", autouse=True)
def _looks_often() -> Iterator[None]:
    """A driver of hospitals that answer in milliseconds looks for their answers, and for who fell silent, as often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.driver._LOOK_SECONDS", 0.02)
        patch.setattr("flows.collecting.LEASES_SECONDS", 0.1)
        yield


@dataclass(frozen=True)
class Party:
    name: str
    key: SigningIdentity
    card: KeyCard
    csr_pem: str

    def says(self, message: AnyMessage, to: str = COORDINATOR, at: datetime = NOW) -> Envelope:
        return seal_envelope(message, sender=self.name, recipient=to, sent_at=at, key=self.key)

    def asks(self, token: str, *, csr_pem: str | None = None) -> SignedEnrolment:
        request = EnrolmentRequest(silo=self.name, token=token, card=self.card, csr_pem=csr_pem or self.csr_pem)
        signature = self.key.sign(ENROLMENT_CONTEXT, canonical_bytes(request.model_dump(mode="json")))
        return SignedEnrolment(request=request, signature=signature)


@dataclass(frozen=True)
class Federation:
    """The coordinator's hands: what its CLI will do."""

    store: Engine
    coordinator: Party
    party: Callable[[str], Party]

    def invite(self, silo: str, token: str = "t" * 43, lifetime: timedelta = timedelta(days=7)) -> str:
        with writing(self.store) as connection:
            members.invite(connection, silo, members.token_digest(token), expires_at=NOW + lifetime, now=NOW)
        return token

    def roster(self, *cards: KeyCard, version: int = 1) -> SignedRoster:
        return issue_roster(
            cards,
            version=version,
            coordinator=self.coordinator.card,
            keys=[self.coordinator.key],
            now=NOW,
            lifetime=timedelta(days=90),
        )

    def admit(self, *parties: Party) -> None:
        for number, party in enumerate(parties, start=1):
            token = self.invite(party.name, f"{number:043d}")
            roster = self.roster(*(known.card for known in parties[:number]), version=number)
            with writing(self.store) as connection:
                members.enrol(connection, party.asks(token), NOW)
                members.admit(connection, party.name, "PEM", NOW + timedelta(days=90), roster=roster, now=NOW)


def csr_for(silo: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, silo)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def make_party(name: str) -> Party:
    key = SigningIdentity.generate()
    return Party(name, key, make_card(name, key, UnsealingKey.generate().public), csr_for(name))


@pytest.fixture
def federation(store: Engine) -> Federation:
    return Federation(store, make_party(COORDINATOR), make_party)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def new_csr() -> Callable[[str], str]:
    return csr_for


def record_of(number: int = 1, silos: tuple[str, ...] = ("h1", "h2", "h3"), **changes: object) -> RoundRecord:
    """A committed round to which every hospital contributed."""
    model = BlobRef(digest="sha256:" + "a" * 64, size=100)
    cohort = CohortDecision(phase="train", attempt=1, reason="ALL_THERE", members=silos, absent={}, closed_at=NOW)
    record = RoundRecord(
        study="study-00000000", round=number, model_in=model.digest, model_out=model, registered=silos, ready=silos,
        contributing=silos, absent={}, train=cohort, transcript=model.digest, update_norm=0.5, clipped=0,
        next_encoding=Encoding(ring=32, exponent=20, most=3), evaluate=cohort, train_loss=1.0 / number,
        metrics=GlobalMetrics(count=9, loss=0.5 / number, accuracy=0.5, auroc=None if number == 1 else 0.75,
                              balanced_accuracy=0.5, confusion=((1, 2), (3, 3))),
        timing=Timing(training=1, transport=1, aggregation=1, evaluation=1, total=4),
        traffic={silo: Traffic(up=1, down=2) for silo in silos}, committed_at=NOW,
    )  # fmt: skip
    return record.model_copy(update=changes)


@pytest.fixture
def round_record() -> Callable[..., RoundRecord]:
    return record_of


_numbers = count(1)


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[str]:
    """A throw-away cluster on a unix socket; yields its URL up to the database's name."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: run infra/install-test-servers.sh")
    programs, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix="wardround-pg-"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user, user)
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-A", "trust", "-U", "wardround", "--no-sync", "-E", "UTF8"],
        check=True,
        capture_output=True,
        user=user,
        cwd=folder,
    )
    options = ["-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]
    server = subprocess.Popen(
        [programs / "postgres", *options], user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_ready(programs, folder)
        yield f"postgresql+psycopg://wardround@/{{database}}?host={folder}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_cluster: str) -> Iterator[str]:
    """An empty database."""
    name = f"test_{next(_numbers)}"
    admin = create_engine(postgresql_cluster.format(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgresql_cluster.format(database=name)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Engine]:
    """An empty store of the newest revision."""
    engine = open_store(store_url)
    migrate(engine)
    yield engine
    engine.dispose()


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _await_ready(programs: Path, folder: Path) -> None:
    for _ in range(200):
        if subprocess.run([programs / "pg_isready", "-q", "-h", folder], check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise TimeoutError("PostgreSQL did not start")


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True, scope="module")
def what_libraries_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sockets that Prefect's or MLflow's clients leave to the collector go at the end of the tests that opened them.

    Otherwise it finds them later, in the middle of a test that allows no such thing, and that one fails.
    """
    yield
    if any("ignore::ResourceWarning" in mark.args for mark in request.node.iter_markers("filterwarnings")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[], None]]]:
    """(its URL, how to start it): it is down until a test starts it."""
    folder, port, running = tmp_path_factory.mktemp("mlflow"), free_port(), []

    def start() -> None:
        if running:
            return
        environment = dict(os.environ) | {
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # fmt: skip
        command = [
            str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1", "--serve-artifacts", "--backend-store-uri", f"sqlite:///{folder / 'm.db'}",
            "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise TimeoutError((folder / "log").read_text())

    yield f"http://127.0.0.1:{port}", start
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)

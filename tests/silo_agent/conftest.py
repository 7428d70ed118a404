"""A hospital in a box: its state folder and journal, a coordinator that signs, a relay that is real or hostile."""

import asyncio
import http.server
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from boundary.api import ENROLMENT_CONTEXT, Delivery, EnrolmentRequest, SignedEnrolment
from boundary.canonical import canonical_bytes, digest
from boundary.envelope import Envelope, open_envelope, seal_envelope
from boundary.identity import SigningIdentity
from boundary.messages import AnyMessage, BlobRef, CohortClosed, Collection, PlanProposed, WorkOrder
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, parse_plan, study_id
from boundary.roster import KeyCard, Roster, SignedRoster, TrustedRoster, make_card, sign_roster
from boundary.sealing import UnsealingKey
from flows.authority import Authority
from flows.coordinator import Coordinator, create, starting_settings
from flows.desk import Desk
from flows.store import holdings, members
from flows.store.database import writing
from infra.hospitals.phantoms import make_phantom_hospitals
from silo_agent.config import AgentConfig, parse_config, starting_config
from silo_agent.daemon import RELAY_URL, ROSTER, Surroundings
from silo_agent.enrolment import Enrolment, read_invitation
from silo_agent.inbound import OwnSide
from silo_agent.journal import Journal, KeptOrder
from silo_agent.mailroom import Mailroom
from silo_agent.outbound import Outbound
from silo_agent.results import StoredResult, result_folder
from silo_agent.state import StateFolder, write_private
from silo_agent.steward import approve

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SILO, OTHERS = "st-olavs", ("charite", "karolinska", "utrecht")
PARAMETERS, METRICS = 7, 3  # of the pretended network
MODEL = BlobRef(digest=digest(b"the model"), size=9)
DATASET_DIGEST = digest(b"our data")
_START_SECONDS = 30


# --- a coordinator that only signs -------------------------------------------------------------------
@dataclass
class Signer:
    """The coordinator's keys, and rosters of any members."""

    key: SigningIdentity = field(default_factory=SigningIdentity.generate)
    unsealing: UnsealingKey = field(default_factory=UnsealingKey.generate)

    def roster(
        self,
        *cards: KeyCard,
        version: int = 1,
        expires: datetime = NOW + timedelta(days=90),
        also: tuple[SigningIdentity, ...] = (),
    ) -> SignedRoster:
        card = make_card(COORDINATOR, self.key, self.unsealing.public)
        ordered = tuple(sorted(cards, key=lambda one: one.party))
        roster = Roster(version=version, issued_at=NOW, expires_at=expires, coordinator=card, members=ordered)
        return sign_roster(roster, self.key, *also)

    def says(self, message: AnyMessage, to: str = SILO, at: datetime = NOW) -> Envelope:
        return seal_envelope(message, sender=COORDINATOR, recipient=to, sent_at=at, key=self.key)


def card_of(name: str) -> KeyCard:
    return make_card(name, SigningIdentity.generate(), UnsealingKey.generate().public)


def plan_for(cards: list[KeyCard], **changes: Any) -> StudyPlan:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
    value: dict[str, Any] = {
        "version": 1,
        "name": "ct-contrast",
        "revision": 1,
        "purpose": {**purpose, "expires": "2030-01-01"},
        "hospitals": [{"silo": card.party, "signing_key": card.signing_key} for card in cards],
        "model": {"name": "densenet-small", "version": 1},
        "preprocessing": {"size": [32, 32], "intensity": "window", "low": -200, "high": 300},
        "labels": {"column": "contrast", "classes": ["0", "1"]},
        "dataset": {"name": "images", "modalities": ["CT"], "holdout_share": 0.3},
        "training": {"rounds": 3, "batch_size": 4},
        "aggregation": {"quorum": 3},
    }
    for path, change in changes.items():
        section, _, key = path.partition("__")
        if key:
            value[section][key] = change
        else:
            value[section] = change
    return parse_plan(value)


# --- one hospital without a network ------------------------------------------------------------------
@dataclass
class Site:
    """One agent's parts as the daemon puts them together, with a clock in the test's hand."""

    root: Path
    coordinator: Signer = field(default_factory=Signer)
    now: datetime = NOW
    unwanted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = StateFolder(self.root)
        config = starting_config(SILO, "images", self.root, self.root / "labels.csv", threads=1, heartbeat=0.3)
        self.folder.create(secrets.token_bytes, config)
        self.card = self.folder.card(SILO)
        self.cards = [self.card, *(card_of(name) for name in OTHERS)]
        self.signed_roster = self.coordinator.roster(*self.cards, expires=self.now + timedelta(days=90))
        self.roster = TrustedRoster(self.signed_roster)
        self.plan = plan_for(self.cards)
        self.study = study_id(self.plan)
        self._sequence = count(1)
        self.open()

    def open(self) -> None:
        """(Re)open the journal, as a restart does."""
        self.journal = Journal(self.folder.journal, SILO)
        identity = self.folder.identity
        self.outbound = Outbound(SILO, identity, self.journal, lambda: self.now, secrets.token_bytes, "0.1.0")
        self.mailroom = Mailroom(self.journal, self.outbound, self.folder, self.own, self.unwanted.append)

    def own(self) -> OwnSide:
        return OwnSide(SILO, self.folder.steward.public, self.roster, self.now)

    def hear(self, message: AnyMessage, **how: Any) -> Delivery:
        """The relay delivers what the coordinator says."""
        delivery = Delivery(sequence=next(self._sequence), envelope=self.coordinator.says(message, **how).data)
        self.mailroom.take(delivery)
        return delivery

    def propose(self) -> None:
        self.hear(PlanProposed(study=self.study, plan=self.plan))

    def scanned(self, problems: str | None = None) -> None:
        state = "unsuitable" if problems else "scanned"
        self.journal.set_plan(self.study, state, dataset_digest=DATASET_DIGEST, reason=problems)  # type: ignore[arg-type]

    def approve(self) -> None:
        self.propose()
        self.scanned()
        approve(self.journal, self.folder, self.outbound, self.study, "data_steward", "a test")

    def collection(self, number: int = 1, phase: str = "train", attempt: int = 1) -> Collection:
        return Collection(study=self.study, round=number, phase=phase, attempt=attempt)  # type: ignore[arg-type]

    def order(self, number: int = 1, phase: str = "train", attempt: int = 1, **changes: Any) -> WorkOrder:
        values: dict[str, Any] = {
            "collection": self.collection(number, phase, attempt),
            "plan_digest": digest_of(self.plan),
            "roster_digest": self.roster.signed.digest,
            "model": MODEL,
            "due": self.now + timedelta(hours=2),
        }
        return WorkOrder(**(values | changes))

    def ordered(self, number: int = 1, phase: str = "train", attempt: int = 1, **changes: Any) -> KeptOrder:
        order = self.order(number, phase, attempt, **changes)
        self.hear(order)
        return self.kept(number, phase, attempt)

    def kept(self, number: int = 1, phase: str = "train", attempt: int = 1) -> KeptOrder:
        kept = self.journal.order(str(self.collection(number, phase, attempt)))
        assert kept is not None
        return kept

    def ready(self, number: int = 1, phase: str = "train", attempt: int = 1, **changes: Any) -> KeptOrder:
        """An order whose work is done; its vector is 0, 1, 2, ..."""
        kept = self.ordered(number, phase, attempt, **changes)
        self.outbound.ready(kept, self.collection(number, phase, attempt), self.store_result(number, phase))
        return self.kept(number, phase, attempt)

    def store_result(self, number: int = 1, phase: str = "train") -> Path:
        folder = result_folder(self.folder, self.study, number, phase, MODEL.digest)
        folder.mkdir(parents=True, exist_ok=True)
        size = PARAMETERS + 3 if phase == "train" else METRICS
        np.arange(size, dtype="<f4").tofile(folder / "vector.f32")
        StoredResult(folder / "vector.f32", PARAMETERS, METRICS).save(folder)
        return folder

    def closing(self, kept: KeptOrder, **changes: Any) -> CohortClosed:
        values: dict[str, Any] = {
            "collection": Collection.parse(kept.collection),
            "order": kept.digest,
            "members": (SILO, *OTHERS),
            "absent": (),
        }
        return CohortClosed(**(values | changes))

    def released(self, number: int = 1, phase: str = "train", attempt: int = 1) -> KeptOrder:
        self.hear(self.closing(self.ready(number, phase, attempt)))
        return self.kept(number, phase, attempt)

    def outbox(self) -> list[AnyMessage]:
        """Everything in the outbox, whatever became of it, as the coordinator would read it."""
        rows = self.journal._db.execute("SELECT envelope FROM outbox ORDER BY position")
        return [
            open_envelope(data, recipient=COORDINATOR, signer=self.folder.identity.public, sender=SILO).message
            for (data,) in rows
        ]

    def enrol_offline(self, url: str, authority: Authority, *, heartbeat: float = 0.3) -> AgentConfig:
        """What enrolment leaves behind, without a relay to ask; returns an impatient configuration."""
        issued = authority.issue_client(self.folder.csr(SILO), SILO)
        write_private(self.folder.tls_certificate, issued.certificate_pem.encode())
        write_private(self.folder.relay_ca, authority.pem.encode())
        self.journal.set_fact(ROSTER, self.signed_roster.data)
        self.journal.set_fact(RELAY_URL, url.encode())
        return made_impatient(self.folder, heartbeat)


def made_impatient(folder: StateFolder, heartbeat: float = 0.3) -> AgentConfig:
    """Rewrite agent.toml with pauses for tests."""
    path = folder.root / "agent.toml"
    timing = f"heartbeat = {heartbeat}\nretry_first = 0.05\nretry_most = 0.4"
    text = path.read_text().partition("[timing]")[0] + f"[timing]\n{timing}\n"
    path.write_text(text.replace("min_free_disk_mb = 500", "min_free_disk_mb = 1"))
    return parse_config(path.read_text(), str(path))


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**options: Any) -> Site:
        made.append(Site(tmp_path / f"state-{len(made)}", **options))
        return made[-1]

    yield make
    for site in made:
        site.journal.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture
def impatient() -> Callable[..., AgentConfig]:
    return made_impatient


@pytest.fixture
def new_signer() -> type[Signer]:
    return Signer


@pytest.fixture(scope="session")
def make_plan_for() -> Callable[..., StudyPlan]:
    return plan_for


@pytest.fixture(scope="session")
def new_card() -> Callable[[str], KeyCard]:
    return card_of


# --- a server that is not what it should be ----------------------------------------------------------
Answerer = Callable[["http.server.BaseHTTPRequestHandler", bytes], tuple[int, bytes] | None]


class HostileRelay:
    """TLS of the right CA, and answers of the test's choice: by path prefix, bytes or a function of the request.

    A function may write to the handler itself and return None. `asked` counts requests by path.
    """

    def __init__(self, authority: Authority, folder: Path, name: str = "localhost") -> None:
        self.authority, self.asked = authority, dict[str, int]()
        self.answers: dict[str, Answerer | bytes] = {}
        authority.issue_server([name]).save(folder / "hostile.pem", folder / "hostile.key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "hostile.pem", folder / "hostile.key")
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                relay.asked[self.path] = relay.asked.get(self.path, 0) + 1
                found = next((a for prefix, a in relay.answers.items() if self.path.startswith(prefix)), b"{}")
                answer = (200, found) if isinstance(found, bytes) else found(self, body)
                if answer is not None:
                    status, content = answer
                    self.send_response(status)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = _do  # noqa: N815 - the base class' names

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[Any, Any]:
                plain, address = self.socket.accept()
                return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up is part of the test

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"https://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def real_clock() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create("CA", clock=real_clock, entropy=os.urandom)


@pytest.fixture
def make_hostile() -> type[HostileRelay]:
    return HostileRelay


@pytest.fixture
def hostile(authority: Authority, tmp_path: Path) -> Iterator[HostileRelay]:
    relay = HostileRelay(authority, tmp_path)
    yield relay
    relay.close()


# --- a real coordinator with a real relay ------------------------------------------------------------
@dataclass
class Federation:
    """The coordinator's home, its relay process, and hospitals enrolled as people enrol them."""

    home: Path
    coordinator: Coordinator
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start_relay(self) -> None:
        assert self.process is None
        with (self.home / "relay.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.relay.server", "--config", self.home / "relay.toml"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._listens, _START_SECONDS)

    def stop_relay(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
            wait_until(lambda: not self._listens(), 10)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def invite(self, silo: str, folder: Path) -> Path:
        from flows.admission import invite

        path = folder / f"invitation-{secrets.token_hex(4)}.json"
        invite(self.coordinator, silo, path)
        return path

    def admit(self, folder: StateFolder, silo: str) -> int:
        from flows.admission import admit

        return admit(self.coordinator, silo, folder.identity.public.fingerprint)

    def enrolment(self, folder: StateFolder, config: AgentConfig, invitation: Path) -> Enrolment:
        world = Surroundings(real_clock, secrets.token_bytes, "0.1.0")
        return Enrolment(config, folder, read_invitation(invitation, config.site), world)

    def enrolled(self, root: Path, silo: str, data: Path | None = None) -> tuple[StateFolder, AgentConfig]:
        """A hospital from `init` to `admitted`."""
        folder = StateFolder(root)
        dicom, labels = (data / "dicom", data / "labels.csv") if data else (root, root)
        folder.create(secrets.token_bytes, starting_config(silo, "images", dicom, labels, threads=1, heartbeat=0.3))
        config = made_impatient(folder)
        asking = self.enrolment(folder, config, self.invite(silo, root))

        async def join() -> bool:
            assert not await asking.ask_and_wait(0, lambda: None)
            self.admit(folder, silo)
            return await asking.ask_and_wait(5, lambda: None)

        assert asyncio.run(join())
        return folder, config

    def on_paper(self, silo: str) -> "Paper":
        """A hospital that only exists in the coordinator's books, with keys to speak for it."""
        paper = Paper(silo)
        token = secrets.token_urlsafe(32)
        with writing(self.coordinator.store) as connection:
            now = real_clock()
            members.invite(connection, silo, members.token_digest(token), expires_at=now + timedelta(days=1), now=now)
            members.enrol(connection, paper.asks(token), now)
        from flows.admission import admit

        admit(self.coordinator, silo, paper.key.public.fingerprint)
        return paper

    def put(self, data: bytes) -> BlobRef:
        blob = self.coordinator.blobs.put_bytes(data)
        with writing(self.coordinator.store) as connection:
            holdings.record(connection, blob, owner=COORDINATOR, now=real_clock())
        return blob

    def roster(self) -> SignedRoster:
        from boundary.roster import read_roster
        from flows.store.database import reading

        with reading(self.coordinator.store) as connection:
            data = members.current_roster(connection)
        assert data is not None
        return read_roster(data, self.coordinator.key.public)

    def desk(self, plan: StudyPlan) -> Desk:
        return Desk(self.coordinator.key, real_clock, plan)

    def tell(self, plan: StudyPlan, silo: str, message: AnyMessage) -> Envelope:
        with writing(self.coordinator.store) as connection:
            return self.desk(plan).tell(connection, silo, message)

    def heard(self, plan: StudyPlan, kind: str, slot: str, silo: str) -> AnyMessage | None:
        from flows.store.database import reading

        with reading(self.coordinator.store) as connection:
            found = self.desk(plan).heard(connection, kind, slot).get(silo)
        return None if found is None else found.message


@dataclass
class Paper:
    silo: str
    key: SigningIdentity = field(default_factory=SigningIdentity.generate)

    def __post_init__(self) -> None:
        self.card = make_card(self.silo, self.key, UnsealingKey.generate().public)

    def asks(self, token: str) -> SignedEnrolment:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.silo)])
        tls = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        request = EnrolmentRequest(silo=self.silo, token=token, card=self.card, csr_pem=pem)
        signature = self.key.sign(ENROLMENT_CONTEXT, canonical_bytes(request.model_dump(mode="json")))
        return SignedEnrolment(request=request, signature=signature)


def wait_until(ready: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return
        time.sleep(0.03)
    raise TimeoutError


async def wait_for(ready: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return
        await asyncio.sleep(0.03)
    raise TimeoutError


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(scope="session")
def until_async() -> Callable[..., Awaitable[None]]:
    return wait_for


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One for all tests: the relay process takes seconds to start. Who stops it starts it again."""
    home = tmp_path_factory.mktemp("coordinator")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = ["localhost", "127.0.0.1"]
    coordinator = create(home, starting_settings(home, f"https://localhost:{port}", "127.0.0.1", port, names))
    (home / "relay.toml").write_text(
        f'database = "{coordinator.settings.store}"\nblobs = "{coordinator.settings.blobs}"\n'
        f'scratch = "scratch"\nhost = "127.0.0.1"\nport = {port}\ncertificate = "keys/relay.crt"\n'
        'private_key = "keys/relay.key"\nclient_ca = "keys/ca.pem"\n'
    )
    made = Federation(home, coordinator, port)
    made.start_relay()
    yield made
    made.stop_relay()
    coordinator.store.dispose()


@pytest.fixture(scope="session")
def hospital_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen small DICOM files with labels: enough to train a step and to hold patients back."""
    return make_phantom_hospitals(tmp_path_factory.mktemp("hospital"), 1, 24)[0]


# --- a child without torch ---------------------------------------------------------------------------
@pytest.fixture
def stub_child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a child that answers each command by a script of (what, argument) steps; returns its module's name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def make(**script: list[tuple[str, Any]]) -> str:
        monkeypatch.setenv("STUB_SCRIPT", json.dumps(script))
        return "stub_child"

    return make

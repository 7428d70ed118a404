"""Fixtures: a hospital in a box, a relay that is hostile, and a real coordinator with a real relay."""

import asyncio
import http.server
import importlib.util
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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from boundary.api import ENROLMENT_CONTEXT, EnrolmentRequest, SignedEnrolment
from boundary.canonical import canonical_bytes
from boundary.envelope import Envelope
from boundary.identity import SigningIdentity
from boundary.messages import AnyMessage, BlobRef, HeadsShown, ShownHead
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, study_id
from boundary.roster import KeyCard, SignedRoster
from flows.authority import Authority
from flows.coordinator import Coordinator, create, starting_settings
from flows.desk import Desk
from flows.store import audit, holdings, members
from flows.store.database import reading, writing
from infra.hospitals.phantoms import make_phantom_hospitals
from infra.hospitals.policy import destination_of, put_in_force, wide_policy
from silo_agent.config import AgentConfig, starting_config
from silo_agent.daemon import Surroundings
from silo_agent.enrolment import Enrolment, read_invitation
from silo_agent.state import StateFolder


def _beside(name: str) -> ModuleType:
    """A helper in this folder, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"silo_agent_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


peers = _beside("peers")
benches = _beside("benches")
one_hospital = _beside("one_hospital")
Site, made_impatient = one_hospital.Site, one_hospital.made_impatient
_START_SECONDS = 30


# --- one hospital without a network ------------------------------------------------------------------
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
def private_site(make_site: Callable[..., Site]) -> Site:
    """A hospital that declares at most 100 patients, and a plan with a guarantee for them."""
    return make_site(most_patients=100, changes=one_hospital.private())


@pytest.fixture(scope="session")
def private() -> Callable[..., dict[str, Any]]:
    return one_hospital.private


@pytest.fixture
def impatient() -> Callable[..., AgentConfig]:
    return made_impatient


@pytest.fixture
def new_signer() -> type[Any]:
    return one_hospital.Signer


@pytest.fixture(scope="session")
def make_plan_for() -> Callable[..., StudyPlan]:
    return one_hospital.plan_for


@pytest.fixture(scope="session")
def new_attempt() -> Callable[..., Any]:
    """Make the coordinator's side of a masked sum, with these peers beside the hospital `us`."""

    def make(plan: StudyPlan, order: Any, layout: Any, others: list[Any], us: str, ours: Callable[[str], Any]) -> Any:
        return peers.Attempt(plan, order, layout, {peer.silo: peer for peer in others}, us, ours)

    return make


@pytest.fixture(scope="session")
def new_card() -> Callable[[str], KeyCard]:
    return one_hospital.card_of


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
        folder.create(secrets.token_bytes, starting_config(silo, threads=1, heartbeat=0.3))
        self.allow(folder, silo, dicom, labels)
        config = made_impatient(folder)
        asking = self.enrolment(folder, config, self.invite(silo, root))

        async def join() -> bool:
            assert not await asking.ask_and_wait(0, lambda: None)
            self.admit(folder, silo)
            return await asking.ask_and_wait(5, lambda: None)

        assert asyncio.run(join())
        return folder, config

    def allow(self, folder: StateFolder, silo: str, dicom: Path, labels: Path, *plans: StudyPlan) -> None:
        """A policy of this hospital that names our relay and these plans, signed by two."""
        second = SigningIdentity.generate()
        keys, excluded = [folder.steward.public.text, second.public.text], folder.root / "excluded.hmac"
        excluded.touch()
        relay = [destination_of(f"https://localhost:{self.port}")]
        value = wide_policy(silo, keys, dicom, labels, excluded, plans, relay=relay)
        put_in_force(folder, second, value)

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

        with reading(self.coordinator.store) as connection:
            data = members.current_roster(connection)
        assert data is not None
        return read_roster(data, self.coordinator.key.public)

    def desk(self, plan: StudyPlan) -> Desk:
        return Desk(self.coordinator.key, real_clock, plan)

    def tell(self, plan: StudyPlan, silo: str, message: AnyMessage) -> Envelope:
        with writing(self.coordinator.store) as connection:
            return self.desk(plan).tell(connection, silo, message)

    def shows_its_log(self, plan: StudyPlan, silo: str, number: int = 0) -> str:
        """Show a hospital the coordinator's own log as it is now; returns what orders are bound to."""
        with reading(self.coordinator.store) as connection:
            head = audit.head(connection, self.coordinator.key)
        shown = HeadsShown(study=study_id(plan), round=number, heads=(ShownHead(checkpoint=head, proof=()),))
        self.tell(plan, silo, shown)
        return shown.digest

    def heard(self, plan: StudyPlan, kind: str, slot: str, silo: str) -> AnyMessage | None:
        found = self._envelope(plan, kind, slot, silo)
        return None if found is None else found.message

    def said(self, plan: StudyPlan, kind: str, slot: str, silo: str) -> bytes | None:
        found = self._envelope(plan, kind, slot, silo)
        return None if found is None else found.data

    def _envelope(self, plan: StudyPlan, kind: str, slot: str, silo: str) -> Envelope | None:
        with reading(self.coordinator.store) as connection:
            return self.desk(plan).heard(connection, kind, slot).get(silo)


class Paper(peers.Peer):  # type: ignore[name-defined,misc]
    """A peer that can ask to be enrolled."""

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

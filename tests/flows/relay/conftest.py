"""A real relay process behind real TLS, and hospitals that dial it."""

import contextlib
import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from boundary.api import Heartbeat, PollAnswer, PollRequest
from boundary.canonical import canonical_bytes
from boundary.identity import SigningIdentity
from boundary.messages import BlobRef
from boundary.names import COORDINATOR, Frozen
from boundary.requests import sign_request
from boundary.roster import KeyCard, make_card
from boundary.sealing import UnsealingKey
from boundary.version import ProtocolRange
from flows.authority import Authority, issue_roster, write_secret
from flows.store import holdings, members
from flows.store.blobs import BlobStore
from flows.store.database import migrate, open_store, writing

_START_SECONDS = 20


def real_clock() -> datetime:
    return datetime.now(UTC)


@dataclass
class Relay:
    """One relay with its folder, its CA and the coordinator's keys."""

    folder: Path
    database: str
    options: str = ""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    authority: Authority = field(default_factory=lambda: Authority.create("CA", clock=real_clock, entropy=os.urandom))
    key: SigningIdentity = field(default_factory=SigningIdentity.generate)
    cards: list[KeyCard] = field(default_factory=list)

    def prepare(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.authority.save(self.folder)
        self.authority.issue_server(["localhost", "127.0.0.1"]).save(
            self.folder / "relay.pem", self.folder / "relay.key"
        )
        (self.folder / "relay.toml").write_text(
            f'database = "{self.database}"\nblobs = "blobs"\nhost = "127.0.0.1"\nport = {self.port}\n'
            f'certificate = "relay.pem"\nprivate_key = "relay.key"\nclient_ca = "ca.pem"\n{self.options}\n'
        )
        self.engine = open_store(self.database)
        migrate(self.engine)
        self.card = make_card(COORDINATOR, self.key, UnsealingKey.generate().public)
        self.blobs = BlobStore(self.folder / "blobs")

    def start(self) -> None:
        with (self.folder / "relay.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "flows.relay.server", "--config", self.folder / "relay.toml"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self.listens():
                return
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        raise TimeoutError(self.log)

    def listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        if how is signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, how)
            while self.listens():  # its workers share the port and may outlive it by a moment
                time.sleep(0.02)
        else:
            process.send_signal(how)
        return process.wait(20)

    @property
    def log(self) -> str:
        return (self.folder / "relay.log").read_text()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def tls(self, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
        """A client's context that trusts this relay; with a client certificate when one is given."""
        context = ssl.create_default_context(cadata=self.authority.pem)
        if certificate and key:
            number = next(_serial)
            (self.folder / f"client-{number}.pem").write_text(certificate)
            write_secret(self.folder / f"client-{number}.key", key.encode())
            context.load_cert_chain(self.folder / f"client-{number}.pem", self.folder / f"client-{number}.key")
        return context

    def hospital(self, silo: str) -> "Hospital":
        """An admitted hospital."""
        key, tls_key = SigningIdentity.generate(), ec.generate_private_key(ec.SECP256R1())
        card = make_card(silo, key, UnsealingKey.generate().public)
        self.cards.append(card)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, silo)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls_key, hashes.SHA256())
        csr = request.public_bytes(serialization.Encoding.PEM).decode()
        issued = self.authority.issue_client(csr, silo)
        now = real_clock()
        with writing(self.engine) as connection:
            roster = issue_roster(
                self.cards,
                version=members.roster_version(connection) + 1,
                coordinator=self.card,
                keys=[self.key],
                now=now,
                lifetime=timedelta(days=90),
            )
            connection.execute(
                members.insert(members.silos).values(
                    silo=silo,
                    state="waiting",
                    asked_at=now,
                    card=canonical_bytes(card.model_dump(mode="json")),
                    csr_pem=csr,
                )
            )
            members.admit(connection, silo, issued.certificate_pem, issued.expires_at, roster=roster, now=now)
        pem = tls_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Hospital(self, silo, key, card, csr, self.tls(issued.certificate_pem, pem.decode()))

    def put(self, data: bytes) -> BlobRef:
        blob = self.blobs.put_bytes(data)
        with writing(self.engine) as connection:
            holdings.record(connection, blob, owner=COORDINATOR, now=real_clock())
        return blob


_serial = itertools.count(1)


@dataclass
class Hospital:
    """Signs requests and dials."""

    relay: Relay
    silo: str
    key: SigningIdentity
    card: KeyCard
    csr_pem: str
    context: ssl.SSLContext

    def __post_init__(self) -> None:
        self.redial()

    def redial(self) -> None:
        """On a new connection: one to a relay that was killed may break only when it is written to."""
        self.http = httpx.Client(base_url=self.relay.url, verify=self.context, timeout=30, trust_env=False)

    def header(
        self, method: str, target: str, body: bytes | None = b"", *, at: datetime | None = None, key: Any = None
    ) -> dict[str, str]:
        return sign_request(key or self.key, self.silo, method, target, body, at or real_clock(), os.urandom(16))

    def ask(self, method: str, target: str, body: bytes = b"", **more: Any) -> httpx.Response:
        headers = self.header(method, target, body) | more.pop("headers", {})
        return self.http.request(method, target, content=body, headers=headers, **more)

    def put(self, blob: BlobRef, offset: int, data: bytes) -> httpx.Response:
        target = f"/v1/blobs/{blob.digest}?offset={offset}&size={blob.size}"
        return self.http.put(target, content=data, headers=self.header("PUT", target, None))

    def state(self, blob: BlobRef) -> Any:
        return self.ask("GET", f"/v1/blobs/{blob.digest}/state").json()

    def poll(self, after: int = 0, wait: float = 0.0, roster_version: int = 1000) -> PollAnswer:
        heartbeat = Heartbeat(agent_version="0.1.0", protocol=ProtocolRange(), roster_version=roster_version)
        asked = PollRequest(after=after, wait_seconds=wait, heartbeat=heartbeat)
        answer = self.ask("POST", "/v1/poll", canonical(asked))
        assert answer.status_code == 200, answer.text
        return PollAnswer.model_validate_json(answer.content)

    def socket(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.relay.port), 20)
        return self.context.wrap_socket(plain, server_hostname="localhost")


def canonical(value: Frozen) -> bytes:
    return canonical_bytes(value.model_dump(mode="json"))


@pytest.fixture(scope="session")
def make_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def make(
        database: str | None = None, options: str = "", folder: Path | None = None, *, started: bool = True
    ) -> Relay:
        folder = folder or tmp_path_factory.mktemp("relay")
        made.append(Relay(folder, database or f"sqlite:///{folder / 'store.db'}", options))
        made[-1].prepare()
        if started:
            made[-1].start()
        return made[-1]

    yield make
    for relay in made:
        relay.stop(signal.SIGKILL)
        relay.engine.dispose()


@pytest.fixture(scope="session")
def relay(make_relay: Callable[..., Relay]) -> Relay:
    return make_relay()


@pytest.fixture(scope="session")
def olavs(relay: Relay) -> Iterator[Hospital]:
    hospital = relay.hospital("st-olavs")
    yield hospital
    hospital.http.close()


@pytest.fixture(scope="session")
def charite(relay: Relay) -> Iterator[Hospital]:
    hospital = relay.hospital("charite")
    yield hospital
    hospital.http.close()


@pytest.fixture
def make_csr() -> Callable[[str], str]:
    def make(silo: str) -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, silo)])
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    return make

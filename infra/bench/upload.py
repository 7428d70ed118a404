"""One hospital's upload over loopback TLS, beside a plain TLS copy in the same run; and how soon a poll wakes.

A plain copy is `SSLSocket.sendall` to `recv_into` in another process, with the relay's own certificate: once thrown
away, once kept in a file and synced, which is what the relay does besides checking the digest.
"""

import asyncio
import hashlib
import os
import secrets
import socket
import ssl
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from boundary.api import Heartbeat, PollRequest
from boundary.envelope import seal_envelope
from boundary.messages import BlobRef, Collection, MaskedVector, StudyClosed
from boundary.names import COORDINATOR
from boundary.version import ProtocolRange
from flows.store import mail
from flows.store.database import writing
from infra.bench.federation import BenchStage, federation
from infra.bench.rows import Row, at_most, ratio_at_least
from silo_agent.config import load_config
from silo_agent.daemon import RELAY_URL
from silo_agent.destination import by_policy
from silo_agent.journal import Journal, Parcel
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder

MEGABYTES = 100
REPEATS = 5
POLLS = 15
_PIECE = 256 * 1024
_DIGEST = "sha256:" + "0" * 64


def upload() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        stay = federation(Path(folder), hospitals=1, agents=False, prefect=False)
        with stay as stage:
            return asyncio.run(_uploads(stage))


async def _uploads(stage: BenchStage) -> list[Row]:
    file = stage.workdir / "blob"
    ours, thrown, kept, down = [], [], [], []
    client, state = _client(stage)
    async with client:
        for number in range(REPEATS):
            file.write_bytes(data := secrets.token_bytes(MEGABYTES * 1_000_000))
            thrown.append(MEGABYTES / copy_over_plain_tls(stage, state, data, None))
            kept.append(MEGABYTES / copy_over_plain_tls(stage, state, data, stage.workdir / "copy"))
            parcel, blob = _parcel(stage, state, file, data, number + 1)
            begun = time.monotonic()
            await client.send(parcel)
            ours.append(MEGABYTES / (time.monotonic() - begun))
            begun = time.monotonic()
            await client.download(blob, target := stage.workdir / "down")
            down.append(MEGABYTES / (time.monotonic() - begun))
            target.unlink()
        woken = [await _wake(stage, client, number) for number in range(1, POLLS + 1)]
    best = f"best of {REPEATS} against best of {REPEATS}"
    name = f"upload of {MEGABYTES} MB"
    return [
        Row(f"{name} ({best})", max(ours), "MB/s", "plain TLS copy, kept in a file", max(kept), ratio_at_least(0.5),
            tuple(ours)),
        Row(f"{name} ({best})", max(ours), "MB/s", "plain TLS copy, thrown away", max(thrown), ratio_at_least(0.5),
            tuple(ours)),
        Row(f"download of {MEGABYTES} MB ({best})", max(down), "MB/s", "plain TLS copy, kept in a file", max(kept),
            runs=tuple(down)),
        Row.of_runs("a waiting poll hears of a new message", [1000 * seconds for seconds in woken], "ms",
                    target=at_most(50)),
    ]  # fmt: skip


def _client(stage: BenchStage) -> tuple[RelayClient, StateFolder]:
    """The first hospital's own client, with everything its agent would use."""
    state = StateFolder(stage.state_of(stage.sites[0]))
    site = load_config(state.root).site
    journal = Journal(state.journal, site)
    url = (journal.fact(RELAY_URL) or b"").decode()
    journal.close()
    tls = TlsFiles(state.tls_certificate, state.tls_key, state.relay_ca)
    allow = by_policy(state.root)
    return RelayClient(url, tls, site, state.identity, now=_now, entropy=secrets.token_bytes, allow=allow), state


def _parcel(stage: BenchStage, state: StateFolder, file: Path, data: bytes, number: int) -> tuple[Parcel, BlobRef]:
    blob = BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), size=len(data))
    collection = Collection(study="bench-00000000", round=number, phase="train")
    message = MaskedVector(collection=collection, order=_DIGEST, sharers=_DIGEST, vector=blob)
    site = stage.sites[0].silo
    envelope = seal_envelope(message, sender=site, recipient=COORDINATOR, sent_at=_now(), key=state.identity)
    slot = f"{message.kind}/{collection}"
    return Parcel(
        number, slot, collection.study, message.kind, envelope.data, str(file), blob.digest, blob.size
    ), blob  # fmt: skip


async def _wake(stage: BenchStage, client: RelayClient, number: int) -> float:
    """Seconds from the moment a message is in the store until the waiting poll has brought it."""
    heartbeat = Heartbeat(agent_version="0.0.0", protocol=ProtocolRange(), roster_version=1_000_000)
    seen = (await client.poll(PollRequest(after=0, wait_seconds=0, heartbeat=heartbeat))).deliveries
    after = max((delivery.sequence for delivery in seen), default=0)
    waiting = asyncio.create_task(client.poll(PollRequest(after=after, wait_seconds=10, heartbeat=heartbeat)))
    await asyncio.sleep(0.25)
    await asyncio.to_thread(_tell, stage, number)
    begun = time.monotonic()
    await waiting
    return time.monotonic() - begun


def _tell(stage: BenchStage, number: int) -> None:
    """What a flow process does."""
    closed = StudyClosed(study=f"bench-{number:08x}", code="FINISHED")
    silo, coordinator = stage.sites[0].silo, stage.coordinator
    envelope = seal_envelope(closed, sender=COORDINATOR, recipient=silo, sent_at=_now(), key=coordinator.key)
    with writing(coordinator.store) as connection:
        mail.post(connection, envelope, now=_now())


def copy_over_plain_tls(stage: BenchStage, state: StateFolder, data: bytes, target: Path | None) -> float:
    """Seconds that the bytes take to another process, which keeps them in `target`, synced, or throws them away."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys = stage.coordinator.keys
    server.load_cert_chain(keys / "relay.crt", keys / "relay.key")
    client = TlsFiles(state.tls_certificate, state.tls_key, state.relay_ca).context()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        child = os.fork()
        if child == 0:
            _receive(listening, server, target)
        plain = socket.create_connection(listening.getsockname())
    with client.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        begun = time.monotonic()
        for at in range(0, len(data), _PIECE):
            connection.sendall(data[at : at + _PIECE])
        connection.shutdown(socket.SHUT_WR)
        os.waitpid(child, 0)
        return time.monotonic() - begun


def _receive(listening: socket.socket, context: ssl.SSLContext, target: Path | None) -> None:
    """In the child process: to the end of the connection, then of the process."""
    try:
        connection, room = context.wrap_socket(listening.accept()[0], server_side=True), memoryview(bytearray(_PIECE))
        with (target or Path(os.devnull)).open("wb") as file:
            while got := connection.recv_into(room):
                if target is not None:
                    file.write(room[:got])
            file.flush()
            if target is not None:
                os.fsync(file.fileno())
    finally:
        os._exit(0)


def _now() -> datetime:
    return datetime.now(UTC)

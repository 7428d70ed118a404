"""The one module that dials: against a real relay over TLS, and against servers that are not what they should be."""

import asyncio
import os
import secrets
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from boundary.api import Heartbeat, PollRequest
from boundary.canonical import digest
from boundary.errors import MalformedMessage
from boundary.messages import BlobRef
from boundary.version import ProtocolRange
from flows.authority import Authority
from flows.store import holdings
from flows.store.database import writing
from silo_agent import relay_client
from silo_agent.errors import ConfigError, RelayRefused, RelayUnreachable, StoredFileLost, WrongCoordinator
from silo_agent.journal import Parcel
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder, write_private

HEARTBEAT = Heartbeat(agent_version="0.1.0", protocol=ProtocolRange(), roster_version=10_000)
POLL = PollRequest(after=0, wait_seconds=0.0, heartbeat=HEARTBEAT)
Act = Callable[[RelayClient], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def hospital(federation: Any, tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    folder: StateFolder = federation.enrolled(tmp_path_factory.mktemp("client") / "state", "dialling")[0]
    return folder


def dial(url: str, folder: StateFolder, act: Act, *, ca: Path | None = None, silo: str = "dialling") -> Any:
    """One conversation."""

    async def talk() -> Any:
        tls = TlsFiles(folder.tls_certificate, folder.tls_key, ca or folder.relay_ca)
        async with RelayClient(
            url,
            tls,
            silo,
            folder.identity,
            now=lambda: datetime.now(UTC),
            entropy=secrets.token_bytes,
            allow=lambda _host, _port, _key: None,
        ) as relay:
            return await act(relay)

    return asyncio.run(talk())


def parcel(path: Path, data: bytes, *, size: int | None = None) -> Parcel:
    path.write_bytes(data)
    return Parcel(1, "slot", "study", "masked-vector", b"{}", str(path), digest(data), size or len(data))


def stored(federation: Any, one: Parcel) -> bytes:
    with federation.coordinator.blobs.open(one.blob_digest) as blob:
        data: bytes = blob.read()
    return data


# --- a real relay ------------------------------------------------------------------------------------
def test_a_poll_and_a_heartbeat_are_answered(federation: Any, hospital: StateFolder) -> None:
    answer = dial(federation.coordinator.settings.relay.url, hospital, lambda relay: relay.poll(POLL))
    assert answer.roster_version >= 1
    assert dial(federation.coordinator.settings.relay.url, hospital, lambda relay: relay.beat(HEARTBEAT)) is None


def test_the_roster_comes_in_its_exact_bytes(federation: Any, hospital: StateFolder) -> None:
    data = dial(federation.coordinator.settings.relay.url, hospital, lambda relay: relay.roster())
    assert data == federation.roster().data


class Cut(Exception):
    pass


def test_an_upload_goes_on_where_it_was_cut(
    federation: Any, hospital: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_client, "MAX_RANGE_BYTES", 100_000)
    data, url = os.urandom(450_000), federation.coordinator.settings.relay.url
    one = parcel(tmp_path / "sealed", data)
    real, seen = relay_client._pieces, list[int]()

    async def cut_in_the_third_range(read: Callable[[int], bytes], length: int) -> Any:
        seen.append(length)
        async for piece in real(read, length // 2 if len(seen) == 3 else length):
            yield piece
        if len(seen) == 3:
            raise Cut

    monkeypatch.setattr(relay_client, "_pieces", cut_in_the_third_range)
    with pytest.raises(Cut):
        dial(url, hospital, lambda relay: relay.send(one))
    monkeypatch.setattr(relay_client, "_pieces", real)

    async def finish(relay: RelayClient) -> int:
        with pytest.raises(RelayRefused):  # `{}` is no envelope; the blob was uploaded before it
            await relay.send(one)
        return relay.traffic.up

    sent = dial(url, hospital, finish)
    assert 100_000 < sent <= 250_000, "two ranges were there, and what had arrived of the third"
    assert stored(federation, one) == data


def test_an_upload_whose_last_byte_arrived_before_the_relay_died_is_finished(
    federation: Any, hospital: StateFolder, tmp_path: Path
) -> None:
    """Found by reading: the envelope was posted without its blob, refused, and the vector lost."""
    data = os.urandom(50_000)
    one = parcel(tmp_path / "sealed", data)
    partial = federation.home / "scratch" / "dialling" / one.blob_digest.removeprefix("sha256:")
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(data)
    with pytest.raises(RelayRefused) as refused:
        dial(federation.coordinator.settings.relay.url, hospital, lambda relay: relay.send(one))
    assert refused.value.relay_code == "MALFORMED", "the envelope's fault, not a missing blob"
    assert stored(federation, one) == data


def test_what_is_withdrawn_while_its_blob_is_on_the_way_is_not_posted(
    federation: Any, hospital: StateFolder, tmp_path: Path
) -> None:
    """Found by review: "stop" came during an upload of minutes, and the envelope followed it all the same."""
    one = parcel(tmp_path / "sealed", os.urandom(10_000))

    async def stopped(relay: RelayClient) -> bool:
        return await relay.send(one, lambda: False)  # `{}` would be refused as no envelope if it were posted

    assert dial(federation.coordinator.settings.relay.url, hospital, stopped) is False


def test_the_same_upload_again_moves_nothing(federation: Any, hospital: StateFolder, tmp_path: Path) -> None:
    one = parcel(tmp_path / "sealed", os.urandom(10_000))

    async def twice(relay: RelayClient) -> list[int]:
        moved = []
        for _ in range(2):
            with pytest.raises(RelayRefused):
                await relay.send(one)
            moved.append(relay.traffic.up)
        return moved

    assert dial(federation.coordinator.settings.relay.url, hospital, twice) == [10_000, 10_000]


def granted(federation: Any, data: bytes) -> BlobRef:
    """A blob the hospital may read, as if the coordinator had sent a message that names it."""
    blob: BlobRef = federation.put(data)
    with writing(federation.coordinator.store) as connection:
        holdings.grant(connection, blob, giver="coordinator", reader="dialling")
    return blob


def test_a_download_goes_on_where_it_was_cut(federation: Any, hospital: StateFolder, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    blob, target = granted(federation, data), tmp_path / "model.safetensors"
    (tmp_path / "model.part").write_bytes(data[:200_000])

    async def fetch(relay: RelayClient) -> int:
        await relay.download(blob, target)
        await relay.download(blob, target)  # it is there: nothing is asked
        return relay.traffic.down

    assert dial(federation.coordinator.settings.relay.url, hospital, fetch) == 100_000
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_spoilt_beginning_costs_one_more_download_and_not_the_round(
    federation: Any, hospital: StateFolder, tmp_path: Path
) -> None:
    data = os.urandom(100_000)
    blob, target = granted(federation, data), tmp_path / "model.safetensors"
    for beginning in (bytes(50_000), bytes(100_000), bytes(100_001)):
        (tmp_path / "model.part").write_bytes(beginning)
        dial(federation.coordinator.settings.relay.url, hospital, lambda relay: relay.download(blob, target))
        assert target.read_bytes() == data
        target.unlink()


def test_what_is_not_for_us_is_refused_by_its_code(federation: Any, hospital: StateFolder, tmp_path: Path) -> None:
    blob = federation.put(os.urandom(1000))
    with pytest.raises(RelayRefused, match="UNKNOWN_BLOB"):
        dial(federation.coordinator.settings.relay.url, hospital, lambda relay: relay.download(blob, tmp_path / "m.st"))


def test_a_relay_that_is_down_is_unreachable(federation: Any, hospital: StateFolder) -> None:
    with pytest.raises(RelayUnreachable):
        dial("https://localhost:9", hospital, lambda relay: relay.poll(POLL))


def test_a_server_of_another_ca_is_not_our_coordinator(
    federation: Any, hospital: StateFolder, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "other.pem").write_text(authority.pem)
    with pytest.raises(WrongCoordinator, match="Something between us may be opening TLS") as stopped:
        dial(
            federation.coordinator.settings.relay.url,
            hospital,
            lambda relay: relay.poll(POLL),
            ca=tmp_path / "other.pem",
        )
    assert stopped.value.exit_code == 4


# --- servers that are not what they should be --------------------------------------------------------
@pytest.fixture
def ours(site: Any, hostile: Any, authority: Authority) -> Iterator[Callable[[Act], Any]]:
    """Dial the hostile relay."""
    site.enrol_offline(hostile.url, authority)
    return lambda act: dial(hostile.url, site.folder, act, silo="st-olavs")


NOT_ANSWERS = {
    "an empty answer": b"",
    "a web page": b"<html>Please accept the terms of use</html>",
    "JSON of another kind": b"[1, 2, 3]",
    "a missing field": b'{"deliveries": []}',
    "an unknown field": b'{"deliveries": [], "roster_version": 1, "upgrade": "none", "run": "rm -rf /"}',
    "a negative version": b'{"deliveries": [], "roster_version": -1}',
    "a sequence of zero": b'{"deliveries": [{"sequence": 0, "envelope": ""}], "roster_version": 1}',
    "the same key twice": b'{"deliveries": [], "deliveries": [], "roster_version": 1}',
    "not a number": b'{"deliveries": [], "roster_version": NaN}',
    "nested a thousand times": b"[" * 1000 + b"]" * 1000,
    "bytes that are no text": bytes(range(256)),
}


@pytest.mark.parametrize("answer", NOT_ANSWERS.values(), ids=NOT_ANSWERS)
def test_what_is_no_answer_of_a_relay_is_as_good_as_none(
    ours: Callable[[Act], Any], hostile: Any, answer: bytes
) -> None:
    hostile.answers["/v1/poll"] = answer
    with pytest.raises(RelayUnreachable, match="not a relay's PollAnswer"):
        ours(lambda relay: relay.poll(POLL))


def test_an_endless_answer_is_not_read(
    ours: Callable[[Act], Any], hostile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_client, "MAX_ANSWER_BYTES", 1_000_000)
    hostile.answers["/v1/poll"] = b" " * 1_000_001
    with pytest.raises(RelayUnreachable, match="more than 1000000 bytes"):
        ours(lambda relay: relay.poll(POLL))


REFUSALS: dict[str, tuple[int, bytes, type[Exception], str]] = {
    "a proxy's own page": (403, b"<html>blocked</html>", RelayUnreachable, "a proxy, or another server"),
    "a redirect": (302, b"", RelayUnreachable, "status 302"),
    "a relay that failed": (500, b'{"code": "INTERNAL", "message": "try again"}', RelayUnreachable, "INTERNAL"),
    "a full relay": (507, b'{"code": "STORAGE_FULL", "message": "full"}', RelayRefused, "STORAGE_FULL"),
    "our own clock": (401, b'{"code": "STALE", "message": "set the clock (NTP)"}', RelayRefused, "NTP"),
    "a text that draws log lines": (
        400, b'{"code": "MALFORMED", "message": "x\\n2026 INFO all is well \\u001b[2J"}', RelayRefused,
        r"x\\n2026 INFO all is well \\x1b\[2J",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "says"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_told_apart(
    ours: Callable[[Act], Any], hostile: Any, status: int, body: bytes, kind: type[Exception], says: str
) -> None:
    hostile.answers["/v1/poll"] = lambda _handler, _body: (status, body)
    with pytest.raises(kind, match=says):
        ours(lambda relay: relay.poll(POLL))


FINAL = {
    "MALFORMED": True, "TOO_LARGE": True, "SLOT_TAKEN": True, "WRONG_RECIPIENT": True,
    "REPLAYED": False, "UPLOAD_BUSY": False, "WRONG_OFFSET": False, "BLOB_MISSING": False, "WRONG_DIGEST": False,
    "UNKNOWN_MEMBER": False, "UPLOAD_QUOTA": False, "STORAGE_FULL": False, "STALE": False, "A_NEW_CODE": False,
}  # fmt: skip


@pytest.mark.parametrize(("code", "final"), FINAL.items(), ids=list(FINAL))
def test_only_what_can_never_be_taken_is_given_up(code: str, final: bool) -> None:
    """Found by reading: a nonce repeated by a proxy (409 REPLAYED) threw a vector away."""
    assert RelayRefused(409, code, "").is_final is final


def with_range_ignored(data: bytes) -> Any:
    return lambda _handler, _body: (200, data)


def test_a_proxy_that_drops_range_requests_does_no_harm(
    ours: Callable[[Act], Any], hostile: Any, tmp_path: Path
) -> None:
    data = os.urandom(100_000)
    blob = BlobRef(digest=digest(data), size=len(data))
    (tmp_path / "model.part").write_bytes(data[:60_000])
    hostile.answers["/v1/blobs/"] = with_range_ignored(data)
    ours(lambda relay: relay.download(blob, tmp_path / "model.safetensors"))
    assert (tmp_path / "model.safetensors").read_bytes() == data


def test_more_than_was_agreed_is_not_downloaded(ours: Callable[[Act], Any], hostile: Any, tmp_path: Path) -> None:
    blob = BlobRef(digest=digest(b"x"), size=1000)
    hostile.answers["/v1/blobs/"] = bytes(5_000_000)
    with pytest.raises(RelayUnreachable, match="answered with more"):
        ours(lambda relay: relay.download(blob, tmp_path / "model.safetensors"))
    assert sum(path.stat().st_size for path in tmp_path.glob("model.*")) <= 1000


def test_another_model_than_the_order_names_is_refused_and_not_kept(
    ours: Callable[[Act], Any], hostile: Any, tmp_path: Path
) -> None:
    blob = BlobRef(digest=digest(b"the model"), size=9)
    hostile.answers["/v1/blobs/"] = b"an attack"
    with pytest.raises(MalformedMessage, match="another digest"):
        ours(lambda relay: relay.download(blob, tmp_path / "model.safetensors"))
    assert list(tmp_path.glob("model.*")) == []


def test_a_relay_that_takes_nothing_is_not_fed_for_ever(
    ours: Callable[[Act], Any], hostile: Any, tmp_path: Path
) -> None:
    one = parcel(tmp_path / "sealed", b"x" * 1000)
    hostile.answers["/v1/blobs/"] = b'{"digest": "%s", "offset": 0, "complete": false}' % one.blob_digest.encode()
    with pytest.raises(RelayUnreachable, match="took nothing of the range at 0"):
        ours(lambda relay: relay.send(one))
    hostile.answers["/v1/blobs/"] = b'{"digest": "%s", "offset": 9999, "complete": false}' % one.blob_digest.encode()
    with pytest.raises(RelayUnreachable, match="has 9999 bytes of a blob of 1000"):
        ours(lambda relay: relay.send(one))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"short")], ids=["lost", "cut short"])
def test_a_file_that_was_to_be_sent_and_is_not_whole_is_said(
    ours: Callable[[Act], Any], tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    one = parcel(tmp_path / "sealed", b"x" * 1000)
    spoil(tmp_path / "sealed")
    with pytest.raises(StoredFileLost):
        ours(lambda relay: relay.send(one))


def test_a_relay_whose_own_certificate_ran_out_is_waited_for(
    site: Any, authority: Authority, tmp_path: Path, make_hostile: Any
) -> None:
    """Found by reading: all hospitals stopped for good, with 'wrong coordinator', when the relay's renewal was late."""
    past = Authority(authority.certificate, authority._key, lambda: datetime.now(UTC) - timedelta(days=366), os.urandom)
    (tmp_path / "late").mkdir()
    late = make_hostile(past, tmp_path / "late")
    try:
        site.enrol_offline(late.url, authority)
        with pytest.raises(RelayUnreachable, match="certificate has expired"):
            dial(late.url, site.folder, lambda relay: relay.poll(POLL), silo="st-olavs")
    finally:
        late.close()


def test_a_server_with_our_ca_under_another_name_is_refused(
    site: Any, authority: Authority, tmp_path: Path, make_hostile: Any
) -> None:
    (tmp_path / "other").mkdir()
    other = make_hostile(authority, tmp_path / "other", "somebody.example")
    try:
        site.enrol_offline(other.url, authority)
        with pytest.raises(WrongCoordinator):
            dial(other.url, site.folder, lambda relay: relay.poll(POLL), silo="st-olavs")
    finally:
        other.close()


# --- our own files -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["relay-ca.crt", "tls.crt", "tls.key"])
def test_a_missing_or_damaged_tls_file_is_said_with_the_fix(
    site: Any, hostile: Any, authority: Authority, name: str
) -> None:
    site.enrol_offline(hostile.url, authority)
    for spoil in (lambda path: path.write_bytes(b"no"), Path.unlink):
        spoil(site.folder.root / name)
        with pytest.raises(ConfigError, match="enrol again with a new invitation: all keys are kept"):
            dial(hostile.url, site.folder, lambda relay: relay.poll(POLL))


def test_a_renewed_certificate_is_shown_on_the_next_connection(site: Any, hostile: Any, authority: Authority) -> None:
    site.enrol_offline(hostile.url, authority)
    hostile.answers["/v1/poll"] = b'{"deliveries": [], "roster_version": 1}'

    async def renew(relay: RelayClient) -> None:
        await relay.poll(POLL)
        write_private(site.folder.tls_certificate, b"half a certificate")
        with pytest.raises(ConfigError):
            relay.renewed()
        await relay.poll(POLL)
        site.enrol_offline(hostile.url, authority)
        relay.renewed()
        await relay.poll(POLL)

    dial(hostile.url, site.folder, renew, silo="st-olavs")

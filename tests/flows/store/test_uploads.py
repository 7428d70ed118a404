"""Uploads survive cuts, restarts and full disks, and nobody gets in the way of anybody else."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from boundary.api import BlobState
from boundary.errors import TooLarge
from boundary.messages import BlobRef
from flows.store import uploads as module
from flows.store.blobs import BlobStore
from flows.store.uploads import (
    StorageFull,
    UploadBusy,
    UploadLimits,
    UploadQuota,
    Uploads,
    WrongDigest,
    WrongOffset,
)

DATA = os.urandom(3_000_000)
BLOB = BlobRef(digest="sha256:" + hashlib.sha256(DATA).hexdigest(), size=len(DATA))
LIMITS = UploadLimits(blob_bytes=10_000_000, outstanding_bytes=10_000_000, outstanding_files=3)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def real_now() -> datetime:
    return datetime.now().astimezone()


@pytest.fixture
def send(blobs: BlobStore, real_now: datetime) -> Callable[..., BlobState]:
    default = Uploads(blobs, LIMITS)

    def _send(data: bytes, offset: int = 0, *, to: Uploads = default, party: str = "st-olavs", blob: BlobRef = BLOB):  # type: ignore[no-untyped-def]  # noqa: ANN202
        writer = to.begin(party, blob, offset, real_now)
        try:
            writer.write([data])
            return writer.finish()
        finally:
            writer.close()

    return _send


def test_ranges_add_up_to_the_blob(blobs: BlobStore, send: Callable[..., BlobState]) -> None:
    assert send(DATA[:1_000_000]) == BlobState(digest=BLOB.digest, offset=1_000_000, complete=False)
    assert blobs.size(BLOB.digest) is None
    assert send(DATA[1_000_000:], 1_000_000) == BlobState(digest=BLOB.digest, offset=len(DATA), complete=True)
    with blobs.open(BLOB.digest) as file:
        assert file.read() == DATA
    assert list((blobs.scratch / "st-olavs").iterdir()) == []


def test_each_byte_is_hashed_once(send: Callable[..., BlobState], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read back from disk"))
    for at in range(0, len(DATA), 500_000):
        state = send(DATA[at : at + 500_000], at)
    assert state.complete


def test_a_restarted_relay_goes_on_where_the_old_one_was(blobs: BlobStore, send: Callable[..., BlobState]) -> None:
    send(DATA[:1_234_567])
    fresh = Uploads(blobs, LIMITS)
    assert fresh.state("st-olavs", BLOB.digest, is_mine=lambda: False).offset == 1_234_567
    assert send(DATA[1_234_567:], 1_234_567, to=fresh).complete


def test_two_relay_processes_may_take_turns(blobs: BlobStore, send: Callable[..., BlobState]) -> None:
    pair = Uploads(blobs, LIMITS), Uploads(blobs, LIMITS)
    for number, at in enumerate(range(0, len(DATA), 500_000)):
        state = send(DATA[at : at + 500_000], at, to=pair[number % 2])
    assert state.complete


def test_all_bytes_there_but_not_finished_is_finished_by_an_empty_range(
    blobs: BlobStore, send: Callable[..., BlobState], real_now: datetime
) -> None:
    writer = Uploads(blobs, LIMITS).begin("st-olavs", BLOB, 0, real_now)
    writer.write([DATA])
    writer.close()  # the relay dies here
    fresh = Uploads(blobs, LIMITS)
    assert fresh.state("st-olavs", BLOB.digest, is_mine=lambda: False) == BlobState(
        digest=BLOB.digest, offset=len(DATA), complete=False
    )
    assert send(b"", len(DATA), to=fresh).complete


def test_a_range_must_begin_where_the_upload_stands(send: Callable[..., BlobState]) -> None:
    send(DATA[:1000])
    for offset in (0, 999, 1001):
        with pytest.raises(WrongOffset, match="stands at 1000"):
            send(DATA[offset : offset + 10], offset)
    assert send(DATA[1000:], 1000).complete


def test_wrong_bytes_are_thrown_away(blobs: BlobStore, send: Callable[..., BlobState]) -> None:
    with pytest.raises(WrongDigest, match="thrown away"):
        send(bytes(len(DATA)))
    assert blobs.size(BLOB.digest) is None
    assert send(DATA).complete


def test_more_bytes_than_declared_are_refused(send: Callable[..., BlobState]) -> None:
    with pytest.raises(TooLarge):
        send(DATA + b"x")


def test_another_hospitals_partial_upload_is_not_touched(blobs: BlobStore, send: Callable[..., BlobState]) -> None:
    send(DATA[:1_000_000])
    send(bytes(1_500_000), party="charite")
    with pytest.raises(WrongDigest):
        send(bytes(1_500_000), 1_500_000, party="charite")
    assert send(DATA[1_000_000:], 1_000_000).complete
    assert Uploads(blobs, LIMITS).state("charite", BLOB.digest, is_mine=lambda: False).offset == 0


def test_limits_of_size_bytes_and_files(send: Callable[..., BlobState]) -> None:
    with pytest.raises(TooLarge, match="10000001"):
        send(b"x", blob=BLOB.model_copy(update={"size": 10_000_001}))
    others = [BlobRef(digest=f"sha256:{number:064x}", size=4_000_000) for number in range(4)]
    send(DATA, blob=others[0])
    send(DATA, blob=others[1])
    with pytest.raises(UploadQuota, match="2 unfinished uploads with 6000000 bytes"):
        send(b"x", blob=others[2].model_copy(update={"size": 4_000_001}))
    send(b"x", blob=others[2])
    with pytest.raises(UploadQuota, match="finish them first"):
        send(b"x", blob=others[3].model_copy(update={"size": 10}))
    assert send(b"x", party="charite", blob=others[3]).offset == 1


def test_unfinished_uploads_are_forgotten_after_a_week(blobs: BlobStore, real_now: datetime) -> None:
    uploads = Uploads(blobs, LIMITS)
    for number in range(3):
        uploads.begin("st-olavs", BlobRef(digest=f"sha256:{number:064x}", size=10), 0, real_now).close()
    with pytest.raises(UploadQuota):
        uploads.begin("st-olavs", BLOB, 0, real_now)
    uploads.begin("st-olavs", BLOB, 0, real_now + timedelta(days=8)).close()
    assert len(list((blobs.scratch / "st-olavs").iterdir())) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_nothing_that_was_acknowledged(
    blobs: BlobStore, send: Callable[..., BlobState], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    send(DATA[:1_000_000])
    real, room = os.pwrite, 300_000

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        nonlocal room
        if room == 0:
            raise OSError(code, os.strerror(code))
        took = min(room, len(data))
        room -= took
        return real(handle, data[:took], offset)

    monkeypatch.setattr(module.os, "pwrite", pwrite)
    with pytest.raises(StorageFull, match="try again later"):
        send(DATA[1_000_000:2_000_000], 1_000_000)
    monkeypatch.undo()
    assert Uploads(blobs, LIMITS).state("st-olavs", BLOB.digest, is_mine=lambda: False).offset == 1_000_000
    assert send(DATA[1_000_000:], 1_000_000).complete


def test_other_disk_errors_are_not_called_a_full_disk(
    send: Callable[..., BlobState], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.os, "pwrite", pwrite)
    with pytest.raises(OSError, match="Input/output error"):
        send(DATA)


def test_the_newest_request_wins_over_one_that_hangs(blobs: BlobStore, real_now: datetime) -> None:
    uploads = Uploads(blobs, LIMITS)
    hanging = uploads.begin("st-olavs", BLOB, 0, real_now)
    hanging.write([DATA[:1000]])
    newer = uploads.begin("st-olavs", BLOB, 1000, real_now)
    with pytest.raises(UploadBusy, match="newer request"):
        hanging.write([DATA[1000:2000]])
    newer.write([DATA[1000:]])
    assert newer.finish().complete


def test_another_process_in_the_middle_of_a_range_is_waited_for(blobs: BlobStore, real_now: datetime) -> None:
    first = Uploads(blobs, LIMITS).begin("st-olavs", BLOB, 0, real_now)
    with pytest.raises(UploadBusy, match="try again in a moment"):
        Uploads(blobs, LIMITS).begin("st-olavs", BLOB, 0, real_now)
    first.close()
    Uploads(blobs, LIMITS).begin("st-olavs", BLOB, 0, real_now).close()


def test_a_hospital_is_told_nothing_about_blobs_of_others(blobs: BlobStore) -> None:
    blobs.put_bytes(DATA)
    uploads = Uploads(blobs, LIMITS)
    assert not uploads.state("st-olavs", BLOB.digest, is_mine=lambda: False).complete
    assert uploads.state("st-olavs", BLOB.digest, is_mine=lambda: True).complete


def test_memory_does_not_grow_with_the_blob(blobs: BlobStore, real_now: datetime) -> None:
    import tracemalloc

    big = BlobRef(digest="sha256:" + "0" * 64, size=10_000_000)
    uploads = Uploads(blobs, LIMITS)
    piece = bytes(100_000)
    tracemalloc.start()
    writer = uploads.begin("st-olavs", big, 0, real_now)
    for _ in range(99):
        writer.write([piece])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.close()
    assert peak < 1_000_000
    assert threading.active_count() < 50

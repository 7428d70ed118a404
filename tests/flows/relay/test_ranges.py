"""Blobs over the wire: resumed after every kind of cut, and only for those who may have them."""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from boundary.envelope import seal_envelope
from boundary.messages import BlobRef, Collection, MaskedVector, RoundCommitted
from flows.relay.ranges import range_of
from flows.relay.refusals import UnservableRange
from flows.store import holdings, mail
from flows.store.database import reading, writing

MEGABYTE = 1024 * 1024


def some(size: int) -> tuple[bytes, BlobRef]:
    data = os.urandom(size)
    return data, BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), size=size)


def test_a_blob_goes_up_in_ranges_and_comes_back(relay: Any, olavs: Any) -> None:
    data, blob = some(5 * MEGABYTE)
    assert olavs.state(blob) == {"complete": False, "digest": blob.digest, "offset": 0}
    assert olavs.put(blob, 0, data[: 3 * MEGABYTE]).json()["offset"] == 3 * MEGABYTE
    assert olavs.state(blob)["offset"] == 3 * MEGABYTE
    assert olavs.put(blob, 3 * MEGABYTE, data[3 * MEGABYTE :]).json()["complete"]
    assert olavs.state(blob) == {"complete": True, "digest": blob.digest, "offset": blob.size}
    whole = olavs.ask("GET", f"/v1/blobs/{blob.digest}")
    assert (whole.status_code, whole.content) == (200, data)
    part = olavs.ask("GET", f"/v1/blobs/{blob.digest}", headers={"range": "bytes=1000000-"})
    assert (part.status_code, part.content) == (206, data[1_000_000:])
    assert part.headers["content-range"] == f"bytes 1000000-{blob.size - 1}/{blob.size}"
    assert olavs.put(blob, 0, data).json()["complete"]  # again is harmless
    time.sleep(0.1)
    with reading(relay.engine) as connection:
        moved = holdings.bytes_moved(connection, "st-olavs", blob.digest)
    assert moved == (blob.size, 2 * blob.size - 1_000_000)


def test_an_upload_goes_on_after_a_cut_connection(olavs: Any) -> None:
    data, blob = some(6 * MEGABYTE)
    target = f"/v1/blobs/{blob.digest}?offset=0&size={blob.size}"
    with olavs.socket() as raw:
        header = olavs.header("PUT", target, None)["wardround-request"]
        raw.sendall(
            f"PUT {target} HTTP/1.1\r\nhost: x\r\nwardround-request: {header}\r\n"
            f"content-length: {blob.size}\r\n\r\n".encode()
        )
        raw.sendall(data[: 4 * MEGABYTE])
    time.sleep(0.5)
    offset = olavs.state(blob)["offset"]
    assert 0 < offset <= 4 * MEGABYTE
    assert olavs.put(blob, offset, data[offset:]).json()["complete"]


def test_a_range_that_hangs_gives_way_to_a_newer_one(olavs: Any) -> None:
    data, blob = some(3 * MEGABYTE)
    target = f"/v1/blobs/{blob.digest}?offset=0&size={blob.size}"
    with olavs.socket() as raw:
        header = olavs.header("PUT", target, None)["wardround-request"]
        raw.sendall(
            f"PUT {target} HTTP/1.1\r\nhost: x\r\nwardround-request: {header}\r\n"
            f"content-length: {blob.size}\r\n\r\n".encode()
        )
        raw.sendall(data[:1000])
        time.sleep(0.2)
        assert olavs.put(blob, 0, data).json()["complete"]


def test_the_wrong_offset_is_told_the_right_one(olavs: Any) -> None:
    data, blob = some(2 * MEGABYTE)
    olavs.put(blob, 0, data[:MEGABYTE])
    answer = olavs.put(blob, 17, data[17:])
    assert (answer.status_code, answer.json()["code"]) == (409, "WRONG_OFFSET")
    assert f"stands at {MEGABYTE}" in answer.json()["message"]
    assert olavs.put(blob, MEGABYTE, data[MEGABYTE:]).json()["complete"]


def test_wrong_bytes_are_refused_and_the_blob_can_be_sent_again(olavs: Any) -> None:
    data, blob = some(2 * MEGABYTE)
    answer = olavs.put(blob, 0, bytes(2 * MEGABYTE))
    assert (answer.status_code, answer.json()["code"]) == (422, "WRONG_DIGEST")
    assert olavs.state(blob)["offset"] == 0
    assert olavs.put(blob, 0, data).json()["complete"]


def test_a_blob_of_somebody_else_is_as_if_it_were_not_there(relay: Any, olavs: Any, charite: Any) -> None:
    data, blob = some(1000)
    olavs.put(blob, 0, data)
    target = f"/v1/blobs/{blob.digest}"
    unknown = charite.ask("GET", "/v1/blobs/sha256:" + "0" * 64)
    refused = charite.ask("GET", target)
    assert (refused.status_code, refused.content) == (404, unknown.content)
    assert charite.state(blob) == {"complete": False, "digest": blob.digest, "offset": 0}
    message = MaskedVector(
        collection=Collection(study="ct-7f3a90c1", round=1, phase="train"),
        order="sha256:" + "1" * 64,
        sharers="sha256:" + "1" * 64,
        vector=blob,
    )
    now = datetime.now(UTC)
    envelope = seal_envelope(message, sender="charite", recipient="coordinator", sent_at=now, key=charite.key)
    answer = charite.ask("POST", "/v1/envelopes", envelope.data)
    assert (answer.status_code, answer.json()["code"]) == (422, "BLOB_MISSING")
    assert charite.put(blob, 0, data).json()["complete"]  # who has the bytes may have the blob
    assert charite.ask("POST", "/v1/envelopes", envelope.data).status_code == 200


def test_a_commitment_opens_the_model_to_its_recipient(relay: Any, olavs: Any, charite: Any) -> None:
    blob = relay.put(b"model weights")
    target = f"/v1/blobs/{blob.digest}"
    assert olavs.ask("GET", target).status_code == 404
    done = RoundCommitted(
        study="ct-7f3a90c1",
        round=1,
        model=blob,
        tried=None,
        transcript=blob.digest,
        contributing=(),
        absent=(),
        receipt=bytes(64),
    )
    now = datetime.now(UTC)
    envelope = seal_envelope(done, sender="coordinator", recipient="st-olavs", sent_at=now, key=relay.key)
    with writing(relay.engine) as connection:
        mail.post(connection, envelope, now=now)
    assert olavs.ask("GET", target).content == b"model weights"
    assert charite.ask("GET", target).status_code == 404


@pytest.mark.parametrize(
    ("header", "span"),
    [(None, (0, 100)), ("bytes=0-", (0, 100)), ("bytes=10-19", (10, 20)), ("bytes=99-500", (99, 100))],
)
def test_ranges(header: str | None, span: tuple[int, int]) -> None:
    assert range_of(header, 100) == span


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=-5", "bytes=5-4", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"])
def test_other_ranges_are_refused(header: str) -> None:
    with pytest.raises(UnservableRange):
        range_of(header, 100)


def test_an_unservable_range_over_the_wire(olavs: Any) -> None:
    data, blob = some(100)
    olavs.put(blob, 0, data)
    answer = olavs.ask("GET", f"/v1/blobs/{blob.digest}", headers={"range": "bytes=200-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "RANGE_NOT_SATISFIABLE")


def test_an_upload_survives_kill_9_of_the_relay(make_relay: Callable[..., Any]) -> None:
    relay = make_relay()
    hospital = relay.hospital("st-olavs")
    data, blob = some(12 * MEGABYTE)
    assert hospital.put(blob, 0, data[: 8 * MEGABYTE]).json()["offset"] == 8 * MEGABYTE
    target = f"/v1/blobs/{blob.digest}?offset={8 * MEGABYTE}&size={blob.size}"
    with hospital.socket() as raw:
        header = hospital.header("PUT", target, None)["wardround-request"]
        raw.sendall(
            f"PUT {target} HTTP/1.1\r\nhost: x\r\nwardround-request: {header}\r\n"
            f"content-length: {4 * MEGABYTE}\r\n\r\n".encode()
        )
        raw.sendall(data[8 * MEGABYTE : 10 * MEGABYTE])
        time.sleep(0.3)
        relay.stop(signal.SIGKILL)
    hospital.http.close()
    relay.start()
    hospital.redial()
    offset = hospital.state(blob)["offset"]
    assert 8 * MEGABYTE <= offset <= 10 * MEGABYTE
    assert hospital.put(blob, offset, data[offset:]).json()["complete"]
    assert hospital.ask("GET", f"/v1/blobs/{blob.digest}").content == data
    hospital.http.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here (needs root): test_uploads.py simulates one")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_said_cleanly_and_costs_nothing(
    make_relay: Callable[..., Any], small_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "blobs").symlink_to(small_disk)
    relay = make_relay(folder=tmp_path)
    hospital = relay.hospital("st-olavs")
    data, blob = some(4 * MEGABYTE)
    assert hospital.put(blob, 0, data[: 2 * MEGABYTE]).json()["offset"] == 2 * MEGABYTE
    answer = hospital.put(blob, 2 * MEGABYTE, data[2 * MEGABYTE :])
    assert (answer.status_code, answer.json()["code"]) == (507, "STORAGE_FULL")
    offset = hospital.state(blob)["offset"]
    assert 2 * MEGABYTE <= offset <= 3 * MEGABYTE
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    assert hospital.put(blob, offset, data[offset:]).json()["complete"]
    assert hospital.ask("GET", f"/v1/blobs/{blob.digest}").content == data
    hospital.http.close()
    relay.stop()

"""A blob is whole and right, or it is not there."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from boundary.errors import MalformedMessage
from flows.store.blobs import BlobStore

DATA = b"weights" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["folder", "memory://bucket/prefix"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return BlobStore(tmp_path / "blobs")
    return BlobStore(f"{request.param}/{tmp_path.name}", scratch=tmp_path / "scratch")


def test_what_was_put_is_read_back_under_its_digest(blobs: BlobStore) -> None:
    blob = blobs.put_bytes(DATA)
    assert (blob.digest, blob.size) == (DIGEST, len(DATA))
    assert blobs.size(DIGEST) == len(DATA)
    with blobs.open(DIGEST) as file:
        assert file.read() == DATA
    assert blobs.read_range(DIGEST, 7, 7) == b"weights"
    assert blobs.read_range(DIGEST, len(DATA) - 3, 100) == b"hts"
    assert blobs.put_bytes(DATA) == blob
    assert list(blobs.scratch.iterdir()) == []


def test_a_file_is_copied_and_stays(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(DATA)
    assert blobs.put_file(source).digest == DIGEST
    assert source.read_bytes() == DATA


def test_only_a_folder_has_paths(tmp_path: Path) -> None:
    folder = BlobStore(tmp_path / "blobs")
    assert folder.path_of(DIGEST) is None
    folder.put_bytes(DATA)
    path = folder.path_of(DIGEST)
    assert path is not None
    assert path.read_bytes() == DATA
    bucket = BlobStore("memory://bucket/paths", scratch=tmp_path / "scratch")
    bucket.put_bytes(DATA)
    assert bucket.path_of(DIGEST) is None


def test_what_is_not_there_is_said_so(blobs: BlobStore) -> None:
    other = "sha256:" + "0" * 64
    assert blobs.size(other) is None
    with pytest.raises(FileNotFoundError):
        blobs.open(other)


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "", "sha256:" + "A" * 64, "sha256:" + "0" * 63])
def test_only_a_digest_becomes_a_path(blobs: BlobStore, digest: str) -> None:
    with pytest.raises(MalformedMessage):
        blobs.size(digest)


def test_a_bucket_needs_a_scratch_folder() -> None:
    with pytest.raises(ValueError, match="needs a local scratch folder"):
        BlobStore("memory://bucket")


def test_a_failure_leaves_nothing_behind(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Callable[..., None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs._shelf, "adopt", fail)
    with pytest.raises(OSError, match="No space"):
        blobs.put_bytes(DATA)
    assert blobs.size(DIGEST) is None
    assert list(blobs.scratch.iterdir()) == []

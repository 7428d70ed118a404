"""Content by its digest: a folder by default, any fsspec URL (s3://bucket/prefix) in production.

A blob is either there, whole and under its right digest, or it is not there: bytes are verified in a scratch folder
on local disk, synced, and then moved into place in one step. Uploads of hospitals come in through uploads.py.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import fsspec

from boundary.canonical import Digest, parse_digest
from boundary.messages import BlobRef

COPY_BYTES = 1024 * 1024


class Shelf(Protocol):
    """Where finished blobs lie, by the 64 hex digits of their digest."""

    def size(self, digits: str) -> int | None: ...

    def open(self, digits: str) -> BinaryIO: ...

    def adopt(self, digits: str, scratch: Path) -> None:
        """Move the verified, local file `scratch` here, durably and in one step."""

    def path(self, digits: str) -> Path | None: ...

    def remove(self, digits: str) -> None:
        """Again is harmless."""


class Folder:
    """Blobs on local disk: `<root>/sha256/ab/abcdef...`."""

    def __init__(self, root: Path) -> None:
        self._root = root / "sha256"

    def size(self, digits: str) -> int | None:
        try:
            return self._at(digits).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digits: str) -> BinaryIO:
        return self._at(digits).open("rb")

    def adopt(self, digits: str, scratch: Path) -> None:
        place = self._at(digits)
        place.parent.mkdir(parents=True, exist_ok=True)
        _sync(scratch)
        scratch.replace(place)
        _sync(place.parent)

    def path(self, digits: str) -> Path | None:
        return self._at(digits)

    def remove(self, digits: str) -> None:
        self._at(digits).unlink(missing_ok=True)

    def _at(self, digits: str) -> Path:
        return self._root / digits[:2] / digits


class Bucket:
    """Blobs behind an fsspec URL. An object appears there when its upload is finished, never before."""

    def __init__(self, url: str) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)

    def size(self, digits: str) -> int | None:
        try:
            return cast("int", self._files.size(self._at(digits)))
        except FileNotFoundError:
            return None

    def open(self, digits: str) -> BinaryIO:
        return cast("BinaryIO", self._files.open(self._at(digits), "rb", block_size=COPY_BYTES * 4))

    def adopt(self, digits: str, scratch: Path) -> None:
        place = self._at(digits)
        self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(scratch), place)
        scratch.unlink()

    def path(self, digits: str) -> Path | None:  # noqa: ARG002 - part of the Shelf protocol
        return None

    def remove(self, digits: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._at(digits))

    def _at(self, digits: str) -> str:
        return f"{self._root}/sha256/{digits[:2]}/{digits}"


class BlobStore:
    """Finished blobs. Safe to use from several threads and processes at once."""

    def __init__(self, location: str | Path, *, scratch: Path | None = None) -> None:
        """`location` is a folder or an fsspec URL; `scratch`, a local folder, is needed for a URL."""
        if isinstance(location, str) and "://" in location:
            if scratch is None:
                raise ValueError(f"a blob store at {location} needs a local scratch folder for unfinished uploads")
            self._shelf: Shelf = Bucket(location)
            self.scratch = scratch
        else:
            self._shelf = Folder(Path(location))
            self.scratch = scratch or Path(location) / "partial"
        self.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)

    def size(self, digest: str) -> int | None:
        """In bytes; None unless the blob is completely there."""
        return self._shelf.size(_digits(digest))

    def open(self, digest: str) -> BinaryIO:
        """For reading, seekable; raises `FileNotFoundError`."""
        return self._shelf.open(_digits(digest))

    def read_range(self, digest: str, offset: int, length: int) -> bytes:
        """Fewer bytes at the end of the blob."""
        with self.open(digest) as file:
            file.seek(offset)
            return file.read(length)

    def path_of(self, digest: str) -> Path | None:
        """The local file, where the store is a folder and the blob is there: not to be written to."""
        path = self._shelf.path(_digits(digest))
        return path if path is not None and path.exists() else None

    def put_bytes(self, data: bytes) -> BlobRef:
        """Store our own content; the same content again is harmless."""
        return self._put(lambda file: file.write(data))

    def put_file(self, path: Path) -> BlobRef:
        """Store a copy of a local file."""
        with path.open("rb") as source:
            return self._put(lambda file: shutil.copyfileobj(source, file, COPY_BYTES))

    def adopt(self, digest: str, path: Path) -> None:
        """Take over a local file that was verified to have this digest."""
        self._shelf.adopt(_digits(digest), path)

    def remove(self, digest: str) -> None:
        """The content goes; what remembers it is the caller's to remove first. Again is harmless."""
        self._shelf.remove(_digits(digest))

    def _put(self, fill: Callable[[BinaryIO], object]) -> BlobRef:
        handle, name = tempfile.mkstemp(dir=self.scratch, prefix="own-")
        path = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                fill(file)
                file.seek(0)
                digits = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            blob = BlobRef(digest=f"sha256:{digits}", size=size)
            if self._shelf.size(digits) != size:
                self._shelf.adopt(digits, path)
        finally:
            path.unlink(missing_ok=True)
        return blob


def _digits(digest: str) -> str:
    """The hex digits, after a check that nothing else can become part of a path."""
    return Digest(parse_digest(digest)).removeprefix("sha256:")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Blobs on their way in: ranges, resumed at their offset, hashed once as they arrive.

A partial upload is the file `<scratch>/<party>/<hex digits>`: per party, so that no hospital can spoil another's. Its
length is its offset; there is no other state on disk. The running hash is kept in memory beside it and caught up
from disk when it is behind, after a restart or after another process took a range. The newest request for an
upload wins: an older one whose connection hangs half-open is put aside. Sync; the relay calls it from a thread pool.
"""

import errno
import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from boundary.api import BlobState
from boundary.canonical import parse_digest
from boundary.errors import PeerFault, TooLarge
from boundary.messages import BlobRef
from flows.store.blobs import COPY_BYTES, BlobStore

_KEPT_HASHES = 1024  # running hashes kept in memory, about 300 bytes each; one that is dropped is recomputed
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one hospital may leave lying around."""

    blob_bytes: int = 2 * 1024**3
    outstanding_bytes: int = 4 * 1024**3  # declared sizes of unfinished uploads are not trusted: see `begin`
    outstanding_files: int = 16
    forget_after: timedelta = timedelta(days=7)  # an unfinished upload that nobody went on with


class WrongOffset(PeerFault):
    """A range that does not begin where the upload stands."""

    code = "WRONG_OFFSET"

    def __init__(self, asked: int, offset: int) -> None:
        super().__init__(f"the range begins at {asked}, the upload stands at {offset}: go on from there")
        self.asked, self.offset = asked, offset


class WrongDigest(PeerFault):
    """A finished upload that is not what its digest says. It was thrown away."""

    code = "WRONG_DIGEST"


class UploadQuota(PeerFault):
    """A hospital with too many unfinished uploads."""

    code = "UPLOAD_QUOTA"


class UploadBusy(PeerFault):
    """Another request writes this upload now."""

    code = "UPLOAD_BUSY"


class StorageFull(Exception):
    """Our disk is full: nobody's fault but ours. What was taken in before stays."""

    code = "STORAGE_FULL"

    def __init__(self) -> None:
        super().__init__("the relay's disk is full: what arrived so far is kept, try again later")


@dataclass(slots=True)
class _Running:
    """The hash of the first `hashed` bytes of a partial file, and who may write to it now."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    hashed: int = 0
    inode: int = 0  # of the file that was hashed: another process may have thrown it away and begun anew
    received: int = 0  # bytes that were not reported yet, see `RangeWriter.take_received`
    writer: "RangeWriter | None" = None


class Uploads:
    """All uploads of all parties in one relay process."""

    def __init__(self, blobs: BlobStore, limits: UploadLimits) -> None:
        self._blobs, self._limits = blobs, limits
        self._lock = threading.Lock()
        self._running: OrderedDict[Path, _Running] = OrderedDict()

    def state(self, party: str, digest: str, *, is_mine: Callable[[], bool]) -> BlobState:
        """`is_mine` says whether this party has shown that it holds the blob. What others have is not told."""
        begun = _length(self._path(party, digest))
        size = self._blobs.size(digest) if begun is None else None
        if size is not None and is_mine():
            return BlobState(digest=digest, offset=size, complete=True)
        return BlobState(digest=digest, offset=begun or 0, complete=False)

    def begin(self, party: str, blob: BlobRef, offset: int, now: datetime) -> "RangeWriter":
        """Open the upload at `offset`. Raises `TooLarge`, `WrongOffset`, `UploadQuota`, `UploadBusy`, `StorageFull`."""
        if blob.size > self._limits.blob_bytes:
            raise TooLarge("the blob", blob.size, self._limits.blob_bytes)
        path = self._path(party, blob.digest)
        self._check_quota(path, blob.size, now)
        running = self._of(path)
        with running.lock:
            if running.writer is not None:
                running.writer.close()
            writer = RangeWriter(self._blobs, path, blob, running)
            writer.open(offset)
            running.writer = writer
        return writer

    def _check_quota(self, path: Path, size: int, now: datetime) -> None:
        others = 0
        files = 0
        for other, found in _files(path.parent):
            if other == path:
                continue
            if found.st_mtime < (now - self._limits.forget_after).timestamp():
                other.unlink(missing_ok=True)
                continue
            others, files = others + found.st_size, files + 1
        if others + size > self._limits.outstanding_bytes or files >= self._limits.outstanding_files:
            raise UploadQuota(
                f"{files} unfinished uploads with {others} bytes: finish them first, or wait "
                f"{self._limits.forget_after.days} days until they are forgotten"
            )

    def _of(self, path: Path) -> _Running:
        with self._lock:
            running = self._running.setdefault(path, _Running())
            self._running.move_to_end(path)
            if len(self._running) > _KEPT_HASHES:
                self._running.popitem(last=False)
            return running

    def _path(self, party: str, digest: str) -> Path:
        return self._blobs.scratch / party / parse_digest(digest).removeprefix("sha256:")


class RangeWriter:
    """One range on its way to disk. `write` as it arrives, then `finish`; `close` in any case."""

    def __init__(self, blobs: BlobStore, path: Path, blob: BlobRef, running: _Running) -> None:
        self._blobs, self._path, self._blob, self._running = blobs, path, blob, running
        self._handle = -1
        self.offset = 0

    def open(self, offset: int) -> None:
        """For `Uploads.begin`, which holds the lock."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as why:
            self.close()
            raise UploadBusy("another request writes this upload now: try again in a moment") from why
        except OSError as why:
            self.close()
            raise _full_or(why) from why
        self.offset = os.fstat(self._handle).st_size
        if offset != self.offset:
            self.close()
            raise WrongOffset(offset, self.offset)
        self._catch_up()

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append; on a full disk the file is cut back to what was completely written before. Raises `StorageFull`."""
        with self._running.lock:
            self._still_mine()
            for chunk in chunks:
                if self.offset + len(chunk) > self._blob.size:
                    raise TooLarge("the upload", self.offset + len(chunk), self._blob.size)
                try:
                    _write_all(self._handle, chunk, self.offset)
                except OSError as why:
                    os.ftruncate(self._handle, self.offset)
                    raise _full_or(why) from why
                self._running.hash.update(chunk)
                self.offset += len(chunk)
                self._running.hashed = self.offset
                self._running.received += len(chunk)

    def finish(self) -> BlobState:
        """The range is in; with the last one the blob is verified and moved into place. Raises `WrongDigest`."""
        with self._running.lock:
            self._still_mine()
            complete = self.offset == self._blob.size
            if complete:
                self._adopt()
            self.close()
        return BlobState(digest=self._blob.digest, offset=self.offset, complete=complete)

    def take_received(self) -> int:
        """Bytes that came in since this was last asked: for counting a whole upload at once."""
        with self._running.lock:
            received, self._running.received = self._running.received, 0
        return received

    def close(self) -> None:
        """Let go of the file; what was written stays."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _adopt(self) -> None:
        found = "sha256:" + self._running.hash.hexdigest()
        if found != self._blob.digest:
            self._path.unlink(missing_ok=True)
            self.close()
            raise WrongDigest(f"the upload has the digest {found}: it was thrown away, send it again from the start")
        try:
            self._blobs.adopt(self._blob.digest, self._path)
        except OSError as why:
            raise _full_or(why) from why

    def _catch_up(self) -> None:
        """Hash what is on disk and was not hashed in this process."""
        running = self._running
        inode = os.fstat(self._handle).st_ino
        if running.hashed > self.offset or running.inode != inode:
            running.hash, running.hashed, running.inode = hashlib.sha256(), 0, inode
        while running.hashed < self.offset:
            data = os.pread(self._handle, min(COPY_BYTES, self.offset - running.hashed), running.hashed)
            running.hash.update(data)
            running.hashed += len(data)

    def _still_mine(self) -> None:
        if self._handle < 0:
            raise UploadBusy("a newer request for this upload took over")


def _write_all(handle: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _full_or(why: OSError) -> Exception:
    return StorageFull() if why.errno in _FULL else why


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            return [(Path(entry.path), entry.stat()) for entry in entries]
    except FileNotFoundError:
        return []

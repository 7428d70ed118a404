"""Taking patients out of a finished scan on disk: their images become zeros, a mask says which rows are gone.

Without NumPy, because the daemon and `silo-agent withdraw` do it. The mask is on the disk before the first row is
touched, and readers look at it last: whoever reads meanwhile may see half a row of zeros, and leaves it out. What the
index of the archive's files holds of them goes too (`forget_rows`).
"""

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from array import array
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from silo_agent.intake.withdrawn import numbers_of, read_known
from silo_agent.state import write_private

KNOWN, GONE = "known.bin", "withdrawn.bin"  # tags of the patients; one byte for each row, 1 if it is gone
MADE_OF = "made_of.npy"  # what each row was made of, as `reuse` has it; older scans have none
MASKS = "masks.npy"  # of scans for segmentation
INDEX_TABLE = "files"
DAMAGE = (sqlite3.Error, UnicodeError)  # the second where what SQLite says of a damaged file quotes it
_ROW_FILES = ("images.npy", "labels.npy")
_NOT_IN_ALL = (MADE_OF, MASKS)
_WAIT_SECONDS = 30.0  # for another process: it holds the lock while it renames two folders or zeroes some rows
_NPY = b"\x93NUMPY\x01\x00"


@contextmanager
def alone(caches: Path) -> Iterator[None]:
    """Let nobody else, in any process, replace or erase in a cache meanwhile. Raises `TimeoutError`."""
    end = time.monotonic() + _WAIT_SECONDS
    with os.fdopen(os.open(caches / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "wb") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(errno.ETIMEDOUT, f"another process holds {caches / '.lock'}") from None
                time.sleep(0.02)
        yield


def erase(cache: Path, tags: Collection[bytes]) -> None:
    """Erase whoever has one of these tags. Doing it again, also after a kill in the middle, ends the same.

    To be called while `alone`. A scan whose files do not fit together is removed: the next one does without them.
    """
    shutil.rmtree(cache.with_name(f".{cache.name}.old"), ignore_errors=True)  # of a scan that was killed
    if not cache.exists():
        return
    try:
        gone = _rows(cache, tags)
        if gone:
            mask = _mask(cache, gone)
            write_private(cache / GONE, mask)
            there = (name for name in _NOT_IN_ALL if (cache / name).exists())
            for name in (*_ROW_FILES, *there):
                _zero(cache / name, gone, len(mask))
    except (FileNotFoundError, ValueError):
        shutil.rmtree(cache)


def forget_rows(index: Path, references: Collection[str]) -> None:
    """Remove what the index holds of these patients (`withdrawn.reference_of`). Doing it again ends the same.

    An index that cannot be changed is removed as a whole: the next scan makes it anew, without them.
    """
    if not index.exists():
        return
    try:
        with closing(open_index(index)) as db:
            delete_rows(db, references)
    except DAMAGE:
        remove_index(index)


def delete_rows(db: sqlite3.Connection, references: Collection[str]) -> None:
    """The same in an index that is open. Raises what `DAMAGE` names."""
    db.execute(
        f"DELETE FROM {INDEX_TABLE} WHERE patient IN (SELECT value FROM json_each(?))",  # noqa: S608 - ours
        (json.dumps(sorted(references)),),
    )


def open_index(path: Path) -> sqlite3.Connection:
    """For the agent's user only. Raises what `DAMAGE` names, or `OSError`.

    What is deleted is overwritten, and no journal has a copy: a crash may spoil the file, which is made again. So it is
    looked over first: from a damaged one SQLite may read, and delete, less than it holds.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
    try:
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA journal_mode = MEMORY")
        if db.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            raise sqlite3.DatabaseError("the index is damaged")
    except DAMAGE:
        db.close()
        raise
    return db


def remove_index(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + "-journal").unlink(missing_ok=True)


def _rows(cache: Path, tags: Collection[bytes]) -> list[int]:
    """The rows of whoever has one of these tags. The files must agree on how many rows and patients there are."""
    known = read_known((cache / KNOWN).read_bytes())
    data = (cache / "patients.npy").read_bytes()
    owners = array("q", data[_payload(data) :])
    if set(owners) != set(range(len(known))) or len(owners) != len((cache / GONE).read_bytes()):
        raise ValueError("the rows are not of the patients that are listed")
    numbers = numbers_of(known, tags)
    return [row for row, owner in enumerate(owners) if owner in numbers]


def _mask(cache: Path, gone: list[int]) -> bytes:
    mask = bytearray((cache / GONE).read_bytes())
    for row in gone:
        mask[row] = 1
    return bytes(mask)


def _zero(path: Path, gone: list[int], rows: int) -> None:
    """Overwrite rows of a NumPy file in place, and have them on the disk."""
    with path.open("r+b") as file:
        start = _payload(file.read(len(_NPY) + 2))
        width, rest = divmod(path.stat().st_size - start, rows)
        if rest:
            raise ValueError(f"{path.name} does not have {rows} rows")
        nothing = bytes(width)
        for row in gone:
            file.seek(start + row * width)
            if file.read(width) != nothing:
                file.seek(start + row * width)
                file.write(nothing)
        file.flush()
        os.fsync(file.fileno())


def _payload(data: bytes) -> int:
    """Where the rows begin (NumPy's format, version 1.0)."""
    if not data.startswith(_NPY) or len(data) < len(_NPY) + 2:
        raise ValueError("not a NumPy file")
    return len(_NPY) + 2 + int.from_bytes(data[len(_NPY) : len(_NPY) + 2], "little")

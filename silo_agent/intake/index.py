"""What reading each file found, remembered from scan to scan, so that an unchanged file is not opened again.

One SQLite file of a hospital, mode 0600. It holds no path, no UID and no Patient ID: files, patients and images stand
in it as keyed hashes (`pseudonyms`), beside the modality and a code. A row is believed under its seal only, a keyed
hash over the row and the state of the file: what was changed, by whomever, is read anew. It is a cache. Whatever is
wrong with it, it is left out or begun again, and a scan finds the same without it.

Who withdrew has no row: theirs go with the withdrawal (`erasing.forget_rows`) or at the next scan, which writes none.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from silo_agent.intake.archive import Item
from silo_agent.intake.encoding import Limits
from silo_agent.intake.erasing import INDEX_TABLE, forget_rows, open_index, remove_index
from silo_agent.intake.facts import NAMES, Known
from silo_agent.intake.header import Identifiers
from silo_agent.intake.pseudonyms import HASH_BYTES, Pseudonyms
from silo_agent.intake.refusals import Refusal

FORMAT = 1
FILES_AT_ONCE = 256  # looked up, and written: as many are read again after a kill
_SCHEMA = (
    "CREATE TABLE made (version TEXT NOT NULL)",
    f"""CREATE TABLE {INDEX_TABLE} (
    file BLOB PRIMARY KEY, archive BLOB NOT NULL, patient TEXT NOT NULL, facts BLOB NOT NULL, seal BLOB NOT NULL
    ) WITHOUT ROWID""",
)
_READ_BY = ("wardround", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "numpy")
_UIDS = tuple(name for name in NAMES if name != "patient_id")
_NO_UID = bytes(HASH_BYTES)

_Row = tuple[bytes, bytes, str, bytes, bytes]  # file, archive, patient, facts, seal


class Index:
    """Of one archive, for one scan. No method raises anything about the index itself."""

    def __init__(self, path: Path, root: str, names: Pseudonyms, limits: Limits) -> None:
        self._path, self._root, self._names = path, root, names
        self._archive = names.archive(root)
        self._there: set[bytes] = set()
        self._waiting: list[_Row] = []
        self._db: sqlite3.Connection | None = None
        self._open(_version(limits))
        if self._db is None and not path.exists():  # it was no database, and is gone
            self._open(_version(limits))

    def _open(self, version: str) -> None:
        try:
            self._db = _opened(self._path, version)
        except (sqlite3.Error, OSError) as why:
            self._give_up(why)

    def find(self, items: Sequence[Item]) -> list[Known | None]:
        """What is known of these files as they are now, at most `FILES_AT_ONCE`; None of one that has to be read."""
        files = [self._names.file(self._root, item.name) for item in items]
        rows = self._rows(files)
        self._there.update(rows)
        return [self._believed(item, rows.get(file)) for item, file in zip(items, files, strict=True)]

    def keep(self, item: Item, known: Known) -> None:
        """Remember a file that has not changed since it was listed."""
        if self._db is None or item.state is None:
            return
        file, patient = self._names.file(self._root, item.name), "" if known.who is None else known.who.patient_id
        facts = _packed(known)
        self._waiting.append((file, self._archive, patient, facts, self._seal(item.state, file, patient, facts)))
        self._there.add(file)
        if len(self._waiting) >= FILES_AT_ONCE:
            self._write()

    def forget(self, references: Collection[str]) -> None:
        """Remove the rows of these patients."""
        if self._db is not None:
            forget_rows(self._path, references)

    def finish(self) -> None:
        """After a whole scan: remove the rows of files that this archive has no more."""
        self._write()
        if self._db is None:
            return
        try:
            wanted = f"SELECT file FROM {INDEX_TABLE} WHERE archive = ?"  # noqa: S608 - a constant of ours
            gone = [row for row in self._db.execute(wanted, (self._archive,)) if row[0] not in self._there]
            self._transaction(f"DELETE FROM {INDEX_TABLE} WHERE file = ?", gone)  # noqa: S608
        except sqlite3.Error as why:
            self._give_up(why)

    def close(self) -> None:
        """Keep what was found so far, also by a scan that was stopped."""
        self._write()
        if self._db is not None:
            self._db.close()

    def _rows(self, files: list[bytes]) -> dict[bytes, _Row]:
        if self._db is None:
            return {}
        wanted = f"SELECT * FROM {INDEX_TABLE} WHERE file IN ({','.join('?' * len(files))})"  # noqa: S608
        try:
            return {row[0]: row for row in self._db.execute(wanted, files)}
        except sqlite3.Error as why:
            self._give_up(why)
            return {}

    def _believed(self, item: Item, row: _Row | None) -> Known | None:
        if row is None or item.state is None:
            return None
        file, _, patient, facts, seal = row
        try:
            return _unpacked(patient, facts) if seal == self._seal(item.state, file, patient, facts) else None
        except (ValueError, TypeError, AttributeError):  # of another type, or a code that this version does not have
            return None

    def _seal(self, state: bytes, file: bytes, patient: str, facts: bytes) -> bytes:
        of_whom = patient.encode()
        lengths = len(state).to_bytes(4) + len(of_whom).to_bytes(4)
        return self._names.seal(b"".join((lengths, state, of_whom, file, self._archive, facts)))

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        try:
            self._transaction(f"INSERT OR REPLACE INTO {INDEX_TABLE} VALUES (?,?,?,?,?)", rows)  # noqa: S608
        except sqlite3.Error as why:
            self._give_up(why)

    def _transaction(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows and self._db is not None:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")

    def _give_up(self, why: Exception) -> None:
        """Go on without; a file that is no index of ours any more is removed, one that is only busy is not."""
        if self._db is not None:
            self._db.close()
        self._db = None
        if isinstance(why, sqlite3.DatabaseError) and not isinstance(why, sqlite3.OperationalError):
            with suppress(OSError):
                remove_index(self._path)


def _opened(path: Path, version: str) -> sqlite3.Connection:
    """Raises `sqlite3.Error` or `OSError`."""
    db = open_index(path)
    try:
        db.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        made = db.execute("SELECT version FROM made").fetchall() if "made" in tables else []
        if made != [(version,)] or tables != {"made", INDEX_TABLE}:
            for table in tables:
                db.execute(f'DROP TABLE "{table}"')
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO made VALUES (?)", (version,))
        db.execute("COMMIT")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _version(limits: Limits) -> str:
    """What a file is read with: with anything else of it, every file is read anew."""
    return json.dumps([FORMAT, NAMES, asdict(limits), {name: _release(name) for name in _READ_BY}])


def _release(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packed(known: Known) -> bytes:
    """A line of JSON, then the digest of the image and the UIDs as bytes, as far as the line says they are there."""
    who, content = known.who, known.content or b""
    head = json.dumps([known.modality, known.wanted, known.unwanted, len(content), who is not None])
    uids = [] if who is None else [bytes.fromhex(getattr(who, name)) or _NO_UID for name in _UIDS]
    return b"".join((head.encode(), b"\n", content, *uids))


def _unpacked(patient: str, facts: bytes) -> Known:
    """Raises `ValueError`."""
    head, _, rest = facts.partition(b"\n")
    modality, wanted, unwanted, digest_bytes, is_parsed = _head(head)
    who, content = None, rest[:digest_bytes] or None
    if is_parsed:
        at = range(digest_bytes, len(rest), HASH_BYTES)
        uids = ["" if (uid := rest[one : one + HASH_BYTES]) == _NO_UID else uid.hex() for one in at]
        who = Identifiers(patient_id=patient, **dict(zip(_UIDS, uids, strict=True)))
    return Known(modality, wanted, unwanted, who, content)


@lru_cache(maxsize=1024)
def _head(said: bytes) -> tuple[str, Refusal | None, Refusal | None, int, bool]:
    """An archive has few of them."""
    modality, wanted, unwanted, digest_bytes, is_parsed = json.loads(said)
    codes = (None if code is None else Refusal(code) for code in (wanted, unwanted))
    return modality, *codes, digest_bytes, is_parsed

"""What was found in an archive, remembered from scan to scan, so that what did not change is not read again.

One SQLite file of a hospital, mode 0600. It holds no path, no UID and no Patient ID: what a row is of, in which archive
and of which patient stands in it as keyed hashes (`pseudonyms`). All else is sealed under the hospital's key, with the
state of the files it was found in: whoever has the file alone reads nothing of it, and what was changed, in the row or
in the archive, is read anew. That matters most for slices: where they lie in the scanner, to a micrometre, is exact
enough to know an image by that one has from elsewhere, and has to be exact to make the same volume again.

It is a cache. Whatever is wrong with it, it is left out or begun again, and a scan finds the same without it. Who
withdrew has no row: theirs go with the withdrawal (`erasing.forget_rows`) or at the next scan, which writes none.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from silo_agent.intake.erasing import DAMAGE, INDEX_TABLE, delete_rows, open_index, remove_index
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.software import release_of

FORMAT = 5
FILES_AT_ONCE = 256  # looked up, and written: as many are read again after a kill
_SCHEMA = (
    "CREATE TABLE made (version TEXT NOT NULL)",
    # the check is for `erasing.open_index`: a reference that damage made a blob is no patient's to a DELETE
    f"""CREATE TABLE {INDEX_TABLE} (
    file BLOB PRIMARY KEY, archive BLOB NOT NULL, patient TEXT NOT NULL CHECK (typeof(patient) = 'text'),
    facts BLOB NOT NULL
    ) WITHOUT ROWID""",
)
_PASSING = frozenset(  # the file may be as it should be
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
    }
)  # fmt: skip
_READ_BY = ("wardround", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm", "numpy")

_Row = tuple[bytes, bytes, str, bytes]  # file, archive, patient, facts under their seal
Asked = tuple[str, bytes | None]  # the name of what a row is of, and its state; None: it is not to be remembered


class Index:
    """For one scan. No method raises anything about the index itself. Without a `path` it remembers nothing."""

    def __init__(self, path: Path | None, names: Pseudonyms, without: Collection[str] = ()) -> None:
        """`without` are references of patients of whom there is to be no row, now or later."""
        self._path, self._names, self._without = path, names, frozenset(without)
        self._there: dict[bytes, set[bytes]] = {}  # by archive
        self._waiting: list[_Row] = []
        self._db: sqlite3.Connection | None = None
        self._open()
        if self._db is None and path is not None and not path.exists():  # it was no database, and is gone
            self._open()

    def section(self, root: str, kind: str, read_with: str) -> "Section":
        """The rows of one archive that were found by one kind of reading; `read_with` are its limits."""
        found = Section(self, self._names, f"{root}\0{kind}", read_with)
        self._there.setdefault(found.archive, set())
        return found

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def rows(self, archive: bytes, files: list[bytes]) -> dict[bytes, _Row]:
        """At most `FILES_AT_ONCE`."""
        if self._db is None:
            return {}
        wanted = f"SELECT * FROM {INDEX_TABLE} WHERE file IN ({','.join('?' * len(files))})"  # noqa: S608 - a constant
        try:
            found = {row[0]: row for row in self._db.execute(wanted, files)}
        except DAMAGE as why:
            self._give_up(why)
            return {}
        self._there[archive].update(found)
        return found

    def add(self, row: _Row) -> None:
        file, archive, patient, _ = row
        if self._db is None or patient in self._without:
            return
        self._waiting.append(row)
        self._there[archive].add(file)
        if len(self._waiting) >= FILES_AT_ONCE:
            self._write()

    def finish(self) -> None:
        """After a whole scan: remove what the archives it looked at have no more."""
        self._write()
        if self._db is None:
            return
        wanted = f"SELECT file FROM {INDEX_TABLE} WHERE archive = ?"  # noqa: S608 - a constant of ours
        try:
            for archive, there in self._there.items():
                gone = [row for row in self._db.execute(wanted, (archive,)) if row[0] not in there]
                self._transaction(f"DELETE FROM {INDEX_TABLE} WHERE file = ?", gone)  # noqa: S608
        except DAMAGE as why:
            self._give_up(why)

    def close(self) -> None:
        """Keep what was found so far, also by a scan that was stopped."""
        self._write()
        if self._db is not None:
            self._db.close()

    def _open(self) -> None:
        try:
            if self._path is not None:
                self._db = _opened(self._path, _version(), self._without)
        except (*DAMAGE, OSError) as why:
            self._give_up(why)

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        try:
            self._transaction(f"INSERT OR REPLACE INTO {INDEX_TABLE} VALUES (?,?,?,?)", rows)  # noqa: S608
        except DAMAGE as why:
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
        code = getattr(why, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # none of what is no text
        is_none = not isinstance(why, OSError) and code & 0xFF not in _PASSING  # the rest tells which kind of it
        if is_none and self._path is not None:
            with suppress(OSError):
                remove_index(self._path)


class Section:
    """Of an index, by the names of what its rows are of."""

    def __init__(self, index: Index, names: Pseudonyms, root: str, read_with: str) -> None:
        self._index, self._names, self._root = index, names, root
        self.archive, self._read_with = names.archive(root), read_with.encode()

    def find(self, asked: Sequence[Asked]) -> list[tuple[str, bytes] | None]:
        """Of each the patient and the facts as they were kept, as far as they hold; at most `FILES_AT_ONCE`."""
        if not self._index.is_open:
            return [None] * len(asked)
        files = [self._names.file(self._root, name) for name, _ in asked]
        rows = self._index.rows(self.archive, files)
        return [self._believed(state, rows.get(file)) for (_, state), file in zip(asked, files, strict=True)]

    def keep(self, name: str, state: bytes | None, patient: str, facts: bytes) -> None:
        """Remember what did not change since its state was taken. `patient` is a reference, empty where it is nobody's.

        Facts that name somebody must be those of `patient`, or no withdrawal would take them away.
        """
        if state is not None and self._index.is_open:
            file = self._names.file(self._root, name)
            sealed = self._names.sealed(facts, self._about(state, file, patient))
            self._index.add((file, self.archive, patient, sealed))

    def _believed(self, state: bytes | None, row: _Row | None) -> tuple[str, bytes] | None:
        if row is None or state is None:
            return None
        file, _, patient, sealed = row
        try:
            facts = self._names.unsealed(sealed, self._about(state, file, patient))
        except (TypeError, AttributeError):  # somebody put another type there
            return None
        return None if facts is None else (patient, facts)

    def _about(self, state: bytes, file: bytes, patient: str) -> bytes:
        """What a row's facts are sealed with, besides the key."""
        of_whom = patient.encode()
        lengths = len(state).to_bytes(4) + len(of_whom).to_bytes(4)
        return b"".join((lengths, state, of_whom, file, self.archive, self._read_with))


def _opened(path: Path, version: str, without: Collection[str]) -> sqlite3.Connection:
    """Raises as `erasing.open_index`. What nobody can be taken out of is removed."""
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
        try:
            delete_rows(db, without)
        except DAMAGE:
            remove_index(path)
            raise
    except DAMAGE:
        db.close()
        raise
    return db


def _version() -> str:
    """What files are read with: with anything else of it, every file is read anew."""
    return json.dumps([FORMAT, {name: release_of(name) for name in _READ_BY}])

"""What a scan leaves on the disk, for the tests of what is remembered."""

import sqlite3
from contextlib import closing
from pathlib import Path


def files(cache: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in cache.iterdir()}


def rows(index: Path) -> int:
    with closing(sqlite3.connect(index)) as db:
        (count,) = db.execute("SELECT COUNT(*) FROM files").fetchone()
    return int(count)

"""One door to the coordinator's database: SQLite on one machine, PostgreSQL in production.

There is one writer at a time on both. SQLite has it from BEGIN IMMEDIATE, which takes the write lock at the start, so
that no transaction reads first and then deadlocks on the upgrade; PostgreSQL gets it from an advisory lock. What it
buys is the same on both: envelope and audit sequences are handed out in the order in which they become visible, so a
reader who asks "after 41" can never miss a 40 that committed late, and no two writers can deadlock.
Keep write transactions short: everybody else waits.
"""

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text

BUSY_SECONDS = 30  # how long a writer waits for another; ours take milliseconds
_RETRY_SECONDS = 0.01
ENTROPY = "wardround_entropy"  # execution option: where the salts of audit entries come from
_WRITES = "wardround_writes"  # execution option: None, "durable" or "quick"
_WRITER_LOCK = 0x57415244  # "WARD": the key of PostgreSQL's advisory lock
_MIGRATIONS = Path(__file__).with_name("migrations")


class StoreTooNew(Exception):
    """The database was made by a newer Wardround; writing to it with this one could spoil it."""

    def __init__(self, found: str, known: str | None) -> None:
        super().__init__(
            f"the database is at revision {found}, this Wardround knows {known}: "
            "start the newer version again, or restore the backup made before the upgrade"
        )
        self.found, self.known = found, known


class StoreUnsupported(ValueError):
    """A database URL of a kind we do not speak."""


def open_store(url: str, entropy: Callable[[int], bytes] = secrets.token_bytes) -> Engine:
    """Connections to the database at `url`; nothing is created until `migrate`."""
    options = {ENTROPY: entropy}
    parsed = _driver(make_url(url))
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, execution_options=options)
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    else:
        engine = create_engine(parsed, pool_pre_ping=True, pool_size=10, max_overflow=20, execution_options=options)
        event.listen(engine, "begin", _on_postgresql_begin)
    return engine


def _driver(url: URL) -> URL:
    match url.drivername:
        case "sqlite" | "sqlite+pysqlite" if url.database and url.database != ":memory:":
            return url.set(drivername="sqlite+pysqlite")
        case "postgres" | "postgresql" | "postgresql+psycopg":
            return url.set(drivername="postgresql+psycopg")
        case _:
            raise StoreUnsupported(
                f"{url.drivername!r} is not a store we speak: use sqlite:////path/to/store.db or postgresql://..."
            )


def migrate(engine: Engine) -> None:
    """Bring the schema to this code's revision. Safe to call from several processes at once.

    Raises `StoreTooNew` when the database is ahead of the code.
    """
    config = migrations()
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    with writing(engine) as connection:
        for found in MigrationContext.configure(connection).get_current_heads():
            if found not in known:
                raise StoreTooNew(found, scripts.get_current_head())
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def migrations() -> Config:
    """Alembic's view of the packaged revisions; `env.py` wants a connection in its attributes."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction with the write lock: on disk at the end, rolled back by any exception."""
    with engine.connect().execution_options(**{_WRITES: "durable"}) as connection, connection.begin():
        yield connection


@contextmanager
def noting(engine: Engine) -> Iterator[Connection]:
    """For nonces, heartbeats and byte counts only: survives a crash of any process, but not always a power cut.

    No envelope and no audit leaf may be written in it.
    """
    with engine.connect().execution_options(**{_WRITES: "quick"}) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view of the database, which never waits for a writer."""
    snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(**snapshot)
        with connection.begin():
            yield connection


def _on_sqlite_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own; `begin` below does
    cursor = connection.cursor()
    _keep_a_write_ahead_log(cursor)
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _keep_a_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """The file remembers it, so it is set by those who first open a new one.

    Of several who do that at once all but one are told at once that the database is locked: SQLite's busy timeout does
    not hold for a change of the journal's mode.
    """
    for patience in reversed(range(int(BUSY_SECONDS / _RETRY_SECONDS))):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as why:
            if why.sqlite_errorcode != sqlite3.SQLITE_BUSY or not patience:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _on_sqlite_begin(connection: Connection) -> None:
    # FULL, not NORMAL: a receipt promises that the envelope outlives a power cut, and the hospital forgets it then.
    # It costs an fsync, 2 to 4 ms where NORMAL takes 0.05 ms (docs/adr/0002), so notes go without.
    match connection.get_execution_options().get(_WRITES):
        case "durable":
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        case "quick":
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        case _:
            connection.exec_driver_sql("BEGIN")


def _on_postgresql_begin(connection: Connection) -> None:
    match connection.get_execution_options().get(_WRITES):
        case "durable":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITER_LOCK})
        case "quick":
            connection.execute(text("SET LOCAL synchronous_commit = off"))

"""The schema and its migrations are one, and there is one writer at a time on both databases."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, insert, select, text

from flows.store.database import StoreTooNew, StoreUnsupported, migrate, noting, open_store, reading, writing
from flows.store.schema import blob_readers, metadata


def test_migrations_make_exactly_the_tables_of_the_schema(store: Engine) -> None:
    with reading(store) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_again_changes_nothing(store: Engine) -> None:
    migrate(store)


def test_several_processes_may_migrate_at_once(store_url: str) -> None:
    engines = [open_store(store_url) for _ in range(3)]
    failures: list[Exception] = []

    def run(engine: Engine) -> None:
        try:
            migrate(engine)
        except Exception as why:  # noqa: BLE001 - whatever it is, the test must see it
            failures.append(why)

    threads = [threading.Thread(target=run, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert failures == []


def test_several_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Without a second try, one opening in thirty was told that the database is locked."""

    def use(engine: Engine, together: threading.Barrier) -> None:
        together.wait()
        with writing(engine) as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS used (x)"))
        engine.dispose()

    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            together = threading.Barrier(4)
            engines = [open_store(f"sqlite:///{tmp_path}/{number}.db") for _ in range(4)]
            for done in [pool.submit(use, engine, together) for engine in engines]:
                done.result()


def test_a_database_newer_than_the_code_is_refused(store: Engine) -> None:
    with writing(store) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreTooNew, match=r"9999.*start the newer version"):
        migrate(store)


@pytest.mark.parametrize("url", ["mysql://localhost/x", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(StoreUnsupported, match="use sqlite:////"):
        open_store(url)


def test_an_exception_takes_everything_back(store: Engine) -> None:
    with pytest.raises(RuntimeError), writing(store) as connection:  # noqa: PT012 - the rollback is the point
        connection.execute(insert(blob_readers).values(digest="d", party="p"))
        raise RuntimeError
    with reading(store) as connection:
        assert connection.execute(select(blob_readers)).all() == []


def test_a_second_writer_waits_for_the_first(store: Engine) -> None:
    order: list[str] = []

    def second() -> None:
        with writing(store):
            order.append("second")

    with writing(store):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_readers_do_not_wait_for_a_writer_and_see_one_moment(store: Engine) -> None:
    with writing(store) as writer:
        writer.execute(insert(blob_readers).values(digest="d", party="p"))
        with reading(store) as reader:
            assert reader.execute(select(blob_readers)).all() == []


def test_reading_does_not_leave_a_connection_read_only(store: Engine) -> None:
    for _ in range(12):
        with reading(store) as connection:
            connection.execute(select(blob_readers)).all()
    for number in range(3):
        with noting(store) as connection:
            connection.execute(insert(blob_readers).values(digest=f"d{number}", party="p"))


def test_sqlite_syncs_every_receipt_and_no_note(tmp_path: object) -> None:
    engine = open_store(f"sqlite:///{tmp_path}/store.db")
    with writing(engine) as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    with noting(engine) as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 1
    engine.dispose()

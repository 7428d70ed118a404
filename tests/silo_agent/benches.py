"""A workbench whose child is a script, for tests of what is worked on and what is not."""

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

from boundary.canonical import digest
from silo_agent.config import load_config
from silo_agent.workbench import Workbench
from silo_agent.worker import Worker

DIGEST = digest(b"our data")
PATIENTS = {"training": 60, "holdout": 20}
REPORT: dict[str, Any] = {
    "dataset_digest": DIGEST, "problems": [], "patients": PATIENTS, "used": 320, "refused": {"NO_LABEL": 3},
}  # fmt: skip
SCANNED = ("say", {"event": "done", "result": REPORT})
WARM = [("say", {"event": "done", "result": {"parameters": 7}})]


class Relay:
    """Gives models; a test may make it fail."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures, self.asked = list(failures), 0

    async def download(self, _blob: Any, target: Any) -> None:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        target.write_bytes(b"the model")


class Cut(Exception):
    """A connection that failed, in the middle of something."""


def cut() -> NoReturn:
    raise Cut


def kill_myself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Mortal:
    """A connection that dies before its n-th statement; every later one finds it dead, but may be rolled back."""

    def __init__(self, db: sqlite3.Connection, left: int, die: Callable[[], NoReturn] = cut) -> None:
        self._db, self._left, self._die = db, left, die

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if self._left <= 0 and not (self._die is cut and statement.startswith("ROLLBACK")):
            self._die()
        self._left -= 1
        return self._db.execute(statement, *values)

    def executemany(self, statement: str, rows: Iterable[Any]) -> None:
        for row in rows:
            self.execute(statement, row)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


Act = Callable[[Workbench], Coroutine[Any, Any, Any]]


def table_of(site: Any, worker: Any, relay: Relay | None = None) -> Workbench:
    """The parts of a hospital around a worker, as the daemon puts them together."""
    return Workbench(
        load_config(site.folder.root),
        site.folder,
        site.journal,
        site.outbound,
        site.sums,
        worker,
        relay or Relay(),  # type: ignore[arg-type]
        site.own,
        site.permission(),
    )


def bench_of(site: Any) -> Callable[..., Any]:
    """Run an act with a workbench whose child is the named module."""

    def at(module: str, act: Act | None = None, relay: Relay | None = None) -> Any:
        async def work() -> Any:
            worker = Worker(site.folder.root / "child.log", 1, module, patience=0.3)
            table = table_of(site, worker, relay)
            try:
                return await asyncio.wait_for(act(table) if act else table.do_next(), 30)
            finally:
                await worker.stop()

        return asyncio.run(work())

    return at


def approved(site: Any) -> None:
    site.approve()
    report = site.folder.cache / site.study / "report.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"dataset_digest": DIGEST, "patients": {"train": 20}}))


def codes(site: Any) -> list[str]:
    """What was said after the approval; what is said of logs is another matter (`test_witness.py`)."""
    said = [message for message in site.outbox() if message.kind != "heads-cosigned"]
    return [getattr(message, "code", message.kind) for message in said][1:]

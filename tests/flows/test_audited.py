"""No state of the coordinator changes without its entry: every transaction of a study's life, looked at from outside.

What each transaction writes is read off its statements. Whatever is written beside the log has to come with an entry in
the same transaction, unless it is named here, with the reason why nobody has to answer for it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from boundary.names import COORDINATOR
from compliance.witnessing import Contradiction
from flows.driver import StudyDriver
from flows.evidence import issue
from flows.incidents import close
from flows.round_work import RoundWork
from flows.store import studies, witnessed
from flows.store.database import writing
from flows.watch import look
from infra.driving import PARAMETERS, attempts, one_round, run, train_only, work_of
from infra.federation import SimulatedFederation, SimulatedHospital, make_federation

LOG = {"audit INSERT", "tree INSERT"}
UNAUDITED: dict[str, str] = {
    "envelopes INSERT": "a message: it stays here as its sender signed it, and what comes of it has an entry",
    "blobs INSERT": "bytes under their digest; what they are for is in a message or in an entry",
    "blob_readers INSERT": "that a message names a blob, so that who reads the one may read the other",
    "transfers INSERT": "how many bytes went where",
    "silos UPDATE last_seen_at": "signs of life",
    "studies UPDATE driver": "that nobody drives a study any more; that somebody drives it has an entry",
    "studies UPDATE driver_until": "that whoever drives a study goes on; a slow machine sees more of these",
    "alembic_version": "which schema the database has; it holds nothing yet when that changes",
    "rounds UPDATE candidate": "a model that no round rests on yet, and that may still be computed again",
    "published INSERT": "what MLflow was told; it is a display",
    "receipts INSERT": "a hospital's signature, which proves itself; the hospital's log has that it signed",
    "cosignatures INSERT": "a witness's signature, which proves itself; the witness's log has that it looked",
    "shown INSERT": "how much of a log a hospital was told of, in a message",
    "shown UPDATE": "how much of a log a hospital was told of, in a message",
    "entries INSERT": "a hospital's own log, which it has signed",
    "heads INSERT": "a hospital's own head, which it has signed; at the next round an entry says that it was seen",
    "tree INSERT": "a hospital's own log",
}
_WRITES = re.compile(r"\s*(?:INSERT INTO (\w+)|UPDATE (\w+) SET (\w+)|DELETE FROM (\w+))")
_UNDOES = re.compile("(audit|tree|entries|heads|incidents) DELETE|(audit|tree|entries|heads) UPDATE")


class Watched:
    """What each transaction of any store wrote, by table and verb; of updates also the first column."""

    def __init__(self) -> None:
        self.committed: list[set[str]] = []
        self._open: dict[int, set[str]] = {}

    def wrote(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found = _WRITES.match(statement)
        if found:
            inserted, updated, column, deleted = found.groups()
            what = (
                f"{updated} UPDATE {column}" if updated else f"{inserted} INSERT" if inserted else f"{deleted} DELETE"
            )
            self._open.setdefault(id(connection), set()).add(what)

    def ended(self, connection: Any) -> None:
        self.committed.append(self._open.pop(id(connection), set()))

    def undone(self, connection: Any) -> None:
        self._open.pop(id(connection), None)


@contextmanager
def watching() -> Iterator[Watched]:
    log = Watched()
    hooks = (("before_cursor_execute", log.wrote), ("commit", log.ended), ("rollback", log.undone))
    for name, hook in hooks:
        event.listen(Engine, name, hook)
    yield log
    for name, hook in hooks:
        event.remove(Engine, name, hook)


def known(what: str) -> str | None:
    return next((each for each in UNAUDITED if what == each or what.startswith(f"{each} ")), None)


def check(log: Watched) -> None:
    for touched in log.committed:
        silent = {what for what in touched - LOG if known(what) is None}
        assert "audit INSERT" in touched or not silent, f"written without an entry: {sorted(silent)}"
        assert "audit INSERT" not in touched or "tree INSERT" in touched, "an entry is in the tree or it is none"
        assert not any(
            re.match("(audit|tree|entries|heads|incidents) DELETE|(audit|tree) UPDATE", one) for one in touched
        )


# --- lives ---------------------------------------------------------------------------------------------
Life = Callable[[Path], SimulatedFederation]


def federation(home: Path, hospitals: int = 3, **options: Any) -> SimulatedFederation:
    return make_federation(
        home, {f"h{n}": work_of(n) for n in range(1, hospitals + 1)}, parameters=PARAMETERS, **options
    )


def two_rounds_and_the_evidence(home: Path) -> SimulatedFederation:
    made = federation(home, rounds=2)

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        for number in (1, 2):
            await one_round(driver, number)
        assert await driver.witness_end() == ()
        driver.finish("COMPLETED")

    run(made, story)
    issue(made.coordinator, made.plan.label)
    return made


def images_are_counted_first(home: Path) -> SimulatedFederation:
    made = federation(home, normalise="federated")

    async def story(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        _, found = await attempts(work, "statistics", work.model_in, RoundWork.count)
        driver.learn(found)
        await train_only(driver)

    run(made, story)
    return made


def the_lease_is_prolonged(home: Path) -> SimulatedFederation:
    made = federation(home)

    async def story(driver: StudyDriver) -> None:
        with writing(made.coordinator.store) as connection:
            studies.hold(connection, driver.reins, made.coordinator.now(), timedelta(minutes=1))
        await train_only(driver)

    run(made, story)
    return made


def two_of_four_restart(home: Path) -> SimulatedFederation:
    made = federation(home, 4)
    for silo in ("h3", "h4"):
        made.hospitals[silo].fall_silent_before("shares")

    async def story(driver: StudyDriver) -> None:
        made.when_silent({"h3", "h4"}, SimulatedHospital.restart)
        await train_only(driver)

    run(made, story)
    return made


def a_log_is_doubted_and_the_doubt_settled(home: Path) -> SimulatedFederation:
    made = federation(home)
    coordinator = made.coordinator

    async def story(driver: StudyDriver) -> None:
        await one_round(driver)

    with writing(coordinator.store) as connection:
        found = Contradiction(known=None, shown=None)
        witnessed.open_incident(connection, "h1", "LOG_FORKED", found, actor=COORDINATOR, now=coordinator.now())
    close(coordinator, 1, "FALSE_ALARM")
    run(made, story)
    look(coordinator)
    return made


LIVES: dict[str, Life] = {
    one.__name__.replace("_", " "): one
    for one in (
        two_rounds_and_the_evidence, images_are_counted_first, the_lease_is_prolonged, two_of_four_restart,
        a_log_is_doubted_and_the_doubt_settled,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Watched]:
    """What was written in a life, which is lived once for all who ask."""

    @cache
    def live(name: str) -> Watched:
        with pytest.MonkeyPatch.context() as patch, watching() as log:
            patch.setattr("flows.driver.WITNESS_SECONDS", 3.0)
            LIVES[name](tmp_path_factory.mktemp("life")).close()
        return log

    return live


@pytest.mark.parametrize("life", LIVES)
def test_what_is_written_is_written_with_its_entry(life: str, lived: Callable[[str], Watched]) -> None:
    log = lived(life)
    check(log)
    assert sum("audit INSERT" in touched for touched in log.committed) >= 5


def test_what_is_unaudited_is_still_written(lived: Callable[[str], Watched]) -> None:
    """A reason for what no longer happens would hide what happens in its place."""
    written = set[str]().union(*(touched for life in LIVES for touched in lived(life).committed))
    reasons = {known(what) for what in written}
    assert reasons >= set(UNAUDITED), f"never written: {sorted(set(UNAUDITED) - reasons)}"


@pytest.mark.parametrize(
    ("statement", "is_said"),
    [
        ("UPDATE studies SET state=?", True),
        ("UPDATE studies SET driver=NULL", False),
        ("INSERT INTO cohorts (collection) VALUES (?)", True),
        ("DELETE FROM audit WHERE sequence=?", True),
        ("SELECT 1", False),
    ],
)
def test_the_watch_itself(statement: str, *, is_said: bool) -> None:
    log, connection = Watched(), object()
    log.wrote(connection, None, statement)
    log.ended(connection)
    if is_said:
        with pytest.raises(AssertionError):
            check(log)
    else:
        check(log)

"""No state of the hospital changes without its entry: every transaction of a study's life, looked at from outside.

SQLite's own triggers tell which rows a transaction wrote. Whatever is written beside the trail has to come with an
entry in the same transaction, unless it is named here, with the reason why nobody has to answer for it.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from silo_agent_tests_benches import REPORT, bench_of
from silo_agent_tests_one_hospital import OTHERS, SILO, Site, private
from silo_agent_tests_peers import OthersLog

from boundary.canonical import digest
from boundary.messages import StudyClosed
from silo_agent.steward import approve, decline
from silo_agent.witness import close_incident

ALL = (SILO, *OTHERS)
TRAIL = {"trail INSERT", "tree INSERT"}
UNAUDITED: dict[str, str] = {
    "facts inbox cursor": "how far the inbox was read; what it held has entries of its own",
    "facts trail shown": "how much of the trail was shown; it is signed, and the others' logs say that they saw it",
    "facts heads in doubt": "what was shown when an incident was opened, which has an entry",
    "facts worked": "how long a round was worked on, which only ever makes the policy end it sooner",
    "outbox UPDATE": "that something arrived or was withdrawn; that it may leave has its entry",
    "orders INSERT": "an order was accepted: nothing is used or leaves by that, and what is done of it has entries",
    "orders UPDATE": "work was begun anew or given up, as the coordinator says in its own log",
    "heads": "others' heads that fitted where one did not, or one was missing: nothing is cosigned then",
}


class Watched:
    """A connection that knows which tables, and which facts, each transaction wrote."""

    def __init__(self, db: Any) -> None:
        self.db, self.committed = db, list[set[str]]()
        db.execute("CREATE TEMP TABLE touched (what TEXT)")
        for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"):
            for verb, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
                what = f"'facts ' || {row}.name" if table == "facts" else f"'{table} {verb}'"
                db.execute(
                    f"CREATE TEMP TRIGGER {table}_{verb} AFTER {verb} ON main.{table} "  # noqa: S608 - our own names
                    f"BEGIN INSERT INTO touched VALUES ({what}); END"
                )

    def execute(self, statement: str, *values: Any) -> Any:
        done = self.db.execute(statement, *values)
        self._look()
        return done

    def executemany(self, statement: str, rows: Any) -> Any:
        done = self.db.executemany(statement, rows)
        self._look()
        return done

    def _look(self) -> None:
        if not self.db.in_transaction:
            touched = {what for (what,) in self.db.execute("SELECT DISTINCT what FROM touched")}
            self.db.execute("DELETE FROM touched")
            if touched:
                self.committed.append(touched)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


def is_unaudited(what: str) -> bool:
    return any(what.startswith(known) for known in UNAUDITED)


def watched(site: Site) -> Watched:
    site.journal._db = found = Watched(site.journal._db)  # type: ignore[assignment]
    return found


# --- a life ------------------------------------------------------------------------------------------
def a_round(site: Site, number: int) -> None:
    site.revealed(number)
    site.hear(site.committed(number, contributing=ALL))


def fails_and_tries_again(site: Site) -> None:
    site.shared(1, attempt=1)
    site.restart()
    watched(site)
    a_round_of_attempt(site, 2)


def a_round_of_attempt(site: Site, attempt: int) -> None:
    site.revealed(1, attempt=attempt)


def is_left_out(site: Site) -> None:
    kept = site.ready(1)
    site.hear(site.closing(kept, members=OTHERS, absent=(SILO,)))


def sees_a_fork(site: Site) -> None:
    site.witnessed(0)
    told = site.heads(1, grow=0)
    lie = OthersLog("charite", site.logs["charite"].key)
    lie.grow(2, "forged")
    others = tuple(head for head in told.heads if head.checkpoint.log != "charite")
    site.hear(told.model_copy(update={"heads": (*others, lie.shown())}))
    site.ordered(1)
    close_incident(site.journal, 1, site.now)


def sees_less(site: Site) -> None:
    site.witnessed(0)
    told = site.heads(1)
    site.hear(told.model_copy(update={"heads": told.heads[1:]}))


def refuses(site: Site) -> None:
    site.ordered(1, model=site.order().model.model_copy(update={"digest": digest(b"x")}))
    site.ordered(1, attempt=2)
    site.now += timedelta(days=9)
    site.ordered(2, due=site.now)


def stops(site: Site) -> None:
    site.ready(1)
    decline(site.journal, site.outbound, site.study, "stop")


def ends(site: Site) -> None:
    site.masked(1)
    site.hear(StudyClosed(study=site.study, code="COMPLETED"))


LIVES: dict[str, Callable[[Site], None]] = {
    "two rounds": lambda site: (a_round(site, 1), a_round(site, 2))[0],
    "a round that is tried again after a restart": fails_and_tries_again,
    "a round without us": is_left_out,
    "somebody's log is forked": sees_a_fork,
    "somebody's log is no longer shown": sees_less,
    "orders that are refused": refuses,
    "a steward who says no": stops,
    "the end": ends,
}


@pytest.mark.parametrize("live", LIVES.values(), ids=LIVES)
def test_what_is_written_is_written_with_its_entry(site: Site, live: Callable[[Site], None]) -> None:
    log = watched(site)
    site.propose()
    site.journal._db = log.db  # type: ignore[assignment] - a scan of the tests' own making
    site.scanned()
    site.journal._db = log  # type: ignore[assignment]
    approve(site.journal, site.folder, site.outbound, site.study, "data_steward", "a test")
    live(site)
    check(log)
    assert len(log.committed) > 3
    assert any("trail INSERT" in touched for touched in log.committed)


def check(log: Watched) -> None:
    for touched in log.committed:
        silent = {what for what in touched - TRAIL if not is_unaudited(what)}
        assert "trail INSERT" in touched or not silent, f"written without an entry: {sorted(silent)}"
        assert ("trail INSERT" in touched) is ("tree INSERT" in touched), "an entry is in the tree or it is none"
        assert not {"trail UPDATE", "trail DELETE", "tree UPDATE", "tree DELETE"} & touched, "and it stays what it is"


PRIVATELY = [("vector", [4 + 10, 7]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})]


def test_work_is_begun_paid_for_and_finished_with_its_entries(
    make_site: Callable[..., Site], impatient: Any, stub_child: Any
) -> None:
    site = make_site(most_patients=100, changes=private())
    impatient(site.folder)
    log = watched(site)
    site.propose()
    scan = [("say", {"event": "done", "result": REPORT})]
    cost = [("say", {"event": "done", "result": {"epsilon": 0.6, "upper": 0.7}})]
    (site.folder.cache / site.study).mkdir(exist_ok=True)
    bench_of(site)(stub_child(scan=scan, cost=cost))
    approve(site.journal, site.folder, site.outbound, site.study, "data_steward", "a test")
    site.ordered(1)
    bench_of(site)(stub_child(scan=scan, train=PRIVATELY))
    check(log)
    written = set().union(*log.committed)
    assert {"budget INSERT", "budget UPDATE", "plans UPDATE", "orders UPDATE", "outbox INSERT", *TRAIL} <= written


def test_what_is_unaudited_is_still_written(make_site: Callable[..., Site]) -> None:
    """A reason for what no longer happens would hide what happens in its place."""
    written = set[str]()
    for live in LIVES.values():
        site = make_site()
        log = watched(site)
        site.approve()
        live(site)
        written = written.union(*log.committed)
    site = make_site()
    log = watched(site)
    site.approve()
    site.permission().worked(site.ordered(1), 1.0)
    written = written.union(*log.committed)
    assert all(any(what.startswith(known) for what in written) for known in UNAUDITED)

"""Kill -9 at every step of reserve, train, commit and release never leaves less spent than was released.

The agent's own parts over its journal file. Only the child is not real: it "trains" in no time, to a result that
nobody has seen before, or dies, or its agent is killed meanwhile. A result counts as released as soon as it is kept,
or announced as ready: from then on it may go into a sum.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from silo_agent_tests_benches import Mortal, approved, kill_myself, table_of
from silo_agent_tests_one_hospital import PARAMETERS, Site, made_impatient, private

from compliance.accountant import epsilon
from compliance.events import BudgetCommitted, BudgetReserved
from compliance.privacy import PoissonGaussian
from compliance.trail import read_leaf
from silo_agent.errors import WorkFailed
from silo_agent.results import StoredResult, forget_result
from silo_agent.workbench import is_whole

ROUND = PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.1, steps=5)
DELTA = 1e-3
NUMBERS = 6  # weight, clipped, four bands
OUTCOMES = ("trains", "trains", "trains", "dies before", "dies after", "killed before", "killed after", "disk fails")
STATEMENTS = 45  # or so: what the agent says to SQLite from an order to its announcement
read = lru_cache(maxsize=1000)(read_leaf)


class Killed(BaseException):
    """The process is gone. Nothing of it runs any more, no handler and no rollback."""


def vanish() -> NoReturn:
    raise Killed


class Child:
    """In the place of the worker and its child. `asked` hears of every training before it begins."""

    pid = None

    def __init__(
        self, outcome: str, marker: int, asked: Callable[[int], None], die: Callable[[], NoReturn] = vanish
    ) -> None:
        self.outcome, self.marker, self.asked, self.die = outcome, marker, asked, die

    async def run(self, command: dict[str, Any], _on_progress: object) -> dict[str, Any]:
        if command["do"] != "train":
            return {}
        self.asked(self.marker)
        self._end("before")
        out = Path(command["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        in_the_way = out.with_name("result.json.new")
        if in_the_way.is_dir():
            in_the_way.rmdir()
        if self.outcome == "disk fails":  # when the result's description is written
            in_the_way.mkdir()
        out.write_bytes(self.marker.to_bytes(8, "little") * NUMBERS + bytes(4 * PARAMETERS))
        self._end("after")
        return {"parameters": PARAMETERS, "metrics": 0}

    def _end(self, when: str) -> None:
        if self.outcome == f"dies {when}":
            raise WorkFailed("CHILD_DIED", "exit status 1", retryable=True)
        if self.outcome == f"killed {when}":
            self.die()


def careful_site(root: Path, **caps: float) -> Site:
    site = Site(root, most_patients=100, changes=private())
    site.allow(**caps)
    made_impatient(site.folder)
    approved(site)
    return site


def on_the_disk(site: Site) -> tuple[list[tuple[str, str]], list[Any]]:
    """Ledger and trail as another process finds them: nothing that is not committed counts."""
    with closing(sqlite3.connect(site.folder.journal)) as db:
        rows = db.execute("SELECT slot, state FROM budget WHERE study = ? ORDER BY position", (site.study,)).fetchall()
        leaves = db.execute("SELECT leaf FROM trail ORDER BY sequence").fetchall()
    return rows, [read(leaf).event for (leaf,) in leaves]


def kept_results(site: Site) -> set[int]:
    """The markers of results that are there to be summed, now or in a later attempt."""
    folders = [one for one in (site.folder.work / site.study).glob("*-train-*") if is_whole(one)]
    return {int.from_bytes(StoredResult.load(one).vector.read_bytes()[:8], "little") for one in folders}


def check(site: Site, trained: dict[int, str], released: set[int], cap: float) -> None:
    """The laws. `trained` is in which slot each result was trained, as far as its child came."""
    rows, events = on_the_disk(site)
    slots = [slot for slot, _ in rows]
    assert len(released) <= len(rows), "more was released than was spent"
    assert {trained[marker] for marker in released} <= set(slots), "a release without its reservation"
    assert len({trained[marker] for marker in released}) == len(released), "two results for one reservation"
    committed = [slot for slot, state in rows if state == "committed"]
    assert set(committed) <= {trained[marker] for marker in released}, "what was never kept is said to be kept"
    assert len([one for one in events if isinstance(one, BudgetReserved)]) == len(rows)
    assert len([one for one in events if isinstance(one, BudgetCommitted)]) == len(committed)
    assert epsilon([ROUND] * len(rows), DELTA) <= cap


_SUBTREES = 12


class KilledAtAnyTime(RuleBasedStateMachine):
    """Orders, work, deaths and restarts in any order."""

    @initialize(cap=st.sampled_from([0.5, 0.6, 0.9, 8.0]))  # one training, two, five, more than there will be
    def start(self, cap: float) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.cap = cap
        self.site = careful_site(self.root / "state", study_epsilon=cap)
        self.trained: dict[int, str] = {}
        self.released: set[int] = set()
        self.markers = count(1)
        self.at, self.attempt = 1, 0

    def _order(self, wanted: str) -> None:
        match wanted:
            case "another attempt":
                self.attempt += 1
            case "the next round":
                self.at, self.attempt = self.at + 1, 1
            case _:
                return
        self.site.ordered(self.at, attempt=self.attempt)

    def _asked(self, marker: int) -> None:
        """The child is about to train: its own reservation must be on the disk by now."""
        rows, _ = on_the_disk(self.site)
        slot, state = rows[-1]
        assert slot not in self.trained.values(), "a training without a reservation of its own"
        assert state == "reserved"
        self.trained[marker] = slot

    @rule(  # one rule: Hypothesis leaves some of several out, and most runs would do nothing
        wanted=st.sampled_from(["another attempt", "another attempt", "the next round", "what there is"]),
        kill_at=st.none() | st.integers(0, STATEMENTS),
        outcome=st.sampled_from(OUTCOMES),
        then=st.sampled_from(["nothing", "nothing", "a restart", "another sum"]),
    )
    def work(self, wanted: str, kill_at: int | None, outcome: str, then: str) -> None:
        if not (wanted == "the next round" and self.at == 3):
            self._order(wanted)
        site, db = self.site, self.site.journal._db
        if kill_at is not None:
            site.journal._db = Mortal(db, kill_at, vanish)  # type: ignore[assignment]
        try:
            asyncio.run(table_of(site, Child(outcome, next(self.markers), self._asked)).do_next())
        except Killed:
            event("killed")
            db.close()  # without a word: what was not committed is gone
            site.open()
        else:
            site.journal._db = db
        self.released |= kept_results(site)
        if then == "a restart":
            site.restart()
        elif then == "another sum":
            self._unmasked_in_another_sum()

    def _unmasked_in_another_sum(self) -> None:
        """RESULT_SPENT: no result may be summed again, and the next attempt has it trained anew."""
        for kept in self.site.journal.orders_of(self.site.study):
            if kept.result is not None:
                forget_result(Path(kept.result))

    @invariant()
    def never_less_spent_than_released(self) -> None:
        if hasattr(self, "site"):
            self.released |= kept_results(self.site)
            check(self.site, self.trained, self.released, self.cap)

    def teardown(self) -> None:
        if hasattr(self, "site"):
            event(f"released: {len(self.released)}")
            self.site.journal.close()
            shutil.rmtree(self.root)


TestKilledAtAnyTime = KilledAtAnyTime.TestCase
TestKilledAtAnyTime.settings = settings(
    max_examples=int(os.environ.get("WARDROUND_EXAMPLES", "50")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# --- and truly killed --------------------------------------------------------------------------------
@dataclass
class Deaths:
    """One hospital whose agent is killed with SIGKILL in one attempt after the other, and started again."""

    site: Site
    note: Path  # in which slot the last child trained
    trained: dict[int, str] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)
    attempts: int = 0

    def work_and_die(self, at: int, outcome: str) -> tuple[int, str]:
        """The wait status of an agent that dies before its statement number `at`, and what it came to."""
        self.attempts += 1
        self.site.ordered(1, attempt=self.attempts)
        before = len(on_the_disk(self.site)[0])
        status = self._in_a_process(at, outcome)
        rows, is_asked = on_the_disk(self.site)[0], self.note.exists()
        if is_asked:
            self.trained[self.attempts] = self.note.read_text()
            self.note.unlink()
        self.look()
        if len(rows) == before:
            assert not is_asked, "trained without a reservation"
            return status, "nothing was reserved"
        return status, rows[-1][1]

    def _in_a_process(self, at: int, outcome: str) -> int:
        site = self.site
        site.journal.close()
        process = os.fork()
        if process == 0:
            try:
                site.open()
                site.journal._db = Mortal(site.journal._db, at, kill_myself)  # type: ignore[assignment]
                child = Child(outcome, self.attempts, lambda _: self._write(), kill_myself)
                asyncio.run(table_of(site, child).do_next())
                os._exit(0)
            except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in a second pytest
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        site.open()
        return status

    def _write(self) -> None:
        self.note.write_text(on_the_disk(self.site)[0][-1][0])

    def start_again(self) -> None:
        """The agent does what there is to do; then the result is asked for in another sum."""
        marker = 1000 + self.attempts
        child = Child("trains", marker, lambda _: self.trained.update({marker: on_the_disk(self.site)[0][-1][0]}))
        asyncio.run(table_of(self.site, child).do_next())
        kept = Path(self.site.kept(1, attempt=self.attempts).result or "")
        assert is_whole(kept)
        self.look()
        forget_result(kept)

    def look(self) -> None:
        self.released |= kept_results(self.site)
        check(self.site, self.trained, self.released, 100.0)


def test_sigkill_at_any_instant_never_leaves_less_spent_than_was_released(tmp_path: Path) -> None:
    site = careful_site(tmp_path / "state", study_epsilon=100.0, lifetime_epsilon=1000.0)
    deaths, came_to, status = Deaths(site, tmp_path / "note"), list[str](), int(signal.SIGKILL)
    while status == signal.SIGKILL:
        status, came = deaths.work_and_die(deaths.attempts, "trains")
        came_to.append(came)
        deaths.start_again()
    assert (status, came_to[-1]) == (0, "committed")
    far = [["nothing was reserved", "reserved", "committed"].index(came) for came in came_to]
    # an entry completes more or fewer subtrees of the log, each a statement: deaths may lie so many steps apart
    assert all(before <= after for before, after in zip(far, far[_SUBTREES:], strict=False))
    assert set(Counter(came_to)) == {"nothing was reserved", "reserved", "committed"}
    for outcome in ("killed before", "killed after"):
        assert deaths.work_and_die(1000, outcome) == (signal.SIGKILL, "reserved")
        deaths.start_again()
    assert len(deaths.released) == deaths.attempts, "each attempt came to its end, with one result"
    site.journal.close()

"""The daemon: it dials, waits and works, whatever the relay, the child, the disk and the steward do meanwhile."""

import asyncio
import base64
import json
import logging
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from boundary.canonical import canonical_bytes, digest
from boundary.identity import SigningIdentity
from boundary.layout import layout_for
from boundary.messages import (
    AgreementShown,
    BlobRef,
    CohortClosed,
    Collection,
    PlanProposed,
    RoundCommitted,
    SharesRouted,
    StudyClosed,
    SurvivorsNamed,
    WorkOrder,
)
from boundary.plan import digest_of, study_id
from boundary.receipt import Receipt
from boundary.secagg.context import transcript_of
from boundary.secagg.ring import first_encoding
from flows.admission import renew_roster
from flows.authority import Authority
from flows.store import members
from flows.store.database import reading
from silo_agent.certificate import Certificate
from silo_agent.daemon import CONTACT, Agent, Surroundings
from silo_agent.journal import Journal
from silo_agent.outbound import Outbound
from silo_agent.state import StateFolder
from silo_agent.steward import approve, decline
from silo_agent.worker import Worker

DIGEST = digest(b"our data")
REPORT = {
    "dataset_digest": DIGEST, "problems": [], "patients": {"training": 4, "holdout": 2}, "used": 9, "refused": {},
}  # fmt: skip
SCAN = [("say", {"event": "done", "result": REPORT})]
WARM = [("say", {"event": "done", "result": {"parameters": 7}})]
TRAIN = [("vector", [4, 7]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})]
MODEL = BlobRef(digest=digest(b"the model"), size=9)
PURPOSE = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
PROGRESS = ("say", {"event": "progress", "step": 1, "steps": 9})
FIRST = ("plan-approved", "heads-cosigned")
SAID = ("ready", "shares", "masked-vector", "survivors-seen", "shares-revealed")  # in a masked sum
NO_NEWS = b'{"deliveries": [], "roster_version": 1}'


def real_clock() -> datetime:
    return datetime.now(UTC)


# --- as a process ------------------------------------------------------------------------------------
class Daemon:
    """`silo-agent run`, as systemd starts it."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder, self.started = folder, time.monotonic()
        self.process = subprocess.Popen(
            [Path(sys.executable).parent / "silo-agent", "run", "--state", folder.root],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return self.folder.log.read_text() if self.folder.log.exists() else ""

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """(exit code, standard error)"""
        if self.process.poll() is None:
            self.process.send_signal(how)
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, said


@pytest.fixture
def start() -> Iterator[Callable[[StateFolder], Daemon]]:
    made: list[Daemon] = []

    def begin(folder: StateFolder) -> Daemon:
        made.append(Daemon(folder))
        return made[-1]

    yield begin
    for daemon in made:
        daemon.end(signal.SIGKILL)


def test_it_starts_dials_and_ends_when_it_is_told(
    federation: Any, tmp_path: Path, start: Any, until: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = federation.enrolled(tmp_path / "state", "on-time")
    daemon = start(folder)
    until(lambda: heard_of(federation, folder))
    took = time.monotonic() - daemon.started
    memory = psutil.Process(daemon.process.pid).memory_info().rss / 1e6
    second = start(folder)
    assert second.process.wait(20) == 2
    assert "another silo-agent already runs" in second.end()[1]
    asked = time.monotonic()
    assert daemon.end() == (0, "")
    stopped = time.monotonic() - asked
    with capsys.disabled():
        print(f"\n  daemon: first contact after {took:.1f} s, {memory:.0f} MB resident, ended in {stopped:.2f} s")  # noqa: T201
    assert memory < 80
    assert stopped < 3
    assert daemon.log.rstrip().endswith("stopped cleanly")
    assert folder.log.stat().st_mode & 0o777 == 0o600


def heard_of(federation: Any, folder: StateFolder) -> bool:
    """Has the relay heard a heartbeat of it?"""
    key = folder.identity.public.text
    with reading(federation.coordinator.store) as connection:
        return any(m.card.signing_key == key and m.heartbeat is not None for m in members.members(connection))


IMPORTED = """
import asyncio, os, secrets, signal, sys
from datetime import UTC, datetime
from pathlib import Path
import silo_agent.cli
from silo_agent.config import load_config
from silo_agent.daemon import Agent, Surroundings
from silo_agent.outbound import Outbound
from silo_agent.state import StateFolder
from silo_agent.worker import Worker
async def live():
    asyncio.get_running_loop().call_later(1.0, os.kill, os.getpid(), signal.SIGTERM)
    await agent.run()
state = Path(sys.argv[1])
folder, config = StateFolder(state), load_config(state)
agent = Agent(config, folder, Surroundings(lambda: datetime.now(UTC), secrets.token_bytes, "0.1.0"),
              Worker(folder.root / "child.log", 1))
asyncio.run(live())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_living_daemon_has_nothing_heavy_in_it(site: Any, hostile: Any, authority: Any) -> None:
    site.enrol_offline(hostile.url, authority)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, site.folder.root], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"torch", "monai", "prefect", "mlflow", "sqlalchemy", "fastapi", "pydicom", "opacus", "numpy", "flows"}
    assert heavy & set(done.stdout.split()) == set()


def forged(site: Any) -> bytes:
    site.coordinator.key = SigningIdentity.generate()
    return inbox(site.coordinator.says(site.order()).data)


def other_roster(site: Any) -> bytes:
    site.coordinator.key = SigningIdentity.generate()
    return b'{"deliveries": [], "roster_version": 2}'


def inbox(*envelopes: bytes, first: int = 1) -> bytes:
    deliveries = [
        {"sequence": number, "envelope": base64.b64encode(data).decode()}
        for number, data in enumerate(envelopes, start=first)
    ]
    return json.dumps({"deliveries": deliveries, "roster_version": 1}).encode()


STOPS: dict[str, tuple[Callable[[Any], bytes], int, str]] = {
    "a message that our coordinator did not sign": (forged, 4, "compare the coordinator's"),
    "a roster that our coordinator did not sign": (other_roster, 4, "compare the coordinator's"),
    "a protocol that this agent no longer speaks": (
        lambda _: b'{"deliveries": [], "roster_version": 1, "upgrade": "agent"}',
        5,
        "blocked: upgrade",
    ),
}


@pytest.mark.parametrize(("answer", "code", "says"), STOPS.values(), ids=STOPS)
def test_what_stops_the_agent_for_good(
    site: Any, hostile: Any, authority: Any, start: Any, answer: Callable[[Any], bytes], code: int, says: str
) -> None:  # fmt: skip
    site.enrol_offline(hostile.url, authority)
    hostile.answers["/v1/poll"] = answer(site)
    hostile.answers["/v1/roster"] = site.coordinator.roster(*site.cards, version=2).data
    daemon = start(site.folder)
    assert daemon.process.wait(20) == code
    (line,) = daemon.end()[1].splitlines()
    assert says in line
    assert f"CRITICAL silo_agent the agent stops: {line.removeprefix('silo-agent: ')}" in daemon.log


def test_a_server_of_another_ca_stops_it(site: Any, hostile: Any, authority: Any, start: Any, tmp_path: Path) -> None:
    site.enrol_offline(hostile.url, authority)
    site.folder.relay_ca.write_text(Authority.create("x", clock=real_clock, entropy=os.urandom).pem)
    daemon = start(site.folder)
    assert daemon.process.wait(20) == 4


# --- in this process, with a scripted child ----------------------------------------------------------
Act = Callable[[Agent], Awaitable[Any]]


@pytest.fixture
def live(stub_child: Any) -> Callable[..., Any]:
    """Run an agent while `act` does its part, then end it."""

    def run(folder: StateFolder, config: Any, act: Act, **script: Any) -> Any:
        module = stub_child(**({"scan": SCAN, "warm": WARM, "train": TRAIN} | script))

        async def both() -> Any:
            world = Surroundings(real_clock, secrets.token_bytes, "0.1.0")
            agent = Agent(config, folder, world, Worker(folder.root / "child.log", 1, module, patience=0.5))
            life = asyncio.create_task(agent.run())
            try:
                acting = asyncio.create_task(act(agent))
                await asyncio.wait([acting, life], return_when=asyncio.FIRST_COMPLETED, timeout=60)
                if life.done():
                    life.result()
                return acting.result()
            finally:
                life.cancel()
                with suppress(asyncio.CancelledError):
                    await life

        return asyncio.run(both())

    return run


@pytest.fixture
def facing(make_site: Any, hostile: Any, authority: Any) -> Any:
    """A site with the real clock, enrolled at the hostile relay; `config` is its configuration."""
    site = make_site(now=real_clock())
    site.config = site.enrol_offline(hostile.url, authority, heartbeat=0.2)
    hostile.answers["/v1/poll"] = NO_NEWS
    hostile.answers["/v1/heartbeat"] = b""
    return site


RESTLESS: dict[str, Callable[[Any], bytes]] = {
    "nothing, at once": lambda _: NO_NEWS,
    "the same message again and again": lambda site: inbox(site.coordinator.says(site.proposal).data),
    "messages that lie behind us": lambda site: inbox(*[site.coordinator.says(site.proposal).data] * 3),
    "the promise of a roster that is the old one": lambda _: b'{"deliveries": [], "roster_version": 9}',
}


@pytest.mark.parametrize("answer", RESTLESS.values(), ids=RESTLESS)
def test_a_relay_that_answers_at_once_is_not_asked_at_once(
    facing: Any, hostile: Any, live: Any, answer: Callable[[Any], bytes]
) -> None:
    """Found by attack: the agent polled thousands of times a second."""
    facing.proposal = PlanProposed(study=facing.study, plan=facing.plan)
    hostile.answers["/v1/poll"] = answer(facing)
    hostile.answers["/v1/roster"] = facing.signed_roster.data

    async def a_second(_agent: Agent) -> None:
        await asyncio.sleep(1)

    live(facing.folder, facing.config, a_second)
    assert 2 <= hostile.asked["/v1/poll"] <= 10
    assert len(facing.journal.plans()) <= 1


def test_what_is_no_answer_of_a_relay_is_trouble_until_it_is_over(
    facing: Any, hostile: Any, live: Any, until_async: Any
) -> None:
    """Found by attack: one malformed answer ended the agent with a traceback."""
    hostile.answers["/v1/poll"] = b'{"deliveries": "all of them", "roster_version": true}'

    async def act(agent: Agent) -> None:
        await until_async(lambda: agent.journal.fact("trouble listen"))
        hostile.answers["/v1/poll"] = NO_NEWS
        await until_async(lambda: not agent.journal.fact("trouble listen"))
        assert agent.journal.fact(CONTACT)

    live(facing.folder, facing.config, act)


@pytest.mark.parametrize(
    "why", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk is full"), ZeroDivisionError("x")]
)
def test_a_full_disk_or_a_defect_does_not_end_it(
    facing: Any, hostile: Any, live: Any, until_async: Any, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, why: Exception,
) -> None:  # fmt: skip
    """Found by reading: any OSError ended the agent, and after the restart the same delivery ended it again."""
    hostile.answers["/v1/poll"] = inbox(
        facing.coordinator.says(PlanProposed(study=facing.study, plan=facing.plan)).data
    )
    real, failures = Journal.keep_plan, [why, why]

    def failing(journal: Journal, *arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return real(journal, *arguments)

    monkeypatch.setattr(Journal, "keep_plan", failing)

    async def act(agent: Agent) -> None:
        await until_async(agent.journal.plans)

    live(facing.folder, facing.config, act)
    assert "an unexpected error" in caplog.text


def test_it_ends_even_if_a_library_swallows_the_cancellation(facing: Any, hostile: Any, live: Any) -> None:
    """Found by a test that hung: `asyncio.wait_for` of Python 3.11 does so now and then."""
    swallowed: list[bool] = []

    async def act(agent: Agent) -> None:
        async def deaf() -> bool:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(True)
            return True

        agent._bench = type("Deaf", (), {"do_next": staticmethod(deaf), "activity": None})()  # type: ignore[assignment]
        await asyncio.sleep(0.5)

    live(facing.folder, facing.config, act)
    assert swallowed == [True]


def test_a_steward_who_takes_long_at_the_journal_is_waited_for(facing: Any, hostile: Any, live: Any) -> None:
    """A `silo-agent` command in another process holds the journal for a second."""
    holder = (
        "import sqlite3, sys, time; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('BEGIN IMMEDIATE'); time.sleep(1)"
    )

    async def act(agent: Agent) -> None:
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", holder, facing.folder.journal)
        await other.wait()
        before = hostile.asked["/v1/poll"]
        await asyncio.sleep(1.5)
        assert hostile.asked["/v1/poll"] > before
        assert not agent.journal.fact("trouble listen")

    live(facing.folder, facing.config, act)


def test_a_newer_roster_is_taken_before_the_messages_that_came_with_it(
    facing: Any, hostile: Any, live: Any, until_async: Any
) -> None:
    """The old one has expired; the order is bound to the new one."""
    facing.approve()
    expired = facing.coordinator.roster(*facing.cards, expires=real_clock() - timedelta(days=1))
    facing.journal.set_fact("roster", expired.data)
    newer = facing.coordinator.roster(*facing.cards, version=2, expires=real_clock() + timedelta(days=9))
    order = facing.coordinator.says(facing.order(roster_digest=newer.digest)).data
    hostile.answers["/v1/roster"] = newer.data
    hostile.answers["/v1/poll"] = inbox(order, first=100).replace(b'"roster_version": 1', b'"roster_version": 2')

    async def act(agent: Agent) -> None:  # an order that was refused on arrival is never started
        await until_async(lambda: (kept := agent.journal.order(str(facing.collection()))) and kept.starts)

    live(facing.folder, facing.config, act, train=[("sleep", 30)])
    assert facing.kept().starts == 1
    assert facing.journal.fact("roster") == newer.data


# --- the outbox --------------------------------------------------------------------------------------
def posts(hostile: Any, refuse: Callable[[dict[str, Any]], tuple[int, bytes] | None]) -> list[str]:
    """Collect kinds of posted envelopes; `refuse` may answer instead."""
    posted: list[str] = []

    def take(_handler: Any, body: bytes) -> tuple[int, bytes]:
        content = json.loads(body)
        answer = refuse(content)
        if answer is None:
            posted.append(content["kind"])
        return answer or (200, b"{}")

    hostile.answers["/v1/envelopes"] = take
    return posted


def refusal(code: str, status: int = 409) -> tuple[int, bytes]:
    return status, json.dumps({"code": code, "message": "no"}).encode()


def test_a_parcel_that_is_not_taken_now_holds_up_no_other_and_is_kept(
    facing: Any, hostile: Any, live: Any, until_async: Any
) -> None:
    """Found by reading: the first parcel that the relay put off blocked the outbox for all studies."""
    facing.approve()
    facing.outbound.refuse(facing.ordered(), facing.collection(), "NO_IMAGES", "a test", retryable=False)
    busy = [refusal("UPLOAD_QUOTA", 429), refusal("REPLAYED"), refusal("UNKNOWN_MEMBER", 403)]
    posted = posts(hostile, lambda content: busy.pop() if content["kind"] == "plan-approved" and busy else None)

    async def act(agent: Agent) -> None:
        await until_async(lambda: not agent.journal.waiting())

    live(facing.folder, facing.config, act)
    assert posted == ["heads-cosigned", "refused", "plan-approved"]
    assert [state for _, _, state, _ in facing.journal.left()] == ["acknowledged"] * 3


def test_what_can_never_be_taken_is_given_up_and_told(facing: Any, hostile: Any, live: Any, until_async: Any) -> None:
    facing.approve()
    posts(hostile, lambda _: refusal("SLOT_TAKEN"))

    async def act(agent: Agent) -> None:
        await until_async(lambda: not agent.journal.waiting())

    live(facing.folder, facing.config, act)
    assert [(state, kind) for _, kind, state, _ in facing.journal.left()] == [("rejected", "plan-approved")]


def test_a_masked_vector_is_removed_when_it_was_taken_and_not_before(
    facing: Any, hostile: Any, live: Any, until_async: Any
) -> None:
    facing.approve()
    facing.revealed()
    masked = Path(facing.parcel("masked-vector").blob_path)
    complete = canonical_bytes({"digest": digest(masked.read_bytes()), "offset": 60, "complete": True})
    hostile.answers["/v1/blobs/"] = complete
    there: list[bool] = []

    def note(content: dict[str, Any]) -> None:
        there.append(masked.exists())

    posted = posts(hostile, note)

    async def act(agent: Agent) -> None:
        await until_async(lambda: not agent.journal.waiting())
        await until_async(lambda: not masked.exists())

    live(facing.folder, facing.config, act)
    assert posted == [*FIRST, *SAID]
    assert there == [True] * 5 + [False] * 2
    assert masked.with_name("vector").exists(), "the result stays for another attempt"


def test_a_vector_that_was_lost_does_not_end_the_agent(facing: Any, hostile: Any, live: Any, until_async: Any) -> None:
    """Found by reading: it ended it, and again after every restart."""
    facing.approve()
    facing.revealed()
    Path(facing.parcel("masked-vector").blob_path).unlink()
    posted = posts(hostile, lambda _: None)

    async def act(agent: Agent) -> None:
        await until_async(lambda: not agent.journal.waiting())

    live(facing.folder, facing.config, act)
    assert posted == [*FIRST, *(kind for kind in SAID if kind != "masked-vector")]
    states = {kind: state for _, kind, state, _ in facing.journal.left()}
    assert [kind for kind, state in states.items() if state != "acknowledged"] == ["masked-vector"]
    assert states["masked-vector"] == "rejected"


def test_an_agent_that_starts_again_in_the_middle_of_a_sum_says_so(
    facing: Any, hostile: Any, live: Any, until_async: Any
) -> None:
    facing.approve()
    facing.shared()
    posted = posts(hostile, lambda _: None)

    async def act(agent: Agent) -> None:
        await until_async(lambda: not agent.journal.waiting())

    live(facing.folder, facing.config, act)
    assert posted == [*FIRST, "ready", "shares", "refused"]
    assert facing.outbox()[-1].code == "KEYS_LOST"


# --- certificates ------------------------------------------------------------------------------------
def test_the_log_warns_before_the_certificate_ends_and_a_renewed_one_is_used_without_a_restart(
    facing: Any, hostile: Any, authority: Any, live: Any, until_async: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "silo_agent")

    async def act(agent: Agent) -> None:
        for days, says in ((29, "28 days left"), (13, "12 days left"), (6, "5 days left"), (-1, "EXPIRED")):
            agent._certificate = Certificate(real_clock() + timedelta(days=days))
            await until_async(lambda says=says: says in caplog.text)
        await asyncio.sleep(0.5)
        facing.enrol_offline(hostile.url, authority)
        await until_async(lambda: "the new certificate is in use: valid until" in caplog.text)
        assert agent._certificate.stage(real_clock()) is None
        (facing.folder.tls_certificate).write_bytes(b"no certificate")
        await until_async(lambda: "the old certificate stays in use" in caplog.text)

    live(facing.folder, facing.config, act)
    warnings = [record for record in caplog.records if "our TLS certificate" in record.message]
    assert len(warnings) == 4, "each stage once, and once a day in the last week"


# --- a real relay ------------------------------------------------------------------------------------
def test_heartbeats_go_on_while_the_child_works(facing: Any, hostile: Any, live: Any, until_async: Any) -> None:
    facing.plan = facing.plan.model_copy(
        update={"purpose": facing.plan.purpose.model_copy(update={"expires": datetime(2099, 1, 1, tzinfo=UTC).date()})}
    )
    facing.study = study_id(facing.plan)
    facing.approve()
    (facing.folder.cache / facing.study).mkdir()
    (facing.folder.cache / facing.study / "report.json").write_text(
        json.dumps({"dataset_digest": DIGEST, "patients": {"train": 20}})
    )
    facing.ordered(model=MODEL)
    hostile.answers["/v1/blobs/"] = b"the model"
    beats: list[Any] = []

    def beat(_handler: Any, body: bytes) -> tuple[int, bytes]:
        beats.append(json.loads(body)["activity"])
        return 200, b""

    hostile.answers["/v1/heartbeat"] = beat

    async def act(_agent: Agent) -> None:
        await until_async(lambda: sum(1 for activity in beats if activity and activity["step"] == 1) >= 3)

    live(
        facing.folder, facing.config, act,
        train=[("say", {"event": "progress", "step": 7, "steps": 40}), ("sleep", 30)],
    )  # fmt: skip
    assert {"study": facing.study, "round": 1, "phase": "train", "step": 1, "steps": 10} in beats
    assert {activity["steps"] for activity in beats if activity} <= {0, 10}, "40 steps tell how many images there are"


def outbound_of(folder: StateFolder, journal: Journal) -> Outbound:
    """What a `silo-agent plan` command makes for itself."""
    return Outbound(journal._silo, folder.identity, journal, real_clock, secrets.token_bytes, "0.1.0")


def steps_of(attempt: Any, cohort: tuple[str, ...], order: str) -> tuple[tuple[str, Callable[[], Any]], ...]:
    """(the answer that is waited for, what the coordinator says)"""
    about = {"collection": attempt.collection, "order": order}
    return (
        ("shares", lambda: CohortClosed(**about, members=cohort, absent=(), ready=attempt.closed(cohort))),
        ("masked-vector", lambda: SharesRouted(**about, members=cohort, parts=attempt.routed(cohort))),
        ("survivors-seen", lambda: SurvivorsNamed(**about, vectors=attempt.named(cohort))),
        ("shares-revealed", lambda: AgreementShown(**about, seen=attempt.shown(cohort))),
    )


def all_ones(exponent: int) -> Any:
    """What the child of `TRAIN` writes, encoded; none of its weights had to be clipped."""
    numbers, weights = np.array([1, 1, 1, 0]) << 24, np.full(7, 1 << exponent)
    return np.frombuffer(numbers.astype("<u8").tobytes() + weights.astype("<u4").tobytes(), np.uint8)


def test_a_round_through_a_real_relay_that_goes_away_in_the_middle(  # noqa: PLR0915 - a whole round, step by step
    federation: Any, tmp_path: Path, live: Any, until_async: Any, make_plan_for: Any, new_attempt: Any
) -> None:
    """Proposal, scan, approval, order, training, outage, masked sum, commit, renewal of the roster, the end."""
    folder, config = federation.enrolled(tmp_path / "state", "whole-round")
    others = [federation.on_paper(name) for name in ("paper-one", "paper-two")]
    plan = make_plan_for(
        [folder.card("whole-round"), *(paper.card for paper in others)],
        purpose={**PURPOSE, "expires": "2099-01-01"},
    )
    study, silo = study_id(plan), "whole-round"
    collection = Collection(study=study, round=1, phase="train")
    federation.allow(folder, silo, tmp_path, tmp_path / "labels.csv", plan)
    journal = Journal(folder.journal, silo)  # as the steward's commands have it, beside the running agent

    def heard(kind: str, slot: str) -> Any:
        return federation.heard(plan, kind, slot, silo)

    def said(kind: str) -> bytes | None:
        return federation.said(plan, kind, str(collection), silo)

    async def act(agent: Agent) -> None:
        federation.tell(plan, silo, PlanProposed(study=study, plan=plan))
        await until_async(lambda: (kept := journal.plan(study)) and kept.state == "scanned")
        approve(journal, folder, outbound_of(folder, journal), study, "data_steward", "agreed")
        await until_async(lambda: heard("plan-approved", study))

        report = folder.cache / study / "report.json"
        report.parent.mkdir(exist_ok=True)
        report.write_text(json.dumps({"dataset_digest": DIGEST, "patients": {"train": 20}}))
        order = WorkOrder(
            collection=collection, plan_digest=digest_of(plan), roster_digest=federation.roster().digest,
            model=federation.put(b"the model"), base=None, control=None, before=None, encoding=first_encoding(plan),
            normalisation=None, heads=federation.shows_its_log(plan, silo), due=real_clock() + timedelta(hours=1),
        )  # fmt: skip
        told = federation.tell(plan, silo, order)
        await until_async(lambda: agent._bench.activity and agent._bench.activity.steps)
        federation.stop_relay()
        await until_async(lambda: journal.fact("trouble listen") and len(journal.waiting()) == 1)
        federation.start_relay()
        await until_async(lambda: heard("ready", str(collection)))

        cohort = (silo, "paper-one", "paper-two")
        attempt = new_attempt(plan, order, layout_for("train", parameters=7, metrics=0), others, silo, said)
        for answer, step in steps_of(attempt, cohort, told.digest):
            federation.tell(plan, silo, step())
            await until_async(lambda answer=answer: heard(answer, str(collection)))
        with federation.coordinator.blobs.open(heard("masked-vector", str(collection)).vector.digest) as masked:
            total = attempt.opened(masked.read())
        papers = [attempt.plain(paper.silo) for paper in others]
        np.testing.assert_array_equal(total, attempt.added([all_ones(order.encoding.exponent), *papers]))

        version = renew_roster(federation.coordinator)
        await until_async(lambda: agent._roster.roster.version == version)
        model = federation.put(b"a model")
        transcript = transcript_of(heard("survivors-seen", str(collection)).survivors, model.digest)
        receipt = Receipt(
            study=study, plan_digest=digest_of(plan), round=1, model_in=order.model.digest, model_out=model.digest,
            tried=None, transcript=transcript, contributing=cohort, absent=(),
        )  # fmt: skip
        committed = RoundCommitted(
            study=study, round=1, model=model, tried=None, transcript=transcript, contributing=cohort, absent=(),
            receipt=receipt.sign(federation.coordinator.key),
        )  # fmt: skip
        federation.tell(plan, silo, committed)
        await until_async(lambda: heard("trail-shown", f"{study}/1"))
        shown = heard("trail-shown", f"{study}/1")
        receipt.check(shown.receipt, folder.identity.public)
        assert shown.checkpoint.root_bytes == journal.trail_root(len(shown.entries))
        federation.tell(plan, silo, StudyClosed(study=study, code="COMPLETED"))
        await until_async(lambda: (kept := journal.plan(study)) and kept.state == "closed")
        await until_async(lambda: agent._worker.pid is None)
        assert not journal.fact("trouble listen")

    try:
        live(folder, config, act, train=[PROGRESS, ("sleep", 2), *TRAIN])
        assert [*folder.work.iterdir(), *folder.models.iterdir()] == []
        assert {path.name for path in folder.cache.iterdir()} <= {".lock"}
        left = [kind for _, kind, state, _ in journal.left() if state == "acknowledged"]
        assert left == [*FIRST, *SAID, "trail-shown"]
    finally:
        journal.close()
        if federation.process is None:
            federation.start_relay()


def test_a_steward_stops_a_training_that_runs(
    federation: Any, tmp_path: Path, live: Any, until_async: Any, make_plan_for: Any
) -> None:
    folder, config = federation.enrolled(tmp_path / "state", "free-to-go")
    others = [federation.on_paper(name) for name in ("paper-three", "paper-four")]
    plan = make_plan_for(
        [folder.card("free-to-go"), *(paper.card for paper in others)], purpose={**PURPOSE, "expires": "2099-01-01"}
    )
    study, collection = study_id(plan), Collection(study=study_id(plan), round=1, phase="train")
    federation.allow(folder, "free-to-go", tmp_path, tmp_path / "labels.csv", plan)
    journal = Journal(folder.journal, "free-to-go")

    async def act(agent: Agent) -> None:
        federation.tell(plan, "free-to-go", PlanProposed(study=study, plan=plan))
        await until_async(lambda: (kept := journal.plan(study)) and kept.state == "scanned")
        approve(journal, folder, outbound_of(folder, journal), study, "data_steward", "agreed")
        federation.tell(
            plan, "free-to-go",
            WorkOrder(
                collection=collection, plan_digest=digest_of(plan), roster_digest=federation.roster().digest,
                model=federation.put(b"the model"), base=None, control=None, before=None, encoding=first_encoding(plan),
                normalisation=None, heads=federation.shows_its_log(plan, "free-to-go"),
                due=real_clock() + timedelta(hours=1),
            ),
        )  # fmt: skip
        await until_async(lambda: agent._bench.activity and agent._bench.activity.steps)
        decline(journal, outbound_of(folder, journal), study, "stop")
        await until_async(lambda: federation.heard(plan, "refused", str(collection), "free-to-go"))
        assert federation.heard(plan, "refused", str(collection), "free-to-go").code == "NOT_APPROVED"

    try:
        live(
            folder, config, act,
            train=[PROGRESS, ("obey", None)],
        )  # fmt: skip
    finally:
        journal.close()

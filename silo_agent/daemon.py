"""The daemon: four loops around one journal, one relay and one child process.

listen  long-polls the relay and hands what arrives to the mailroom
work    does the next thing there is, at the workbench
send    empties the outbox, for ever, with growing pauses while the relay is away
beat    gives a sign of life every few seconds, whatever the child is doing
"""

import asyncio
import logging
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from boundary.api import MAX_POLL_SECONDS, Heartbeat, PollAnswer, PollRequest
from boundary.errors import BadSignature, BoundaryError
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import timestamp
from boundary.roster import TrustedRoster
from compliance.events import RosterTrusted
from silo_agent.certificate import WARN_DAYS, read_certificate
from silo_agent.config import AgentConfig
from silo_agent.destination import by_policy
from silo_agent.errors import (
    AgentError,
    ConfigError,
    NoPolicy,
    NotEnrolled,
    RelayRefused,
    RelayUnreachable,
    StoredFileLost,
    UpgradeNeeded,
    WrongCoordinator,
)
from silo_agent.inbound import OwnSide
from silo_agent.journal import Journal, Parcel
from silo_agent.mailroom import Mailroom
from silo_agent.outbound import Outbound
from silo_agent.permission import Permission
from silo_agent.plain import plain
from silo_agent.policy.errors import PolicyRefused
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.results import sweep
from silo_agent.state import StateFolder
from silo_agent.sums import Sums
from silo_agent.withdrawal import finish
from silo_agent.witness import Witness
from silo_agent.workbench import Workbench
from silo_agent.worker import Worker

_log = logging.getLogger("silo_agent")
ROSTER, RELAY_URL, CONTACT = "roster", "relay url", "last contact"
TROUBLES = ("listen", "work", "send", "beat")  # one fact each, "trouble listen": what does not work at present
_QUICK_SECONDS = 1.0  # a poll that waited has waited longer
_LOOK_AGAIN_SECONDS = 0.25  # how soon the steward's command in another process is noticed


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything the agent takes from the world: made in `main`, replaced in tests."""

    now: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    version: str


class Agent:
    """One hospital's agent. `run` returns when it is told to stop and raises when it must not go on."""

    def __init__(self, config: AgentConfig, folder: StateFolder, world: Surroundings, worker: Worker) -> None:
        """Raises `NotEnrolled`, `ConfigError` or `UpgradeNeeded`; `NoPolicy` if no signed policy is in force."""
        self._config, self._folder, self._world = config, folder, world
        self.journal = Journal(folder.journal, config.site)
        try:
            self._assemble(worker)
        except BaseException:
            self.journal.close()
            raise

    def _assemble(self, worker: Worker) -> None:
        config, folder, world = self._config, self._folder, self._world
        permission = Permission(folder, self.journal, config.resources, world.now)
        self._expect_policy(permission)
        self._key: SigningIdentity = folder.identity
        self._steward: PublicIdentity = folder.steward.public
        self._roster = self._kept_roster()
        self._certificate = read_certificate(folder.tls_certificate)
        self._certificate_read = folder.tls_certificate.stat().st_mtime_ns
        self._relay = self._client()
        outbound = Outbound(config.site, self._key, self.journal, world.now, world.entropy, world.version)
        self._outbound = outbound
        self._sums = Sums(self.journal, outbound, self._own, world.entropy, permission)
        self._bench = Workbench(
            config, folder, self.journal, outbound, self._sums, worker, self._relay, self._own, permission
        )
        witness = Witness(self.journal, outbound, self._own)
        self._mail = Mailroom(self.journal, outbound, self._sums, witness, folder, self._own, self._unwanted)
        self._worker = worker
        self._wake_work, self._wake_send = asyncio.Event(), asyncio.Event()
        self._drops: set[asyncio.Task[None]] = set()
        self._told: tuple[int, int] | None = None  # which certificate warning was logged, and on which day
        for name in TROUBLES:
            self._trouble(name, None)

    def _expect_policy(self, permission: Permission) -> None:
        try:
            permission.in_force()
        except PolicyRefused as why:
            raise NoPolicy(f"no signed policy is in force, so the agent does not start: {why}") from why

    def _kept_roster(self) -> TrustedRoster:
        data = self.journal.fact(ROSTER)
        if data is None or not self._folder.tls_certificate.exists():
            raise NotEnrolled("this agent is not enrolled: run `silo-agent enrol INVITATION` first")
        try:
            return TrustedRoster.kept(data)
        except (BoundaryError, ValueError, LookupError, TypeError) as why:
            raise ConfigError(
                "the roster in the journal is damaged: restore the state folder from its backup, or run `silo-agent "
                "enrol` with a new invitation (all keys are kept)"
            ) from why

    def _client(self) -> RelayClient:
        url = (self.journal.fact(RELAY_URL) or b"").decode()
        tls = TlsFiles(self._folder.tls_certificate, self._folder.tls_key, self._folder.relay_ca)
        return RelayClient(
            url, tls, self._config.site, self._key,
            now=self._world.now, entropy=self._world.entropy, allow=by_policy(self._folder.root),
            proxy=self._config.proxy,
        )  # fmt: skip

    def _own(self) -> OwnSide:
        return OwnSide(self._config.site, self._steward, self._roster, self._world.now())

    def _unwanted(self, what: str) -> None:
        task = asyncio.get_running_loop().create_task(self._bench.drop(what))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    # --- life ----------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; raises an `AgentError` whose `exit_code` ends the process."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _log.info("%s dials %s", self._config.site, (self.journal.fact(RELAY_URL) or b"").decode())
        sweep(self._folder, self.journal)
        finish(self.journal, self._folder, self._world.now(), again=True)
        self._sums.admit_loss()
        turns = {"listen": self._listen, "work": self._work, "send": self._send, "beat": self._beat}
        loops = [asyncio.create_task(self._forever(name, turn)) for name, turn in turns.items()]
        waiter = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([waiter, *loops], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await asyncio.gather(self._worker.stop(), _ended([waiter, *loops, *self._drops]))
            ended = await asyncio.gather(*loops, return_exceptions=True)
            async with self._relay:
                pass
            self.journal.close()
        for outcome in ended:
            if isinstance(outcome, Exception):
                _log.critical("the agent stops: %s", outcome)
                raise outcome
        _log.info("stopped cleanly")

    async def _forever(self, name: str, turn: Callable[[], Awaitable[bool]]) -> None:
        """Turn after turn; after one that did not go well a pause, which grows.

        Only errors with an exit code of their own end the agent. The one broad `except` of the daemon: a full disk,
        a locked journal or a defect of ours must not silence the hospital, and all of them must be seen.
        """
        timing = self._config.timing
        pause = timing.retry_first
        while True:
            try:
                went_well = await turn()
                self._trouble(name, None)
            except (RelayUnreachable, RelayRefused, PolicyRefused) as why:
                _log.warning("%s: %s; again in %.1f s", name, why, pause)
                went_well = self._trouble(name, str(why))
            except Exception as why:
                if isinstance(why, AgentError) and why.exit_code != AgentError.exit_code:
                    raise
                _log.exception("%s: an unexpected error; again in %.1f s", name, pause)
                went_well = self._trouble(name, f"{type(why).__name__}: {why}")
            if went_well:
                pause = timing.retry_first
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, timing.retry_most)

    def _trouble(self, name: str, what: str | None) -> bool:
        """Keep for `silo-agent status` what does not work at present. Returns False, for the caller's turn."""
        said = b"" if what is None else f"since {timestamp(self._world.now())}: {plain(what)}".encode()
        fact = f"trouble {name}"
        with suppress(sqlite3.Error):  # the journal may be the trouble; it is in the log then
            before = self.journal.fact(fact) or b""
            if before.partition(b": ")[2] != said.partition(b": ")[2]:
                self.journal.set_fact(fact, said)
        return False

    # --- turns ---------------------------------------------------------------------------------------
    async def _listen(self) -> bool:
        """One poll. A relay that answers at once and brings nothing new is not asked again at once."""
        asked_at, before = asyncio.get_running_loop().time(), (self._mail.cursor, self._roster.roster.version)
        answer = await self._relay.poll(
            PollRequest(after=before[0], wait_seconds=MAX_POLL_SECONDS, heartbeat=self._heartbeat())
        )
        await self._take(answer)
        took = asyncio.get_running_loop().time() - asked_at
        return before != (self._mail.cursor, self._roster.roster.version) or took >= _QUICK_SECONDS

    async def _take(self, answer: PollAnswer) -> None:
        if answer.upgrade == "agent":
            raise UpgradeNeeded("blocked: upgrade. The coordinator no longer speaks this agent's protocol version")
        if answer.upgrade == "relay":
            raise RelayUnreachable("the relay is older than this agent and must be upgraded: tell the coordinator")
        if answer.roster_version > self._roster.roster.version:
            await self._renew_roster()
        for delivery in answer.deliveries:
            self._mail.take(delivery)
        self.journal.set_fact(CONTACT, timestamp(self._world.now()).encode())
        if answer.deliveries:
            self._bench.say_busy()
            self._wake_work.set()
            self._wake_send.set()

    async def _renew_roster(self) -> None:
        try:
            self._roster = self._roster.update(await self._relay.roster(), self._world.now())
        except BadSignature as why:
            raise WrongCoordinator(
                f"the relay offers a roster that our coordinator did not sign ({why}). The agent stops; compare the "
                "coordinator's fingerprint by telephone before starting it again"
            ) from why
        except BoundaryError as why:
            _log.error("the offered roster was refused: %s %s; the old one stays in force", why.code, why)
            return
        with self.journal.transaction():
            self.journal.set_fact(ROSTER, self._roster.signed.data)
            trusted = RosterTrusted(
                roster_version=self._roster.roster.version, roster_digest=self._roster.signed.digest
            )  # fmt: skip
            self.journal.record(trusted, self._world.now())
        _log.info("roster version %d is in force", self._roster.roster.version)

    async def _work(self) -> bool:
        self._wake_work.clear()
        if await self._bench.do_next():
            self._wake_send.set()
            return True
        await _woken(self._wake_work)
        return True

    async def _send(self) -> bool:
        """Offer the relay each waiting parcel. One that it will not take now does not hold up the others."""
        self._wake_send.clear()
        position, refused = 0, ""
        while (parcel := self.journal.next_waiting(position)) is not None:
            position = parcel.position
            try:
                await self._deliver(parcel)
            except RelayRefused as why:
                refused = f"{parcel.slot}: {why}"
        if refused:
            raise RelayUnreachable(f"{refused}; it is kept")
        await _woken(self._wake_send)
        return True

    async def _deliver(self, parcel: Parcel) -> None:
        """Raises `RelayUnreachable`, and `RelayRefused` when the relay may take it later."""
        accepted, verdict, has_left = True, "OK", True
        try:
            has_left = await self._relay.send(parcel, partial(self.journal.is_waiting, parcel))
        except RelayRefused as why:
            if not why.is_final:
                raise
            _log.error("the relay will not take %s: %s", parcel.slot, why)
            accepted, verdict = False, why.relay_code
        except StoredFileLost as why:
            _log.error("%s cannot be sent: %s", parcel.slot, why)
            accepted, verdict = False, "FILE_LOST"
        if has_left:  # else it was withdrawn while its blob was on the way
            with self.journal.transaction():
                self.journal.settle(parcel, accepted=accepted, verdict=verdict)
        if parcel.blob_path is not None:
            Path(parcel.blob_path).unlink(missing_ok=True)

    async def _beat(self) -> bool:
        await asyncio.sleep(self._config.timing.heartbeat)
        with suppress(RelayUnreachable, RelayRefused):  # the poll says it already
            await self._relay.beat(self._heartbeat())
        await self._bench.drop_unapproved()
        await self._bench.look_at_policy()
        self._look_at_certificate()
        return True

    def _look_at_certificate(self) -> None:
        """Use a renewed one without a restart; warn when it will end: at each stage, and daily in the last week."""
        written, now = self._folder.tls_certificate.stat().st_mtime_ns, self._world.now()
        if written != self._certificate_read:
            self._certificate_read = written
            try:
                self._relay.renewed()
                self._certificate = read_certificate(self._folder.tls_certificate)
                _log.info("the new certificate is in use: %s", self._certificate.sentence(now))
            except ConfigError as why:
                _log.error("%s; the old certificate stays in use", why)
        stage = self._certificate.stage(now)
        if stage is None:
            return
        say = (stage, now.toordinal() if stage <= min(WARN_DAYS) else 0)
        if say != self._told:
            self._told = say
            _log.warning("our TLS certificate: %s", self._certificate.sentence(now))

    def _heartbeat(self) -> Heartbeat:
        free = shutil.disk_usage(self._folder.root).free // 2**20
        return self._outbound.heartbeat(
            self._bench.activity,
            disk_low=free < self._config.resources.min_free_disk_mb,
            roster_version=self._roster.roster.version,
        )


async def _woken(event: asyncio.Event) -> None:
    """Wait a moment for it. Not `wait_for`: in Python 3.11 that one can swallow a cancellation (bpo-37658)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
            await event.wait()


async def _ended(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel until all have ended: a library that swallows one cancellation must not keep the agent alive."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_LOOK_AGAIN_SECONDS)

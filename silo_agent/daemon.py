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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from boundary.api import MAX_POLL_SECONDS, Heartbeat, PollAnswer, PollRequest
from boundary.errors import BoundaryError
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import timestamp
from boundary.roster import TrustedRoster
from silo_agent.config import AgentConfig
from silo_agent.errors import NotEnrolled, RelayRefused, RelayUnreachable, UpgradeNeeded
from silo_agent.inbound import OwnSide
from silo_agent.journal import Journal, Parcel
from silo_agent.mailroom import Mailroom
from silo_agent.outbound import Outbound
from silo_agent.relay_client import RelayClient, TlsFiles
from silo_agent.state import StateFolder
from silo_agent.workbench import Workbench
from silo_agent.worker import Worker

_log = logging.getLogger("silo_agent")
ROSTER, RELAY_URL, CONTACT = "roster", "relay url", "last contact"
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
        self._config, self._folder, self._world = config, folder, world
        self.journal = Journal(folder.journal, config.site)
        self._key: SigningIdentity = folder.identity
        self._steward: PublicIdentity = folder.steward.public
        self._roster = self._kept_roster()
        self._relay = self._client()
        outbound = Outbound(config.site, self._key, self.journal, world.now, world.entropy, world.version)
        self._outbound = outbound
        self._bench = Workbench(config, folder, self.journal, outbound, worker, self._relay, self._own)
        self._mail = Mailroom(self.journal, outbound, folder, self._own, self._unwanted)
        self._worker = worker
        self._wake_work, self._wake_send = asyncio.Event(), asyncio.Event()
        self._drops: set[asyncio.Task[None]] = set()

    def _kept_roster(self) -> TrustedRoster:
        data = self.journal.fact(ROSTER)
        if data is None or not self._folder.tls_certificate.exists():
            raise NotEnrolled("this agent is not enrolled: run `silo-agent enrol INVITATION` first")
        return TrustedRoster.kept(data)

    def _client(self) -> RelayClient:
        url = (self.journal.fact(RELAY_URL) or b"").decode()
        tls = TlsFiles(self._folder.tls_certificate, self._folder.tls_key, self._folder.relay_ca)
        return RelayClient(
            url, tls, self._config.site, self._key,
            now=self._world.now, entropy=self._world.entropy, proxy=self._config.proxy,
        )  # fmt: skip

    def _own(self) -> OwnSide:
        return OwnSide(self._config.site, self._steward, self._roster, self._world.now())

    def _unwanted(self, collection: str) -> None:
        task = asyncio.get_running_loop().create_task(self._bench.drop(collection))
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
        loops = [asyncio.create_task(part()) for part in (self._listen, self._work, self._send, self._beat)]
        waiter = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([waiter, *loops], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (waiter, *loops):
                task.cancel()
            await self._worker.stop()
            ended = await asyncio.gather(*loops, return_exceptions=True)
            async with self._relay:
                pass
            self.journal.close()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome
        _log.info("stopped cleanly")

    async def _listen(self) -> None:
        pause = self._config.timing.retry_first
        while True:
            try:
                answer = await self._relay.poll(
                    PollRequest(after=self._mail.cursor, wait_seconds=MAX_POLL_SECONDS, heartbeat=self._heartbeat())
                )
                await self._take(answer)
                pause = self._config.timing.retry_first
            except (RelayUnreachable, RelayRefused) as why:
                _log.warning("%s; again in %.1f s", why, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._config.timing.retry_most)

    async def _take(self, answer: PollAnswer) -> None:
        if answer.upgrade == "agent":
            raise UpgradeNeeded("blocked: upgrade. The coordinator no longer speaks this agent's protocol version")
        if answer.roster_version > self._roster.roster.version:
            await self._renew_roster()
        for delivery in answer.deliveries:
            self._mail.take(delivery)
        self.journal.set_fact(CONTACT, timestamp(self._world.now()).encode())
        if answer.deliveries:
            self._wake_work.set()
            self._wake_send.set()

    async def _renew_roster(self) -> None:
        try:
            self._roster = self._roster.update(await self._relay.roster(), self._world.now())
        except BoundaryError as why:
            _log.error("the offered roster was refused: %s %s; the old one stays in force", why.code, why)
            return
        self.journal.set_fact(ROSTER, self._roster.signed.data)
        _log.info("roster version %d is in force", self._roster.roster.version)

    async def _work(self) -> None:
        while True:
            self._wake_work.clear()
            if await self._bench.do_next():
                self._wake_send.set()
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake_work.wait(), _LOOK_AGAIN_SECONDS)

    async def _send(self) -> None:
        pause = self._config.timing.retry_first
        while True:
            self._wake_send.clear()
            try:
                for parcel in self.journal.waiting():
                    await self._deliver(parcel)
                pause = self._config.timing.retry_first
            except RelayUnreachable as why:
                _log.warning("%s; the outbox is kept, again in %.1f s", why, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._config.timing.retry_most)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake_send.wait(), _LOOK_AGAIN_SECONDS)

    async def _deliver(self, parcel: Parcel) -> None:
        try:
            await self._relay.send(parcel)
        except RelayRefused as why:
            if not why.is_final:
                raise RelayUnreachable(str(why)) from why
            _log.error("the relay will not take %s: %s", parcel.slot, why)
            with self.journal.transaction():
                self.journal.settle(parcel, accepted=False, verdict=why.relay_code)
            return
        with self.journal.transaction():
            self.journal.settle(parcel, accepted=True, verdict="OK")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._config.timing.heartbeat)
            with suppress(RelayUnreachable, RelayRefused):
                await self._relay.beat(self._heartbeat())

    def _heartbeat(self) -> Heartbeat:
        free = shutil.disk_usage(self._folder.root).free // 2**20
        return self._outbound.heartbeat(
            self._bench.activity,
            disk_low=free < self._config.resources.min_free_disk_mb,
            roster_version=self._roster.roster.version,
        )

"""The long poll: one task looks for news every 25 ms while anybody waits, and wakes those it concerns.

The cost is one query per look, however many hospitals wait. Other processes (the flow, another relay worker) post
into the same database, so the database is where to look; both databases hand out sequences in commit order.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOOK_SECONDS = 0.025
MAX_WAITING = 4  # polls of one hospital at a time; a fifth sends the first home


@dataclass(frozen=True, slots=True)
class News:
    """What came since the last look."""

    sequence: int
    recipients: frozenset[str]
    roster_version: int


class Inbox:
    """Who waits for mail in this process."""

    def __init__(self, look: Callable[[int], Awaitable[News]]) -> None:
        """`look(after)` tells what came behind a sequence."""
        self._look = look
        self._waiting: defaultdict[str, deque[asyncio.Event]] = defaultdict(deque)
        self._seen = News(0, frozenset(), 0)
        self._task: asyncio.Task[None] | None = None
        self._open = True

    async def start(self, sequence: int) -> None:
        """Begin behind `sequence`; what came before is found by the poll itself."""
        self._seen = await self._look(sequence)

    def close(self) -> None:
        """Send everybody home: the relay is stopping."""
        self._open = False
        for events in self._waiting.values():
            for event in events:
                event.set()
        if self._task is not None:
            self._task.cancel()

    @contextmanager
    def place(self, party: str) -> Iterator[asyncio.Event]:
        """Wait in line for `party`; take the place *before* looking into the inbox, so that nothing slips between."""
        event, events = asyncio.Event(), self._waiting[party]
        if not self._open:
            event.set()
        if len(events) >= MAX_WAITING:
            events.popleft().set()
        events.append(event)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield event
        finally:
            if event in events:
                events.remove(event)
            if not events:
                self._waiting.pop(party, None)

    async def _watch(self) -> None:
        while self._waiting and self._open:
            news = await self._look(self._seen.sequence)
            everybody = news.roster_version != self._seen.roster_version
            for party in list(self._waiting) if everybody else news.recipients:
                for event in self._waiting.get(party, ()):
                    event.set()
            self._seen = news
            await asyncio.sleep(LOOK_SECONDS)

"""What the relay's endpoints work with, put together once by the composition root in server.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from flows.relay.inbox import Inbox, News
from flows.store import mail, members
from flows.store.blobs import BlobStore
from flows.store.database import reading
from flows.store.uploads import Uploads

PRUNE_EVERY = timedelta(minutes=1)


class Pruner:
    """Says once a minute that it is time to prune the nonces."""

    def __init__(self) -> None:
        self._last: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        if self._last is not None and now - self._last < PRUNE_EVERY:
            return False
        self._last = now
        return True


@dataclass(frozen=True, slots=True)
class Parts:
    """The store, the blobs, the clock. The relay holds no key of the coordinator."""

    engine: Engine
    blobs: BlobStore
    uploads: Uploads
    inbox: Inbox
    clock: Callable[[], datetime]
    lease: timedelta
    pruner: Pruner = field(default_factory=Pruner)


def news_after(engine: Engine, after: int) -> News:
    with reading(engine) as connection:
        sequence = mail.latest_sequence(connection)
        found = mail.recipients_after(connection, after) if sequence > after else frozenset()
        return News(sequence, found, members.roster_version(connection))


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


Tools = Annotated[Parts, Depends(_parts)]

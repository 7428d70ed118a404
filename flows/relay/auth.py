"""Who is asking: the signed header of boundary/requests.py, checked before anything else is done.

In this order: form, clock, key, signature, nonce. The nonce comes last, so that only the key's holder can fill the
table. The TLS client certificate has opened the door before; it is not told to us (docs/adr/0002).

What an endpoint does with the store is done in the same change of thread, which costs as much as a small query.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from fastapi import Request
from sqlalchemy import Connection

from boundary.identity import PublicIdentity
from boundary.requests import RequestClaim, read_claim
from flows.relay.limits import body_of
from flows.relay.parts import Parts
from flows.store import members, nonces
from flows.store.database import noting, reading

FindKey = Callable[[Connection, str], PublicIdentity]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose header has its form and a fresh time, and nothing more yet."""

    parts: Parts
    claim: RequestClaim
    method: str
    target: str
    body: bytes | None
    now: datetime

    def verify(self, find: FindKey) -> None:
        """Raise unless it is signed by its party's key."""
        with reading(self.parts.engine) as connection:
            key = find(connection, self.claim.party)
        self.claim.verify(key, self.method, self.target, self.body)

    def remember(self, connection: Connection) -> None:
        """Raise unless it is here for the first time."""
        nonces.remember(connection, self.claim, self.now)
        if self.parts.pruner.is_due(self.now):
            nonces.prune(connection, self.now)


async def admitted(request: Request, parts: Parts, limit: int, act: Callable[[str, bytes], Result]) -> Result:
    """What `act(party, body)` gives for an admitted hospital; raises what `refusals` has a status for."""
    body = await body_of(request, limit)
    return await _checked(request, parts, body, members.key_of, lambda party: act(party, body))


async def heard(request: Request, parts: Parts, limit: int, note: Callable[[Connection, str, bytes], Result]) -> Result:
    """As `admitted`; `note` writes in the transaction that remembers the nonce, so not what a receipt promises."""
    body = await body_of(request, limit)
    asked = _asked(request, parts, body)

    def check() -> Result:
        asked.verify(members.key_of)
        request.state.party = asked.claim.party  # for the access log
        with noting(parts.engine) as connection:
            asked.remember(connection)
            return note(connection, asked.claim.party, body)

    return await asyncio.to_thread(check)


async def asking(request: Request, parts: Parts, act: Callable[[str], Result]) -> Result:
    """For the hospital whose card waits, or is admitted: it may ask what became of its enrolment."""
    return await _checked(request, parts, await body_of(request, 0), members.asking_key_of, act)


async def admitted_range(request: Request, parts: Parts, act: Callable[[str], Result]) -> Result:
    """For the party behind a blob range, whose body is not read yet."""
    return await _checked(request, parts, None, members.key_of, act)


async def _checked(
    request: Request, parts: Parts, body: bytes | None, find: FindKey, act: Callable[[str], Result]
) -> Result:
    asked = _asked(request, parts, body)

    def check() -> Result:
        asked.verify(find)
        request.state.party = asked.claim.party  # for the access log
        with noting(parts.engine) as connection:
            asked.remember(connection)
        return act(asked.claim.party)

    return await asyncio.to_thread(check)


def _asked(request: Request, parts: Parts, body: bytes | None) -> Asked:
    claim, now = read_claim(request.headers), parts.clock()
    claim.check_fresh(now)
    return Asked(parts, claim, request.method, target_of(request), body, now)


def target_of(request: Request) -> str:
    """Path and query exactly as they came over the wire."""
    path, query = request.scope.get("raw_path") or request.url.path.encode(), request.scope["query_string"]
    return (path.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")

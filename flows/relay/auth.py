"""Who is asking: the signed header of boundary/requests.py, checked before anything else is done.

In this order: form, clock, key, signature, nonce. The nonce comes last, so that only the key's holder can fill the
table. The TLS client certificate has opened the door before; it is not told to us (docs/adr/0002).
"""

from collections.abc import Callable
from datetime import datetime

from fastapi import Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from boundary.identity import PublicIdentity
from boundary.requests import RequestClaim, read_claim
from flows.relay.limits import body_of
from flows.relay.parts import Parts
from flows.store import members, nonces
from flows.store.database import noting, reading

FindKey = Callable[[Connection, str], PublicIdentity]


async def signed_body(request: Request, parts: Parts, limit: int) -> tuple[str, bytes]:
    """(party, body) of an admitted hospital's request; raises what `refusals` has a status for."""
    body = await body_of(request, limit)
    return await _check(request, parts, body, members.key_of), body


async def signed_by_asker(request: Request, parts: Parts) -> str:
    """The hospital whose card waits, or is admitted: it may ask what became of its enrolment."""
    body = await body_of(request, 0)
    return await _check(request, parts, body, members.asking_key_of)


async def signed_range(request: Request, parts: Parts) -> str:
    """The party behind a blob range, whose body is not read yet."""
    return await _check(request, parts, None, members.key_of)


async def _check(request: Request, parts: Parts, body: bytes | None, find: FindKey) -> str:
    claim = read_claim(request.headers)
    now = parts.clock()
    claim.check_fresh(now)
    await run_in_threadpool(_verify, parts, claim, request.method, target_of(request), body, find, now)
    request.state.party = claim.party  # for the access log
    return claim.party


def _verify(
    parts: Parts, claim: RequestClaim, method: str, target: str, body: bytes | None, find: FindKey, now: datetime
) -> None:
    with reading(parts.engine) as connection:
        key = find(connection, claim.party)
    claim.verify(key, method, target, body)
    with noting(parts.engine) as connection:
        nonces.remember(connection, claim, now)
        if parts.pruner.is_due(now):
            nonces.prune(connection, now)


def target_of(request: Request) -> str:
    """Path and query exactly as they came over the wire."""
    path, query = request.scope.get("raw_path") or request.url.path.encode(), request.scope["query_string"]
    return (path.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")

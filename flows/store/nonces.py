"""Which signed requests were seen: a request counts once. Forgotten when its time stamp alone makes it stale."""

from datetime import datetime

from sqlalchemy import Connection, delete

from boundary.errors import Replayed
from boundary.requests import CLOCK_SKEW, RequestClaim
from flows.store.holdings import upsert
from flows.store.schema import nonces


def remember(connection: Connection, claim: RequestClaim, now: datetime) -> None:
    """Raises `Replayed`. The claim was verified before, so that only its party can fill the table."""
    row = upsert(connection)(nonces).values(party=claim.party, nonce=claim.nonce, forget_at=now + 2 * CLOCK_SKEW)
    fresh = connection.execute(row.on_conflict_do_nothing().returning(nonces.c.nonce)).scalar()
    if fresh is None:
        raise Replayed("this very request was made before: sign a new one with a new nonce")


def prune(connection: Connection, now: datetime) -> int:
    """Forget what can no longer be replayed; returns how many."""
    return connection.execute(delete(nonces).where(nonces.c.forget_at < now)).rowcount

"""Which signed requests were seen: a request counts once. Forgotten when its time stamp alone makes it stale."""

from datetime import datetime

from sqlalchemy import Connection, delete
from sqlalchemy.dialects import postgresql, sqlite

from boundary.errors import Replayed
from boundary.requests import CLOCK_SKEW, RequestClaim
from flows.store.schema import nonces

_REMEMBER = {  # made once per database: it runs with every request
    name: dialect(nonces).on_conflict_do_nothing().returning(nonces.c.nonce)
    for name, dialect in (("sqlite", sqlite.Insert), ("postgresql", postgresql.Insert))
}


def remember(connection: Connection, claim: RequestClaim, now: datetime) -> None:
    """Raises `Replayed`. The claim was verified before, so that only its party can fill the table."""
    row = {"party": claim.party, "nonce": claim.nonce, "forget_at": now + 2 * CLOCK_SKEW}
    fresh = connection.execute(_REMEMBER[connection.dialect.name], row).scalar()
    if fresh is None:
        raise Replayed("this very request was made before: sign a new one with a new nonce")


def prune(connection: Connection, now: datetime) -> int:
    """Forget what can no longer be replayed; returns how many."""
    return connection.execute(delete(nonces).where(nonces.c.forget_at < now)).rowcount

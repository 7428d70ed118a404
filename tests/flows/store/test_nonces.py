"""A signed request counts once, and is forgotten when its time stamp alone makes it stale."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine

from boundary.errors import Replayed
from boundary.requests import RequestClaim
from flows.store import nonces
from flows.store.database import noting


def test_a_nonce_counts_once_per_party_until_it_is_forgotten(store: Engine, now: datetime) -> None:
    claim = RequestClaim("st-olavs", now, "00" * 16, b"")
    with noting(store) as connection:
        nonces.remember(connection, claim, now)
        nonces.remember(connection, RequestClaim("charite", now, "00" * 16, b""), now)
    with pytest.raises(Replayed, match="sign a new one"), noting(store) as connection:
        nonces.remember(connection, claim, now)
    with noting(store) as connection:
        assert nonces.prune(connection, now + timedelta(minutes=9)) == 0
        assert nonces.prune(connection, now + timedelta(minutes=11)) == 2
        nonces.remember(connection, claim, now)

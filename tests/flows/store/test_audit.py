"""The log is gapless, in the transaction of its change, and reads back as it was written."""

from datetime import datetime
from threading import Thread

import pytest
from sqlalchemy import Engine

from compliance.events import HospitalInvited
from compliance.trail import read_leaf
from flows.store import audit
from flows.store.database import reading, writing


def test_sequences_have_no_gaps_even_after_a_rollback(store: Engine, now: datetime) -> None:
    with writing(store) as connection:
        assert audit.append(connection, HospitalInvited(silo="st-olavs"), actor="coordinator", now=now) == 1
    with pytest.raises(RuntimeError), writing(store) as connection:  # noqa: PT012 - the rollback is the point
        assert audit.append(connection, HospitalInvited(silo="charite"), actor="coordinator", now=now) == 2
        raise RuntimeError
    with writing(store) as connection:
        assert audit.append(connection, HospitalInvited(silo="ucl"), actor="coordinator", now=now) == 2
    with reading(store) as connection:
        leaves = [read_leaf(leaf) for leaf in audit.leaves(connection)]
        assert [(leaf.sequence, leaf.log, leaf.event) for leaf in leaves] == [
            (1, "coordinator", HospitalInvited(silo="st-olavs")),
            (2, "coordinator", HospitalInvited(silo="ucl")),
        ]
        assert audit.leaves(connection, after=1) == [audit.leaves(connection)[1]]
        assert audit.leaves(connection, after=0, limit=1) == [audit.leaves(connection)[0]]


def test_two_writers_at_once_get_different_numbers_in_order(store: Engine, now: datetime) -> None:
    def write() -> None:
        for _ in range(10):
            with writing(store) as connection:
                audit.append(connection, HospitalInvited(silo="st-olavs"), actor="coordinator", now=now)

    threads = [Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(store) as connection:
        assert [read_leaf(leaf).sequence for leaf in audit.leaves(connection)] == list(range(1, 31))

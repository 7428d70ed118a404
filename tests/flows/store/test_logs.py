"""The trees of all logs in the database: the same as one in memory, at every size, and gone with their transaction."""

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select

from boundary.identity import SigningIdentity
from compliance.events import HospitalInvited
from compliance.merkle import EMPTY_ROOT, Tree, check_consistency, consistency_proof, leaf_hash
from compliance.trail import read_leaf
from flows.store import audit
from flows.store.database import reading, writing
from flows.store.logs import Log
from flows.store.schema import tree

MOST = 33
LEAVES = [leaf_hash(f"entry {number}".encode()) for number in range(MOST)]
TREE = Tree()
for one in LEAVES:
    TREE.append(one)


def test_a_log_grows_as_the_tree_in_memory_does_whatever_comes_at_once(store: Engine) -> None:
    with writing(store) as connection:
        log, size = Log(connection, "ucl"), 0
        assert (log.size, log.root()) == (0, EMPTY_ROOT)
        for step in (1, 1, 2, 3, 5, 8, 13):
            log.extend(LEAVES[size : size + step])
            size += step
            assert (log.size, log.root()) == (size, TREE.root(size))
            assert Log(connection, "ucl").size == size
        log.extend([])
    with reading(store) as connection:
        log = Log(connection, "ucl")
        assert (log.size, log.hashes(0, MOST)) == (MOST, LEAVES)
        assert log.hashes(3, 7) == LEAVES[3:7]
        assert log.hashes(MOST, MOST + 5) == log.hashes(7, 7) == []
        assert [log.root(size) for size in range(MOST + 1)] == [TREE.root(size) for size in range(MOST + 1)]
        for old in range(MOST + 1):
            proof = log.proof(old, MOST)
            assert proof == consistency_proof(old, MOST, TREE.look)
            check_consistency(old, MOST, TREE.root(old), TREE.root(MOST), proof)


@given(st.lists(st.integers(0, 9), max_size=6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_does_not_matter_in_which_steps_a_log_was_shown(store: Engine, steps: list[int]) -> None:
    with writing(store) as connection:
        connection.execute(delete(tree))
        made = Tree()
        for step in steps:
            leaves = LEAVES[:step]
            Log(connection, "ucl").extend(leaves)
            for leaf in leaves:
                made.append(leaf)
        assert Log(connection, "ucl").root() == made.root()


def test_logs_are_apart(store: Engine) -> None:
    with writing(store) as connection:
        Log(connection, "ucl").extend(LEAVES[:5])
        Log(connection, "charite").extend(LEAVES[5:9])
    with reading(store) as connection:
        assert (Log(connection, "ucl").size, Log(connection, "charite").size, Log(connection, "uc").size) == (5, 4, 0)
        assert Log(connection, "charite").hashes(0, 4) == LEAVES[5:9]


def test_what_fails_leaves_no_node(store: Engine) -> None:
    with writing(store) as connection:
        Log(connection, "ucl").extend(LEAVES[:3])
        before = connection.execute(select(tree)).all()
    with pytest.raises(RuntimeError), writing(store) as connection:  # noqa: PT012 - the rollback is the point
        Log(connection, "ucl").extend(LEAVES[3:])
        raise RuntimeError
    with reading(store) as connection:
        assert connection.execute(select(tree)).all() == before


def test_what_is_not_there_cannot_be_looked_up(store: Engine) -> None:
    with writing(store) as connection:
        log = Log(connection, "ucl")
        log.extend(LEAVES[:5])
        for act in (lambda: log.look(0, 5), lambda: log.look(3, 0), lambda: log.root(6), lambda: log.proof(3, 6)):
            with pytest.raises(LookupError, match="the tree of ucl has no node"):
                act()


def test_our_own_log_has_its_tree_and_a_head_that_says_so(store: Engine, now: datetime) -> None:
    key, made = SigningIdentity.generate(), Tree()
    with pytest.raises(ValueError, match="size"), reading(store) as connection:
        audit.head(connection, key)
    for silo in ("charite", "ucl", "utrecht"):
        with writing(store) as connection:
            audit.append(connection, HospitalInvited(silo=silo), actor="coordinator", now=now)
            made.append(leaf_hash(audit.leaves(connection)[-1]))
            head = audit.head(connection, key)
        head.check(key.public)
        assert (head.log, head.size, head.root_bytes) == ("coordinator", made.size, made.root())
    with reading(store) as connection:
        assert audit.latest(connection) == made.size == Log(connection, "coordinator").size


def test_no_two_entries_of_ours_have_one_salt(store: Engine, now: datetime) -> None:
    with writing(store) as connection:
        for _ in range(3):
            audit.append(connection, HospitalInvited(silo="ucl"), actor="coordinator", now=now)
        assert len({read_leaf(leaf).salt for leaf in audit.leaves(connection)}) == 3

"""What is kept of others' logs: heads, cosignatures, entries, receipts and incidents, each once and for ever."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, update

from boundary.checkpoint import Checkpoint, Cosignature
from boundary.identity import SigningIdentity
from compliance.events import IncidentClosed, IncidentOpened
from compliance.merkle import BrokenProof
from compliance.trail import read_leaf
from compliance.witnessing import Contradiction
from flows.store import audit, witnessed
from flows.store.database import reading, writing
from flows.store.schema import heads
from flows.store.witnessed import NoSuchIncident

OWNER, WITNESS = SigningIdentity.generate(), SigningIdentity.generate()
LOG = "wardround/ucl/0123456789abcdef"


def head(size: int, root: bytes = bytes(32)) -> Checkpoint:
    return Checkpoint.sign("ucl", size, root, OWNER)


def said(size: int, now: datetime, witness: str = "charite") -> Cosignature:
    return Cosignature.sign(head(size), OWNER.public, witness, WITNESS, now)


# --- heads -------------------------------------------------------------------------------------------
def test_the_newest_head_is_the_largest_and_every_other_stays(store: Engine, now: datetime) -> None:
    with writing(store) as connection:
        assert witnessed.newest(connection, LOG) is None
        assert not witnessed.has_heads(connection, LOG)
        for size in (3, 9, 5):
            witnessed.keep(connection, LOG, head(size), now)
        witnessed.keep(connection, "another log", head(11), now)
    with reading(store) as connection:
        assert witnessed.newest(connection, LOG) == head(9)
        assert witnessed.every_head(connection, LOG) == [head(3), head(5), head(9)]
        assert (witnessed.head_of(connection, LOG, 5), witnessed.head_of(connection, LOG, 4)) == (head(5), None)
        assert witnessed.has_heads(connection, LOG)


def test_a_second_head_of_one_size_does_not_replace_the_first(store: Engine, now: datetime) -> None:
    with writing(store) as connection:
        witnessed.keep(connection, LOG, head(3), now)
        witnessed.keep(connection, LOG, head(3, b"x" * 32), now)
        assert witnessed.every_head(connection, LOG) == [head(3)]


def test_a_head_that_was_damaged_in_the_database_is_said(store: Engine, now: datetime) -> None:
    with writing(store) as connection:
        witnessed.keep(connection, LOG, head(3), now)
        connection.execute(update(heads).values(checkpoint=b"{}"))
        for act in (witnessed.newest, witnessed.every_head):
            with pytest.raises(BrokenProof, match="is no checkpoint"):
                act(connection, LOG)
        with pytest.raises(BrokenProof, match="is no checkpoint"):
            witnessed.head_of(connection, LOG, 3)


def test_the_first_cosignature_of_a_witness_counts(store: Engine, now: datetime) -> None:
    later = now + timedelta(minutes=1)
    with writing(store) as connection:
        for one in (said(3, now), said(3, later), said(5, later), said(3, later, "utrecht")):
            witnessed.keep_cosignature(connection, LOG, 5 if one == said(5, later) else 3, one)
        assert witnessed.cosigned(connection, LOG) == {
            3: {"charite": said(3, now), "utrecht": said(3, later, "utrecht")},
            5: {"charite": said(5, later)},
        }
        assert witnessed.cosigned(connection, "another log") == {}


def test_entries_that_are_shown_whole_are_kept_by_their_number(store: Engine) -> None:
    with writing(store) as connection:
        witnessed.keep_entries(connection, LOG, {})
        witnessed.keep_entries(connection, LOG, {2: b"two", 7: b"seven"})
        witnessed.keep_entries(connection, "another log", {2: b"another"})
        assert witnessed.whole_entries(connection, LOG) == {2: b"two", 7: b"seven"}


def test_what_a_hospital_was_told_last_is_remembered_for_each_log(store: Engine) -> None:
    with writing(store) as connection:
        assert witnessed.last_shown(connection, "ucl") == {}
        for size in (3, 8):
            witnessed.mark_shown(connection, "ucl", LOG, size)
        witnessed.mark_shown(connection, "ucl", "coordinator", 5)
        witnessed.mark_shown(connection, "charite", LOG, 4)
        assert witnessed.last_shown(connection, "ucl") == {LOG: 8, "coordinator": 5}
        assert witnessed.last_shown(connection, "charite") == {LOG: 4}


def test_a_receipt_is_kept_once_for_each_round_and_party(store: Engine) -> None:
    with writing(store) as connection:
        for party, signature in (("ucl", b"1" * 64), ("coordinator", b"2" * 64), ("ucl", b"3" * 64)):
            witnessed.keep_receipt(connection, "ct-7f3a90c1", 1, party, signature)
        witnessed.keep_receipt(connection, "ct-7f3a90c1", 2, "ucl", b"4" * 64)
        witnessed.keep_receipt(connection, "ct-00000000", 1, "ucl", b"5" * 64)
        assert witnessed.receipts_of(connection, "ct-7f3a90c1") == {
            1: {"ucl": b"1" * 64, "coordinator": b"2" * 64},
            2: {"ucl": b"4" * 64},
        }


# --- incidents ---------------------------------------------------------------------------------------
FORK = Contradiction(known=head(3), shown=head(3, b"x" * 32))


def test_an_incident_is_opened_once_with_its_entry_and_stays_known_after_it_was_closed(
    store: Engine, now: datetime
) -> None:
    with writing(store) as connection:
        for _ in range(2):
            witnessed.open_incident(connection, "ucl", "LOG_FORKED", FORK, actor="charite", now=now)
        shrunk = Contradiction(known=head(3), shown=head(2))
        witnessed.open_incident(connection, "ucl", "LOG_SHRUNK", shrunk, actor="coordinator", now=now)
        found = [read_leaf(leaf) for leaf in audit.leaves(connection)]
        assert [(leaf.actor, leaf.event) for leaf in found] == [
            ("charite", IncidentOpened(incident=1, log="ucl", code="LOG_FORKED", evidence=FORK.digest)),
            ("coordinator", IncidentOpened(incident=2, log="ucl", code="LOG_SHRUNK", evidence=shrunk.digest)),
        ]
        assert [one.incident for one in witnessed.open_ones(connection)] == [1, 2]
        witnessed.close_incident(connection, 1, "RESTORED_BACKUP", now + timedelta(hours=1))
        assert [one.incident for one in witnessed.open_ones(connection)] == [2]
        assert [one.evidence for one in witnessed.every_incident(connection)] == [FORK, shrunk]
        assert read_leaf(audit.leaves(connection)[-1]).event == IncidentClosed(incident=1, decision="RESTORED_BACKUP")
        witnessed.open_incident(connection, "ucl", "LOG_FORKED", FORK, actor="charite", now=now)
        assert [one.incident for one in witnessed.open_ones(connection)] == [2], "people decided about this one"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_only_an_open_incident_can_be_closed(store: Engine, now: datetime, number: int) -> None:
    with writing(store) as connection:
        witnessed.open_incident(connection, "ucl", "LOG_FORKED", FORK, actor="charite", now=now)
        witnessed.close_incident(connection, 1, "ACCEPTED", now)
        before = audit.latest(connection)
        with pytest.raises(NoSuchIncident, match=f"no incident {number} is open"):
            witnessed.close_incident(connection, number, "ACCEPTED", now)
        assert audit.latest(connection) == before

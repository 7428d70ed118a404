"""Looks at every log the coordinator holds, from the bytes up: what it finds changed becomes an incident.

A database that is as a whole restored from an older copy looks sound to itself. So the newest head that was looked at
is also kept beside the database, in the coordinator's home, and the hospitals keep theirs.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, select

from boundary.checkpoint import Checkpoint, log_name
from boundary.errors import BoundaryError
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR
from compliance.merkle import BrokenProof, Tree, leaf_hash
from compliance.quick_leaf import read
from compliance.witnessing import Contradiction, LogForked, LogShrunk
from flows.authority import write_secret
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.store import audit, studies, witnessed
from flows.store.database import reading, writing
from flows.store.schema import tree
from flows.trails import Trails

HIGH_WATER = "newest-head.json"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found of a party's log: its size, and what is wrong with it, if anything."""

    party: str
    size: int
    root: bytes
    code: str | None
    why: str
    contradiction: Contradiction | None

    def report(self, connection: Connection, coordinator: Coordinator) -> None:
        if self.code is not None and self.contradiction is not None:
            now = coordinator.now()
            witnessed.open_incident(connection, self.party, self.code, self.contradiction, actor=COORDINATOR, now=now)


def look(coordinator: Coordinator) -> list[Look]:
    """Verify all logs and open an incident for each that is not what was signed.

    They are read as they were at one moment, and no round waits for that: only what is found is written.
    """
    with reading(coordinator.store) as connection:
        known = studies.every(connection)
    for study in known:
        with writing(coordinator.store) as connection, suppress(BrokenProof):  # what is broken is found below
            Trails(Desk(coordinator.key, coordinator.now, study.plan), study).take_in(connection)
    with reading(coordinator.store) as connection:
        parties = frozenset({COORDINATOR, *(silo for study in known for silo in study.plan.silos)})
        found = [_look_at(connection, coordinator, one, parties) for one in _logs(connection, coordinator)]
    if any(one.contradiction for one in found):
        with writing(coordinator.store) as connection:
            for one in found:
                one.report(connection, coordinator)
    for one in found:
        if one.party == COORDINATOR and one.code is None:
            _raise_mark(coordinator, Checkpoint.sign(COORDINATOR, one.size, one.root, coordinator.key))
    return found


def _raise_mark(coordinator: Coordinator, head: Checkpoint) -> None:
    """Never lower: of two looks at once, the one that began earlier may end later."""
    mark = coordinator.home / HIGH_WATER
    with writing(coordinator.store):  # one at a time
        if all(kept.size < head.size for kept in _kept_beside(mark)):
            _replace(mark, head.model_dump_json().encode())


def _logs(connection: Connection, coordinator: Coordinator) -> Iterator[tuple[str, str, PublicIdentity]]:
    """(party, name, key) of ours, and of every hospital's of every study."""
    if audit.latest(connection):
        yield COORDINATOR, COORDINATOR, coordinator.key.public
    known = {
        log_name(silo, key): (silo, key) for study in studies.every(connection) for silo, key in study.plan.keys.items()
    }
    for name, (silo, key) in sorted(known.items()):
        if witnessed.has_heads(connection, name):
            yield silo, name, key


def _look_at(
    connection: Connection, coordinator: Coordinator, log: tuple[str, str, PublicIdentity], parties: frozenset[str]
) -> Look:
    party, name, key = log
    grown, heads = Tree(), list[Checkpoint]()
    try:
        if party == COORDINATOR:
            heads += _kept_beside(coordinator.home / HIGH_WATER)
        heads += witnessed.every_head(connection, name)
        _grow(connection, party, name, grown, parties)
        for head in heads:
            head.check(key)
            if head.size > grown.size:
                raise LogShrunk(f"{head.size} entries were signed, {grown.size} are here")
            if grown.root(head.size) != head.root_bytes:
                raise LogForked(f"the {head.size} entries here are not those that were signed")
    except (BoundaryError, ValueError, TypeError) as why:  # a value of another kind was put into the database
        code = why.code if isinstance(why, BoundaryError) else BrokenProof.code
        found = Contradiction(known=None, shown=max(heads, key=lambda head: head.size, default=None))
        return Look(party, grown.size, grown.root(), code, str(why), found)
    return Look(party, grown.size, grown.root(), None, "every entry is what was signed", None)


def _grow(connection: Connection, party: str, name: str, grown: Tree, parties: frozenset[str]) -> None:
    """Build the tree anew and hold each node that is stored against it. Raises `BrokenProof` or `MalformedMessage`."""
    stored = {
        (level, position): bytes(found)
        for level, position, found in connection.execute(
            select(tree.c.level, tree.c.position, tree.c.hash).where(tree.c.log == name)
        )
    }
    if party == COORDINATOR:
        whole = dict(enumerate(audit.leaves(connection), 1))
    else:
        whole = witnessed.whole_entries(connection, name)
    size = sum(level == 0 for level, _ in stored)
    if party == COORDINATOR and size != len(whole):
        raise BrokenProof(f"{len(whole)} entries, and hashes of {size}")
    for number in range(1, size + 1):
        grown.append(_hash_at(number, whole, stored))
        if number in whole:
            leaf = read(whole[number], party, parties)
            if (leaf.log, leaf.sequence) != (party, number):
                raise BrokenProof(f"entry {number} says it is number {leaf.sequence} of {leaf.log}")
    if len(stored) != 2 * size - size.bit_count():
        raise BrokenProof(f"{len(stored)} nodes of a tree that has {2 * size - size.bit_count()}")
    for (level, position), found in stored.items():
        if (position + 1) << level > grown.size or grown.look(level, position) != found:
            raise BrokenProof(f"node {level}, {position} of the tree is not what the entries give")


def _hash_at(number: int, whole: dict[int, bytes], stored: dict[tuple[int, int], bytes]) -> bytes:
    if number in whole:
        return leaf_hash(whole[number])
    try:
        return stored[0, number - 1]
    except KeyError:
        raise BrokenProof(f"entry {number} is gone") from None


def _kept_beside(path: Path) -> list[Checkpoint]:
    return [Checkpoint.model_validate_json(path.read_bytes())] if path.exists() else []


def _replace(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    write_secret(part, data)
    part.replace(path)

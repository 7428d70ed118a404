"""The Merkle trees of all logs the coordinator holds: its own, and the hospitals' as they showed them.

Every complete subtree's hash is a row, so that a root or a proof takes a few look-ups however long the log is.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, func, insert, select

from compliance.merkle import BrokenProof, closed_by, consistency_proof, root_at
from flows.store.schema import tree

_HASH = select(tree.c.hash).where(
    tree.c.log == bindparam("log"), tree.c.level == bindparam("level"), tree.c.position == bindparam("position")
)
_LAST = select(func.coalesce(func.max(tree.c.position), -1)).where(tree.c.log == bindparam("log"), tree.c.level == 0)
_HASHES = (
    select(tree.c.hash)
    .where(
        tree.c.log == bindparam("log"), tree.c.level == 0,
        tree.c.position >= bindparam("begin"), tree.c.position < bindparam("end"),
    )
    .order_by(tree.c.position)
)  # fmt: skip
_INSERT = insert(tree)  # made once, as the others: an entry comes with every change


class NodeMissing(BrokenProof, KeyError):
    """Something was taken out of a log's tree in the database."""


class Log:
    """One log's tree. `size` is how many entries it has."""

    def __init__(self, connection: Connection, log: str) -> None:
        self._connection, self.log = connection, log
        self.size: int = 1 + connection.execute(_LAST, {"log": log}).scalar_one()

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append entries by their hashes, inside the caller's transaction from `database.writing`."""
        rows: dict[tuple[int, int], bytes] = {}

        def look(level: int, position: int) -> bytes:
            return rows[level, position] if (level, position) in rows else self.look(level, position)

        for leaf in leaves:
            for level, position, closed in closed_by(self.size, leaf, look):
                rows[level, position] = closed
            self.size += 1
        if rows:
            self._connection.execute(
                _INSERT,
                [{"log": self.log, "level": at[0], "position": at[1], "hash": row} for at, row in rows.items()],
            )

    def look(self, level: int, position: int) -> bytes:
        """The hash of a complete subtree; raises `NodeMissing`."""
        at = {"log": self.log, "level": level, "position": position}
        found = self._connection.execute(_HASH, at).scalar()
        if found is None:
            raise NodeMissing(f"the tree of {self.log} has no node {level}, {position}")
        return bytes(found)

    def root(self, size: int | None = None) -> bytes:
        return root_at(self.size if size is None else size, self.look)

    def proof(self, old: int, new: int) -> list[bytes]:
        """That the log of `new` entries begins with the log of `old`."""
        return consistency_proof(old, new, self.look)

    def hashes(self, begin: int, end: int) -> list[bytes]:
        """Those of the entries from `begin` to before `end`, counted from 0."""
        found = self._connection.execute(_HASHES, {"log": self.log, "begin": begin, "end": end})
        return [bytes(one) for one in found.scalars()]

"""The Merkle tree of a log (RFC 6962, section 2.1; RFC 9162, section 2.1): roots, proofs, and their verification.

A log keeps the hash of every complete subtree, about two for each entry, by level and position: (0, 4) is entry 4,
(2, 1) covers entries 4 to 7. Whoever has these can give any root and any proof in a number of look-ups that grows with
the logarithm of the log. Entries are counted from 0 here. Verification needs nothing but hashes that were handed over.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from boundary.errors import MalformedMessage

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()  # RFC 6962, section 2.1: the hash of an empty tree
MOST_HASHES = 64  # in a proof; a log of 2^53 entries needs 54
Look = Callable[[int, int], bytes]
"""(level, position) of a complete subtree -> its hash; raises `KeyError` for one that is not there."""


class BrokenProof(MalformedMessage):
    """A proof that does not prove what it came with."""

    code = "LOG_INCONSISTENT"


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def closed_by(size: int, leaf: bytes, look: Look) -> list[tuple[int, int, bytes]]:
    """The complete subtrees that an entry with hash `leaf`, appended to a log of `size`, closes: itself first.

    Each as (level, position, hash). `look` is asked for the left halves.
    """
    level, position, closed = 0, size, leaf
    made = [(level, position, closed)]
    while position & 1:
        closed = node_hash(look(level, position - 1), closed)
        level, position = level + 1, position >> 1
        made.append((level, position, closed))
    return made


def root_at(size: int, look: Look) -> bytes:
    """MTH(D[0:size]) of RFC 6962: the root the log had, or has, with its first `size` entries."""
    return _subtree(0, size, look) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, look: Look) -> list[bytes]:
    """PATH(index, D[0:size]) of RFC 6962, section 2.1.1. Raises `ValueError` outside the log."""
    if not 0 <= index < size:
        raise ValueError(f"entry {index} of a log of {size}")
    path, begin, end = [], 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_subtree(middle, end, look))
            end = middle
        else:
            path.append(_subtree(begin, middle, look))
            begin = middle
    return path[::-1]


def consistency_proof(old: int, new: int, look: Look) -> list[bytes]:
    """PROOF(old, D[0:new]) of RFC 6962, section 2.1.2; empty for equal sizes and for an empty log."""
    if not 0 <= old <= new:
        raise ValueError(f"a log of {new} cannot go on from one of {old}")
    if old in {0, new}:
        return []
    proof, begin, end, is_whole = [], 0, new, True
    while end - begin > 1 and old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            proof.append(_subtree(middle, end, look))
            end = middle
        else:
            proof.append(_subtree(begin, middle, look))
            begin, is_whole = middle, False
    if not is_whole:
        proof.append(_subtree(begin, end, look))
    return proof[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162, section 2.1.3.2. Raises `BrokenProof` unless the entry is number `index` of the log with this root."""
    _check_form(proof)
    if not 0 <= index < size:
        raise BrokenProof(f"entry {index} of a log of {size}")
    found = leaf
    for is_left, sibling in _climb(index, size - 1, proof):
        found = node_hash(sibling, found) if is_left else node_hash(found, sibling)
    if found != root:
        raise BrokenProof("the entry is not in the log")


def check_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162, section 2.1.4.2. Raises `BrokenProof` unless the log of `new` begins with the log of `old`."""
    _check_form(proof)
    if old > new or old < 0:
        raise BrokenProof(f"a log of {new} cannot go on from one of {old}")
    if old in {0, new}:
        _check_trivial(old, old_root, new_root, proof, same=old == new)
        return
    hashes = list(proof)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    if not hashes:
        raise BrokenProof("the proof is empty")
    was = now = hashes[0]
    for is_left, sibling in _climb(position, last, hashes[1:]):
        if is_left:
            was = node_hash(sibling, was)
        now = node_hash(sibling, now) if is_left else node_hash(now, sibling)
    if (was, now) != (old_root, new_root):
        raise BrokenProof(f"the log of {new} entries does not begin with the {old} that were seen before")


def _climb(position: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bool, bytes]]:
    """Give (whether it stands on the left, sibling), from the leaf to the root.

    `position` and `last` are those of the node and of the last one of its level. Raises `BrokenProof` if the proof is
    not as long as the tree is high.
    """
    for sibling in proof:
        if last == 0:
            raise BrokenProof("the proof is longer than the tree is high")
        is_left = bool(position & 1) or position == last
        yield is_left, sibling
        while is_left and not position & 1 and position:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last != 0:
        raise BrokenProof("the proof is shorter than the tree is high")


def _check_trivial(old: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes], *, same: bool) -> None:
    if proof:
        raise BrokenProof("nothing is to be proven, and there is a proof")
    if old == 0 and old_root != EMPTY_ROOT:
        raise BrokenProof("an empty log has another root")
    if same and old_root != new_root:
        raise BrokenProof(f"two logs of {old} entries")


def _check_form(proof: Sequence[bytes]) -> None:
    if len(proof) > MOST_HASHES or any(len(one) != HASH_BYTES for one in proof):
        raise BrokenProof("a proof is a few hashes of 32 bytes")


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _subtree(begin: int, end: int, look: Look) -> bytes:
    """MTH(D[begin:end]); `begin` is a multiple of the largest power of two in it, as in every call here."""
    size = end - begin
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return look(level, begin >> level)
    middle = begin + _split(size)
    return node_hash(_subtree(begin, middle, look), _subtree(middle, end, look))


@dataclass(slots=True)
class Tree:
    """A whole tree in memory: for whoever has all entries at hand."""

    _levels: list[list[bytes]] = field(default_factory=lambda: [[]])

    @classmethod
    def of(cls, leaves: Iterable[bytes]) -> Self:
        """The tree over these hashes of entries; ten times as fast as one by one."""
        levels = [list(leaves)]
        while len(levels[-1]) > 1:
            below = iter(levels[-1])
            levels.append([node_hash(left, right) for left, right in zip(below, below, strict=False)])
        return cls(levels)

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """`leaf` is the entry's hash."""
        for level, _, closed in closed_by(self.size, leaf, self.look):
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(closed)

    def look(self, level: int, position: int) -> bytes:
        return self._levels[level][position]

    def root(self, size: int | None = None) -> bytes:
        return root_at(self.size if size is None else size, self.look)

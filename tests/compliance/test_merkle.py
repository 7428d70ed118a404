"""The Merkle tree against RFC 6962's own vectors and a naive tree written from its definitions; and every other past.

The reference here is recursive over whole lists of entries and shares no code with `compliance.merkle`.
"""

import hashlib
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance.merkle import (
    EMPTY_ROOT,
    BrokenProof,
    Tree,
    check_consistency,
    check_inclusion,
    closed_by,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
)

MOST = 64
# The inputs and roots of the Certificate Transparency reference implementation (google/certificate-transparency,
# cpp/merkletree/merkle_tree_test.cc; python/ct/crypto/merkle_test.py)
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# (entry counted from 1, size, path) and (old, new, proof) of the same tests
PATHS = [
    (1, 1, []),
    (1, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
    (6, 8, ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
    (3, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (2, 5, ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
]  # fmt: skip
PROOFS = [
    (1, 1, []),
    (1, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
    (6, 8, ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
    (2, 5, ["5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
]  # fmt: skip


# --- the reference: RFC 6962, section 2.1, word for word ----------------------------------------------
Entries = tuple[bytes, ...]


def largest_power_of_two_below(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


@cache
def mth(entries: Entries) -> bytes:
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = largest_power_of_two_below(len(entries))
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: Entries) -> list[bytes]:
    if len(entries) == 1:
        return []
    k = largest_power_of_two_below(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: Entries, *, known: bool) -> list[bytes]:
    if m == len(entries):
        return [] if known else [mth(entries)]
    k = largest_power_of_two_below(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], known=known), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], known=False), mth(entries[:k])]


def entries_of(size: int, what: str = "entry") -> Entries:
    return tuple(f"{what} {number}".encode() for number in range(size))


def tree_of(entries: Entries) -> Tree:
    tree = Tree()
    for entry in entries:
        tree.append(leaf_hash(entry))
    return tree


ENTRIES = entries_of(MOST)
TREE = tree_of(ENTRIES)


# --- known answers -----------------------------------------------------------------------------------
def test_the_roots_of_the_reference_implementation() -> None:
    tree = tree_of(tuple(INPUTS))
    assert [root_at(size, tree.look).hex() for size in range(9)] == ROOTS
    assert EMPTY_ROOT.hex() == ROOTS[0]
    assert tree.root().hex() == ROOTS[8]


@pytest.mark.parametrize(("number", "size", "expected"), PATHS)
def test_the_inclusion_proofs_of_the_reference_implementation(number: int, size: int, expected: list[str]) -> None:
    proof = inclusion_proof(number - 1, size, tree_of(tuple(INPUTS)).look)
    assert [one.hex() for one in proof] == expected
    check_inclusion(leaf_hash(INPUTS[number - 1]), number - 1, size, bytes.fromhex(ROOTS[size]), proof)


@pytest.mark.parametrize(("old", "new", "expected"), PROOFS)
def test_the_consistency_proofs_of_the_reference_implementation(old: int, new: int, expected: list[str]) -> None:
    proof = consistency_proof(old, new, tree_of(tuple(INPUTS)).look)
    assert [one.hex() for one in proof] == expected
    check_consistency(old, new, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]), proof)


def test_an_entry_is_never_a_node() -> None:
    """Second preimages: RFC 6962, section 2.1, separates the two by a byte."""
    left, right = leaf_hash(b"left"), leaf_hash(b"right")
    assert leaf_hash(left + right) != node_hash(left, right)


# --- every size up to 64 -----------------------------------------------------------------------------
def test_every_root_is_that_of_the_definition() -> None:
    assert [TREE.root(size) for size in range(MOST + 1)] == [mth(ENTRIES[:size]) for size in range(MOST + 1)]
    assert (TREE.size, TREE.root()) == (MOST, mth(ENTRIES))


def test_every_inclusion_proof_is_that_of_the_definition_and_proves_that_entry_only() -> None:
    for size in range(1, MOST + 1):
        root = mth(ENTRIES[:size])
        for index in range(size):
            proof = inclusion_proof(index, size, TREE.look)
            assert proof == path(index, ENTRIES[:size]), (index, size)
            check_inclusion(leaf_hash(ENTRIES[index]), index, size, root, proof)
            for other in {0, size - 1, (index + 1) % size} - {index}:
                with pytest.raises(BrokenProof):
                    check_inclusion(leaf_hash(ENTRIES[index]), other, size, root, proof)


def test_every_consistency_proof_is_that_of_the_definition() -> None:
    for new in range(MOST + 1):
        for old in range(new + 1):
            proof = consistency_proof(old, new, TREE.look)
            expected = [] if old in {0, new} else subproof(old, ENTRIES[:new], known=True)
            assert proof == expected, (old, new)
            check_consistency(old, new, mth(ENTRIES[:old]), mth(ENTRIES[:new]), proof)


@given(st.integers(1, 2**20), st.data())
@settings(max_examples=60, deadline=None)
def test_a_proof_takes_as_many_look_ups_as_the_tree_is_high_squared(size: int, data: st.DataObject) -> None:
    """And asks for nothing but complete subtrees of the log."""
    asked: list[tuple[int, int]] = []

    def look(level: int, position: int) -> bytes:
        assert (position + 1) << level <= size
        asked.append((level, position))
        return hashlib.sha256(f"{level} {position}".encode()).digest()

    old, high = data.draw(st.integers(0, size)), size.bit_length()
    for act in (
        lambda: root_at(size, look),
        lambda: inclusion_proof(min(old, size - 1), size, look),
        lambda: consistency_proof(old, size, look),
    ):
        asked.clear()
        act()
        assert len(asked) <= high * high


@given(st.integers(0, 2**53 - 1))
def test_an_entry_closes_as_many_subtrees_as_its_number_has_ones_at_its_end(size: int) -> None:
    made = closed_by(size, bytes(32), lambda level, _: bytes([level % 256]) * 32)
    assert [level for level, _, _ in made] == list(range(len(made)))
    assert len(made) == (size ^ (size + 1)).bit_length()
    assert all(position == size >> level for level, position, _ in made)


# --- another past ------------------------------------------------------------------------------------
def changed(entries: Entries, at: int) -> Entries:
    return (*entries[:at], b"another entry", *entries[at + 1 :])


def dropped(entries: Entries, at: int) -> Entries:
    return (*entries[:at], *entries[at + 1 :], b"one at the end instead")


def duplicated(entries: Entries, at: int) -> Entries:
    return (*entries[:at], entries[at], *entries[at:-1])


def swapped(entries: Entries, at: int) -> Entries:
    other = (at + 1) % len(entries)
    found = list(entries)
    found[at], found[other] = found[other], found[at]
    return tuple(found)


def inserted(entries: Entries, at: int) -> Entries:
    return (*entries[:at], b"one in between", *entries[at:-1])


REWRITTEN: dict[str, Callable[[Entries, int], Entries]] = {
    "an entry was changed": changed,
    "an entry was dropped": dropped,
    "an entry was written twice": duplicated,
    "two entries were swapped": swapped,
    "an entry was put in between": inserted,
}


@pytest.mark.parametrize("rewrite", REWRITTEN.values(), ids=REWRITTEN)
@pytest.mark.parametrize("new", [2, 3, 7, 8, 9, 31, 32, 33])
def test_a_rewritten_history_has_no_proof(new: int, rewrite: Callable[[Entries, int], Entries]) -> None:
    """Not the true one, not the best one its owner can make, from any size and with a change at any place."""
    for old in range(1, new + 1):
        known = mth(ENTRIES[:old])
        for at in range(old):
            other = rewrite(ENTRIES[:new], at)
            if other[:old] == ENTRIES[:old]:  # what was put at the end instead
                continue
            lie = tree_of(other)
            for proof in (consistency_proof(old, new, lie.look), consistency_proof(old, new, TREE.look)):
                with pytest.raises(BrokenProof):
                    check_consistency(old, new, known, lie.root(), proof)


def test_a_shorter_log_does_not_go_on_from_a_longer_one() -> None:
    for old, new in ((5, 4), (1, 0), (64, 63)):
        with pytest.raises(BrokenProof, match="cannot go on"):
            check_consistency(old, new, TREE.root(old), TREE.root(new), [])
        with pytest.raises(ValueError, match="cannot go on"):
            consistency_proof(old, new, TREE.look)
    with pytest.raises(BrokenProof):
        check_consistency(-1, 4, EMPTY_ROOT, TREE.root(4), [])


@pytest.mark.parametrize(("index", "size"), [(3, 3), (-1, 3), (0, 0), (4, 3)])
def test_an_entry_outside_the_log_is_not_in_it(index: int, size: int) -> None:
    with pytest.raises(BrokenProof, match=f"entry {index} of a log of {size}"):
        check_inclusion(leaf_hash(b""), index, size, TREE.root(3), [])
    with pytest.raises(ValueError, match=f"entry {index} of a log of {size}"):
        inclusion_proof(index, size, TREE.look)


Proof = list[bytes]
TAMPERED: dict[str, Callable[[Proof, int], Proof]] = {
    "cut at the end": lambda proof, _: proof[:-1],
    "cut at the beginning": lambda proof, _: proof[1:],
    "gone": lambda _proof, _at: [],
    "with a hash more at the end": lambda proof, _: [*proof, bytes(32)],
    "with a hash more at the beginning": lambda proof, _: [bytes(32), *proof],
    "with its last hash twice": lambda proof, _: [*proof, proof[-1]],
    "with one bit flipped": lambda proof, at: [
        *proof[: at % len(proof)], bytes([proof[at % len(proof)][0] ^ 1]) + proof[at % len(proof)][1:],
        *proof[at % len(proof) + 1 :],
    ],
    "upside down": lambda proof, _: proof[::-1],
    "with a hash that is too short": lambda proof, _: [*proof[:-1], proof[-1][:31]],
    "with a hash that is too long": lambda proof, _: [*proof[:-1], proof[-1] + b"\x00"],
    "with all hashes in one": lambda proof, _: [b"".join(proof)] if len(proof) > 1 else [],
    "longer than any": lambda proof, _: proof * 65,
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_proof_that_was_tampered_with_proves_nothing(tamper: Callable[[Proof, int], Proof]) -> None:
    for new in range(2, 34):
        for old in range(1, new):
            proof = consistency_proof(old, new, TREE.look)
            bad = tamper(proof, old)
            if bad == proof:
                continue
            with pytest.raises(BrokenProof):
                check_consistency(old, new, TREE.root(old), TREE.root(new), bad)
        for index in range(new):
            proof = inclusion_proof(index, new, TREE.look)
            bad = tamper(proof, index)
            if bad == proof:
                continue
            with pytest.raises(BrokenProof):
                check_inclusion(leaf_hash(ENTRIES[index]), index, new, TREE.root(new), bad)


def test_a_proof_from_another_size_proves_nothing() -> None:
    """The later size is another matter: RFC 6962 leaves it to the signature that has size and root together."""
    for new in range(2, 33):
        for old in range(1, new):
            proof = consistency_proof(old, new, TREE.look)
            for other in range(1, new + 1):
                if other != old:
                    with pytest.raises(BrokenProof):
                        check_consistency(other, new, TREE.root(other), TREE.root(new), proof)


TRIVIAL: dict[str, tuple[int, int, bytes, bytes, Proof, str]] = {
    "a proof of nothing, from an empty log": (0, 3, EMPTY_ROOT, TREE.root(3), [bytes(32)], "nothing is to be proven"),
    "a proof of nothing, of the same log": (3, 3, TREE.root(3), TREE.root(3), [bytes(32)], "nothing is to be proven"),
    "an empty log with a root": (0, 3, TREE.root(1), TREE.root(3), [], "an empty log has another root"),
    "two empty logs": (0, 0, EMPTY_ROOT, TREE.root(1), [], "two logs of 0 entries"),
    "a fork": (3, 3, TREE.root(3), TREE.root(4), [], "two logs of 3 entries"),
    "no proof where one is needed": (3, 5, TREE.root(3), TREE.root(5), [], "the proof is empty"),
}


@pytest.mark.parametrize(("old", "new", "old_root", "new_root", "proof", "why"), TRIVIAL.values(), ids=TRIVIAL)
def test_what_needs_no_proof_is_still_checked(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Proof, why: str
) -> None:
    with pytest.raises(BrokenProof, match=why) as refused:
        check_consistency(old, new, old_root, new_root, proof)
    assert refused.value.code == "LOG_INCONSISTENT"


def test_what_a_tree_does_not_have_cannot_be_looked_up() -> None:
    tree = tree_of(ENTRIES[:5])
    with pytest.raises(IndexError):
        tree.root(6)

"""A witness's judgement: every way for a head not to go on from what was known, and the ones that do."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.canonical import canonical_bytes, digest
from boundary.checkpoint import Checkpoint
from boundary.errors import BadSignature, PeerFault
from boundary.identity import SigningIdentity
from compliance.merkle import BrokenProof, Tree, consistency_proof, leaf_hash
from compliance.witnessing import Contradiction, LogForked, LogInDoubt, LogShrunk, judge, seen

KEY, OTHER = SigningIdentity.generate(), SigningIdentity.generate()


def tree_of(*entries: str) -> Tree:
    tree = Tree()
    for entry in entries:
        tree.append(leaf_hash(entry.encode()))
    return tree


TRUE = tree_of(*(f"entry {number}" for number in range(12)))
LIE = tree_of(*(f"entry {number}" if number != 3 else "another" for number in range(12)))


def head(size: int, tree: Tree = TRUE, key: SigningIdentity = KEY) -> Checkpoint:
    return Checkpoint.sign("ucl", size, tree.root(size), key)


def proof(old: int, new: int, tree: Tree = TRUE) -> list[bytes]:
    return consistency_proof(old, new, tree.look)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_log_that_goes_on_is_judged_to(one: int, other: int) -> None:
    old, new = sorted((one, other))
    judge(head(old), head(new), proof(old, new), KEY.public)


def test_the_first_head_of_a_log_has_to_be_believed() -> None:
    judge(None, head(7, LIE), [bytes(32)] * 9, KEY.public)


@given(st.integers(1, 11), st.integers(1, 12))
def test_a_log_in_which_an_entry_changed_is_told_by_its_first_head_after_it(old: int, new: int) -> None:
    if old < 4 or new < old:
        return
    for made in (proof(old, new), proof(old, new, LIE)):
        with pytest.raises((LogForked, BrokenProof)):
            judge(head(old), head(new, LIE), made, KEY.public)


Case = tuple[Callable[[], None], type[PeerFault], str]
DOUBTS: dict[str, Case] = {
    "two logs of one size": (lambda: judge(head(5), head(5, LIE), [], KEY.public), LogForked, "LOG_FORKED"),
    "fewer entries than before": (lambda: judge(head(5), head(4), [], KEY.public), LogShrunk, "LOG_SHRUNK"),
    "fewer entries, and others": (lambda: judge(head(5), head(4, LIE), [], KEY.public), LogShrunk, "LOG_SHRUNK"),
    "no proof": (lambda: judge(head(5), head(9), [], KEY.public), BrokenProof, "LOG_INCONSISTENT"),
    "another proof": (lambda: judge(head(5), head(9), proof(6, 9), KEY.public), BrokenProof, "LOG_INCONSISTENT"),
    "a proof where none is due": (
        lambda: judge(head(5), head(5), proof(5, 9), KEY.public), BrokenProof, "LOG_INCONSISTENT",
    ),
    "another owner, at first sight": (
        lambda: judge(None, head(5, key=OTHER), [], KEY.public), BadSignature, "BAD_SIGNATURE",
    ),
    "another owner, later": (
        lambda: judge(head(5), head(9, key=OTHER), proof(5, 9), KEY.public), BadSignature, "BAD_SIGNATURE",
    ),
    "a size that was not signed": (
        lambda: judge(None, head(5).model_copy(update={"size": 6}), [], KEY.public), BadSignature, "BAD_SIGNATURE",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "error", "code"), DOUBTS.values(), ids=DOUBTS)
def test_what_does_not_go_on_is_in_doubt(act: Callable[[], None], error: type[PeerFault], code: str) -> None:
    with pytest.raises(error) as doubt:
        act()
    assert (type(doubt.value), doubt.value.code) == (error, code)


def test_the_code_of_work_that_is_not_done_meanwhile() -> None:
    assert LogInDoubt.code == "LOG_IN_DOUBT"


def test_evidence_has_one_form_and_holds_both_heads() -> None:
    for known in (None, head(5)):
        found = Contradiction(known=known, shown=head(5, LIE))
        assert found.data == canonical_bytes(found.model_dump(mode="json"))
        assert found.digest == digest(found.data)
        again: Any = Contradiction.model_validate_json(found.data)
        assert again == found
        again.shown.check(KEY.public)


def test_what_is_said_of_a_head_in_a_log_is_its_owner_size_and_root() -> None:
    assert seen(head(5)).model_dump() == {"log": "ucl", "size": 5, "root": head(5).root}

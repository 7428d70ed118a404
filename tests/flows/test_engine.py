"""The engine's decisions, as a table and as laws."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.engine import (
    HEADLINES,
    CollectionView,
    Decision,
    Next,
    Reason,
    RoundFacts,
    RoundStep,
    Standing,
    next_action,
    rounds_to_run,
    where,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(hours=1), NOW - timedelta(seconds=1)
ALL = frozenset("abcde")


def view(
    answered: str = "", refused: str = "", silent: str = "", due: datetime = LATER, quorum: int = 3
) -> CollectionView:
    codes = dict.fromkeys(refused, "NO_IMAGES")
    return CollectionView(ALL, frozenset(answered), codes, frozenset(silent), due, quorum)


DECISIONS = {
    "nobody has answered yet": (view(), Next.WAIT, Reason.WAITING),
    "the quorum stands but the others still work": (view("abc"), Next.WAIT, Reason.WAITING),
    "everybody answered": (view("abcde"), Next.GO_ON, Reason.ALL_THERE),
    "one refused, the others are ready": (view("abcd", "e"), Next.GO_ON, Reason.REST_REFUSED),
    "three refused: no quorum is possible": (view("ab", "cde"), Next.GIVE_UP, Reason.TOO_MANY_REFUSED),
    "three refused while two still work": (view("", "cde"), Next.GIVE_UP, Reason.TOO_MANY_REFUSED),
    "the rest is silent and the quorum stands": (view("abc", "", "de"), Next.GO_ON, Reason.REST_SILENT),
    "the rest is silent but too few are ready": (view("ab", "", "cde"), Next.WAIT, Reason.WAITING),
    "one is silent, one still works": (view("abc", "", "d"), Next.WAIT, Reason.WAITING),
    "a silent one that had answered counts": (view("abc", "", "abde"), Next.GO_ON, Reason.REST_SILENT),
    "the deadline passed with the quorum": (view("abc", due=EARLIER), Next.GO_ON, Reason.DEADLINE),
    "the deadline passed at this very instant": (view("abc", due=NOW), Next.GO_ON, Reason.DEADLINE),
    "the deadline passed without the quorum": (view("ab", due=EARLIER), Next.GIVE_UP, Reason.BELOW_QUORUM),
    "everybody answered but the quorum is higher": (view("abcde", quorum=6), Next.GIVE_UP, Reason.BELOW_QUORUM),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decision(case: str) -> None:
    known, action, reason = DECISIONS[case]
    assert next_action(known, NOW) == Decision(action, reason)


sets = st.frozensets(st.sampled_from(sorted(ALL)))


@given(answered=sets, refused=sets, silent=sets, minutes=st.integers(-5, 5), quorum=st.integers(3, 5))
def test_laws(
    answered: frozenset[str], refused: frozenset[str], silent: frozenset[str], minutes: int, quorum: int
) -> None:
    codes = dict.fromkeys(refused - answered, "X")
    known = CollectionView(ALL, answered, codes, silent, NOW + timedelta(minutes=minutes), quorum)
    said = next_action(known, NOW)
    if said.next is Next.GO_ON:
        assert len(answered) >= quorum, "never below the quorum"
    if said.next is Next.WAIT:
        assert minutes > 0, "never past the deadline"
        assert known.outstanding, "never for nobody"
    if answered == ALL:
        assert said == Decision(Next.GO_ON, Reason.ALL_THERE)
    assert (said.next is Next.WAIT) == (said.reason is Reason.WAITING)


def test_a_hospital_that_lives_is_waited_for_until_the_deadline() -> None:
    known = view("abcd", "", "")
    assert next_action(known, NOW).next is Next.WAIT
    assert next_action(known, LATER).reason is Reason.DEADLINE


STANDINGS = {
    "ready": (view("a"), NOW, Standing.READY),
    "refused": (view("", "a"), NOW, Standing.REFUSED),
    "silent": (view("", "", "a"), NOW, Standing.SILENT),
    "working": (view(), NOW, Standing.WORKING),
    "late": (view(), LATER, Standing.LATE),
    "ready before the deadline stays ready": (view("a"), LATER, Standing.READY),
}


@pytest.mark.parametrize("case", STANDINGS)
def test_standing(case: str) -> None:
    known, moment, standing = STANDINGS[case]
    assert known.standing("a", moment) is standing


def test_where_a_round_stands() -> None:
    assert where(RoundFacts(1, 1, has_candidate=False, is_committed=False)) is RoundStep.TRAINING
    assert where(RoundFacts(1, 1, has_candidate=True, is_committed=False)) is RoundStep.EVALUATING
    assert where(RoundFacts(1, 1, has_candidate=True, is_committed=True)) is RoundStep.COMMITTED


@given(committed=st.integers(0, 50), planned=st.integers(1, 50), wanted=st.integers(1, 60))
def test_a_run_starts_at_the_first_uncommitted_round_and_never_passes_the_plan(
    committed: int, planned: int, wanted: int
) -> None:
    numbers = list(rounds_to_run(committed, planned, wanted))
    assert len(numbers) == max(0, min(wanted, planned - committed))
    assert not numbers or (numbers[0] == committed + 1 and numbers[-1] <= planned)


def test_every_reason_has_a_headline() -> None:
    assert set(HEADLINES) == set(Reason)

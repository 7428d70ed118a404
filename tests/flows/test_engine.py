"""The engine's decisions, as a table and as laws."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.engine import (
    HEADLINES,
    CollectionView,
    Decision,
    Needed,
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


GRACE = timedelta(minutes=10)


def view(
    answered: str = "", refused: str = "", silent: str = "", due: datetime = LATER, quorum: int = 3, **more: Any
) -> CollectionView:
    codes = dict.fromkeys(refused, "NO_IMAGES")
    return CollectionView(ALL, frozenset(answered), codes, frozenset(silent), due, Needed.of(ALL, quorum), **more)


def wanting(answered: str, minutes_ago: int | None, *, wanted: int = 3, **more: Any) -> CollectionView:
    """Five were asked, `wanted` of them are wanted, and so many had answered some minutes ago."""
    full_at = None if minutes_ago is None else NOW - timedelta(minutes=minutes_ago)
    return view(answered, wanted=wanted, grace=GRACE, full_at=full_at, **more)


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
    "fewer than are wanted": (wanting("ab", None), Next.WAIT, Reason.WAITING),
    "as many as are wanted, and the grace goes on": (wanting("abc", 9), Next.WAIT, Reason.WAITING),
    "as many as are wanted, and the grace is over": (wanting("abc", 10), Next.GO_ON, Reason.WANTED_THERE),
    "more than are wanted, by the grace of the first ones": (wanting("abcd", 10), Next.GO_ON, Reason.WANTED_THERE),
    "all that were asked, before the grace is over": (wanting("abcde", 1), Next.GO_ON, Reason.ALL_THERE),
    "the deadline ends the grace": (wanting("abc", 1, due=NOW), Next.GO_ON, Reason.WANTED_THERE),
    "the deadline with fewer than are wanted gives grace": (
        wanting("abc", None, wanted=4, due=EARLIER), Next.WAIT, Reason.WAITING,
    ),
    "as many as are wanted within the grace of the deadline": (
        wanting("abcd", 0, wanted=4, due=EARLIER), Next.GO_ON, Reason.WANTED_THERE,
    ),
    "the grace of the deadline is over": (
        wanting("abc", None, wanted=4, due=NOW - GRACE), Next.GO_ON, Reason.DEADLINE,
    ),
    "so it is for a plan that wants all": (view("abc", due=EARLIER, grace=GRACE), Next.WAIT, Reason.WAITING),
    "and then the quorum decides": (view("ab", due=NOW - GRACE, grace=GRACE), Next.GIVE_UP, Reason.BELOW_QUORUM),
    "no grace for those that are silent": (
        view("abc", "", "de", due=EARLIER, grace=GRACE), Next.GO_ON, Reason.REST_SILENT,
    ),
    "as many as are wanted are below the quorum": (wanting("abc", 20, quorum=4), Next.WAIT, Reason.WAITING),
}  # fmt: skip


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
    known = CollectionView(ALL, answered, codes, silent, NOW + timedelta(minutes=minutes), Needed.of(ALL, quorum))
    said = next_action(known, NOW)
    if said.next is Next.GO_ON:
        assert len(answered) >= quorum, "never below the quorum"
    if said.next is Next.WAIT:
        assert minutes > 0, "never past the deadline"
        assert known.outstanding, "never for nobody"
    if answered == ALL:
        assert said == Decision(Next.GO_ON, Reason.ALL_THERE)
    assert (said.next is Next.WAIT) == (said.reason is Reason.WAITING)


@given(
    answered=sets, silent=sets, due=st.integers(-20, 20), full=st.integers(0, 30), wanted=st.integers(1, 5),
    grace=st.integers(0, 15), quorum=st.integers(3, 5),
)  # fmt: skip
def test_laws_of_grace(
    answered: frozenset[str], silent: frozenset[str], due: int, full: int, wanted: int, grace: int, quorum: int
) -> None:
    full_at = NOW - timedelta(minutes=full) if len(answered) >= wanted else None
    pause, at = timedelta(minutes=grace), NOW + timedelta(minutes=due)
    known = CollectionView(ALL, answered, {}, silent, at, Needed.of(ALL, quorum), wanted, pause, full_at)
    said = next_action(known, NOW)
    if said.next is Next.GO_ON:
        assert len(answered) >= quorum, "never below the quorum"
    if said.next is Next.WAIT:
        assert at + pause > NOW, "never past the deadline and its grace"
        assert not (full_at and len(answered) >= max(wanted, quorum) and full >= grace), "never past the grace"
    if said.reason is Reason.WANTED_THERE:
        assert len(answered) >= wanted
        assert full >= grace or due <= 0
    without = next_action(CollectionView(ALL, answered, {}, silent, at, Needed.of(ALL, quorum)), NOW)
    if said.next is Next.GIVE_UP:
        assert without.next is Next.GIVE_UP, "grace never loses a round"


def test_a_hospital_that_lives_is_waited_for_until_the_deadline() -> None:
    known = view("abcd", "", "")
    assert next_action(known, NOW).next is Next.WAIT
    assert next_action(known, LATER).reason is Reason.DEADLINE


# --- by groups ---------------------------------------------------------------------------------------
GROUPS = (frozenset("abc"), frozenset("defg"), frozenset("hij"), frozenset("klm"))


def by_groups(answered: str, refused: str = "", silent: str = "", due: datetime = LATER) -> CollectionView:
    """Three of each group, in three of the four groups."""
    everybody = frozenset().union(*GROUPS)
    needed = Needed(tuple((group, 3) for group in GROUPS), 3)
    codes = dict.fromkeys(refused, "NO_IMAGES")
    return CollectionView(everybody, frozenset(answered), codes, frozenset(silent), due, needed)


GROUPED = {
    "three whole groups, and the fourth works": (by_groups("abcdefhij"), Next.WAIT, Reason.WAITING),
    "and at the deadline without it": (by_groups("abcdefhij", due=NOW), Next.GO_ON, Reason.DEADLINE),
    "nine hospitals that are not three groups": (by_groups("abcdefghk", due=NOW), Next.GIVE_UP, Reason.BELOW_QUORUM),
    "a group is broken, the others may be whole": (by_groups("abc", "m"), Next.WAIT, Reason.WAITING),
    "two are broken": (by_groups("abcdefg", "jm"), Next.GIVE_UP, Reason.TOO_MANY_REFUSED),
    "the fourth is silent": (by_groups("abcdefghij", "", "klm"), Next.GO_ON, Reason.REST_SILENT),
    "all of them": (by_groups("abcdefghijklm"), Next.GO_ON, Reason.ALL_THERE),
}


@pytest.mark.parametrize("case", GROUPED)
def test_decision_by_groups(case: str) -> None:
    known, action, reason = GROUPED[case]
    assert next_action(known, NOW) == Decision(action, reason)


def test_one_more_of_a_group_is_not_one_of_another() -> None:
    needed = Needed(tuple((group, 3) for group in GROUPS), 4)
    there = frozenset("abcdefhijklm")
    assert needed.met_by(there)
    more = needed.one_more(GROUPS[1], there)
    assert not more.met_by(there)
    assert more.met_by(there | {"g"})
    assert (needed.fewest, more.fewest) == (12, 13)


STANDINGS = {
    "ready": (view("a"), NOW, Standing.READY),
    "refused": (view("", "a"), NOW, Standing.REFUSED),
    "silent": (view("", "", "a"), NOW, Standing.SILENT),
    "working": (view(), NOW, Standing.WORKING),
    "late": (view(), LATER, Standing.LATE),
    "ready before the deadline stays ready": (view("a"), LATER, Standing.READY),
    "at work in the grace behind the deadline": (view(due=NOW, grace=GRACE), NOW, Standing.WORKING),
    "late behind the grace": (view(due=NOW, grace=GRACE), NOW + GRACE, Standing.LATE),
    "not needed any more": (wanting("bcd", 10), NOW, Standing.NOT_NEEDED),
    "still waited for in the grace": (wanting("bcd", 9), NOW, Standing.WORKING),
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

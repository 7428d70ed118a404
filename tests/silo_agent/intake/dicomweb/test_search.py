"""Listings are whole or refused, whatever an archive makes of limit, offset and order."""

import json
import random
from collections.abc import Callable, Sequence
from itertools import count as counting
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silo_agent.intake.dicomweb.errors import ArchiveNotListed
from silo_agent.intake.dicomweb.search import (
    MODALITY,
    NAMELESS,
    SERIES_UID,
    Instance,
    NotAnAnswer,
    Page,
    is_wanted,
    parse_page,
    put_together,
)

SIZE = 5
Serve = Callable[[int], Sequence[str]]


def listed(serve: Serve, *, most: int = 1000, more: bool = False) -> set[str]:
    """Put together what `serve(offset)` gives; a second call with one offset may give something else."""

    def ask(offset: int) -> Page:
        uids = serve(offset)
        return Page(len(uids), dict.fromkeys(uids, frozenset[str]()), more)

    return set(put_together(ask, size=SIZE, most=most))


def names(count: int) -> list[str]:
    return [f"1.2.{number}" for number in range(count)]


@given(st.integers(0, 40), st.integers(1, SIZE))
def test_an_honest_archive_is_listed_whole_also_when_it_gives_less_than_asked_for(count: int, at_most: int) -> None:
    assert listed(lambda offset: names(count)[offset : offset + at_most]) == set(names(count))


@given(st.lists(st.sampled_from(names(12)), max_size=40))
def test_what_an_archive_lists_twice_is_there_once(uids: list[str]) -> None:
    try:
        assert listed(lambda offset: uids[offset : offset + SIZE]) == set(uids)
    except ArchiveNotListed as why:
        assert "offset" in str(why)  # noqa: PT017 - two pages with the same content look like an archive that repeats


@given(st.integers(0, 40), st.integers(0, 2**32))
def test_an_archive_that_shuffles_is_listed_whole_or_refused(count: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - no secret hangs on it

    def serve(offset: int) -> list[str]:
        return dice.sample(names(count), count)[offset : offset + SIZE]

    try:
        assert listed(serve) == set(names(count))
    except ArchiveNotListed:
        assert count > SIZE


def test_an_archive_that_shuffles_less_than_a_page_is_simply_listed() -> None:
    dice = random.Random(0)  # noqa: S311 - no secret hangs on it
    assert listed(lambda offset: dice.sample(names(4), 4)[offset:]) == set(names(4))


def test_an_archive_that_orders_anew_between_two_pages_is_asked_again() -> None:
    orders = iter([names(8), names(8)[::-1], names(8), names(8), names(8), names(8)])
    assert listed(lambda offset: next(orders)[offset : offset + SIZE]) == set(names(8))


def test_an_archive_that_grows_meanwhile_is_listed_with_what_it_had() -> None:
    now = names(8)

    def serve(offset: int) -> list[str]:
        page = now[offset : offset + SIZE]
        if offset == 0 and len(now) == 8:
            now.insert(0, "1.9")  # newest first, so one is pushed onto the next page
        return page

    assert listed(serve) >= set(names(8))


@pytest.mark.parametrize("count", [1, SIZE - 1, SIZE + 1, 3 * SIZE])
def test_an_archive_that_does_not_page_gives_all_at_once(count: int) -> None:
    assert listed(lambda _offset: names(count)) == set(names(count))


LIARS: dict[str, tuple[Serve, str]] = {
    "it ignores the offset": (lambda _offset: names(SIZE), "offset"),
    "it ignores the offset in another order": (lambda offset: names(SIZE)[:: 1 if offset else -1], "offset"),
    "it never ends": (lambda offset: [f"1.{offset}.{number}" for number in range(SIZE)], "more than 1000"),
    "it repeats all but one for ever": (lambda offset: [*names(SIZE - 1), f"1.3.{offset}"], "more than 1000"),
    "it gives more than the limit at once": (lambda offset: names(1001)[offset:], "more than 1000"),
}


@pytest.mark.parametrize("case", LIARS)
def test_an_archive_that_lies_is_refused_and_holds_nobody_for_ever(case: str) -> None:
    serve, expected = LIARS[case]
    with pytest.raises(ArchiveNotListed, match=expected):
        listed(serve)


def test_an_archive_whose_pages_overlap_in_another_place_each_time_is_refused() -> None:
    turns = counting()

    def serve(offset: int) -> list[str]:
        turn = next(turns) // 4
        order = names(12)[turn:] + names(12)[:turn]
        return order[max(0, offset - 1) :][:SIZE]

    with pytest.raises(ArchiveNotListed, match="another order"):
        listed(serve)


def test_an_archive_that_says_it_left_some_off_and_then_repeats_is_refused() -> None:
    with pytest.raises(ArchiveNotListed, match="offset"):
        listed(lambda _offset: names(3), more=True)


def answer(*results: Any) -> bytes:
    return json.dumps(results).encode()


def series(uid: Any, modality: Any = "CT") -> dict[str, Any]:
    return {
        SERIES_UID: {"vr": "UI", "Value": [uid]},
        MODALITY: {"vr": "CS", "Value": [modality]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
    }


def read(data: bytes) -> Page:
    return parse_page(data, SERIES_UID, MODALITY)


def test_only_uids_and_modalities_are_kept() -> None:
    page = read(answer(series("1.2"), series("1.3 ", "mr"), series("1.2", "SR")))
    assert page == Page(3, {"1.2": frozenset({"CT", "SR"}), "1.3": frozenset({"MR"})})
    assert "1.2" not in repr(page)


@pytest.mark.parametrize("told", [{}, {MODALITY: {"vr": "CS"}}, {MODALITY: {"vr": "CS", "Value": [None, " ", 4]}}])
def test_a_modality_that_is_not_told_excludes_nothing(told: dict[str, Any]) -> None:
    page = read(answer({SERIES_UID: {"Value": ["1.2"]}} | told))
    assert is_wanted(page.found["1.2"], frozenset({"CT"}))


def test_a_modality_that_is_told_spares_a_question() -> None:
    assert is_wanted(frozenset({"CT", "SR"}), frozenset({"CT", "MR"}))
    assert not is_wanted(frozenset({"SR"}), frozenset({"CT", "MR"}))


UIDS = {"1.2.840": True, "1.2.anon-7_b": True, "": False, "..": False, "../x": False, "1/2": False, "1?x": False,
        "1%2e": False, "1\n2": False, "x" * 64: True, "x" * 65: False, "\uff11.2": False}  # fmt: skip


@pytest.mark.parametrize("uid", UIDS)
def test_a_uid_that_would_change_the_path_is_never_asked_for(uid: str) -> None:
    assert set(read(answer(series(uid))).found) == {uid if UIDS[uid] else NAMELESS}


NO_ANSWERS = {
    "a web page": b"<!DOCTYPE html><title>Sign in</title>",
    "half of a list": b'[{"0020000E": {"vr": "UI"',
    "an object": b"{}",
    "a number": b"1",
    "a list of texts": b'["1.2"]',
    "a result without the UID": answer({MODALITY: {"Value": ["CT"]}}),
    "a UID without a value": answer({SERIES_UID: {"vr": "UI"}}),
    "two UIDs in one": answer({SERIES_UID: {"Value": ["1.2", "1.3"]}}),
    "a UID that is a number": answer(series(12)),
    "brackets without end": b"[" * 200_000,
    "a number without end": b"[" + b"9" * 100_000 + b"]",
    "no text at all": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("case", NO_ANSWERS)
def test_what_is_no_list_of_results_is_no_answer(case: str) -> None:
    with pytest.raises(NotAnAnswer):
        read(NO_ANSWERS[case])


def test_an_instance_shows_nothing_of_itself() -> None:
    assert repr(Instance("1.2", "1.3", "1.4")) == "Instance()"

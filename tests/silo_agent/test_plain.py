"""Text of strangers on our terminal and in our log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silo_agent.plain import MOST_SHOWN, plain

TRICKS = {
    "a second log line": ("ok\n2026-11-20 12:00:00 INFO all is well", "ok\\n2026-11-20 12:00:00 INFO all is well"),
    "a terminal escape": ("\x1b[2Jgone", "\\x1b[2Jgone"),
    "writing from right to left": ("\u202ederevo", "\\u202ederevo"),
    "an invisible space": ("a\u200bb", "a\\u200bb"),
}


@pytest.mark.parametrize(("text", "shown"), TRICKS.values(), ids=TRICKS)
def test_tricks_are_shown(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    "text", ["Trondheim, 5 mg/l", "Universit\u00e4tsklinikum", "\u5317\u4eac", "[red]not markup[/red]"]
)
def test_honest_text_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


@given(st.text())
def test_everything_shown_is_printable(text: str) -> None:
    assert plain(text).isprintable()


def test_endless_text_is_cut() -> None:
    assert len(plain("x" * 10_000_000)) < MOST_SHOWN + 10

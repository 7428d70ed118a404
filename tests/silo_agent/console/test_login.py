"""The login's file, who stays logged in, and how often one may guess."""

import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silo_agent.console.login import ALPHABET, FILE_NAME, make_login, read_login
from silo_agent.console.sessions import (
    ABSOLUTE,
    IDLE,
    MOST_SESSIONS,
    WAIT,
    WRONG_BEFORE_WAIT,
    Session,
    Sessions,
    WrongGuesses,
)
from silo_agent.errors import ConfigError
from silo_agent.state import StateFolder

NOW = datetime(2026, 7, 1, 8, tzinfo=UTC)


def test_the_passphrase_fits_and_no_other_does(tmp_path: Path) -> None:
    passphrase = make_login(tmp_path, secrets.token_bytes)
    login = read_login(StateFolder(tmp_path))
    assert login.fits(passphrase)
    for other in ("", passphrase[:-1], passphrase + "0", passphrase[::-1]):
        assert not login.fits(other)


def test_upper_case_spaces_and_misread_letters_do_not_matter(tmp_path: Path) -> None:
    passphrase = make_login(tmp_path, lambda count: bytes(range(count)))
    assert passphrase == "01234-56789-abcde-fghjk"
    assert read_login(StateFolder(tmp_path)).fits(" OL234 56789ABCDE-FGHJK ")


def test_a_passphrase_has_a_hundred_bits_of_the_given_entropy(tmp_path: Path) -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return secrets.token_bytes(count)

    letters = make_login(tmp_path, entropy).replace("-", "")
    assert (len(letters), len(ALPHABET), asked) == (20, 32, [20, 16])


def test_the_file_holds_no_passphrase_and_is_for_its_owner_only(tmp_path: Path) -> None:
    passphrase = make_login(tmp_path, secrets.token_bytes)
    path = tmp_path / FILE_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert passphrase not in path.read_text()
    assert passphrase.replace("-", "") not in path.read_text()
    assert passphrase not in repr(read_login(StateFolder(tmp_path)))


def test_a_new_login_ends_the_old_one(tmp_path: Path) -> None:
    first = make_login(tmp_path, secrets.token_bytes)
    before = read_login(StateFolder(tmp_path))
    second = make_login(tmp_path, secrets.token_bytes)
    after = read_login(StateFolder(tmp_path))
    assert (after.fits(first), after.fits(second), before.digest == after.digest) == (False, True, False)


def _open_to_others(path: Path) -> None:
    path.chmod(0o640)


def _no_json(path: Path) -> None:
    path.write_bytes(b"\x00secret")


def _a_cheaper_hash(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cost": 2}))


def _an_empty_hash(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": ""}))


def _another_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))


UNUSABLE = {
    "is not there": (Path.unlink, "no login yet: run"),
    "can be read by others": (_open_to_others, "chmod 600"),
    "is no JSON": (_no_json, "damaged: run"),
    "asks for a cheaper hash": (_a_cheaper_hash, "damaged: run"),
    "has an empty hash": (_an_empty_hash, "damaged: run"),
    "is of another version": (_another_version, "damaged: run"),
}


@pytest.mark.parametrize(("spoil", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_login_is_refused_with_its_fix_if_its_file(spoil: Any, says: str, tmp_path: Path) -> None:
    make_login(tmp_path, secrets.token_bytes)
    spoil(tmp_path / FILE_NAME)
    with pytest.raises(ConfigError, match=says) as refused:
        read_login(StateFolder(tmp_path))
    assert "secret" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        make_login(tmp_path / "nowhere", secrets.token_bytes)


# --- sessions ----------------------------------------------------------------------------------------
def test_a_session_lives_while_it_is_used_and_not_longer_than_a_day_s_work() -> None:
    sessions, now = Sessions(secrets.token_bytes), NOW
    cookie = sessions.open("login", now)
    while now - NOW < ABSOLUTE - IDLE:
        now += IDLE - timedelta(seconds=1)
        assert sessions.find(cookie, "login", now) is not None
    assert sessions.find(cookie, "login", NOW + ABSOLUTE) is None
    assert sessions.find(cookie, "login", now) is None  # over is over, also if the clock is put back


def test_an_idle_session_is_over() -> None:
    sessions = Sessions(secrets.token_bytes)
    cookie = sessions.open("login", NOW)
    assert sessions.find(cookie, "login", NOW + IDLE) is None


def test_the_session_that_was_used_longest_ago_makes_room() -> None:
    sessions = Sessions(secrets.token_bytes)
    cookies = [sessions.open("login", NOW + timedelta(seconds=at)) for at in range(MOST_SESSIONS)]
    later = NOW + timedelta(minutes=1)
    assert sessions.find(cookies[0], "login", later)
    sessions.open("login", later)
    live = [sessions.find(cookie, "login", later) is not None for cookie in cookies]
    assert live == [True, False, *[True] * (MOST_SESSIONS - 2)]


def test_cookie_and_token_are_two_secrets_that_no_repr_shows() -> None:
    sessions = Sessions(secrets.token_bytes)
    cookie = sessions.open("login", NOW)
    session = sessions.find(cookie, "login", NOW)
    assert isinstance(session, Session)
    assert cookie != session.token
    assert len(cookie) == len(session.token) == 43  # 32 bytes in base 64
    assert session.token not in repr(session)
    assert cookie not in repr(vars(sessions))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_never_more_wrong_guesses_in_any_minute_than_are_allowed(pauses: list[int]) -> None:
    guesses, now, taken = WrongGuesses(), NOW, list[datetime]()
    for pause in pauses:
        now += timedelta(seconds=pause)
        if guesses.seconds_to_wait(now) == 0:
            guesses.add(now)
            taken.append(now)
    for first, last in zip(taken, taken[WRONG_BEFORE_WAIT:], strict=False):
        assert last - first >= WAIT


@given(st.lists(st.integers(0, 40), min_size=WRONG_BEFORE_WAIT, max_size=60))
def test_who_waits_as_long_as_is_said_may_guess(pauses: list[int]) -> None:
    guesses, now = WrongGuesses(), NOW
    for pause in pauses:
        now += timedelta(seconds=pause)
        now += timedelta(seconds=guesses.seconds_to_wait(now))
        assert guesses.seconds_to_wait(now) == 0
        guesses.add(now)

"""What the relay answers: versions, refusals, and how far the clocks are apart."""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.api import PollAnswer
from silo_agent.errors import RelayRefused
from silo_agent.preflight.finding import Finding
from silo_agent.preflight.relay import FAIL_SKEW, WARN_SKEW, clock, judge_clock, judge_refusal, judge_version, relay
from silo_agent.preflight.setting import Setting
from silo_agent.state import StateFolder

SettingOf = Callable[..., Setting]
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def looked(look: Any, setting: Setting) -> Finding:
    finding: Finding = asyncio.run(look(setting))
    return finding


# --- a real relay ------------------------------------------------------------------------------------
def test_a_relay_that_knows_us_answers_in_our_version(enrolled: StateFolder, setting_of: SettingOf) -> None:
    found = looked(relay, setting_of(enrolled))
    assert (found.verdict, "in our protocol version" in found.said) == ("ok", True), found


def test_our_clock_is_compared_with_the_relays(enrolled: StateFolder, setting_of: SettingOf) -> None:
    assert looked(clock, setting_of(enrolled)).verdict == "ok"
    slow = looked(clock, setting_of(enrolled, now=lambda: datetime.now(UTC) - timedelta(seconds=100)))
    assert (slow.verdict, "100 s slow" in slow.said or "99 s slow" in slow.said) == ("warn", True), slow


def test_a_clock_so_wrong_that_the_relay_refuses_us_is_still_measured(
    enrolled: StateFolder, setting_of: SettingOf
) -> None:
    setting = setting_of(enrolled, now=lambda: datetime.now(UTC) + timedelta(hours=1))
    found = looked(clock, setting)
    assert found.verdict == "fail"
    assert found.said in {f"{seconds} s fast by the relay's" for seconds in (3599, 3600, 3601)}
    refused = looked(relay, setting)
    assert (refused.verdict, "STALE" in refused.said, "NTP" in refused.fix) == ("fail", True, True)


def test_a_check_waits_for_nothing_and_says_nothing_of_patients(
    dialling: StateFolder, setting_of: SettingOf, hostile: Any
) -> None:
    asked: list[Any] = []

    def answer(_handler: Any, body: bytes) -> tuple[int, bytes]:
        asked.append(json.loads(body))
        return 200, b'{"deliveries": [], "roster_version": 1}'

    hostile.answers["/v1/poll"] = answer
    assert looked(relay, setting_of(dialling)).verdict == "ok"
    assert asked[0]["after"] == 2**31 - 1
    assert asked[0]["wait_seconds"] == 0
    assert set(asked[0]["heartbeat"]) == {"agent_version", "protocol", "activity", "disk_low", "roster_version"}
    assert asked[0]["heartbeat"]["activity"] is None


ANSWERS: dict[str, tuple[int, bytes, str, str]] = {
    "we are too old": (
        200,
        b'{"deliveries": [], "roster_version": 1, "upgrade": "agent"}',
        "fail",
        "Upgrade the agent",
    ),
    "it is too old": (200, b'{"deliveries": [], "roster_version": 1, "upgrade": "relay"}', "fail", "upgrade the relay"),
    "it does not know us": (401, b'{"code": "UNKNOWN_MEMBER", "message": "no"}', "fail", "still a member"),
    "it is broken": (500, b'{"code": "INTERNAL", "message": "no"}', "fail", "whether the relay runs"),
    "it is another server": (200, b"<html>", "fail", "whether the relay runs"),
}


@pytest.mark.parametrize(("status", "body", "verdict", "fix"), ANSWERS.values(), ids=ANSWERS)
def test_a_relay_says_that(
    dialling: StateFolder, setting_of: SettingOf, hostile: Any, status: int, body: bytes, verdict: str, fix: str
) -> None:
    hostile.answers["/v1/poll"] = lambda _handler, _body: (status, body)
    found = looked(relay, setting_of(dialling))
    assert (found.verdict, fix in found.fix) == (verdict, True), found


def test_a_relay_that_never_answers_is_not_waited_for(
    dialling: StateFolder, setting_of: SettingOf, hostile: Any
) -> None:
    hostile.answers["/v1/poll"] = lambda _handler, _body: (time.sleep(1.5), (200, b"{}"))[1]
    found = looked(relay, setting_of(dialling, network_seconds=0.3))
    assert (found.verdict, found.said) == ("fail", "no answer in time")


# --- decisions ---------------------------------------------------------------------------------------
SKEWS = {
    "together": (0, "ok"),
    "half a minute less one": (29, "ok"),
    "half a minute": (31, "warn"),
    "five minutes less some": (298, "warn"),
    "five minutes": (301, "fail"),
    "a time zone": (3600, "fail"),
}


@pytest.mark.parametrize(("seconds", "verdict"), SKEWS.values(), ids=SKEWS)
@pytest.mark.parametrize("sign", [1, -1], ids=["fast", "slow"])
def test_clocks_apart_by(seconds: int, verdict: str, sign: int) -> None:
    dated = format_datetime(NOW - timedelta(seconds=sign * seconds), usegmt=True)
    assert judge_clock(dated, NOW, NOW).verdict == verdict


@given(off=st.integers(-10_000, 10_000), took=st.floats(0, 20), part=st.floats(0, 0.999))
def test_the_verdict_is_right_within_half_a_second_and_half_of_the_exchange(off: int, took: float, part: float) -> None:
    """The law: `off` is how far we are ahead; the relay answered in the middle, at any part of its second."""
    theirs = NOW + timedelta(seconds=part)
    before = theirs + timedelta(seconds=off - took / 2)
    found = judge_clock(format_datetime(NOW, usegmt=True), before, before + timedelta(seconds=took))
    margin = timedelta(seconds=0.51)
    real = abs(timedelta(seconds=off))
    if found.verdict == "ok":
        assert real < WARN_SKEW + margin
    elif found.verdict == "warn":
        assert WARN_SKEW - margin <= real < FAIL_SKEW + margin
    else:
        assert real >= FAIL_SKEW - margin


@pytest.mark.parametrize("dated", [None, "", "yesterday", "Fri, 20 Nov 2026 12:00:00 -0000", "\x1b[2J"])
def test_an_answer_without_a_date_is_no_verdict_on_the_clock(dated: str | None) -> None:
    assert judge_clock(dated, NOW, NOW).verdict == "warn"


UPGRADES: dict[Literal["none", "agent", "relay"], str] = {"none": "ok", "agent": "fail", "relay": "fail"}


@pytest.mark.parametrize(("who", "verdict"), UPGRADES.items(), ids=list(UPGRADES))
def test_who_must_upgrade(who: Literal["none", "agent", "relay"], verdict: str) -> None:
    found = judge_version(PollAnswer(deliveries=(), roster_version=1, upgrade=who))
    assert found.verdict == verdict
    assert (found.fix == "") is (verdict == "ok")


@pytest.mark.parametrize("code", ["STALE", "UNKNOWN_MEMBER", "BAD_SIGNATURE", "A_NEW_CODE"])
def test_every_refusal_has_a_fix(code: str) -> None:
    found = judge_refusal(RelayRefused(401, code, "x"))
    assert code in found.said
    assert found.fix

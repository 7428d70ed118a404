"""When work is allowed: over midnight, over Sunday night, and on the two days when clocks are changed."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.errors import CallerFault
from silo_agent.policy.hours import DAYS, Hours, within

OSLO = ZoneInfo("Europe/Oslo")
NIGHTS = ("Mon-Fri 19:00-06:00", "Sat-Sun 00:00-24:00")


def hours(*windows: str, timezone: str = "Europe/Oslo") -> Hours:
    return Hours(timezone=timezone, windows=windows, on_close="finish-step-then-pause")


AT = {  # 2026-11-16 is a Monday; local time in Oslo
    "a Monday at noon": ("2026-11-16 12:00", False),
    "the minute before it opens": ("2026-11-16 18:59", False),
    "the minute it opens": ("2026-11-16 19:00", True),
    "the last minute of the day": ("2026-11-16 23:59", True),
    "Tuesday before six, of Monday's window": ("2026-11-17 05:59", True),
    "six o'clock, when it closes": ("2026-11-17 06:00", False),
    "Monday before six, which no Sunday window covers": ("2026-11-16 05:00", False),
    "Saturday before six, of Friday's window": ("2026-11-21 05:00", True),
    "Saturday afternoon": ("2026-11-21 15:00", True),
    "the last minute of Sunday": ("2026-11-22 23:59", True),
    "Monday midnight": ("2026-11-23 00:00", False),
}


@pytest.mark.parametrize(("local", "is_open"), AT.values(), ids=AT)
def test_nights_and_weekends(local: str, is_open: bool) -> None:
    assert hours(*NIGHTS).is_open(datetime.fromisoformat(local).replace(tzinfo=OSLO)) is is_open


def test_the_zone_of_the_question_does_not_matter() -> None:
    at = datetime(2026, 11, 16, 18, 30, tzinfo=UTC)  # 19:30 in Oslo
    assert hours(*NIGHTS).is_open(at)
    assert hours(*NIGHTS).is_open(at.astimezone(ZoneInfo("Asia/Tokyo")))
    assert not hours(*NIGHTS, timezone="UTC").is_open(at)


def test_a_time_without_its_offset_is_refused() -> None:
    with pytest.raises(CallerFault, match="aware datetime"):
        hours(*NIGHTS).is_open(datetime(2026, 11, 16, 20, 0))  # noqa: DTZ001 - the point of the test


def test_sunday_night_goes_on_as_monday_morning() -> None:
    window = hours("Sun 22:00-04:00")
    assert window.spans == ((0, 240), (6 * 1440 + 1320, 7 * 1440))
    assert window.is_open(datetime(2026, 11, 23, 3, 59, tzinfo=OSLO))
    assert not window.is_open(datetime(2026, 11, 24, 3, 59, tzinfo=OSLO))


def test_days_may_go_round_the_end_of_the_week() -> None:
    assert [day for day in range(7) if hours("Fri-Mon 10:00-11:00").is_open(_noonish(day))] == [0, 4, 5, 6]


def _noonish(day: int) -> datetime:
    return datetime(2026, 11, 16, 10, 30, tzinfo=OSLO) + timedelta(days=day)


# --- the days when clocks are changed ----------------------------------------------------------------
def test_in_autumn_the_hour_that_comes_twice_is_inside_twice() -> None:
    """2026-10-25 03:00 CEST becomes 02:00 CET."""
    window = hours("Sun 02:00-03:00")
    opened = [minute for minute in range(240) if window.is_open(datetime(2026, 10, 24, 23, tzinfo=UTC) + _m(minute))]
    assert opened == list(range(60, 180)), "from 00:00 UTC to 02:00 UTC: two hours"


def test_in_spring_an_hour_that_does_not_come_is_no_hour() -> None:
    """2026-03-29 02:00 CET becomes 03:00 CEST."""
    window = hours("Sun 02:00-03:00")
    assert not any(window.is_open(datetime(2026, 3, 28, 23, tzinfo=UTC) + _m(minute)) for minute in range(240))
    night = hours("Sat 19:00-06:00")
    start = datetime(2026, 3, 28, 18, tzinfo=UTC)  # 19:00 CET
    assert night.next_change(start) == datetime(2026, 3, 29, 4, tzinfo=UTC), "06:00 CEST: ten hours later, not eleven"


def test_in_autumn_a_night_is_an_hour_longer() -> None:
    night = hours("Sat 19:00-06:00")
    assert night.next_change(datetime(2026, 10, 24, 17, tzinfo=UTC)) == datetime(2026, 10, 25, 5, tzinfo=UTC)


def test_a_window_that_ends_in_the_hour_that_comes_twice_opens_again() -> None:
    window = hours("Sun 01:00-02:30")
    closes = window.next_change(datetime(2026, 10, 24, 23, 10, tzinfo=UTC))
    assert closes == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert window.next_change(closes) == datetime(2026, 10, 25, 1, 0, tzinfo=UTC), "the clock shows 02:00 once more"


def _m(minutes: int) -> timedelta:
    return timedelta(minutes=minutes)


def test_what_never_changes_has_no_next_change() -> None:
    assert hours().next_change(_noonish(0)) is None
    assert hours("Mon-Sun 00:00-24:00").next_change(_noonish(0)) is None
    assert hours("Mon-Fri 19:00-06:00").next_change(_noonish(0)) == datetime(2026, 11, 16, 18, tzinfo=UTC)


# --- how they are written ----------------------------------------------------------------------------
WRONG = {
    "a day in lower case": "mon 10:00-12:00",
    "a day in full": "Monday 10:00-12:00",
    "an hour of one digit": "Mon 9:00-12:00",
    "the sixtieth minute": "Mon 09:60-12:00",
    "a start at 24:00": "Mon 24:00-12:00",
    "an end after 24:00": "Mon 10:00-24:01",
    "nothing, or a whole day": "Mon 10:00-10:00",
    "a list of days": "Mon,Wed 10:00-12:00",
    "digits of another script": "Mon 1\u0660:00-12:00",
    "a line break after it": "Mon 10:00-12:00\n",
}


@pytest.mark.parametrize("window", WRONG.values(), ids=WRONG)
def test_a_window_has_one_form(window: str) -> None:
    with pytest.raises(ValueError, match="windows"):
        hours(window)


@pytest.mark.parametrize("zone", ["Oslo", "Europe", "europe/oslo ", "../etc/passwd", "", "/etc/localtime"])
def test_a_time_zone_is_one_that_the_machine_knows(zone: str) -> None:
    with pytest.raises(ValueError, match="timezone"):
        hours(*NIGHTS, timezone=zone)


# --- laws --------------------------------------------------------------------------------------------
clock = st.integers(0, 24 * 60 - 1).map(lambda m: f"{m // 60:02}:{m % 60:02}")
window_texts = st.builds(
    lambda first, last, start, end: f"{first}-{last} {start}-{end}",
    st.sampled_from(DAYS), st.sampled_from(DAYS), clock, clock,
).filter(lambda text: text[8:13] != text[14:19])  # fmt: skip
drawn = st.lists(window_texts, max_size=3).map(lambda windows: hours(*windows))
minutes = st.integers(0, 2 * 366 * 24 * 60).map(lambda m: datetime(2026, 1, 1, tzinfo=UTC) + _m(m))


@given(drawn, drawn, minutes)
def test_what_lies_within_is_never_open_when_the_other_is_closed(one: Hours, other: Hours, at: datetime) -> None:
    both = hours(*one.windows, *other.windows)
    assert within(one, both)
    assert both.is_open(at) == (one.is_open(at) or other.is_open(at))
    if within(one, other):
        assert other.is_open(at) or not one.is_open(at)


@given(drawn, minutes)
def test_spans_are_sorted_apart_and_of_one_week(one: Hours, at: datetime) -> None:
    spans = one.spans
    assert all(0 <= start < end <= 7 * 1440 for start, end in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    change = one.next_change(at)
    if change is not None:
        assert change > at
        assert one.is_open(change) != one.is_open(at)
        assert one.is_open(change - _m(1)) == one.is_open(at), "not a minute earlier"


def test_other_clocks_cannot_be_compared_unless_it_makes_no_difference() -> None:
    here, there = hours("Sat 10:00-12:00"), hours("Sat 10:00-12:00", timezone="Europe/Berlin")
    always = hours("Mon-Sun 00:00-24:00", timezone="Asia/Tokyo")
    assert not within(here, there)
    assert within(here, always)
    assert not within(always, here)
    assert within(hours(), there)

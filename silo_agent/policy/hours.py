"""When the hospital lets a round work: windows of the week on the hospital's own clock.

A window is a set of readings of the clock on the wall. So when clocks go back, the hour that comes twice is inside it
twice; when they go forward, an hour that the clock does not show does not come.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field

from boundary.names import Frozen, list_in, timestamp

Spans = tuple[tuple[int, int], ...]

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = 24 * 60  # minutes
_WEEK = 7 * _DAY
ALWAYS: Spans = ((0, _WEEK),)
_LOOK_AHEAD = 8 * _DAY  # a week, and the hours by which clocks may be changed in it
_NAME = "|".join(DAYS)
_WINDOW = re.compile(rf"({_NAME})(?:-({_NAME}))? ([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)", re.ASCII)


def _window(text: str) -> str:
    _spans_of(text)
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as why:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(
            "not a time zone that this machine knows: write one like Europe/Oslo, or install the tzdata package"
        ) from why
    return name


Window = Annotated[str, Field(max_length=40), AfterValidator(_window)]


class Hours(Frozen):
    """`windows` such as `Mon-Fri 19:00-06:00` (until six on the next morning), on the clocks of `timezone` (IANA).

    Without windows it is never open. A round that runs when the last one closes finishes its step and waits.
    """

    timezone: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$"), AfterValidator(_zone)]
    windows: Annotated[tuple[Window, ...], BeforeValidator(list_in), Field(max_length=50)]
    on_close: Literal["finish-step-then-pause"]

    @property
    def spans(self) -> Spans:
        """The open minutes of a week from Monday 00:00, as half-open spans that neither touch nor overlap."""
        return _merged(span for window in self.windows for span in _spans_of(window))

    def is_open(self, now: datetime) -> bool:
        """Raises `CallerFault` for a time without its offset."""
        timestamp(now)
        return _covers(self.spans, now.astimezone(ZoneInfo(self.timezone)))

    def next_change(self, now: datetime) -> datetime | None:
        """When it closes if it is open, when it opens if not; None if it stays as it is for a week."""
        state, spans, zone = self.is_open(now), self.spans, ZoneInfo(self.timezone)
        if spans in {(), ALWAYS}:
            return None
        at = now.astimezone(UTC).replace(second=0, microsecond=0)  # minutes must not be added on a local clock
        for _ in range(_LOOK_AHEAD):
            at += timedelta(minutes=1)
            if _covers(spans, at.astimezone(zone)) != state:
                return at
        return None


def within(inner: Hours, outer: Hours) -> bool:
    """Whether `inner` is never open when `outer` is closed. Other clocks cannot be compared, so then it is not."""
    if inner.spans == () or outer.spans == ALWAYS:
        return True
    if inner.timezone != outer.timezone:
        return False
    return all(any(start <= a and b <= end for start, end in outer.spans) for a, b in inner.spans)


def _covers(spans: Spans, local: datetime) -> bool:
    minute = local.weekday() * _DAY + local.hour * 60 + local.minute
    return any(start <= minute < end for start, end in spans)


@lru_cache(maxsize=256)
def _spans_of(window: str) -> Spans:
    """Minutes of the week; raises `ValueError` with the form."""
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise ValueError("a window is written like Mon-Fri 19:00-06:00 or Sun 00:00-24:00")
    first, last = DAYS.index(found[1]), DAYS.index(found[2] or found[1])
    start, end = int(found[3]) * 60 + int(found[4]), int(found[5]) * 60 + int(found[6])
    if end > _DAY:
        raise ValueError("a day ends at 24:00")
    if start == end:
        raise ValueError("a window begins and ends at the same minute: write 00:00-24:00 for a whole day")
    length = end - start if end > start else end + _DAY - start
    begins = [(first + day) % 7 * _DAY + start for day in range((last - first) % 7 + 1)]
    return tuple(part for begin in begins for part in _wrapped(begin, begin + length))


def _wrapped(start: int, end: int) -> Spans:
    """Sunday night goes on as Monday morning."""
    return ((start, end),) if end <= _WEEK else ((start, _WEEK), (0, end - _WEEK))


def _merged(spans: Iterable[tuple[int, int]]) -> Spans:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)

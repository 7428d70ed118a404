"""Names, moments and base64: each has one written form."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from boundary.errors import CallerFault
from boundary.names import (
    Base64Bytes,
    Code,
    DigestStr,
    Frozen,
    Moment,
    PartyId,
    SiloId,
    StudyId,
    StudyName,
    VersionOne,
    decode_base64,
    encode_base64,
    parse_timestamp,
    timestamp,
)

NOT_A_NAME = {
    "empty": "",
    "capitals": "StOlavs",
    "a line end after it": "st-olavs\n",
    "a line end before it": "\nst-olavs",
    "a dash at the end": "st-",
    "a dash at the start": "-st",
    "a dot": "st.olavs",
    "a slash": "../etc",
    "a space": "st olavs",
    "a letter of another script that looks the same": "st-\u043elavs",
    "a full-width letter": "\uff53t-olavs",
    "a digit of another script": "ward-\u0663",
    "a zero-width joiner": "st\u200d-olavs",
    "a NUL": "st\0",
    "41 characters": "a" * 41,
    "a number": 7,
    "bytes": b"st-olavs",
    "nothing": None,
}
NOT_A_MOMENT = {
    "no offset": "2026-11-20T12:00:00.000000",
    "no microseconds": "2026-11-20T12:00:00Z",
    "milliseconds": "2026-11-20T12:00:00.000Z",
    "another offset": "2026-11-20T13:00:00.000000+01:00",
    "the offset zero": "2026-11-20T12:00:00.000000+00:00",
    "a small z": "2026-11-20T12:00:00.000000z",
    "a space for the T": "2026-11-20 12:00:00.000000Z",
    "the basic form": "20261120T120000.000000Z",
    "a week date": "2026-W47-5T12:00:00.000000Z",
    "only a day": "2026-11-20",
    "a line end": "2026-11-20T12:00:00.000000Z\n",
    "digits of another script": "\u0662026-11-20T12:00:00.000000Z",
    "February 30": "2026-02-30T12:00:00.000000Z",
    "hour 24": "2026-11-20T24:00:00.000000Z",
    "a leap second": "2026-12-31T23:59:60.000000Z",
    "year 0": "0000-01-01T00:00:00.000000Z",
    "a moment before year 1 in UTC": "0001-01-01T00:00:00+23:59",
    "words": "tomorrow",
}
NOT_BASE64 = {
    "stray bits": "QUJDRB==",
    "no padding": "QUI",
    "too much padding": "QUI==",
    "padding in the middle": "QQ==QQ==",
    "a line end": "QUJD\n",
    "a space": "QUJD QUJD",
    "the URL alphabet": "-_-_",
    "a character beyond ASCII": "QUJ\u0441",
    "half of a surrogate pair": "QUJ\ud800",
}


@pytest.mark.parametrize("raw", NOT_A_NAME.values(), ids=NOT_A_NAME)
@pytest.mark.parametrize("kind", [StudyName, SiloId, PartyId])
def test_what_is_not_a_name_is_refused(kind: Any, raw: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(raw, strict=True)


def test_the_coordinators_name_is_its_own() -> None:
    assert TypeAdapter(PartyId).validate_python("coordinator") == "coordinator"
    with pytest.raises(ValidationError, match="own name"):
        TypeAdapter(SiloId).validate_python("coordinator")


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (StudyId, "ct-contrast-0123abcd"),
        (DigestStr, "sha256:" + "0" * 64),
        (Code, "NO_DATA"),
        (StudyName, "a" * 40),
        (SiloId, "3"),
    ],
)
def test_a_name_ends_where_it_ends(kind: Any, good: str) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(kind)
    assert adapter.validate_python(good) == good
    for bad in (good + "\n", good + "\0", " " + good, good + "\u2028"):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


@given(st.datetimes(timezones=st.timezones() | st.just(UTC), allow_imaginary=False))
def test_a_moment_has_one_form(moment: datetime) -> None:
    try:
        written = timestamp(moment)
    except CallerFault:
        assert moment.year in {1, 9999}
        return
    assert parse_timestamp(written) == moment.astimezone(UTC)  # Python compares hours that were twice by the wall clock
    assert timestamp(parse_timestamp(written)) == written
    assert len(written) == len("2026-11-20T12:00:00.000000Z")
    assert TypeAdapter(Moment).validate_python(written) == parse_timestamp(written)


@pytest.mark.parametrize("raw", NOT_A_MOMENT.values(), ids=NOT_A_MOMENT)
def test_another_form_of_a_moment_is_refused(raw: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_timestamp(raw)
    with pytest.raises(ValidationError):
        TypeAdapter(Moment).validate_python(raw)


def test_the_first_centuries_are_written_with_four_digits() -> None:
    assert timestamp(datetime(5, 1, 1, tzinfo=UTC)) == "0005-01-01T00:00:00.000000Z"


UNSPEAKABLE = {
    "a time without an offset": datetime(2026, 11, 20, 12),  # noqa: DTZ001 - that is what is refused
    "before year 1 in UTC": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    "after year 9999 in UTC": datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=2))),
}


@pytest.mark.parametrize("moment", UNSPEAKABLE.values(), ids=UNSPEAKABLE)
def test_a_time_that_has_no_form_is_our_own_fault(moment: datetime) -> None:
    with pytest.raises(CallerFault):
        timestamp(moment)
    with pytest.raises(ValidationError):
        TypeAdapter(Moment).validate_python(moment)


def test_a_moment_is_held_in_utc() -> None:
    here = datetime(2026, 11, 20, 13, tzinfo=timezone(timedelta(hours=1)))
    held = TypeAdapter(Moment).validate_python(here)
    assert held == here
    assert held.tzinfo is UTC


@pytest.mark.parametrize("raw", NOT_BASE64.values(), ids=NOT_BASE64)
def test_another_form_of_base64_is_refused(raw: str) -> None:
    with pytest.raises(ValueError, match=r"base64|ASCII"):
        decode_base64(raw)


@given(st.binary(max_size=70))
def test_base64_round_trip(data: bytes) -> None:
    assert decode_base64(encode_base64(data)) == data
    adapter: TypeAdapter[bytes] = TypeAdapter(Base64Bytes)
    assert adapter.validate_python(encode_base64(data)) == adapter.validate_python(data) == data


@given(st.text(st.sampled_from("ABCDwxyz019+/="), max_size=9))
def test_bytes_have_one_base64(raw: str) -> None:
    try:
        data = decode_base64(raw)
    except ValueError:
        return
    assert encode_base64(data) == raw


class Sample(Frozen):
    number: int = 0
    share: float = 0.0
    version: VersionOne = 1


COERCIONS = {
    "float where int is due": {"number": 1.0},
    "a word where a number is due": {"number": "1"},
    "bool where int is due": {"number": True},
    "bool where float is due": {"share": True},
    "NaN": {"share": float("nan")},
    "infinity": {"share": float("inf")},
    "bool where the version is due": {"version": True},
    "float where the version is due": {"version": 1.0},
    "another version": {"version": 2},
    "extra key": {"other": 1},
}


@pytest.mark.parametrize("raw", COERCIONS.values(), ids=COERCIONS)
def test_types_are_not_coerced(raw: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sample.model_validate(raw)


def test_a_value_is_frozen() -> None:
    sample = Sample(number=1)
    with pytest.raises(ValidationError, match="frozen"):
        sample.number = 2  # type: ignore[misc]

"""The kinds of text and number that a plan, a policy and a roster are written with.

Each has one form, and none has a look that its reader could be misled by: a steward signs what she reads.
"""

import unicodedata
from datetime import date, datetime, time
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from boundary.errors import MalformedMessage
from boundary.identity import PublicIdentity
from boundary.names import list_in

_JOINERS = "\u200c\u200d"  # the only invisible characters that some scripts are written with


def _date_in(raw: Any) -> Any:
    if isinstance(raw, str):
        day = date.fromisoformat(raw)
        if day.isoformat() != raw:  # 20261231 and 2026-W53-4 are the same day in other words
            raise ValueError("a date has one form, for example 2026-12-31")
        return day
    if isinstance(raw, datetime | time):
        raise ValueError("a plain date, for example 2026-12-31")  # noqa: TRY004 - pydantic reports ValueError
    return raw


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """For `AfterValidator`: raises `ValueError` where something is there twice."""
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


def _readable(text: str) -> str:
    """No terminal escapes, no reordering, nothing invisible."""
    for char in text:
        if unicodedata.category(char) in {"Cc", "Cf", "Co", "Zl", "Zp"} and char not in _JOINERS + "\n":
            raise ValueError(f"holds the invisible character U+{ord(char):04X}")
    return text


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("holds a line break")
    return _readable(text)


def _sound_key(key: str) -> str:
    """No second name for a key, and no key whose owner could disown what it signed (`boundary.identity`)."""
    try:
        return PublicIdentity(key).text
    except MalformedMessage as why:
        raise ValueError("not a public key, or not one that binds its owner") from why


Day = Annotated[date, BeforeValidator(_date_in), PlainSerializer(date.isoformat, return_type=str, when_used="json")]
Word = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_line)]
Names = Annotated[tuple[Word, ...], BeforeValidator(list_in), AfterValidator(distinct)]
Sentence = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_readable)]
PUBLIC_KEY_PATTERN = r"^ed25519:[A-Za-z0-9+/]{43}=$"
PublicKeyStr = Annotated[str, Field(pattern=PUBLIC_KEY_PATTERN), AfterValidator(_sound_key)]
Unit = Annotated[float, Field(ge=-1e6, le=1e6)]  # HU, percent: within what the digest's JSON can carry
Millimetres = Annotated[float, Field(ge=0.05, le=50)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

"""Names that appear in messages, file names and URLs: short, lower case, nothing that needs escaping."""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from boundary.errors import CallerFault

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
COORDINATOR = "coordinator"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def _not_the_coordinator(name: str) -> str:
    if name == COORDINATOR:
        raise ValueError("'coordinator' is the coordinator's own name")
    return name


def _moment_in(raw: Any) -> Any:
    return parse_timestamp(raw) if isinstance(raw, str) else raw


def _aware(moment: datetime) -> datetime:
    try:
        return parse_timestamp(timestamp(moment))
    except CallerFault as why:
        raise ValueError(str(why)) from why


def whole(raw: Any) -> Any:
    """For `BeforeValidator` beside a `Literal` of numbers, which takes True for 1 and 32.0 for 32."""
    if isinstance(raw, bool | float):
        raise ValueError("a whole number")  # noqa: TRY004 - pydantic reports ValueError
    return raw


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC to the microsecond: the one form a moment has in our messages. Raises `CallerFault`."""
    if moment.utcoffset() is None:
        raise CallerFault("a time needs its offset from UTC: use an aware datetime")
    try:
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    except OverflowError as why:  # year 1 east of Greenwich, year 9999 west of it
        raise CallerFault("a time outside the years 1 to 9999 in UTC") from why


def parse_timestamp(raw: str) -> datetime:
    """Read what `timestamp` wrote and no other form of the same moment; raises `ValueError`."""
    if not _MOMENT.fullmatch(raw):
        raise ValueError("a time has one form, for example 2026-11-20T12:00:00.000000Z")
    return datetime.fromisoformat(raw)


def decode_base64(raw: str) -> bytes:
    """Standard base64 with padding, nothing else; raises `ValueError`."""
    try:
        data = base64.b64decode(raw, validate=True)
    except binascii.Error as why:
        raise ValueError(f"not base64: {why}") from why
    if base64.b64encode(data).decode() != raw:
        raise ValueError("base64 with stray bits")
    return data


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def list_in(raw: Any) -> Any:
    """For `BeforeValidator`: JSON and TOML have lists where our frozen values have tuples."""
    return tuple(raw) if isinstance(raw, list) else raw


def _bytes_in(raw: Any) -> Any:
    return decode_base64(raw) if isinstance(raw, str) else raw


VersionOne = Annotated[Literal[1], BeforeValidator(whole)]
StudyName = Annotated[str, Field(pattern=NAME_PATTERN)]
SiloId = Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_not_the_coordinator)]
Silos = Annotated[tuple[SiloId, ...], BeforeValidator(list_in)]
PartyId = Annotated[str, Field(pattern=NAME_PATTERN)]
DigestStr = Annotated[str, Field(pattern=DIGEST_PATTERN)]
StudyId = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?-[0-9a-f]{8}$")]
RoundNumber = Annotated[int, Field(ge=1, le=10_000)]
Code = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,40}$")]
Moment = Annotated[
    datetime,
    BeforeValidator(_moment_in),
    AfterValidator(_aware),
    PlainSerializer(timestamp, return_type=str, when_used="json"),
]
Base64Bytes = Annotated[
    bytes, BeforeValidator(_bytes_in), PlainSerializer(encode_base64, return_type=str, when_used="json")
]


class Frozen(BaseModel):
    """A value: immutable, no unknown keys, no silent coercion of types, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="strings",
        defer_build=True,  # at first use: building all of them takes a third of the start-up of an agent
    )  # fmt: skip

"""Every answer that is a refusal: a status, a stable code, one sentence with the fix. Nothing else ever leaves."""

from collections.abc import Mapping
from types import MappingProxyType

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from boundary.api import RelayError
from boundary.canonical import canonical_bytes
from boundary.errors import (
    BadSignature,
    BoundaryError,
    Expired,
    MalformedMessage,
    PeerFault,
    Replayed,
    Stale,
    TooLarge,
    UnknownMember,
    WrongRecipient,
)
from flows.store.holdings import BlobMissing
from flows.store.mail import SlotTaken
from flows.store.members import InvitationRefused, OtherKey
from flows.store.uploads import StorageFull, UploadBusy, UploadQuota, WrongDigest, WrongOffset


class UnknownBlob(PeerFault):
    """No such blob, or not for this hospital: which of the two is not told."""

    code = "UNKNOWN_BLOB"


class UnservableRange(PeerFault):
    """A Range header that lies outside the blob or is not one plain range."""

    code = "RANGE_NOT_SATISFIABLE"


class TooSlow(PeerFault):
    """A body that stopped arriving."""

    code = "TOO_SLOW"


class NoRoster(PeerFault):
    """The coordinator has not issued a roster yet."""

    code = "NO_ROSTER"


STATUS: Mapping[type[Exception], int] = MappingProxyType(
    {
        MalformedMessage: 400,
        BadSignature: 401,
        Stale: 401,
        UnknownMember: 403,
        WrongRecipient: 403,
        InvitationRefused: 403,
        Expired: 403,
        UnknownBlob: 404,
        NoRoster: 404,
        TooSlow: 408,
        Replayed: 409,
        SlotTaken: 409,
        WrongOffset: 409,
        UploadBusy: 409,
        OtherKey: 409,
        TooLarge: 413,
        UnservableRange: 416,
        WrongDigest: 422,
        BlobMissing: 422,
        UploadQuota: 429,
        StorageFull: 507,
    }
)
_INTERNAL = RelayError(code="INTERNAL", message="the relay failed: try again, and tell the coordinator if it goes on")
_HTTP = MappingProxyType({404: "NO_SUCH_ADDRESS", 405: "NO_SUCH_METHOD"})


def refusal(status: int, error: RelayError) -> Response:
    content = canonical_bytes(error.model_dump(mode="json"))
    return Response(content, status_code=status, media_type="application/json")


def explain(why: BoundaryError | StorageFull) -> Response:
    """The answer for an error: its status by its class or the nearest parent class in the table."""
    status = next((STATUS[kind] for kind in type(why).__mro__ if kind in STATUS), 400)
    return refusal(status, RelayError(code=why.code, message=str(why)[:500]))


def install(app: FastAPI) -> None:
    """Teach the application to answer every error in our own words."""

    @app.exception_handler(BoundaryError)
    @app.exception_handler(StorageFull)
    async def _refused(_request: Request, why: BoundaryError | StorageFull) -> Response:
        return explain(why)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, why: RequestValidationError) -> Response:
        first = why.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return refusal(400, RelayError(code="MALFORMED", message=f"{place}: {first['msg']}"[:500]))

    @app.exception_handler(HTTPException)
    async def _routed(_request: Request, why: HTTPException) -> Response:
        code = _HTTP.get(why.status_code, "REFUSED")
        return refusal(why.status_code, RelayError(code=code, message=f"{why.detail}: see docs/openapi.json"))

    @app.exception_handler(ClientDisconnect)
    async def _gone(_request: Request, _why: ClientDisconnect) -> Response:
        return refusal(400, RelayError(code="CUT_OFF", message="the body ended before its Content-Length"))

    @app.exception_handler(Exception)
    async def _failed(_request: Request, _why: Exception) -> Response:
        return refusal(500, _INTERNAL)

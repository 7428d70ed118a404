"""A hospital asks to be admitted, asks again what became of it, and fetches the roster."""

import asyncio
from functools import partial

from fastapi import APIRouter, Request, Response

from boundary.api import EnrolmentState, SignedEnrolment
from flows.authority import read_csr
from flows.relay.auth import admitted, asking
from flows.relay.limits import MAX_SMALL_BYTES, body_of
from flows.relay.parts import Parts, Tools
from flows.relay.refusals import NoRoster
from flows.relay.wire import answer, parse, takes
from flows.store import members
from flows.store.database import reading, writing

router = APIRouter()


@router.post(
    "/v1/enrolment",
    response_model=EnrolmentState,
    openapi_extra=takes(SignedEnrolment, "Signed by the key on the card, with the invitation's token."),
)
async def enrol(request: Request, parts: Tools) -> Response:
    """Ask to be admitted. The same request again gets the same answer."""
    signed = parse(SignedEnrolment, await body_of(request, MAX_SMALL_BYTES))
    read_csr(signed.request.csr_pem, signed.request.silo)
    state = await asyncio.to_thread(_enrol, parts, signed)
    request.state.party = signed.request.silo
    return answer(state)


@router.post("/v1/enrolment/state", response_model=EnrolmentState)
async def enrolment_state(request: Request, parts: Tools) -> Response:
    """What became of the request; signed by the key that asked. The body is empty."""
    return answer(await asking(request, parts, partial(_state, parts)))


@router.get("/v1/roster", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def roster(request: Request, parts: Tools) -> Response:
    """The exact bytes of the current signed roster."""
    data = await admitted(request, parts, 0, lambda _party, _body: _roster(parts))
    if data is None:
        raise NoRoster("no roster was issued yet: the coordinator must admit a hospital first")
    return Response(data, media_type="application/json")


def _enrol(parts: Parts, signed: SignedEnrolment) -> EnrolmentState:
    with writing(parts.engine) as connection:
        return members.enrol(connection, signed, parts.clock())


def _state(parts: Parts, party: str) -> EnrolmentState:
    with reading(parts.engine) as connection:
        return members.enrolment_state(connection, party)


def _roster(parts: Parts) -> bytes | None:
    with reading(parts.engine) as connection:
        return members.current_roster(connection)

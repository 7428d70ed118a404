"""Envelopes: hospitals poll for theirs and post their own. The poll carries the heartbeat."""

import asyncio
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection

from boundary.api import Heartbeat, PollAnswer, PollRequest
from boundary.canonical import MAX_MESSAGE_BYTES
from boundary.envelope import open_envelope, peek
from boundary.errors import BadSignature, WrongRecipient
from boundary.names import COORDINATOR
from boundary.version import ProtocolRange
from flows.relay.auth import admitted, heard
from flows.relay.limits import MAX_SMALL_BYTES
from flows.relay.parts import Parts, Tools
from flows.relay.wire import Receipt, answer, parse, takes
from flows.store import mail, members
from flows.store.database import reading, writing

router = APIRouter()


@router.post(
    "/v1/poll", response_model=PollAnswer, openapi_extra=takes(PollRequest, "What was seen, how long to wait.")
)
async def poll(request: Request, parts: Tools) -> Response:
    """What came after `after`; waits for it up to `wait_seconds`. A newer roster than the one held answers at once."""
    party, asked = await heard(request, parts, MAX_SMALL_BYTES, partial(_polled, parts))
    with parts.inbox.place(party) as woken:
        found = await asyncio.to_thread(_inbox, parts, party, asked)
        if not found.deliveries and found.roster_version <= asked.heartbeat.roster_version and asked.wait_seconds:
            try:
                async with asyncio.timeout(asked.wait_seconds):
                    await woken.wait()
            except TimeoutError:
                pass
            else:
                found = await asyncio.to_thread(_inbox, parts, party, asked)
    return answer(found)


@router.post(
    "/v1/heartbeat",
    status_code=204,
    response_class=Response,
    openapi_extra=takes(Heartbeat, "What the hospital's child process is doing."),
)
async def heartbeat(request: Request, parts: Tools) -> Response:
    """Still here, so many tenths of the way."""
    await heard(request, parts, MAX_SMALL_BYTES, partial(_beaten, parts))
    return Response(status_code=204)


@router.post(
    "/v1/envelopes",
    response_model=Receipt,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "One signed envelope (docs/protocol.md) in its canonical bytes.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
)
async def post_envelope(request: Request, parts: Tools) -> Response:
    """Keep an envelope for its recipient. The same bytes again get the same receipt."""
    return answer(await admitted(request, parts, MAX_MESSAGE_BYTES, partial(_post, parts)))


def upgrade_for(theirs: ProtocolRange, ours: ProtocolRange) -> Literal["none", "agent", "relay"]:
    """Who must upgrade before the two can talk."""
    if ours.shared_with(theirs) is not None:
        return "none"
    return "agent" if theirs.newest < ours.oldest else "relay"


def _polled(parts: Parts, connection: Connection, party: str, body: bytes) -> tuple[str, PollRequest]:
    asked = parse(PollRequest, body)
    members.beat(connection, party, asked.heartbeat, parts.clock(), parts.lease)
    return party, asked


def _beaten(parts: Parts, connection: Connection, party: str, body: bytes) -> None:
    members.beat(connection, party, parse(Heartbeat, body), parts.clock(), parts.lease)


def _inbox(parts: Parts, party: str, asked: PollRequest) -> PollAnswer:
    with reading(parts.engine) as connection:
        return PollAnswer(
            deliveries=mail.inbox(connection, party, after=asked.after),
            roster_version=members.roster_version(connection),
            upgrade=upgrade_for(asked.heartbeat.protocol, ProtocolRange()),
        )


def _post(parts: Parts, party: str, body: bytes) -> Receipt:
    sender, recipient, _ = peek(body)
    if sender != party:
        raise BadSignature(f"{party} posted an envelope in the name of {sender!r:.60}")
    if recipient != COORDINATOR:  # what is for another hospital travels quoted in a message to the coordinator
        raise WrongRecipient(f"addressed to {recipient!r:.60}: the relay keeps only what is for the coordinator")
    with reading(parts.engine) as connection:
        key = members.key_of(connection, party)
    envelope = open_envelope(body, recipient=recipient, signer=key, sender=party)
    with writing(parts.engine) as connection:
        return Receipt(digest=mail.post(connection, envelope, now=parts.clock()).digest)

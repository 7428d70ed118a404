"""How much may arrive, and how slowly: checked against Content-Length first, and counted while it streams."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from boundary.errors import MalformedMessage, TooLarge
from flows.relay.refusals import TooSlow

MAX_SMALL_BYTES = 64 * 1024  # a poll, a heartbeat, an enrolment: the longest is about 12 kB
SILENCE_SECONDS = 30.0  # between two pieces of a body


async def body_of(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; raises `TooLarge`, `TooSlow` or `MalformedMessage`."""
    return b"".join([piece async for piece in pieces_of(request, limit)])


async def pieces_of(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Nothing is read when the declared length is over `limit` already."""
    declared = _declared(request)
    if declared is not None and declared > limit:
        raise TooLarge("the body", declared, limit)
    stream, total = aiter(request.stream()), 0
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as why:
            raise TooSlow(f"nothing arrived for {SILENCE_SECONDS:g} s: check the link and go on") from why
        total += len(piece)
        if total > limit:
            raise TooLarge("the body", total, limit)
        if piece:
            yield piece


async def swallow(request: Request, limit: int) -> None:
    """Read the rest of a body that was refused, so that the refusal arrives instead of a reset connection."""
    try:
        async for _ in pieces_of(request, limit):
            pass
    except (TooLarge, TooSlow, RuntimeError):  # RuntimeError: the stream was consumed before
        return


def _declared(request: Request) -> int | None:
    raw = request.headers.get("content-length")
    if raw is None:
        return None
    if not raw.isascii() or not raw.isdigit() or len(raw) > 18:
        raise MalformedMessage("Content-Length is not a number")
    return int(raw)

"""Blobs over the wire: up in ranges that resume where a cut left them, down as one HTTP range."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from boundary.api import MAX_RANGE_BYTES, BlobState
from boundary.errors import BoundaryError
from boundary.messages import BlobRef
from boundary.names import DIGEST_PATTERN
from flows.relay.auth import admitted, admitted_range
from flows.relay.limits import pieces_of, swallow
from flows.relay.parts import Parts, Tools
from flows.relay.refusals import TooSlow, UnknownBlob, UnservableRange
from flows.relay.wire import answer
from flows.store import holdings
from flows.store.database import noting, reading, writing
from flows.store.uploads import RangeWriter, StorageFull

PIECE_BYTES = 1024 * 1024  # handed to the disk and the hash at once: fewer changes of thread, 2 pieces in memory
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")

DigestPath = Annotated[str, Path(pattern=DIGEST_PATTERN)]
router = APIRouter()


@router.get("/v1/blobs/{digest}/state", response_model=BlobState)
async def blob_state(digest: DigestPath, request: Request, parts: Tools) -> Response:
    """How much of this blob the relay has from you. What others have sent is not told."""
    return answer(await admitted(request, parts, 0, lambda party, _body: _state(parts, party, digest)))


@router.put(
    "/v1/blobs/{digest}",
    response_model=BlobState,
    openapi_extra={
        "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def put_range(
    digest: DigestPath,
    offset: Annotated[int, Query(ge=0)],
    size: Annotated[int, Query(ge=1, le=2**33)],
    request: Request,
    parts: Tools,
) -> Response:
    """The bytes of a blob of `size` bytes from `offset` on. An empty body finishes an upload that is all there."""
    try:
        blob = BlobRef(digest=digest, size=size)
        party, begun = await admitted_range(request, parts, partial(_begin, parts, blob, offset))
        if isinstance(begun, BlobState):
            await swallow(request, MAX_RANGE_BYTES)
            state = begun
        else:
            state = await _receive(request, parts, party, blob, begun)
    except (BoundaryError, StorageFull):
        await swallow(request, MAX_RANGE_BYTES)
        raise
    return answer(state)


@router.get(
    "/v1/blobs/{digest}", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}}
)
async def get_blob(digest: DigestPath, request: Request, parts: Tools) -> Response:
    """The blob, or one range of it: for the hospital that put it here, and for whom a message with it was sent to."""
    wanted = request.headers.get("range")
    party, file, (start, stop), size = await admitted(
        request, parts, 0, lambda party, _body: _open(parts, party, digest, wanted)
    )
    sent = _Tally()
    headers = {"content-length": str(stop - start), "accept-ranges": "bytes", "etag": f'"{digest}"'}
    if stop - start < size:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    return StreamingResponse(
        _pieces(file, start, stop, sent),
        status_code=206 if stop - start < size else 200,
        headers=headers,
        media_type="application/octet-stream",
        background=BackgroundTask(_count_down, parts, party, digest, sent),
    )


def range_of(header: str | None, size: int) -> tuple[int, int]:
    """[start, stop) of a Range header (RFC 9110, 14.2), one plain range only; raises `UnservableRange`."""
    if header is None:
        return 0, size
    match = _RANGE.fullmatch(header)
    if match is None:
        raise UnservableRange("only one range in the form bytes=<first>-<last> is served")
    start = int(match[1])
    stop = min(size, int(match[2]) + 1) if match[2] else size
    if start >= stop:
        raise UnservableRange(f"the blob has {size} bytes")
    return start, stop


@dataclass(slots=True)
class _Tally:
    """Bytes handed to the connection so far."""

    count: int = field(default=0)


async def _receive(request: Request, parts: Parts, party: str, blob: BlobRef, writer: RangeWriter) -> BlobState:
    """While one piece is written and hashed in a thread, the next one arrives. What arrived before a cut is kept."""
    writing_now: asyncio.Future[None] | None = None
    pieces: list[bytes] = []
    try:
        async for piece in pieces_of(request, MAX_RANGE_BYTES):
            pieces.append(piece)
            if sum(map(len, pieces)) >= PIECE_BYTES:
                if writing_now is not None:
                    await writing_now
                writing_now, pieces = asyncio.ensure_future(asyncio.to_thread(writer.write, pieces)), []
        if writing_now is not None:
            await writing_now
        return await asyncio.to_thread(_finish, parts, party, blob, writer, pieces)
    except (ClientDisconnect, TooSlow):
        if writing_now is not None:
            await writing_now
        await asyncio.to_thread(writer.write, pieces)
        await asyncio.to_thread(_count_up, parts, party, blob, writer)
        raise
    finally:
        if writing_now is not None:
            await asyncio.wait([writing_now])
            writing_now.exception()  # it was raised above, or something earlier was
        writer.close()


def _begin(parts: Parts, blob: BlobRef, offset: int, party: str) -> tuple[str, RangeWriter | BlobState]:
    """The party, and where to write, or the state when this party's blob is complete already."""
    state = _state(parts, party, blob.digest)
    return party, state if state.complete else parts.uploads.begin(party, blob, offset, parts.clock())


def _finish(parts: Parts, party: str, blob: BlobRef, writer: RangeWriter, pieces: list[bytes]) -> BlobState:
    writer.write(pieces)
    state = writer.finish()
    if state.complete:
        with writing(parts.engine) as connection:
            holdings.record(connection, blob, owner=party, now=parts.clock())
            holdings.moved(connection, party, blob.digest, up=writer.take_received())
    return state


def _count_up(parts: Parts, party: str, blob: BlobRef, writer: RangeWriter) -> None:
    """Bytes up are counted when an upload completes or its connection breaks, not at every range."""
    with noting(parts.engine) as connection:
        holdings.moved(connection, party, blob.digest, up=writer.take_received())


def _state(parts: Parts, party: str, digest: str) -> BlobState:
    return parts.uploads.state(party, digest, is_mine=lambda: _may_read(parts, party, digest))


def _may_read(parts: Parts, party: str, digest: str) -> bool:
    with reading(parts.engine) as connection:
        return holdings.may_read(connection, digest, party)


def _open(parts: Parts, party: str, digest: str, wanted: str | None) -> tuple[str, BinaryIO, tuple[int, int], int]:
    """(party, the open blob, [start, stop) of it, its size)."""
    size = parts.blobs.size(digest) if _may_read(parts, party, digest) else None
    if size is None:
        raise UnknownBlob("there is no such blob for you here: wait for the message that names it")
    span = range_of(wanted, size)
    return party, parts.blobs.open(digest), span, size


async def _pieces(file: BinaryIO, start: int, stop: int, sent: _Tally) -> AsyncIterator[bytes]:
    """While one piece goes out, the next one is read. Nothing is hashed: the reader checks the digest."""

    def read(length: int) -> bytes:
        return file.read(length)

    try:
        await asyncio.to_thread(file.seek, start)
        left = stop - start
        upcoming = asyncio.ensure_future(asyncio.to_thread(read, min(left, PIECE_BYTES)))
        while left:
            piece = await upcoming
            if not piece:
                raise EOFError("a stored blob became shorter")
            left -= len(piece)
            upcoming = asyncio.ensure_future(asyncio.to_thread(read, min(left, PIECE_BYTES)))
            yield piece
            sent.count += len(piece)
        await upcoming
    finally:
        file.close()


def _count_down(parts: Parts, party: str, digest: str, sent: _Tally) -> None:
    with noting(parts.engine) as connection:
        holdings.moved(connection, party, digest, down=sent.count)

"""The one module that opens a connection: HTTPS to the relay, outward, nothing else.

TLS 1.3 against the pinned CA with our client certificate, HTTP/1.1, an optional proxy. Every answer is read
against a size limit. Blobs move in ranges and go on where they stopped.
"""

import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import httpx

from boundary.api import (
    MAX_POLL_SECONDS,
    MAX_RANGE_BYTES,
    BlobState,
    EnrolmentState,
    Heartbeat,
    PollAnswer,
    PollRequest,
    RelayError,
    SignedEnrolment,
)
from boundary.canonical import MAX_MESSAGE_BYTES, canonical_bytes, parse_json
from boundary.errors import BoundaryError, MalformedMessage, TooLarge
from boundary.identity import SigningIdentity
from boundary.messages import BlobRef
from boundary.names import Frozen
from boundary.requests import NONCE_BYTES, sign_request
from silo_agent.errors import RelayRefused, RelayUnreachable, WrongCoordinator
from silo_agent.journal import Parcel

MAX_ANSWER_BYTES = 64 * MAX_MESSAGE_BYTES  # a full inbox page of the largest envelopes, in base64 and JSON
_PIECE = 1024 * 1024
_TIMEOUT = httpx.Timeout(20.0, read=MAX_POLL_SECONDS + 20.0)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths to our certificate and key, and to the only CA we believe."""

    certificate: Path
    key: Path
    relay_ca: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.relay_ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


@dataclass(slots=True)
class Traffic:
    """Bytes of blobs moved since the start."""

    up: int = 0
    down: int = 0


class RelayClient:
    """A session with the relay. Use as an async context manager."""

    def __init__(
        self,
        url: str,
        tls: TlsFiles,
        silo: str,
        key: SigningIdentity,
        *,
        now: Callable[[], datetime],
        entropy: Callable[[int], bytes],
        proxy: str | None = None,
    ) -> None:
        self._silo, self._key, self._now, self._entropy = silo, key, now, entropy
        self.traffic = Traffic()
        self._http = httpx.AsyncClient(
            base_url=url,
            verify=tls.context(),
            timeout=_TIMEOUT,
            proxy=proxy,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=6, max_keepalive_connections=6, keepalive_expiry=60),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    # --- enrolment -----------------------------------------------------------------------------------
    async def enrol(self, request: SignedEnrolment) -> EnrolmentState:
        return EnrolmentState.model_validate(await self._json("POST", "/v1/enrolment", request))

    async def enrolment_state(self) -> EnrolmentState:
        return EnrolmentState.model_validate(await self._json("POST", "/v1/enrolment/state", None))

    # --- messages ------------------------------------------------------------------------------------
    async def poll(self, request: PollRequest) -> PollAnswer:
        return PollAnswer.model_validate(await self._json("POST", "/v1/poll", request))

    async def beat(self, heartbeat: Heartbeat) -> None:
        await self._json("POST", "/v1/heartbeat", heartbeat)

    async def roster(self) -> bytes:
        return await self._exchange("GET", "/v1/roster", b"", limit=MAX_MESSAGE_BYTES)

    async def send(self, parcel: Parcel) -> None:
        """Upload the parcel's blob if it has one, then post its envelope. Safe to repeat."""
        if parcel.blob_path is not None:
            await self._upload(Path(parcel.blob_path), str(parcel.blob_digest), int(parcel.blob_size or 0))
        await self._exchange("POST", "/v1/envelopes", parcel.envelope, limit=MAX_MESSAGE_BYTES)

    # --- blobs ---------------------------------------------------------------------------------------
    async def _upload(self, path: Path, blob: str, size: int) -> None:
        state = BlobState.model_validate(await self._json("GET", f"/v1/blobs/{blob}/state", None))
        offset = size if state.complete else state.offset
        with path.open("rb") as source:
            while offset < size:
                length = min(MAX_RANGE_BYTES, size - offset)
                source.seek(offset)
                target = f"/v1/blobs/{blob}?offset={offset}&size={size}"
                headers = self._signed("PUT", target, None) | {"content-length": str(length)}
                async with self._talk("PUT", target, headers, _pieces(source.read, length)) as answer:
                    body = await _read(answer, MAX_MESSAGE_BYTES)
                state = BlobState.model_validate(_parse(body))
                if state.offset <= offset and not state.complete:
                    raise RelayUnreachable(f"the relay took nothing of the range at {offset}")
                self.traffic.up += length
                offset = size if state.complete else state.offset

    async def download(self, blob: BlobRef, target: Path) -> None:
        """Fetch into `target`, going on where an earlier try stopped; the digest decides. Raises `TooLarge`."""
        if target.exists():
            return
        draft = target.with_suffix(".part")
        hasher, have = hashlib.sha256(), 0
        with draft.open("ab+") as sink:
            sink.seek(0)
            while piece := sink.read(_PIECE):
                hasher.update(piece)
                have += len(piece)
            if have < blob.size:
                have = await self._fetch(blob, have, sink.write, hasher.update)
        if have != blob.size or "sha256:" + hasher.hexdigest() != blob.digest:
            draft.unlink()
            raise MalformedMessage("a downloaded model has another digest than the order names")
        draft.replace(target)

    async def _fetch(
        self, blob: BlobRef, have: int, write: Callable[[bytes], int], update: Callable[[bytes], None]
    ) -> int:
        path = f"/v1/blobs/{blob.digest}"
        headers = self._signed("GET", path, b"") | {"range": f"bytes={have}-{blob.size - 1}"}
        async with self._talk("GET", path, headers, None) as answer:
            async for piece in answer.aiter_raw(_PIECE):
                have += len(piece)
                if have > blob.size:
                    raise TooLarge("a blob", have, blob.size)
                write(piece)
                update(piece)
                self.traffic.down += len(piece)
        return have

    # --- plumbing ------------------------------------------------------------------------------------
    def _signed(self, method: str, target: str, body: bytes | None) -> dict[str, str]:
        nonce = self._entropy(NONCE_BYTES)
        return sign_request(self._key, self._silo, method, target, body, self._now(), nonce)

    async def _json(self, method: str, target: str, body: Frozen | None) -> object:
        data = b"" if body is None else canonical_bytes(body.model_dump(mode="json"))
        return _parse(await self._exchange(method, target, data, limit=MAX_ANSWER_BYTES))

    async def _exchange(self, method: str, target: str, body: bytes, *, limit: int) -> bytes:
        headers = self._signed(method, target, body) | ({"content-type": "application/json"} if body else {})
        async with self._talk(method, target, headers, body or None) as answer:
            return await _read(answer, limit)

    @asynccontextmanager
    async def _talk(
        self, method: str, target: str, headers: dict[str, str], body: bytes | AsyncIterator[bytes] | None
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with self._http.stream(method, target, headers=headers, content=body) as answer:
                if answer.status_code >= 300:
                    raise _refusal(answer.status_code, await _read(answer, MAX_MESSAGE_BYTES))
                yield answer
        except httpx.ConnectError as why:
            if "CERTIFICATE_VERIFY_FAILED" in str(why):
                raise WrongCoordinator(
                    f"{self._http.base_url} answers with a certificate that the relay's CA did not issue ({why}). "
                    "Something between us may be opening TLS (ask the network team), or the address is wrong."
                ) from why
            raise RelayUnreachable(f"{self._http.base_url}: {why}") from why
        except httpx.HTTPError as why:
            raise RelayUnreachable(f"{self._http.base_url}: {type(why).__name__} {why}") from why
        except ssl.SSLError as why:
            raise RelayUnreachable(f"{self._http.base_url}: TLS: {why.reason}") from why


async def _read(answer: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    async for piece in answer.aiter_raw(_PIECE):
        data += piece
        if len(data) > limit:
            raise TooLarge("an answer of the relay", len(data), limit)
    return bytes(data)


def _parse(data: bytes) -> object:
    return parse_json(data, limit=MAX_ANSWER_BYTES) if data else {}


def _refusal(status: int, body: bytes) -> Exception:
    try:
        error = RelayError.model_validate(_parse(body))
    except (BoundaryError, ValueError):
        return RelayUnreachable(f"status {status} without a relay's answer: a proxy, or another server")
    if status >= 500 and error.code != "STORAGE_FULL":
        return RelayUnreachable(f"{error.code}: {error.message}")
    return RelayRefused(status, error.code, error.message)


async def _pieces(read: Callable[[int], bytes], length: int) -> AsyncIterator[bytes]:
    while length > 0:
        piece = read(min(_PIECE, length))
        if not piece:
            raise RelayUnreachable("the stored blob is shorter than its envelope says")
        length -= len(piece)
        yield piece

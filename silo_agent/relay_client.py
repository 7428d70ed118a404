"""The one module that opens a connection: HTTPS to the relay, outward, nothing else.

TLS 1.3 against the pinned CA with our client certificate, HTTP/1.1, an optional proxy whose login and CA lie beside
that certificate in the state folder. Every answer is read against a size limit. Blobs move in ranges and go on where
they stopped.
"""

import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

import httpcore
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
from boundary.errors import BoundaryError, MalformedMessage
from boundary.identity import SigningIdentity
from boundary.messages import BlobRef
from boundary.names import Frozen
from boundary.requests import NONCE_BYTES, sign_request
from silo_agent.destination import Allow, address_of, spki_of
from silo_agent.errors import (
    AgentError,
    ConfigError,
    RelayRefused,
    RelayUnreachable,
    StoredFileLost,
    WrongCoordinator,
)
from silo_agent.journal import Parcel
from silo_agent.plain import plain
from silo_agent.state import sync_folder
from silo_agent.streams import Backend, Guard
from silo_agent.way_out import CREDENTIALS, ProxyNotTrusted, WayOut

Answer = TypeVar("Answer", bound=Frozen)

MAX_ANSWER_BYTES = 64 * MAX_MESSAGE_BYTES  # a full inbox page of the largest envelopes, in base64 and JSON
_PIECE = 1024 * 1024
_PASSING = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED: a clock or a late renewal
_RESTORE = "Restore it from the backup of the state folder, or enrol again with a new invitation: all keys are kept"
_TIMEOUT = httpx.Timeout(20.0, read=MAX_POLL_SECONDS + 20.0)
_LOGIN_PAUSE = timedelta(minutes=15)  # directories lock an account after a handful of wrong passwords in half an hour
BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)  # what an `open_line` may raise


async def open_line(host: str, port: int, seconds: float) -> httpcore.AsyncNetworkStream:
    """For the preflight, which looks at a connection step by step: TCP alone, on the transport that the agent uses."""
    return await Backend().connect_tcp(host, port, seconds)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths to our certificate and key, and to the only CA we believe."""

    certificate: Path
    key: Path
    relay_ca: Path

    def context(self) -> ssl.SSLContext:
        """Raises `ConfigError` when a file is missing, unreadable or not what it should be."""
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.relay_ca))
        except (OSError, ssl.SSLError) as why:
            raise ConfigError(f"{self.relay_ca} cannot be used: {why}. {_RESTORE}") from why
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Show our certificate, or the one that replaced it, on every new connection. Raises `ConfigError`."""
        try:
            context.load_cert_chain(str(self.certificate), str(self.key))
        except (OSError, ssl.SSLError) as why:
            raise ConfigError(f"{self.certificate} and {self.key} cannot be used: {why}. {_RESTORE}") from why


@dataclass(slots=True)
class Traffic:
    """Bytes of blobs moved since the start."""

    up: int = 0
    down: int = 0


class RelayClient:
    """A session with the relay. Use as an async context manager."""

    def __init__(  # noqa: PLR0913 - one for each thing it needs
        self,
        url: str,
        tls: TlsFiles,
        silo: str,
        key: SigningIdentity,
        *,
        now: Callable[[], datetime],
        entropy: Callable[[int], bytes],
        allow: Allow,
        proxy: str | None = None,
    ) -> None:
        """`allow` is asked before each request, and about each connection's certificate; what it raises ends it."""
        self._silo, self._key, self._now, self._entropy = silo, key, now, entropy
        self.traffic = Traffic()
        self.dated: str | None = None  # the Date header of the last answer, for whoever compares clocks
        self._tls, self._context = tls, tls.context()
        self._way_out = None if proxy is None else WayOut.of(proxy, tls.certificate.parent)
        self._login_again: datetime | None = None
        self._allow, self._address = allow, address_of(url)
        self._http = httpx.AsyncClient(
            base_url=url,
            transport=_transport(self._context, self._way_out, self._look_at),
            headers={"accept-encoding": "identity"},  # answers are read raw, against a limit
            timeout=_TIMEOUT,
            trust_env=False,
            follow_redirects=False,
        )

    def _look_at(self, certificate: bytes) -> None:
        self._allow(*self._address, spki_of(certificate))

    def renewed(self) -> None:
        """The certificate file was replaced: use it from the next connection on. Raises `ConfigError`."""
        self._tls.context()  # first apart from the one in use, which half a success would spoil
        self._tls.load_into(self._context)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    # --- enrolment -----------------------------------------------------------------------------------
    async def enrol(self, request: SignedEnrolment) -> EnrolmentState:
        return await self._ask(EnrolmentState, "POST", "/v1/enrolment", request)

    async def enrolment_state(self) -> EnrolmentState:
        return await self._ask(EnrolmentState, "POST", "/v1/enrolment/state", None)

    # --- messages ------------------------------------------------------------------------------------
    async def poll(self, request: PollRequest) -> PollAnswer:
        return await self._ask(PollAnswer, "POST", "/v1/poll", request)

    async def beat(self, heartbeat: Heartbeat) -> None:
        await self._exchange("POST", "/v1/heartbeat", _bytes(heartbeat), limit=MAX_MESSAGE_BYTES)

    async def roster(self) -> bytes:
        return await self._exchange("GET", "/v1/roster", b"", limit=MAX_MESSAGE_BYTES)

    async def send(self, parcel: Parcel, may_leave: Callable[[], bool] = lambda: True) -> bool:
        """Upload the parcel's blob if it has one, then post its envelope; False if by then it may no longer leave.

        Safe to repeat. A blob without its envelope is nobody's: the relay lends it to no one.
        """
        if parcel.blob_path is not None:
            await self._upload(Path(parcel.blob_path), str(parcel.blob_digest), int(parcel.blob_size or 0))
        if not may_leave():
            return False
        await self._exchange("POST", "/v1/envelopes", parcel.envelope, limit=MAX_MESSAGE_BYTES)
        return True

    # --- blobs ---------------------------------------------------------------------------------------
    async def _upload(self, path: Path, blob: str, size: int) -> None:
        """Go on where the relay stands. An empty range finishes an upload whose last byte arrived before a cut."""
        try:
            source = path.open("rb")
        except OSError as why:
            raise StoredFileLost(f"{path} was to be sent and cannot be read: {why}") from why
        with source:
            if path.stat().st_size != size:
                raise StoredFileLost(f"{path} is not as long as its message says")
            state = await self._ask(BlobState, "GET", f"/v1/blobs/{blob}/state", None)
            while not state.complete:
                state = await self._put(source, blob, state.offset, size)

    async def _put(self, source: BinaryIO, blob: str, offset: int, size: int) -> BlobState:
        length = min(MAX_RANGE_BYTES, size - offset)
        if length < 0:
            raise RelayUnreachable(f"the relay says it has {offset} bytes of a blob of {size}")
        source.seek(offset)
        target = f"/v1/blobs/{blob}?offset={offset}&size={size}"
        headers = self._signed("PUT", target, None) | {"content-length": str(length)}
        async with self._talk("PUT", target, headers, _pieces(source.read, length)) as answer:
            state = _parse(BlobState, await _read(answer, MAX_MESSAGE_BYTES))
        if state.offset <= offset and not state.complete:
            raise RelayUnreachable(f"the relay took nothing of the range at {offset}")
        self.traffic.up += length
        return state

    async def download(self, blob: BlobRef, target: Path) -> None:
        """Fetch into `target`, going on where an earlier try stopped; the digest decides. Raises `MalformedMessage`."""
        if target.exists():
            return
        draft = target.with_suffix(".part")
        resumed = draft.exists()
        if await self._fetched(blob, draft):
            draft.replace(target)
            sync_folder(target.parent)
            return
        draft.unlink(missing_ok=True)
        if not resumed:
            raise MalformedMessage("a downloaded model has another digest than the order names")
        await self.download(blob, target)  # what lay here from before was no good: once more from the start

    async def _fetched(self, blob: BlobRef, draft: Path) -> bool:
        """Whether the draft, completed, is the blob."""
        hasher, have = hashlib.sha256(), 0
        with draft.open("ab+") as sink:
            sink.seek(0)
            while piece := sink.read(_PIECE):
                hasher.update(piece)
                have += len(piece)
            if have < blob.size:
                have = await self._fetch(blob, have, sink.write, hasher.update)
            sink.flush()
            os.fsync(sink.fileno())
        return have == blob.size and "sha256:" + hasher.hexdigest() == blob.digest

    async def _fetch(
        self, blob: BlobRef, have: int, write: Callable[[bytes], int], update: Callable[[bytes], None]
    ) -> int:
        path = f"/v1/blobs/{blob.digest}"
        headers = self._signed("GET", path, b"") | {"range": f"bytes={have}-{blob.size - 1}"}
        async with self._talk("GET", path, headers, None) as answer:
            unwanted = have if answer.status_code == 200 else 0  # a proxy that drops Range sends all of it again
            async for piece in answer.aiter_raw():
                fresh = piece[unwanted:]
                unwanted -= len(piece) - len(fresh)
                have += len(fresh)
                if have > blob.size:
                    raise RelayUnreachable(f"a blob of {blob.size} bytes was answered with more")
                write(fresh)
                update(fresh)
                self.traffic.down += len(piece)
        return have

    # --- plumbing ------------------------------------------------------------------------------------
    def _signed(self, method: str, target: str, body: bytes | None) -> dict[str, str]:
        nonce = self._entropy(NONCE_BYTES)
        return sign_request(self._key, self._silo, method, target, body, self._now(), nonce)

    async def _ask(self, kind: type[Answer], method: str, target: str, body: Frozen | None) -> Answer:
        data = b"" if body is None else _bytes(body)
        return _parse(kind, await self._exchange(method, target, data, limit=MAX_ANSWER_BYTES))

    async def _exchange(self, method: str, target: str, body: bytes, *, limit: int) -> bytes:
        headers = self._signed(method, target, body) | ({"content-type": "application/json"} if body else {})
        async with self._talk(method, target, headers, body or None) as answer:
            return await _read(answer, limit)

    @asynccontextmanager
    async def _talk(
        self, method: str, target: str, headers: dict[str, str], body: bytes | AsyncIterator[bytes] | None
    ) -> AsyncIterator[httpx.Response]:
        self._allow(*self._address, None)
        self._spare_the_login()
        try:
            async with self._http.stream(method, target, headers=headers, content=body) as answer:
                self.dated = answer.headers.get("date")
                if answer.status_code >= 300:
                    raise _refusal(answer.status_code, await _read(answer, MAX_MESSAGE_BYTES))
                yield answer
        except httpx.ConnectError as why:
            if _is_stranger(why):
                raise WrongCoordinator(
                    f"{self._http.base_url} answers with a certificate that the relay's CA did not issue ({why}). "
                    "Something between us may be opening TLS (ask the network team), or the address is wrong."
                ) from why
            raise RelayUnreachable(f"{self._http.base_url}: {why}") from why
        except httpx.ProxyError as why:
            raise self._stopped_by_proxy(plain(str(why))) from why
        except httpx.HTTPError as why:
            raise RelayUnreachable(f"{self._http.base_url}: {type(why).__name__} {why}") from why
        except ssl.SSLError as why:
            raise RelayUnreachable(f"{self._http.base_url}: TLS: {why.reason}") from why

    def _stopped_by_proxy(self, status: str) -> RelayUnreachable:
        """Its status line, and what to do when it wants a login or refuses ours."""
        where = "the proxy" if self._way_out is None else self._way_out.url
        credentials = self._tls.certificate.parent / CREDENTIALS
        if not status.startswith("407"):
            return RelayUnreachable(f"{where} does not let us through to {self._http.base_url}: {status}")
        if self._way_out is None or self._way_out.login is None:
            return RelayUnreachable(f"{where} asks for a login: write user:password into {credentials} (chmod 600)")
        self._login_again = self._now() + _LOGIN_PAUSE
        return RelayUnreachable(f"{where} refuses our login: correct {credentials} and restart the agent")

    def _spare_the_login(self) -> None:
        """Not to ask a proxy again and again with a password it has refused. Raises `RelayUnreachable`."""
        if self._login_again is not None and self._now() < self._login_again:
            raise RelayUnreachable(
                f"the proxy refused our login and is asked again at {self._login_again:%H:%M} UTC, lest the account be "
                f"locked: correct {self._tls.certificate.parent / CREDENTIALS} and restart the agent"
            )


def _transport(
    context: ssl.SSLContext, way_out: WayOut | None, look: Callable[[bytes], None]
) -> httpx.AsyncHTTPTransport:
    """Through the proxy if there is one; its own TLS has a context of its own and never sees our certificate."""
    proxy = None
    if way_out is not None:
        login = None if way_out.login is None else (way_out.login.user, way_out.login.password)
        proxy = httpx.Proxy(way_out.url, ssl_context=way_out.context(), auth=login)
    limits = httpx.Limits(max_connections=6, max_keepalive_connections=6, keepalive_expiry=60)
    made = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits, proxy=proxy)
    backend = Backend(Guard(context, look))
    made._pool._network_backend = backend  # noqa: SLF001 - httpcore takes it as an argument, httpx does not pass it on
    return made


def _is_stranger(why: BaseException | None) -> bool:
    """Whether the server's certificate is not of our CA or not for its name. A date that is off passes by itself."""
    while why is not None and not isinstance(why, ProxyNotTrusted):
        if isinstance(why, ssl.SSLCertVerificationError):
            return why.verify_code not in _PASSING
        why = why.__cause__ or why.__context__
    return False


async def _read(answer: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    async for piece in answer.aiter_raw(_PIECE):
        data += piece
        if len(data) > limit:
            raise RelayUnreachable(f"an answer of more than {limit} bytes: not from a relay of this version")
    return bytes(data)


def _bytes(body: Frozen) -> bytes:
    return canonical_bytes(body.model_dump(mode="json"))


def _parse(kind: type[Answer], data: bytes) -> Answer:
    """Whatever is wrong with it, it is no answer of a relay: somebody must look, and meanwhile we ask again."""
    try:
        return kind.model_validate(parse_json(data, limit=MAX_ANSWER_BYTES))
    except (BoundaryError, ValueError) as why:
        raise RelayUnreachable(f"what was answered is not a relay's {kind.__name__}") from why


def _refusal(status: int, body: bytes) -> AgentError:
    try:
        error = RelayError.model_validate(parse_json(body))
    except (BoundaryError, ValueError):
        return RelayUnreachable(f"status {status} without a relay's answer: a proxy, or another server")
    message = plain(error.message)  # a stranger's text: it must not draw lines in our log
    if status >= 500 and error.code != "STORAGE_FULL":
        return RelayUnreachable(f"{error.code}: {message}")
    return RelayRefused(status, error.code, message)


async def _pieces(read: Callable[[int], bytes], length: int) -> AsyncIterator[bytes]:
    while length > 0:
        piece = read(min(_PIECE, length))
        if not piece:
            raise StoredFileLost("a file became shorter while it was sent")
        length -= len(piece)
        yield piece

"""asyncio's own TLS under httpx, whose usual one costs four to seven times the CPU for a large download.

The usual backend hands over one TLS record, 16 KiB at most, at a time and through several layers; this one all that
has arrived. Proxies, pool, timeouts and HTTP stay httpx's.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpcore

_MOST_WAITING = 1024 * 1024  # bytes received and not yet asked for; beyond, the other side is made to wait
_SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


@dataclass(frozen=True, slots=True)
class Guard:
    """Looks at the certificate of connections under `context` before anything is sent over them; may raise."""

    context: ssl.SSLContext
    look: Callable[[bytes], None]


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection, plain at first: what it has received, and whether it takes more."""

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard
        self._transport: asyncio.Transport | None = None
        self._received: list[bytes] = []
        self._size = 0
        self._ended, self._why = False, OSError("the other side closed the connection")
        self._readable, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()

    # --- for asyncio ---------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._size += len(data)
        self._readable.set()
        if self._size > _MOST_WAITING:
            self._open().pause_reading()

    def eof_received(self) -> None:
        self._ended = True
        self._readable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._transport = None
        if isinstance(exc, OSError):
            self._why = exc
        self._readable.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- for httpcore --------------------------------------------------------------------------------
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109, ARG002
        """All that has arrived, nothing at the end. More than `max_bytes`: h11 takes any length, in one step."""
        async with _within(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            while not self._received and not self._ended:
                self._readable.clear()
                await self._readable.wait()
        data = b"".join(self._received)
        self._received.clear()
        if len(data) > _MOST_WAITING and self._transport is not None:
            self._transport.resume_reading()
        self._size = 0
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        async with _within(timeout, httpcore.WriteTimeout, httpcore.WriteError):
            self._open().write(buffer)
            await self._writable.wait()
            self._open()

    async def aclose(self) -> None:
        """At once: who closes has no use for what is still on its way."""
        if self._transport is not None:
            self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        inner = Stream(self._guard)
        try:
            async with _within(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
                secured = await asyncio.get_running_loop().start_tls(
                    self._open(), inner, ssl_context, server_hostname=server_hostname
                )
            if secured is not None and self._guard is not None and ssl_context is self._guard.context:
                self._guard.look(secured.get_extra_info("ssl_object").getpeercert(binary_form=True))
        except BaseException:
            await self.aclose()
            raise
        if secured is None:
            raise httpcore.ConnectError("the connection was closed during the TLS handshake")
        inner.connection_made(secured)
        return inner

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":  # asked of an idle connection: whether it has been closed meanwhile
                return self._ended or bool(self._received)
            case "ssl_object" | "socket":
                return None if self._transport is None else self._transport.get_extra_info(info)
            case _:
                return None

    def _open(self) -> asyncio.Transport:
        if self._transport is None or self._transport.is_closing():
            raise self._why
        return self._transport


class Backend(httpcore.AsyncNetworkBackend):
    """Opens connections for httpcore."""

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,  # noqa: ARG002 - we set none
    ) -> httpcore.AsyncNetworkStream:
        local = None if local_address is None else (local_address, 0)
        async with _within(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            _, stream = await asyncio.get_running_loop().create_connection(
                partial(Stream, self._guard), host, port, local_addr=local
            )
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _within(
    seconds: float | None, late: type[httpcore.TimeoutException], failed: type[httpcore.NetworkError]
) -> AsyncIterator[None]:
    """Give httpcore its own errors; `ssl.SSLError` is an `OSError`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as why:
        raise late(str(why)) from why
    except OSError as why:
        raise failed(str(why)) from why

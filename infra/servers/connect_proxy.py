"""A real CONNECT proxy (RFC 9110, 9.3.6) in a thread of its own, with Basic login, TLS of its own, and bad manners."""

import asyncio
import base64
import contextlib
import ssl
import threading
from collections.abc import Callable
from typing import Any

OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
PAGE = b"<html>Please accept the terms of use</html>"
ANSWERS = {
    "refuse": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
    "unreachable": b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
    "negotiate": b"HTTP/1.1 407 Login\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n"
    b"content-length: 0\r\n\r\n",
    "portal": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%b" % (len(PAGE), PAGE),
    "page": PAGE,
    "close": b"",
}
WHO = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\ncontent-length: 0\r\n\r\n'


class Proxy:
    """`manners`: "forward", "intercept" (with `other`), "hang", or a key of `ANSWERS`. May be changed at any time.

    `asked` has (target, whether a login came with it) for every CONNECT; `moved` counts bytes sent on.
    """

    def __init__(
        self,
        *,
        login: str | None = None,
        tls: ssl.SSLContext | None = None,
        other: ssl.SSLContext | None = None,
        manners: str = "forward",
    ) -> None:
        self.login, self.manners, self.other = login, manners, other
        self.asked: list[tuple[str, bool]] = []
        self.moved = 0
        self._scheme = "http" if tls is None else "https"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = self._do(asyncio.start_server(self._met, "127.0.0.1", 0, ssl=tls))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{self._scheme}://localhost:{self.port}"

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._do(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ended(self) -> None:
        self._server.close()
        await asyncio.sleep(0.05)  # who was let in just now begins, or nobody would close what it holds
        while self._tasks:
            for task in set(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0.05)  # transports close in the next turns of the loop

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is None:
            return
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, _, rest = head.partition(" ")
        if method != "CONNECT":
            return
        target = rest.partition(" ")[0]
        given = next((line for line in head.split("\r\n") if line.lower().startswith("proxy-authorization:")), "")
        self.asked.append((target, bool(given)))
        if self.manners == "hang":
            await asyncio.sleep(60)
        elif self.manners in ANSWERS:
            await self._say(writer, ANSWERS[self.manners])
        elif self.login is not None and given.partition(": ")[2] != self._expected():
            await self._say(writer, WHO)
        elif self.manners == "intercept" and self.other is not None:
            await self._say(writer, OPEN)
            await writer.start_tls(self.other)
            await reader.read()
        else:
            await self._forward(target, reader, writer)

    def _expected(self) -> str:
        return "Basic " + base64.b64encode((self.login or "").encode()).decode()

    async def _say(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        if data != OPEN:
            writer.close()
            await writer.wait_closed()

    async def _forward(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        pumps: list[asyncio.Task[None]] = []
        try:
            await self._say(writer, OPEN)
            ends = ((reader, far_writer), (far_reader, writer))
            pumps = [asyncio.create_task(self._pump(*one)) for one in ends]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.moved += len(data)
            writer.write(data)
            await writer.drain()


MakeProxy = Callable[..., Proxy]

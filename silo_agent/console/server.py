"""HTTP/1.1 on a socket of 127.0.0.1: h11 reads, one thread answers, every connection is closed after its answer.

No web framework: the agent has none (pyproject.toml forbids it), and h11 comes with the agent's own HTTP client. One
steward needs no second thread, and with one no two decisions are under way at once.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import h11

from silo_agent.console.errors import Declined
from silo_agent.console.exchange import Request, Response
from silo_agent.console.reception import Reception
from silo_agent.errors import ConfigError

LOOPBACK, MOST_PORT = "127.0.0.1", 65535
MOST_HEAD, MOST_BODY = 16 * 1024, 16 * 1024  # bytes; the longest form has a reason of 1000 characters
MOST_CONNECTIONS = 32
PATIENCE = 10.0  # seconds for a whole request to arrive, or an answer to be taken
_PIECE, _DISCARDED = 64 * 1024, 1024 * 1024
_JOINED = {b"cookie": b"; "}

_log = logging.getLogger("silo_agent.console")


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """A listening socket, port 0 for any free one. Raises `ConfigError` for another address, or a taken port."""
    if host != LOOPBACK:
        raise ConfigError(f"the console listens on {LOOPBACK} only: from elsewhere, forward the port by ssh")
    if not 0 <= port <= MOST_PORT:
        raise ConfigError(f"there is no port {port}. Choose another with --port")
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as why:
        raise ConfigError(f"port {port} cannot be used: {why}. Choose another with --port") from why


async def serve(reception: Reception, listening: socket.socket, stop: asyncio.Event) -> None:
    """Until `stop`; an answer that is being worked out then is finished, connections are not waited for."""
    with ThreadPoolExecutor(1, thread_name_prefix="console") as worker:
        server = await asyncio.start_server(Connections(reception, worker).take, sock=listening, limit=_PIECE)
        async with server:
            await stop.wait()


class Connections:
    """Those that are open, each in a task of its own."""

    def __init__(self, reception: Reception, worker: ThreadPoolExecutor) -> None:
        self._reception, self._worker, self._open = reception, worker, 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_CONNECTIONS:
                await self._converse(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # who hangs up, or is too slow to listen, gets no answer
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        try:
            async with asyncio.timeout(PATIENCE):
                request = await hear(talk, reader)
        except Declined as why:
            response = await self._worked_out(partial(self._reception.refusal, why))
        else:
            response = await self._worked_out(partial(self._reception.answer, request))
            _log.info("%s %s", request.method, response.status)
        async with asyncio.timeout(PATIENCE):
            writer.write(said(talk, response))
            await writer.drain()
            await _hang_up(reader, writer)

    async def _worked_out(self, answer: Callable[[], Response]) -> Response:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, answer)
        except Exception as why:  # noqa: BLE001 - as in the daemon's loop: a defect is a page, and the console goes on
            _log.error("a defect: %s at %s", type(why).__name__, _place(why))
            return self._reception.refusal(Declined(500, "The console has a defect", _DEFECT))


async def hear(talk: h11.Connection, reader: asyncio.StreamReader) -> Request:
    """One request, whole. Raises `Declined` for what is no request or is too large, `TimeoutError` by the caller."""
    head, body = None, bytearray()
    while True:
        try:
            event = talk.next_event()
        except h11.RemoteProtocolError as why:
            raise Declined(why.error_status_hint, "That is not HTTP as the console reads it", _BROWSER) from why
        match event:
            case h11.NEED_DATA:
                talk.receive_data(await reader.read(_PIECE))
            case h11.Request():
                head = event
            case h11.Data():
                body += event.data
                if len(body) > MOST_BODY:
                    raise Declined(413, "That is too much", f"A form here has at most {MOST_BODY} bytes: shorten it.")
            case h11.EndOfMessage() if head is not None:
                return _request(head, bytes(body))
            case _:
                raise ConnectionAbortedError


def _request(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("ascii").partition("?")
    headers: dict[str, bytes] = {}
    for name, value in head.headers:
        key = name.decode("ascii")
        headers[key] = value if key not in headers else headers[key] + _JOINED.get(name, b", ") + value
    text = {name: value.decode("latin-1") for name, value in headers.items()}
    return Request(head.method.decode("ascii"), path, query, text, body)


def said(talk: h11.Connection, response: Response) -> bytes:
    """The answer's bytes; `talk` may have failed to understand the request."""
    headers = [
        ("Content-Type", response.kind),
        ("Content-Length", str(len(response.body))),
        ("Connection", "close"),
        *response.headers,
    ]
    events = (
        h11.Response(status_code=response.status, headers=headers),
        h11.Data(data=response.body),
        h11.EndOfMessage(),
    )
    return b"".join(filter(None, map(talk.send, events)))


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what is still being sent, up to a limit: who closes on unread bytes resets, and the answer is lost."""
    writer.write_eof()
    left = _DISCARDED
    while left > 0 and (piece := await reader.read(_PIECE)):
        left -= len(piece)


def _place(why: BaseException) -> str:
    """Module and line, never the text, which may quote what nobody else is to read."""
    trace, place = why.__traceback__, "?"
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}", trace.tb_next
    return place


_DEFECT = "Nothing was half done. The terminal's commands do the same (`silo-agent --help`); report what stderr says."
_BROWSER = "Open the console's address in a browser."

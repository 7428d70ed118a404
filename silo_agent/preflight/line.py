"""One connection, looked at step by step: TCP, a proxy's CONNECT, TLS.

It is dialled by `relay_client` and runs on the daemon's own transport, so that what works here works there. All that
is ever sent on it is a CONNECT request (RFC 9110, 9.3.6) and TLS handshakes.
"""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from silo_agent.login import Login
from silo_agent.relay_client import BROKEN, open_line

_MOST_ANSWER = 16 * 1024  # bytes of a proxy's status line and headers
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?")


class Line(Protocol):
    """What `httpcore.AsyncNetworkStream` offers and we use."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...  # noqa: ASYNC109

    async def write(self, buffer: bytes, timeout: float | None = None) -> None: ...  # noqa: ASYNC109

    async def aclose(self) -> None: ...

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> "Line": ...

    def get_extra_info(self, info: str) -> Any: ...


async def dial(host: str, port: int, seconds: float) -> Line:
    """Open a TCP connection. Raises `OSError`."""
    with _as_os_errors():
        return await open_line(host, port, seconds)


async def secured(line: Line, context: ssl.SSLContext, name: str, seconds: float) -> Line:
    """A TLS handshake on it. Raises `ssl.SSLError` and other `OSError`; the line is closed then."""
    with _as_os_errors():
        return await line.start_tls(context, name, seconds)


@dataclass(frozen=True, slots=True)
class ProxyAnswer:
    """What came back for a CONNECT. `status` 0: nothing that is HTTP; `silent`: nothing at all.

    `page`: a success with content, which a tunnel never has (RFC 9110, 9.3.6). `schemes`: how it wants us to log in.
    """

    status: int
    silent: bool = False
    page: bool = False
    schemes: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        return 200 <= self.status < 300 and not self.page


async def ask_through(line: Line, host: str, port: int, login: Login | None, seconds: float) -> ProxyAnswer:
    """Send CONNECT and read the answer's head. Raises `TimeoutError`; a connection that is cut is an answer."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    asked = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if login is not None:
        asked.append(f"Proxy-Authorization: {login.header}")
    head = b""
    try:
        with _as_os_errors():
            await line.write("\r\n".join([*asked, "", ""]).encode(), seconds)
            while b"\r\n\r\n" not in head and len(head) < _MOST_ANSWER:
                piece = await line.read(_MOST_ANSWER, seconds)
                if not piece:
                    break
                head += piece
    except TimeoutError:
        raise
    except OSError:
        pass  # cut: what came before it counts
    return read_answer(head)


def read_answer(head: bytes) -> ProxyAnswer:
    """Pure: the bytes up to the empty line, or what came instead of them."""
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    status = _STATUS.fullmatch(lines[0])
    if status is None or b"\r\n\r\n" not in head:
        return ProxyAnswer(0, silent=not head)
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]
    names = {name for name, value in headers if value != b"0"}
    page = bool(names & {b"content-type", b"content-length", b"transfer-encoding"})
    schemes = tuple(
        value.split()[0].decode("ascii", "replace").lower()
        for name, value in headers
        if name == b"proxy-authenticate" and value
    )
    return ProxyAnswer(int(status[1]), page=page and status[1].startswith(b"2"), schemes=schemes)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Give back the cause that the transport has wrapped."""
    try:
        yield
    except BROKEN as why:
        if isinstance(why.__cause__, OSError):
            raise why.__cause__ from None
        raise OSError(str(why) or type(why).__name__) from None

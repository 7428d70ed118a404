"""One limit in time over all that happens on a connection, beside httpx's limits on single steps.

httpx starts its read timeout anew with every byte, also within headers and the TLS handshake, so an archive that sends
a byte now and then would hold the agent for ever. Here no step may wait longer than what is left of the whole.
"""

import math
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

_SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class Deadline:
    """Seconds that are left of the innermost `within`; without one there is no limit."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._ends = clock, math.inf

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        before = self._ends
        self._ends = min(before, self._clock() + seconds)
        try:
            yield
        finally:
            self._ends = before

    def left(self) -> float:
        """Never below 0; infinite outside of `within`."""
        return max(0.0, self._ends - self._clock())

    def least(self, timeout: float | None, late: type[httpcore.TimeoutException]) -> float | None:
        """Return the shorter of `timeout` and what is left; raises `late` when nothing is."""
        left = self.left()
        if left == 0.0:
            raise late("the time for the whole exchange is over")
        return timeout if left == math.inf else left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.least(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.least(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.least(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class Backend(httpcore.SyncBackend):
    """Opens connections for httpcore that keep to the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.least(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options), self._deadline)

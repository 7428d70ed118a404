"""Child processes of the demo: started with a log each, watched, and all ended, whatever happens."""

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

_PR_SET_PDEATHSIG = 1  # prctl(2): the child gets a signal when we die, even by kill -9
_STOP_SECONDS = 10.0


class DemoFailed(Exception):
    """Something of the demo did not start or ended. The sentence says what, and where its log is."""


@dataclass
class Processes:
    """All children by name. Leaving the block ends them."""

    logs: Path
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._sampling = threading.Event()
        threading.Thread(target=self._sample, daemon=True, name="memory").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampling.set()
        self.stop()

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start in a session of its own, so that Ctrl-C reaches us first and we end it in order."""
        former = self._children.pop(name, None)
        if former is not None:
            former.wait()  # it ended, or nobody would start it again
        with (self.logs / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 - one C call, no locks
            )  # fmt: skip

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        return self._children[name].pid

    def check(self) -> None:
        """Raises `DemoFailed` if a child has ended by itself."""
        for name, child in self._children.items():
            if child.poll() is not None:
                tail = "\n".join(self.log_of(name).read_text(errors="replace").splitlines()[-5:])
                raise DemoFailed(
                    f"{name} ended with status {child.returncode}; its log {self.log_of(name)} ends:\n{tail}"
                )

    def wait_until(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Poll until `ready`; raises `DemoFailed` with what was waited for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            if ready():
                return
            time.sleep(0.2)
        raise DemoFailed(f"{what} took longer than {seconds:.0f} s; see the logs in {self.logs}")

    def stop(self) -> None:
        """End everything, newest first: ask, wait, kill."""
        children = list(reversed(self._children.values()))
        for child in children:
            _signal(child, signal.SIGTERM)
        end = time.monotonic() + _STOP_SECONDS
        for child in children:
            try:
                child.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL)
                child.wait()
            _signal(child, signal.SIGKILL)  # what it may have left in its session
        self._children.clear()

    def _sample(self) -> None:
        while not self._sampling.wait(0.5):
            for name, child in list(self._children.items()):
                for role, megabytes in _memory(name, child.pid).items():
                    self.peak_mb[role] = max(self.peak_mb.get(role, 0.0), megabytes)


def _memory(name: str, pid: int) -> dict[str, float]:
    """Resident megabytes of a process, and of its children beside it."""
    found: dict[str, float] = {}
    try:
        process = psutil.Process(pid)
        found[name] = process.memory_info().rss / 1e6
        for child in process.children(recursive=True):
            role = f"{name} children"
            found[role] = found.get(role, 0.0) + child.memory_info().rss / 1e6
    except psutil.Error:
        pass
    return found


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def choose_port(wanted: int, usual: int) -> int:
    """`wanted` if it was given and is free, else the usual one, else any. Raises `DemoFailed`."""
    for port in (wanted,) if wanted else (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed(f"port {wanted} is taken: leave the option out, or stop what listens there (ss -ltnp)")


def answers(url: str) -> bool:
    """Whether an HTTP server answers with 200."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0

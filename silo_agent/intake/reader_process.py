"""One process that reads files, as its parent sees it: questions with a limit of time, and an end at any moment."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import HeaderFacts, PixelRefusal, Pixels
from silo_agent.intake.inputs import KEPT_BYTES
from silo_agent.intake.refusals import Refusal

START_SECONDS = 120.0
END_SECONDS = 2.0
_LEFT_BYTES = 64 * 1024 * 1024  # of values, between two images
_SURROUNDINGS = {
    # one process decodes one image: threads of its own would only make its start slower
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(KEPT_BYTES)),
}


class Silent(Exception):
    """No answer in time."""


class Ended(Exception):
    """The process is no more, or says what is no answer. `code` is what a file gets that did it."""

    def __init__(self, code: Refusal) -> None:
        super().__init__(code)
        self.code = code


class ReaderProcess:
    """Started by the constructor, which raises `OSError` where no process can be.

    `module` is what it runs, `longest_answer` bytes; `told` are its limits where there are more than `limits`.
    """

    module, longest_answer = "silo_agent.intake.reader", 1024 * 1024

    def __init__(self, limits: Limits, told: dict[str, Any] | None = None) -> None:
        self._limits, self._left = limits, b""
        self._values_file = os.memfd_create("pixels", os.MFD_CLOEXEC)
        options = [
            "--limits",
            json.dumps(told or asdict(limits)),
            "--pixels",
            str(self._values_file),
            "--parent",
            str(os.getpid()),
        ]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                pass_fds=(self._values_file,), env=os.environ | _SURROUNDINGS,
            )  # fmt: skip
        except OSError:
            os.close(self._values_file)
            raise
        self._heard = select.poll()
        if self._process.stdout is not None:
            self._heard.register(self._process.stdout, select.POLLIN)

    def wait_until_ready(self) -> None:
        """Raises `Silent` or `Ended`."""
        self._answer(START_SECONDS)

    def headers(self, paths: Sequence[Path], patience: float) -> Iterator[HeaderFacts]:
        """Have it open some files. Raises `Silent` or `Ended` at the file that does it; `patience` is for each."""
        self._ask({"open": [os.fspath(path) for path in paths]})
        for _ in paths:
            said = self._answer(patience)
            try:
                yield HeaderFacts.parse(said)
            except (ValueError, TypeError, LookupError):
                raise Ended(Refusal.UNREADABLE) from None

    def pixels(self, number: int, patience: float) -> Pixels | PixelRefusal:
        """Have it decode one of them, when all headers are told. Raises `Silent` or `Ended`."""
        said = self._asked({"pixels": number}, patience)
        try:
            if "refused" in said:
                return PixelRefusal(Refusal(said["refused"]), said["lasting"] is True)
            return Pixels.parse(said, self._values)
        except (ValueError, TypeError, LookupError):
            raise Ended(Refusal.UNREADABLE) from None

    def kill(self) -> None:
        """From any thread; the one that asks then hears that it has ended."""
        self._process.kill()

    def close(self) -> None:
        """Kill it and let go of it; one that hangs in the kernel is left to it."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        os.close(self._values_file)

    def _asked(self, question: dict[str, Any], patience: float) -> dict[str, Any]:
        self._ask(question)
        return self._answer(patience)

    def _ask(self, question: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise Ended(Refusal.UNREADABLE)
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def _answer(self, patience: float) -> dict[str, Any]:
        try:
            answer = json.loads(self._line(patience))
        except ValueError:
            raise Ended(Refusal.UNREADABLE) from None
        if not isinstance(answer, dict):
            raise Ended(Refusal.UNREADABLE)
        return answer

    def _line(self, patience: float) -> bytes:
        if self._process.stdout is None:
            raise Ended(Refusal.UNREADABLE)
        end = time.monotonic() + patience
        while b"\n" not in self._left:
            if not self._heard.poll(max(1000 * (end - time.monotonic()), 0)):
                raise Silent
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise self._ended()
            self._left += data
            if len(self._left) > self.longest_answer:
                raise Ended(Refusal.UNREADABLE)
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _values(self, height: int, width: int) -> NDArray[np.float32]:
        size = 4 * height * width
        if not (0 < height <= self._limits.max_side and 0 < width <= self._limits.max_side):
            raise ValueError("not the shape of an image")
        if size > os.fstat(self._values_file).st_size:
            raise ValueError("fewer values than the shape has")
        values = np.empty((height, width), dtype="<f4")
        left, at = values.reshape(-1).view(np.uint8).data, 0
        while at < size:
            at += os.preadv(self._values_file, [left[at:]], at)
        if size > _LEFT_BYTES:
            os.ftruncate(self._values_file, 0)
        return values

    def _ended(self) -> Ended:
        """Why it is gone: a kill that is not ours is nearly always the kernel's, for want of memory."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return Ended(Refusal.UNREADABLE)
        return Ended(Refusal.TOO_LARGE if status == -signal.SIGKILL else Refusal.UNREADABLE)

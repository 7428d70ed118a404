"""Does a piece of work in a forked process: what it loads and allocates never becomes part of the daemon.

A fork, not a fresh interpreter: it takes a tenth of the time, and the work's secrets need not travel anywhere. The
child touches nothing of the daemon's (journal, sockets, loop), gives its answer as JSON and is gone.
"""

import errno
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from boundary.errors import BadTensors

_ANSWER_BYTES = 64 * 1024


def aside(work: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Give what `work` gives, a small JSON value. Raises its `BadTensors` and `OSError`; all else is an `OSError` too.

    A child that has not answered after `seconds` is killed.
    """
    mine, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, its)
    os.close(its)
    try:
        data = _until_the_end(mine, seconds)
    finally:
        os.close(mine)
        os.kill(pid, signal.SIGKILL)  # it has answered, or is not to go on
        os.waitpid(pid, 0)
    return _answer(data)


def _answer(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except ValueError as why:
        raise OSError(errno.EIO, "the masking process ended without an answer") from why
    match said:
        case {"done": dict(value)}:
            return value
        case {"unfit": str(text)}:
            raise BadTensors(text)
        case {"errno": int(number), "text": str(text)}:
            raise OSError(number, text)
    raise OSError(errno.EIO, "the masking process gave no answer we know")


def _until_the_end(pipe: int, seconds: float) -> bytes:
    end, data = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0 and len(data) <= _ANSWER_BYTES:
        if not select.select([pipe], [], [], left)[0]:
            break
        piece = os.read(pipe, _ANSWER_BYTES)
        if not piece:
            return data
        data += piece
    raise TimeoutError(errno.ETIMEDOUT, "the masking process took too long")


def _child(work: Callable[[], dict[str, Any]], pipe: int) -> NoReturn:
    """Never returns into the daemon's code, and runs none of its clean-up."""
    try:
        signal.set_wakeup_fd(-1)  # the daemon's loop is not ours to wake
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        try:
            said: dict[str, Any] = {"done": work()}
        except BadTensors as why:
            said = {"unfit": str(why)}
        except OSError as why:
            said = {"errno": why.errno or errno.EIO, "text": why.strerror or str(why)}
        os.write(pipe, json.dumps(said).encode())
    except BaseException:  # noqa: BLE001 - nothing may return into the daemon's code; the log says what it was
        traceback.print_exc()
    finally:
        os._exit(0)

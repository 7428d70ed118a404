"""A forked process does the work: its answer, its faults and its end reach the daemon, what it loads does not."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from boundary.errors import BadTensors
from silo_agent.aside import aside


def test_the_answer_comes_back_and_what_was_changed_does_not() -> None:
    changed: list[int] = []

    def work() -> dict[str, Any]:
        changed.append(1)
        return {"pid": os.getpid()}

    assert aside(work, 20)["pid"] != os.getpid()
    assert changed == []


def raises(error: BaseException) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        raise error

    return work


FAULTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a vector that is not finite": (raises(BadTensors("holds NaN")), BadTensors, "holds NaN"),
    "a full disk": (raises(OSError(errno.ENOSPC, "No space left on device")), OSError, "No space left"),
    "a defect": (raises(KeyError("x")), OSError, "ended without an answer"),
    "being killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), OSError, "ended without an answer"),
    "an answer that is no JSON": (lambda: {"x": object()}, OSError, "ended without an answer"),
}


@pytest.mark.parametrize(("work", "error", "text"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told(work: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as told:
        aside(work, 20)
    if "space" in text:
        assert isinstance(told.value, OSError)
        assert told.value.errno == errno.ENOSPC


def test_one_that_hangs_is_killed_and_nothing_of_it_is_left() -> None:
    def hang() -> dict[str, Any]:
        time.sleep(600)
        return {}

    before = set(psutil.Process().children())
    with pytest.raises(TimeoutError, match="too long"):
        aside(hang, 0.2)
    assert set(psutil.Process().children()) <= before


def test_what_the_work_loads_stays_out_of_the_daemon() -> None:
    script = (
        "import sys\nfrom silo_agent.aside import aside\n"
        "def work():\n    import numpy\n    return {'there': 'numpy' in sys.modules}\n"
        "assert aside(work, 60) == {'there': True}\nassert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

"""The process that reads the damaged files: one line of JSON before each case and one after it.

`python -m infra.fuzz.child SEED FIRST LAST STEP TRACED SHARED_DATA` reads the cases FIRST, FIRST+STEP and so on before
LAST, and traces the memory of those that TRACED divides. The kernel limits its memory, a signal the processor time of a
case; what neither stops, the parent ends.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from infra.fuzz.cases import Case, load, make
from infra.fuzz.judging import Readers, Verdict, judge

CPU_SECONDS = 5.0  # for one case; the slowest takes less than one
_ADDRESS_SPACE = 3 << 30  # bytes beyond what is mapped at the start: far above what judging allows, below the machine


class TookTooLong(BaseException):
    """Not an `Exception`, or a reader might take it for a damaged file."""


def main(arguments: list[str]) -> None:
    campaign, first, last, step, trace = (int(one) for one in arguments[:5])
    source = load(Path(arguments[5]) if arguments[5] else None)
    limit_memory()
    with TemporaryDirectory(prefix="wardround-fuzz-") as folder:
        for number in range(first, last, step):
            case = make(campaign, number, source)
            _say({"begun": number, "seed": case.seed, "done": case.done})
            _say({"ended": number, **asdict(judged(case, Path(folder), traced=number % trace == 0))})


def judged(
    case: Case, folder: Path, readers: Readers | None = None, *, traced: bool = True, seconds: float = CPU_SECONDS
) -> Verdict:
    """Judge one case, for as long as it may take."""
    return limited(lambda: judge(case, folder, readers or Readers(), traced=traced), seconds)


def limited(work: Callable[[], Verdict], seconds: float) -> Verdict:
    """Do work that ends in a verdict, and stop it when it takes more processor time than `seconds`."""
    fired = []

    def stop(_signal: int, _frame: FrameType | None) -> None:
        fired.append(True)
        raise TookTooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        verdict = work()
    except TookTooLong:
        verdict = Verdict()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    verdict.hold(f"it takes more than {seconds:g} s of processor time", kept=not fired)
    return verdict


def limit_memory() -> None:
    """Of this process, for good: what goes far beyond what judging allows ends as a `MemoryError`."""
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_SPACE, mapped + _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])

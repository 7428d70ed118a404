"""The process that touches an archive's files: it opens some, says what each header says, and decodes if asked to.

    python -m silo_agent.intake.reader --limits '{...}' --pixels 5

It has no key and no list of the archive. Questions and answers are JSON lines; the values of an image go
into the file that is open as `--pixels`, float32 in C order. Whatever a file does to this process, its parent goes on.
"""

import argparse
import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from silo_agent.intake.encoding import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)
_PLAIN_BYTES = 1024**3  # libraries, and headers at their limit
_COPIES = 24  # bytes in memory for each byte of pixels, at most: 8 bit values pass through int32 and float64
_NOT_NEEDED = "requests"  # pydicom loads it for its test files, in a quarter of the time that a process needs to start


def main(arguments: list[str] | None = None) -> None:
    """Serve questions until the input ends, or the parent does."""
    options, answers = begun(__doc__, arguments)
    limits = Limits(**options.limits)
    set_most_memory(_PLAIN_BYTES + 2 * limits.max_file_bytes + _COPIES * limits.max_pixel_bytes)
    serve(sys.stdin, answers, limits, options.pixels)


def begun(description: str | None, arguments: list[str] | None) -> tuple[argparse.Namespace, TextIO]:
    """Make a reader of this process, whatever it reads: its options, and where it answers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--limits", type=json.loads, required=True)
    parser.add_argument("--pixels", type=int, required=True, help="an open file for the values of images")
    parser.add_argument("--parent", type=int, required=True, help="its process id")
    options = parser.parse_args(arguments)
    end_with(options.parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold images
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's print must not be taken for an answer
    sys.modules[_NOT_NEEDED] = None  # type: ignore[assignment]
    return options, answers


def end_with(parent: int) -> None:
    """Be killed when the parent ends, whatever this process hangs in."""
    with suppress(OSError):  # elsewhere than on Linux the end of the input has to do
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def serve(questions: TextIO, answers: TextIO, limits: Limits, pixels: int) -> None:
    from silo_agent.intake.facts import Pixels
    from silo_agent.intake.image import quiet
    from silo_agent.intake.opened import OpenFile

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"ready": os.getpid()})
    files: list[OpenFile] = []
    with quiet():
        for line in questions:
            question = json.loads(line)
            if "open" in question:
                for file in files:
                    file.close()
                files = [OpenFile(Path(path), limits) for path in question["open"]]
                for file in files:
                    say(file.header().told())
                    file.rest()
            else:
                file = files[question["pixels"]]
                found = file.pixels()
                if isinstance(found, Pixels):
                    put(pixels, found.image)
                say(found.told())
                file.rest()


def put(pixels: int, image: "NDArray[np.float32]") -> None:
    import numpy as np

    left = np.ascontiguousarray(image, dtype="<f4").reshape(-1).view(np.uint8).data
    at = 0
    while at < len(left):
        at += os.pwrite(pixels, left[at:], at)


def set_most_memory(most: int) -> None:
    """A bomb that no limit foresaw ends as a MemoryError here, not as a kill of whatever the kernel picks."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = min(most, there if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main()

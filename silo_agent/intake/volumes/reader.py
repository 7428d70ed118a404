"""The process that touches the files of series: it opens one, says what its header says, and decodes its frames.

    python -m silo_agent.intake.volumes.reader --limits '{...}' --pixels 5 --parent 1

As `silo_agent.intake.reader` for images, with which it shares its beginning and its ends; a question for each frame.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from silo_agent.intake.encoding import Limits
from silo_agent.intake.reader import begun, put, set_most_memory

if TYPE_CHECKING:
    from silo_agent.intake.volumes.opened import OpenVolumeFile
    from silo_agent.intake.volumes.reading import VolumeLimits

_PLAIN_BYTES = 1024**3  # libraries, and headers at their limit
_COPIES = 24  # bytes in memory for each byte of a frame, at most


def main(arguments: list[str] | None = None) -> None:
    """Serve questions until the input ends, or the parent does."""
    options, answers = begun(__doc__, arguments)
    from silo_agent.intake.volumes.reading import VolumeLimits

    limits = VolumeLimits(**{**options.limits, "file": Limits(**options.limits["file"])})
    set_most_memory(_PLAIN_BYTES + _COPIES * limits.file.max_pixel_bytes)
    serve(sys.stdin, answers, limits, options.pixels)


def serve(questions: TextIO, answers: TextIO, limits: "VolumeLimits", pixels: int) -> None:
    from pydantic import TypeAdapter

    from silo_agent.intake.image import Refused, quiet
    from silo_agent.intake.volumes.opened import FileFacts

    adapter = TypeAdapter(FileFacts)

    def say(answer: str) -> None:
        answers.write(answer + "\n")
        answers.flush()

    say(json.dumps({"ready": True}))
    file: OpenVolumeFile | None = None
    with quiet():
        for line in questions:
            question = json.loads(line)
            if "open" in question:
                if file is not None:
                    file.close()
                file = _opened(question, limits)
                say(adapter.dump_json(file.facts(is_nifti=question["nifti"])).decode())
            elif file is not None:
                found = file.frame(question["frame"])
                if isinstance(found, Refused):
                    say(json.dumps({"refused": found.code, "lasting": found.lasting}))
                else:
                    put(pixels, found)
                    say(json.dumps({"shape": found.shape}))


def _opened(question: dict[str, Any], limits: "VolumeLimits") -> "OpenVolumeFile":
    from silo_agent.intake.volumes.opened import OpenVolumeFile
    from silo_agent.intake.volumes.reading import Acceptance

    how = Acceptance(frozenset(question["modalities"]), question["take_secondary"], question["take_masks"])
    return OpenVolumeFile(Path(question["open"]), question["number"], how, limits)


if __name__ == "__main__":
    main()

"""One process that reads files of series, as its parent sees it, and what is done when it hangs or ends.

A question that is not answered in time costs its file READ_TIMEOUT and the process its life; one that ends the process
is asked once more in a fresh one, as for images (`silo_agent.intake.readers`).
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from silo_agent.intake.image import NotUsable
from silo_agent.intake.reader_process import Ended, ReaderProcess, Silent
from silo_agent.intake.readers import NoReader, Silence
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.opened import FileFacts
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits

_Answer = TypeVar("_Answer")
_FACTS = TypeAdapter(FileFacts)


class VolumeProcess(ReaderProcess):
    """The process itself; see `volumes.reader` for what it is asked."""

    module, longest_answer = "silo_agent.intake.volumes.reader", 32 * 1024 * 1024

    def __init__(self, limits: VolumeLimits, how: Acceptance) -> None:
        super().__init__(limits.file, asdict(limits))
        self._how = asdict(how) | {"modalities": sorted(how.modalities)}
        self.stands_open: Path | None = None

    def open(self, path: Path, number: int, patience: float, *, is_nifti: bool) -> FileFacts:
        """Raises `Silent` or `Ended`."""
        self.stands_open = None
        question = {"open": os.fspath(path), "number": number, "nifti": is_nifti, **self._how}
        said = self._asked(question, patience)
        try:
            found = _FACTS.validate_json(json.dumps(said), strict=True)
        except ValidationError:
            raise Ended(Refusal.UNREADABLE) from None
        self.stands_open = path
        return found

    def frame(self, number: int, patience: float) -> NDArray[np.float32]:
        """Of the file that stands open. Raises `NotUsable`, `Silent` or `Ended`."""
        said = self._asked({"frame": number}, patience)
        try:
            if "refused" in said:
                raise NotUsable(Refusal(said["refused"]), lasting=said["lasting"] is True)
            height, width = (int(side) for side in said["shape"])
            return self._values(height, width)
        except (ValueError, TypeError, LookupError):
            raise Ended(Refusal.UNREADABLE) from None


class VolumeReader:
    """Asks one process after the other. Use with `contextlib.closing`."""

    def __init__(self, limits: VolumeLimits, how: Acceptance, patience: float) -> None:
        self.limits, self.how, self._patience = limits, how, patience
        self._process: VolumeProcess | None = None
        self._silence = Silence()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = None

    def facts(self, path: Path, number: int, *, is_nifti: bool) -> FileFacts:
        """Open a file. Raises `ArchiveSilent` and `NoReader`, as `Readers.submit`, and nothing that depends on it."""
        try:
            return self._tried(lambda process: process.open(path, number, self._patience, is_nifti=is_nifti))
        except NotUsable as why:
            return FileFacts(why.code, why.lasting)

    def frame(self, path: Path, number: int, frame: int, *, is_nifti: bool) -> NDArray[np.float32]:
        """One frame [H,W] of a file that `facts` was asked of last. Raises `NotUsable`, and as `facts`."""

        def ask(process: VolumeProcess) -> NDArray[np.float32]:
            if process.stands_open != path:
                process.open(path, number, self._patience, is_nifti=is_nifti)
            return process.frame(frame, self._patience)

        return self._tried(ask)

    def _tried(self, ask: Callable[[VolumeProcess], _Answer], *, is_last: bool = False) -> _Answer:
        try:
            found = ask(self._ready())
        except Silent:
            self.close()
            self._silence.again(self._patience)
            raise NotUsable(Refusal.READ_TIMEOUT, lasting=False) from None
        except Ended as why:
            self.close()
            if is_last:
                raise NotUsable(why.code, lasting=False) from None
            return self._tried(ask, is_last=True)
        self._silence.heard()
        return found

    def _ready(self) -> VolumeProcess:
        if self._process is None:
            self._process = VolumeProcess(self.limits, self.how)
            try:
                self._process.wait_until_ready()
            except (Silent, Ended):
                self.close()
                raise NoReader("the process that reads files does not start; its output says why") from None
        return self._process

"""A file of a series that stands open, in the process that reads: what it says, then one frame after the other.

A file is one of slices, a segmentation or a NIfTI mask; which NIfTI files are is told by their names, not looked for.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.bounded import few_items
from silo_agent.intake.header import Identifiers
from silo_agent.intake.image import NotUsable, Refused, guarded
from silo_agent.intake.masks.nifti import Nifti, OpenNifti
from silo_agent.intake.masks.segmentation import SEGMENTATIONS, Segmentation, parse_segmentation, read_frame
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.frames import Frames
from silo_agent.intake.volumes.headers import Slice
from silo_agent.intake.volumes.reading import Acceptance, Instance, VolumeLimits, judged, parsed

_NAMES = tuple(one.name for one in fields(Identifiers))


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one file says: why it is not used, or one of the three that it may be.

    `who` also of a file that is refused, unless its header could not be parsed. A NIfTI file says nothing of anybody.
    `lasting`: another reading of the same bytes would find the same.
    """

    code: Refusal | None = None
    lasting: bool = True
    who: Identifiers | None = field(repr=False, default=None)
    slices: tuple[Slice, ...] = ()
    segmentation: Segmentation | None = None
    nifti: Nifti | None = None


class OpenVolumeFile:
    """One file, with its number in the scan. Its methods raise nothing that depends on it."""

    def __init__(self, path: Path, number: int, how: Acceptance, limits: VolumeLimits) -> None:
        self._path, self._number, self._how, self._limits = path, number, how, limits
        self._file: BinaryIO | OpenNifti | None = None
        self._who: Identifiers | None = None
        self._frame: Callable[[int], NDArray[Any]] | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def facts(self, *, is_nifti: bool) -> FileFacts:
        found = guarded(self._nifti if is_nifti else self._dicom)
        return FileFacts(found.code, found.lasting, self._who) if isinstance(found, Refused) else found

    def frame(self, number: int) -> NDArray[np.float32] | Refused:
        """Values [H,W]; to be called after `facts`, where that refuses nothing."""
        frame = self._frame
        if frame is None:
            return Refused(Refusal.UNREADABLE, lasting=False)
        return guarded(lambda: frame(number).astype(np.float32))

    def _nifti(self) -> FileFacts:
        self._file = mask = OpenNifti(self._path)
        says = mask.header(self._limits)
        self._frame = lambda number: mask.plane(says, number)
        return FileFacts(nifti=says)

    def _told(self, who: Identifiers) -> None:
        self._who = _who(who)

    def _dicom(self) -> FileFacts:
        self._file = stream = self._path.open("rb")
        with few_items(self._limits.max_items):
            found = parsed(stream, self._limits, self._told)
            self._told(found.header.identifiers)
            if self._who is None:
                raise NotUsable(Refusal.UNREADABLE)
            if found.header.sop_class in SEGMENTATIONS and self._how.take_masks:
                says, offset = parse_segmentation(found, self._limits), found.pixels.offset
                self._frame = lambda number: read_frame(stream, offset, says, number)
                return FileFacts(who=self._who, segmentation=says)
            instance = judged(found, self._number, self._how, self._limits)
        self._frame = _Slices(stream, instance)
        return FileFacts(who=self._who, slices=instance.slices)


class _Slices:
    """Where the frames lie is looked for when the first of them is asked for."""

    def __init__(self, stream: BinaryIO, instance: Instance) -> None:
        self._stream, self._instance = stream, instance
        self._frames: Frames | None = None

    def __call__(self, number: int) -> NDArray[np.float32]:
        self._frames = self._frames or Frames(self._stream, self._instance)
        return self._frames.values(number)


def _who(who: Identifiers) -> Identifiers | None:
    """None where it is no text that can leave this process."""
    with suppress(UnicodeEncodeError):
        for name in _NAMES:
            getattr(who, name).encode()
        return who
    return None

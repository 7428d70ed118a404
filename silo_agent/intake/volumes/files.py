"""The files of a scan of volumes, by number: what they say, in pseudonyms, and the values of their frames.

A file is opened for its header, unless that is remembered, and once more for its pixels, since it may have been fetched
for the one reading and be gone afterwards. What it then says must be what it said before. What the process that reads
sends is believed only as far as it is checked here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.archive import Item
from silo_agent.intake.image import NotUsable
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.assemble import frame_digest, refuse_changed
from silo_agent.intake.volumes.headers import Part, Plane, Slice
from silo_agent.intake.volumes.opened import FileFacts
from silo_agent.intake.volumes.process import VolumeReader
from silo_agent.intake.volumes.remembered import Digests, KnownFile, RememberedFiles

Frame = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that stands open."""

    says: FileFacts
    frame: Callable[[int, tuple[int, int]], Frame]  # its number and shape; raises `NotUsable`


class Files:
    """All of them. The first ones are `remembered`, the others NIfTI masks.

    `still` is called before each reading, and may end the scan.
    """

    def __init__(
        self,
        items: Sequence[Item],
        remembered: RememberedFiles,
        reader: VolumeReader,
        names: Pseudonyms,
        still: Callable[[], None],
    ) -> None:
        self._items, self._remembered, self._reader = items, remembered, reader
        self._names, self._still = names, still
        self._masks: dict[int, FileFacts] = {}
        self._digests: dict[int, Digests] = {}
        self._frames: dict[int, int] = {}  # how many slices a file has

    def look(self) -> Iterator[FileFacts]:
        """What each file says that is not called NIfTI, in their order."""
        for number, known in enumerate(self._remembered.each()):
            if known is None:
                says = self.facts(number)
                self._remembered.keep(number, KnownFile(says))
            else:
                says = self._noted(number, known.says)
                if known.digests is not None:
                    self._digests[number] = known.digests
            yield says

    def facts(self, number: int) -> FileFacts:
        """As it is read."""
        with self._opened(number) as one:
            return self._noted(number, one.says)

    def _noted(self, number: int, says: FileFacts) -> FileFacts:
        if says.segmentation is not None or says.nifti is not None:
            self._masks[number] = says
        self._frames[number] = len(says.slices)
        return says

    def slice_values(self, number: int, expected: Mapping[int, Slice]) -> Iterator[tuple[int, Frame]]:
        """As `assemble.FramesOf`. Raises `NotUsable`."""
        with self._opened(number) as one:
            refuse_changed(one.says.slices, expected)
            for frame, said in sorted(expected.items()):
                yield frame, one.frame(frame, (said.rows, said.columns))

    def mask_values(self, number: int, wanted: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """As `merging.ValuesOf`. Raises `NotUsable`."""
        with self._opened(number) as one:
            if one.says != self._masks[number]:
                raise NotUsable(Refusal.UNREADABLE, lasting=False)
            for frame in sorted(wanted):
                yield frame, one.frame(frame, _shape_of(one.says))

    def digests(self, number: int) -> Digests:
        """As `stacks.Contents`, keyed."""
        if number not in self._digests:
            self._digests[number] = self._read_digests(number)
        return self._digests[number]

    def _read_digests(self, number: int) -> Digests:
        with self._opened(number) as one:
            says = one.says
            found, is_lasting = self._digests_of(one, self._frames[number])
        if is_lasting:
            self._remembered.keep(number, KnownFile(says, found))
        return found

    def _digests_of(self, one: _Opened, frames: int) -> tuple[Digests, bool]:
        """And whether another reading of the same bytes would find the same."""
        shapes = [(said.rows, said.columns) for said in one.says.slices]
        if len(shapes) != frames:  # it changed since
            return Refusal.UNREADABLE, False
        try:
            found = [frame_digest(one.frame(frame, shape)) for frame, shape in enumerate(shapes)]
        except NotUsable as why:
            return why.code, why.lasting
        return tuple(map(self._names.content, found)), True

    @contextmanager
    def _opened(self, number: int) -> Iterator[_Opened]:
        self._still()
        is_nifti = number >= self._remembered.files
        with self._items[number].opened() as path:
            if isinstance(path, Refusal):
                yield _Opened(FileFacts(path), _nothing)
                return
            says = self._reader.facts(path, number, is_nifti=is_nifti)
            yield _Opened(in_pseudonyms(says, self._names), self._frames_of(path, number, is_nifti=is_nifti))

    def _frames_of(self, path: Path, number: int, *, is_nifti: bool) -> Callable[[int, tuple[int, int]], Frame]:
        def frame(frame: int, shape: tuple[int, int]) -> Frame:
            values = self._reader.frame(path, number, frame, is_nifti=is_nifti)
            if values.shape != shape or not np.isfinite(values).all():
                raise NotUsable(Refusal.UNREADABLE, lasting=False)
            return values

        return frame


def in_pseudonyms(says: FileFacts, names: Pseudonyms) -> FileFacts:
    """The same without any name; frames of reference are compared by theirs as well."""

    def plane(one: Plane) -> Plane:
        return replace(one, frame_of_reference=names.uid(one.frame_of_reference))

    who, found = says.who, says.segmentation

    def part(one: Part) -> Part:
        return replace(one, concatenation=names.uid(one.concatenation))

    slices = tuple(
        replace(
            one,
            identifiers=names.of(one.identifiers),
            plane=None if one.plane is None else plane(one.plane),
            part=None if one.part is None else part(one.part),
        )
        for one in says.slices
    )
    if found is not None:
        frames = tuple(replace(one, plane=plane(one.plane)) for one in found.frames)
        segments = tuple(replace(one, label=names.label(one.label)) for one in found.segments)
        found = replace(found, series=tuple(map(names.uid, found.series)), segments=segments, frames=frames)
    return replace(says, who=None if who is None else names.of(who), slices=slices, segmentation=found)


def _shape_of(says: FileFacts) -> tuple[int, int]:
    if says.segmentation is not None:
        return says.segmentation.rows, says.segmentation.columns
    return (0, 0) if says.nifti is None else says.nifti.shape[1:]


def _nothing(_frame: int, _shape: tuple[int, int]) -> Frame:
    raise NotUsable(Refusal.UNREADABLE)

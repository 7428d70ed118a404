"""From a grid of slices to a volume: each slice is decoded into its place, and what is too large never begun.

Resampling, windowing and normalisation are the plan's and happen later; here are the values as measured.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.image import NotUsable, Refused, guarded
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.frames import frame_values
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.headers import Slice, Vector
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits, read_instance

# Of a file by number: (frame, float32 [H,W]) of the wanted frames, which must say what is given here for each.
FramesOf = Callable[[int, Mapping[int, Slice]], Iterable[tuple[int, NDArray[np.float32]]]]


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One image of three dimensions. See `geometry.Grid` for `affine` and `spacing_mm`.

    `image` is float32 [depth, height, width]: HU for CT, for MR the stored values with the vendor's rescale where
    there is one. `content` is SHA-256 over shape and values: one image has one digest however it was stored.
    """

    image: NDArray[np.float32] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    spacing_mm: Vector
    content: bytes = field(repr=False)


def assemble(
    grid: Grid, files: Sequence[Path], *, limits: VolumeLimits | None = None, take_secondary: bool = False
) -> Volume | Refused:
    """Read the pixels of a grid; `files` are the scan's, as numbered in its slices. No content of theirs raises.

    The totals are checked before anything is allocated. A file that no longer says what it said when it was
    sorted is refused as UNREADABLE. Beside the volume one slice and one header are in memory at a time; a header is
    at most `max_header_bytes` as read.
    """
    limits = limits or VolumeLimits()
    how = Acceptance(frozenset({grid.slices[0].modality}), take_secondary=take_secondary)

    def frames(file: int, expected: Mapping[int, Slice]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        with files[file].open("rb") as stream:
            instance = read_instance(stream, file, how, limits)
            refuse_changed(instance.slices, expected)
            yield from frame_values(stream, instance, expected.keys())

    def read() -> Volume:
        source = sum(files[file].stat().st_size for file in {one.file for one in grid.slices})
        if source > limits.max_source_bytes:
            raise NotUsable(Refusal.TOO_LARGE)
        return stacked(grid, frames, limits)

    return guarded(read)


def stacked(grid: Grid, frames: FramesOf, limits: VolumeLimits) -> Volume:
    """Put the frames of a grid into their places. Raises `NotUsable` if there are too many, and what reading does."""
    refuse_large(grid, limits)
    image = np.empty(grid.shape, dtype=np.float32)
    for file, depths in _by_file(grid).items():
        at = {grid.slices[depth].frame: depth for depth in depths}
        for frame, values in frames(file, {frame: grid.slices[depth] for frame, depth in at.items()}):
            image[at[frame]] = values
    return Volume(image, grid.affine, grid.spacing_mm, volume_digest(image))


def refuse_large(grid: Grid, limits: VolumeLimits) -> None:
    """Raise `NotUsable` before anything is allocated."""
    if math.prod(grid.shape) > limits.max_voxels:
        raise NotUsable(Refusal.TOO_LARGE)


def refuse_changed(slices: Sequence[Slice], expected: Mapping[int, Slice]) -> None:
    """Raise `NotUsable` where a file does not say any more what it said when it was sorted."""
    said = dict(enumerate(slices))
    if any(said.get(frame) != one for frame, one in expected.items()):
        raise NotUsable(Refusal.UNREADABLE, lasting=False)


def _by_file(grid: Grid) -> dict[int, list[int]]:
    depths: dict[int, list[int]] = defaultdict(list)
    for depth, one in enumerate(grid.slices):
        depths[one.file].append(depth)
    return depths


def volume_digest(image: NDArray[np.float32]) -> bytes:
    """SHA-256 over shape and values of float32 [D,H,W]."""
    digest = hashlib.sha256(np.array(image.shape, dtype="<i4").tobytes())
    for one in image:
        digest.update(_bytes_of(one))
    return digest.digest()


def frame_digest(values: NDArray[np.float32]) -> bytes:
    """SHA-256 over the values of float32 [H,W]."""
    return hashlib.sha256(_bytes_of(values)).digest()


def _bytes_of(values: NDArray[np.float32]) -> bytes:
    return (values + np.float32(0)).astype("<f4").tobytes()  # minus zero equals zero


class FileContents:
    """Digests of the frames of a file, read once: what `stacks.sort_into_stacks` asks of slices at one place."""

    def __init__(self, files: Sequence[Path], how: Acceptance, limits: VolumeLimits | None = None) -> None:
        self._files, self._how, self._limits = files, how, limits or VolumeLimits()
        self._known: dict[int, tuple[bytes, ...] | Refusal] = {}

    def __call__(self, file: int) -> tuple[bytes, ...] | Refusal:
        """SHA-256 over the values of each frame in the modality's unit, or why they cannot be read."""
        if file not in self._known:
            found = guarded(lambda: self._digests(file))
            self._known[file] = found.code if isinstance(found, Refused) else found
        return self._known[file]

    def _digests(self, file: int) -> tuple[bytes, ...]:
        with self._files[file].open("rb") as stream:
            instance = read_instance(stream, file, self._how, self._limits)
            everything = range(len(instance.slices))
            values = frame_values(stream, instance, everything)
            return tuple(frame_digest(frame) for _, frame in values)

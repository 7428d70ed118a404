"""From a grid of slices to a volume: each slice is decoded into its place, and what is too large never begun.

Resampling, windowing and normalisation are the plan's and happen later; here are the values as measured.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.image import NotUsable, Refused
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.frames import frame_values
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.headers import Slice, Vector
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits, guarded, read_instance


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

    def read() -> Volume:
        image = np.empty(_checked_shape(grid, files, limits), dtype=np.float32)
        for file, depths in _by_file(grid).items():
            expected = {grid.slices[depth].frame: (depth, grid.slices[depth]) for depth in depths}
            for frame, values in _frames(files[file], file, expected, how, limits):
                image[expected[frame][0]] = values
        return Volume(image, grid.affine, grid.spacing_mm, volume_digest(image))

    return guarded(read)


def _frames(
    path: Path, file: int, expected: dict[int, tuple[int, Slice]], how: Acceptance, limits: VolumeLimits
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    with path.open("rb") as stream:
        instance = read_instance(stream, file, how, limits)
        said = dict(enumerate(instance.slices))
        if any(said.get(frame) != one for frame, (_, one) in expected.items()):
            raise NotUsable(Refusal.UNREADABLE)
        yield from frame_values(stream, instance, expected.keys())


def _by_file(grid: Grid) -> dict[int, list[int]]:
    depths: dict[int, list[int]] = defaultdict(list)
    for depth, one in enumerate(grid.slices):
        depths[one.file].append(depth)
    return depths


def _checked_shape(grid: Grid, files: Sequence[Path], limits: VolumeLimits) -> tuple[int, int, int]:
    depth, height, width = grid.shape
    source = sum(files[file].stat().st_size for file in {one.file for one in grid.slices})
    if depth * height * width > limits.max_voxels or source > limits.max_source_bytes:
        raise NotUsable(Refusal.TOO_LARGE)
    return depth, height, width


def volume_digest(image: NDArray[np.float32]) -> bytes:
    """SHA-256 over shape and values of float32 [D,H,W]."""
    digest = hashlib.sha256(np.array(image.shape, dtype="<i4").tobytes())
    for one in image:
        digest.update(_bytes_of(one))
    return digest.digest()


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
            return tuple(hashlib.sha256(_bytes_of(frame)).digest() for _, frame in values)

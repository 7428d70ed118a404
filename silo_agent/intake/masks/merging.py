"""One mask for one volume, of whatever files there are: the class of every voxel, or one code.

The first class of the plan is what no segment covers; a segment of another name is none of the study's business.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.image import NotUsable
from silo_agent.intake.masks.nifti import Nifti
from silo_agent.intake.masks.placing import Voxels, axes_onto
from silo_agent.intake.masks.segmentation import Segmentation
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.geometry import Grid

Mask = NDArray[np.uint8]
# Of a file by number: (frame, values [rows, columns]) of the wanted frames.
ValuesOf = Callable[[int, Iterable[int]], Iterable[tuple[int, NDArray[np.float32]]]]


@dataclass(frozen=True, slots=True)
class Outlined:
    """A segmentation among the files of a scan; `sop_uid` as its slices have theirs."""

    file: int
    sop_uid: str
    says: Segmentation


def mask_of_segmentations(grid: Grid, found: Sequence[Outlined], classes: Sequence[str], values: ValuesOf) -> Mask:
    """uint8 [D,H,W], an index into `classes`. Raises `NotUsable` with the code.

    LABEL_MISSING without a segmentation, LABEL_UNKNOWN if none has a segment of the plan, LABEL_CONFLICT where two
    segments have one name, MASK_GRID where a frame does not lie on the voxels of a slice, MASK_OVERLAP where a voxel
    would have two classes; UID_CONFLICT where two files that differ are one instance. A copy of a file changes nothing.
    """
    if not found:
        raise NotUsable(Refusal.LABEL_MISSING)
    named = [(one, wanted) for one in found if (wanted := _wanted(one.says, classes))]
    if not named:
        raise NotUsable(Refusal.LABEL_UNKNOWN)
    mask, voxels = np.zeros(grid.shape, np.uint8), Voxels(grid)
    merged: dict[str, bytes] = {}
    taken: set[int] = set()
    for one, wanted in named:
        if one.says.code is not None:
            raise NotUsable(one.says.code)
        own = _outlined(one, wanted, voxels, grid.shape, values)
        digest = hashlib.sha256(own.tobytes()).digest()
        if one.sop_uid in merged:
            if merged[one.sop_uid] != digest:
                raise NotUsable(Refusal.UID_CONFLICT)
            continue
        if not taken.isdisjoint(wanted.values()):
            raise NotUsable(Refusal.LABEL_CONFLICT)
        _lay(mask, own)
        taken.update(wanted.values())
        merged[one.sop_uid] = digest
    return mask


def mask_of_nifti(grid: Grid, file: int, says: Nifti, classes: Sequence[str], values: ValuesOf) -> Mask:
    """uint8 [D,H,W], an index into `classes`, which the values of the file are.

    Raises `NotUsable`: MASK_GRID where its voxels are not the volume's, LABEL_UNKNOWN where a value is no class.
    """
    axes = axes_onto(grid, says.shape, np.array(says.affine))
    if axes is None:
        raise NotUsable(Refusal.MASK_GRID)
    mask = np.empty(says.shape, np.uint8)
    for number, plane in values(file, range(says.shape[0])):
        if not ((plane >= 0) & (plane < len(classes))).all():
            raise NotUsable(Refusal.LABEL_UNKNOWN)
        mask[number] = plane
    return np.ascontiguousarray(axes.applied(mask))


def _wanted(says: Segmentation, classes: Sequence[str]) -> dict[int, int]:
    """The class of each segment that the plan names, by the segment's number."""
    class_of = {label: index for index, label in enumerate(classes) if index > 0}
    found = {one.number: class_of[one.label] for one in says.segments if one.label in class_of}
    if len(set(found.values())) < len(found):
        raise NotUsable(Refusal.LABEL_CONFLICT)
    return found


def _outlined(
    one: Outlined, wanted: Mapping[int, int], voxels: Voxels, shape: tuple[int, int, int], values: ValuesOf
) -> Mask:
    """What one file outlines: uint8 [D,H,W]."""
    mask, rows, columns = np.zeros(shape, np.uint8), one.says.rows, one.says.columns
    frames = {number: frame for number, frame in enumerate(one.says.frames) if frame.segment in wanted}
    places = {number: voxels.place(frame.plane, rows, columns) for number, frame in frames.items()}
    slices = {(frames[number].segment, place[0]) for number, place in places.items() if place is not None}
    if len(slices) < len(frames):  # a frame beside the grid, or two of one segment on one slice
        raise NotUsable(Refusal.MASK_GRID)
    for number, bits in values(one.file, frames):
        place = places[number]
        if place is not None:
            depth, row, column = place
            window = mask[depth, row : row + rows, column : column + columns]
            _lay(window, (bits > 0) * np.uint8(wanted[frames[number].segment]))
    return mask


def _lay(mask: Mask, own: Mask) -> None:
    """Add what is outlined; raises `NotUsable` where something else lies already."""
    if (mask[own > 0] > 0).any():
        raise NotUsable(Refusal.MASK_OVERLAP)
    np.maximum(mask, own, out=mask)

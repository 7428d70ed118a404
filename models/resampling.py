"""From the voxels of a scanner to those of a plan: one orientation, one spacing, one size, image and mask alike.

An axis of n voxels s mm apart becomes one of m = round(n s/t), at least 1, that are t mm apart and have the same
centre: voxel k lies at index (k - (m-1)/2) t/s + (n-1)/2 of the old axis. Then it is cut or padded around the centre;
an odd voxel is padded at the end, and cut at the beginning. Both are one step here. Arrays in, arrays out; NumPy alone,
in float64 where positions are computed, so that every hospital gets the same.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# Directions in RAS that the axes of an array have in the end, by the axis of the patient that they are nearest to.
_LEFT, _POSTERIOR, _UP, _DOWN = np.array([(-1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], dtype=np.float64)
_VOLUME = (_UP, _POSTERIOR, _LEFT)
_PLANES = {  # rows and columns of a slice as it is displayed, by the axis of the patient across it (R, A, S)
    0: (_DOWN, _POSTERIOR),
    1: (_DOWN, _LEFT),
    2: (_POSTERIOR, _LEFT),
}
Value = TypeVar("Value", bound=np.generic)
_DUST = 9  # decimals of an index that count: a centre halfway between two is so in every hospital


def canonical_volume(affine: NDArray[np.float64]) -> tuple[int, ...]:
    """Axes of a volume, signed, from foot to head, front to back, right to left: a standard axial one as it is stored.

    `affine` is float64 [4,4] from (slice, row, column, 1) to RAS mm. A signed axis is the number from 1 of the array's
    axis, negative where it is to be turned round; see `turned`. Axes are swapped and turned, not rotated: an oblique
    volume stays as oblique as it is.
    """
    return _nearest(affine, (0, 1, 2), _VOLUME)


def canonical_slices(affine: NDArray[np.float64]) -> tuple[int, ...]:
    """The same for a volume whose slices are the images: each is turned as it is displayed, their order stays.

    Columns from right to left and rows from front to back across the body, from head to foot along it; sagittal ones
    have columns from front to back.
    """
    across = int(np.abs(affine[:3, 0]).argmax())
    return (1, *_nearest(affine, (1, 2), _PLANES[across]))


def turned(values: NDArray[Value], axes: Sequence[int]) -> NDArray[Value]:
    """Swap and turn round the axes of an array."""
    forwards = values.transpose([abs(axis) - 1 for axis in axes])
    return forwards[tuple(slice(None, None, -1) if axis < 0 else slice(None) for axis in axes)]


def resampled(
    image: NDArray[np.float32], spacing: Sequence[float], to: Sequence[float], size: Sequence[int]
) -> NDArray[np.float32]:
    """Linear, with zeros for padding: float32 of `size`. Distances in mm, one for each axis.

    Where an axis becomes coarser the filter widens with it, as antialiasing does, so that no voxel is skipped. The axis
    that shrinks most goes first, so that on the way nothing is larger than before or after.
    """
    for axis in sorted(range(image.ndim), key=lambda axis: (size[axis] / image.shape[axis], axis)):
        weights = _weights(image.shape[axis], spacing[axis], size[axis], to[axis])
        needed = np.flatnonzero(weights.any(axis=0))
        some = slice(needed[0], needed[-1] + 1)
        here = np.moveaxis(image, axis, -1)[..., some] @ weights[:, some].T
        image = np.moveaxis(here, -1, axis)
    return np.ascontiguousarray(image)


def resampled_mask(
    mask: NDArray[np.uint8], spacing: Sequence[float], to: Sequence[float], size: Sequence[int]
) -> NDArray[np.uint8]:
    """As `resampled`, with the class of the nearest voxel, and 0 for padding: uint8 of `size`."""
    found = np.zeros(tuple(size), np.uint8)
    sources, targets = [], []
    for side, own, new, asked in zip(mask.shape, spacing, size, to, strict=True):
        there, is_inside = _centres(side, own, new, asked)
        sources.append(nearest(there[is_inside], side))
        targets.append(np.flatnonzero(is_inside))
    found[np.ix_(*targets)] = mask[np.ix_(*sources)]
    return found


def nearest(there: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    """Which of `side` voxels the positions are nearest to; the later one halfway between two."""
    return np.clip(np.floor(there + 0.5), 0, side - 1).astype(np.int64)


def _centres(side: int, own: float, new: int, asked: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Where the centres of `new` voxels lie among `side` old ones, by index, and which of them are no padding."""
    count = max(1, round(round(side * own / asked, _DUST)))
    numbers = np.arange(new, dtype=np.float64) - (new - count) // 2
    there = np.round((numbers - (count - 1) / 2) * (asked / own) + (side - 1) / 2, _DUST)
    return there, (numbers >= 0) & (numbers < count)


def _weights(side: int, own: float, new: int, asked: float) -> NDArray[np.float32]:
    """What each old voxel gives to each new one: float32 [new, side], rows of sum 1, or of zeros for padding."""
    there, is_inside = _centres(side, own, new, asked)
    reach = max(1.0, asked / own)
    weights = np.clip(1 - np.abs(np.arange(side) - there[:, np.newaxis]) / reach, 0, None) * is_inside[:, np.newaxis]
    total = weights.sum(axis=1, keepdims=True)
    found: NDArray[np.float32] = (weights / np.where(total > 0, total, 1)).astype(np.float32)
    return found


def _nearest(
    affine: NDArray[np.float64], axes: Sequence[int], wanted: Sequence[NDArray[np.float64]]
) -> tuple[int, ...]:
    """Which of `axes` lies along each of the wanted directions, signed and from 1."""
    along = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = [[float(direction @ along[:, axis]) for axis in axes] for direction in wanted]
    order = max(
        permutations(range(len(axes))),
        key=lambda order: sum(abs(row[at]) for row, at in zip(cosines, order, strict=True)),
    )
    return tuple((axes[at] + 1) * (1 if row[at] > 0 else -1) for row, at in zip(cosines, order, strict=True))

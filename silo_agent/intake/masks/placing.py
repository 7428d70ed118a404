"""Whether the voxels of a mask are voxels of a volume, and which: pure decisions on positions.

Orientation, spacing and offsets have one tolerance together: each corner of the mask lies within a tenth of a voxel of
the voxel of the volume that it is taken for. So nothing between lies further off, whatever its size.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.volumes.geometry import Grid, normal
from silo_agent.intake.volumes.headers import Plane

TOLERANCE = 0.1  # voxels, along each axis

Place = tuple[int, int, int]  # slice, row, column


class Voxels:
    """Those of a volume, by their place in the patient."""

    def __init__(self, grid: Grid) -> None:
        planes = [one.plane for one in grid.slices if one.plane is not None]
        first, (gap, between_rows, between_columns) = planes[0], grid.spacing_mm
        self._shape, self._frame_of_reference = grid.shape, first.frame_of_reference
        steps = np.array([normal(first), first.down, first.across]).T * (gap, between_rows, between_columns)
        self._to_voxels = np.linalg.inv(steps)
        self._origins = np.array([plane.position for plane in planes])
        self._normal = np.array(normal(first))

    def place(self, plane: Plane, rows: int, columns: int) -> Place | None:
        """Where the first pixel of a frame lies whose pixels all lie on the voxels of one slice, else None."""
        if plane.frame_of_reference != self._frame_of_reference:
            return None
        origin = np.array(plane.position)
        depth = int(np.abs((self._origins - origin) @ self._normal).argmin())
        corners = np.array([(0, row, column) for row, column in product((0, rows - 1), (0, columns - 1))])
        steps = np.array([plane.down, plane.across]) * np.array(plane.spacing)[:, np.newaxis]
        there = (origin + corners[:, 1:] @ steps - self._origins[depth]) @ self._to_voxels.T
        _, row, column = (int(value) for value in np.rint(there[0]))
        if not _agree(there, corners + np.array([0, row, column])):
            return None
        _, height, width = self._shape
        is_inside = 0 <= row <= height - rows and 0 <= column <= width - columns
        return (depth, row, column) if is_inside else None


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """How the axes of an array become a volume's: `order` of its own axes, then which of them are turned round."""

    order: tuple[int, ...]
    turned: tuple[int, ...] = field(default=())

    def applied(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.flip(values.transpose(self.order), self.turned)


def axes_onto(grid: Grid, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Axes | None:
    """Return the axes of an array of `shape` whose voxels are those of the volume, None where they are not.

    `affine` is float64 [4,4] from the array's indices to RAS mm.
    """
    onto = np.linalg.inv(grid.affine) @ affine
    steps = np.rint(onto[:3, :3])
    order = np.abs(steps).argmax(axis=1)
    signs = steps[range(3), order]
    is_permutation = sorted(order) == [0, 1, 2] and (np.abs(steps).sum(axis=1) == 1).all()
    if not is_permutation or tuple(shape[axis] for axis in order) != grid.shape:
        return None
    corners = np.array(list(product(*((0, side - 1) for side in shape))))
    there = corners @ onto[:3, :3].T + onto[:3, 3]
    expected = corners[:, order] * signs + np.where(signs < 0, np.array(grid.shape) - 1, 0)
    if not _agree(there, expected):
        return None
    return Axes(tuple(int(axis) for axis in order), tuple(int(axis) for axis in np.flatnonzero(signs < 0)))


def _agree(there: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    return bool((np.abs(there - expected) <= TOLERANCE).all())

"""Whether slices make a volume, and where it lies: pure decisions on positions, no pixels.

Slices are ordered by the distance of their origin along the normal of their planes and by nothing else. Positions
are in DICOM's patient coordinates, millimetres, LPS (PS3.3 C.7.6.2.1.1); the affine leads to RAS, as in NIfTI.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import Plane, Slice, Vector

SAME_POSITION_MM = 0.01  # scanners write 1e-3 mm; nothing that images a patient steps by less than 0.05 mm
GAP_TOLERANCE_MM, GAP_TOLERANCE = 0.05, 0.01  # absolute, and as a share of the median gap: the larger holds
SMALLEST_COSINE = 0.999  # between the stacking direction and the normal: 2.6 degrees
_DECIMAL_DUST_MM = 1e-9  # a gap of exactly the tolerance is within it, also after subtraction in float64

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Slices in spatial order and where their voxels lie.

    `affine` is float64 [4,4] and leads from (slice, row, column, 1), the index order of an array
    [depth, height, width], to (R, A, S, 1) in mm. `spacing_mm` is the distance between slices, rows and columns.
    """

    slices: tuple[Slice, ...]
    affine: NDArray[np.float64] = field(repr=False)
    spacing_mm: Vector

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, height, width) in voxels."""
        return len(self.slices), self.slices[0].rows, self.slices[0].columns


def normal(plane: Plane) -> Vector:
    """Return the unit normal, row direction x column direction (LPS)."""
    (ax, ay, az), (dx, dy, dz) = plane.across, plane.down
    return ay * dz - az * dy, az * dx - ax * dz, ax * dy - ay * dx


def along(direction: Vector, position: Vector) -> float:
    """Millimetres of `position` along a unit vector."""
    return sum(a * b for a, b in zip(direction, position, strict=True))


def place(slices: Sequence[Slice]) -> Grid | Refusal:
    """Order slices of one orientation, size and spacing, and check that they lie as the voxels of a volume do.

    Refuses GEOMETRY_MISSING, SINGLE_SLICE, DUPLICATE_POSITION, GANTRY_TILT and SPACING_NONUNIFORM. That the
    slices belong together is the business of `stacks`.
    """
    placed = [(one, one.plane) for one in slices if one.plane is not None]
    if len(placed) < len(slices) or not placed:
        return Refusal.GEOMETRY_MISSING
    if len(placed) == 1:
        return Refusal.SINGLE_SLICE
    direction = normal(placed[0][1])
    placed.sort(key=lambda pair: along(direction, pair[1].position))
    positions = np.array([plane.position for _, plane in placed])
    if refusal := judge_positions(positions, np.array(direction)):
        return refusal
    step = (positions[-1] - positions[0]) / (len(placed) - 1)
    plane = placed[0][1]
    spacing = (float(np.linalg.norm(step)), *plane.spacing)
    return Grid(tuple(one for one, _ in placed), affine(plane, step), spacing)


def judge_positions(positions: NDArray[np.float64], direction: NDArray[np.float64]) -> Refusal | None:
    """Hold the origins [N,3] of slices (mm, in order along the unit vector `direction`) to the rules of a volume.

    Every gap is within the tolerance of the median gap. The line from the first origin to the last is along the
    normal, and no origin is further from it than the same tolerance: gaps alone do not see a slice that was
    shifted within its plane.
    """
    gaps = np.diff(positions @ direction)
    if (gaps <= SAME_POSITION_MM).any():
        return Refusal.DUPLICATE_POSITION
    span = positions[-1] - positions[0]
    if abs(span @ direction) < SMALLEST_COSINE * np.linalg.norm(span):
        return Refusal.GANTRY_TILT
    median = float(np.median(gaps))
    tolerance = max(GAP_TOLERANCE_MM, GAP_TOLERANCE * median) + _DECIMAL_DUST_MM
    line = span / np.linalg.norm(span)
    offsets = positions - positions[0]
    aside = np.linalg.norm(offsets - np.outer(offsets @ line, line), axis=1)
    uneven = np.abs(gaps - median).max() > tolerance or aside.max() > tolerance
    return Refusal.SPACING_NONUNIFORM if uneven else None


def affine(plane: Plane, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64 [4,4] from (slice, row, column, 1) to RAS mm (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1).

    `plane` is that of the first slice, `step` [3] leads from each slice to the next, mm LPS.
    """
    between_rows, between_columns = plane.spacing
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = np.array(plane.down) * between_rows
    lps[:3, 2] = np.array(plane.across) * between_columns
    lps[:3, 3] = plane.position
    ras: NDArray[np.float64] = LPS_TO_RAS @ lps
    return ras

"""NIfTI-1 masks, in one file with or without gzip: where their voxels lie, and the values of one plane at a time.

Only what is needed for a mask: integers without a scale, three dimensions, an affine. Source: the NIfTI-1 data format,
nifti1.h of the NIfTI data format working group (its field names are used here; sform before qform, "method 3" and
"method 2" there). Nothing is inflated beyond the plane that is asked for.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.image import NotUsable
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import LARGEST_MM
from silo_agent.intake.volumes.reading import VolumeLimits

ENDINGS = (".nii", ".nii.gz")
_HEADER_BYTES, _MAGIC, _GZIP = 348, b"n+1\0", b"\x1f\x8b"
_KINDS = {2: "u1", 4: "i2", 8: "i4", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}  # datatype
_UNKNOWN_UNIT, _MILLIMETRES = 0, 2  # xyzt_units, the three lowest bits

Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Nifti:
    """One file. `shape` is (k, j, i), the index order of its planes [j,i]; `affine` leads from (k, j, i, 1) to RAS mm.

    `kind` is NumPy's name of the type of a value, `offset` where the first one lies, bytes.
    """

    shape: tuple[int, int, int]
    affine: Affine
    kind: str
    offset: int


class OpenNifti:
    """An open file. Raises `NotUsable` and `OSError`; to be closed."""

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        self._file = _opened(path)

    def close(self) -> None:
        self._file.close()

    def header(self, limits: VolumeLimits) -> Nifti:
        if self._size > limits.file.max_file_bytes:
            raise NotUsable(Refusal.TOO_LARGE)
        return parse_nifti(_exactly(self._file, _HEADER_BYTES), limits)

    def plane(self, says: Nifti, number: int) -> NDArray[np.integer]:
        """Values [j,i] of one plane. Cheapest in ascending order: gzip has no way back."""
        _, rows, columns = says.shape
        kind = np.dtype(says.kind)
        length = rows * columns * kind.itemsize
        _seek(self._file, says.offset + number * length)
        data = _exactly(self._file, length)
        if number == says.shape[0] - 1:
            _exactly(self._file, 1, or_end=True)  # gzip compares its checksum when it comes to the end
        return np.frombuffer(data, kind).reshape(rows, columns)


def parse_nifti(header: bytes, limits: VolumeLimits) -> Nifti:
    """Parse the first 348 bytes. Raises `NotUsable`.

    UNREADABLE where they are not NIfTI's, MASK_TYPE where values are no integers or there is more than a volume,
    MASK_GRID where it is not said where the voxels lie, TOO_LARGE.
    """
    order = "<" if header.startswith(_HEADER_BYTES.to_bytes(4, "little")) else ">"
    if struct.unpack_from(order + "i", header)[0] != _HEADER_BYTES or header[344:348] != _MAGIC:
        raise NotUsable(Refusal.UNREADABLE)
    dimensions = struct.unpack_from(order + "8h", header, 40)
    (datatype,) = struct.unpack_from(order + "h", header, 70)
    offset, slope, intercept = struct.unpack_from(order + "3f", header, 108)
    sides = dimensions[1 : 1 + dimensions[0]]
    if not 3 <= dimensions[0] <= 7 or min(sides) < 1 or not _HEADER_BYTES <= offset <= limits.max_header_bytes:
        raise NotUsable(Refusal.UNREADABLE)
    is_scaled = math.isfinite(slope) and slope != 0 and (slope, intercept) != (1, 0)  # no number: as if there were none
    if datatype not in _KINDS or is_scaled or max(sides[3:], default=1) > 1:
        raise NotUsable(Refusal.MASK_TYPE)
    if math.prod(sides) > limits.max_voxels:
        raise NotUsable(Refusal.TOO_LARGE)
    affine = _affine(header, order)
    width, height, depth = sides[:3]
    return Nifti((depth, height, width), affine, order + _KINDS[datatype], int(offset))


def _affine(header: bytes, order: str) -> Affine:
    """The rows of float64 [4,4] from (k, j, i, 1). Raises `NotUsable` where there is none in millimetres."""
    by_qform, by_sform = struct.unpack_from(order + "2h", header, 252)
    if header[123] & 7 not in {_UNKNOWN_UNIT, _MILLIMETRES} or max(by_qform, by_sform) <= 0:
        raise NotUsable(Refusal.MASK_GRID)
    if by_sform > 0:
        rows = np.array(struct.unpack_from(order + "12f", header, 280), dtype=np.float64).reshape(3, 4)
    else:
        rows = _from_quaternion(header, order)
    affine = np.vstack([rows[:, [2, 1, 0, 3]], [0, 0, 0, 1]])
    if not np.isfinite(affine).all() or np.abs(affine).max() > LARGEST_MM:
        raise NotUsable(Refusal.MASK_GRID)
    return tuple(tuple(float(value) for value in row) for row in affine)


def _from_quaternion(header: bytes, order: str) -> NDArray[np.float64]:
    """float64 [3,4] of (i, j, k, 1) by quatern_b to _d and pixdim: a rotation, and `qfac` which may mirror k."""
    factor, *spacing = struct.unpack_from(order + "4f", header, 76)
    b, c, d, *offset = struct.unpack_from(order + "6f", header, 256)
    a = math.sqrt(max(1 - b * b - c * c - d * d, 0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    steps = np.array(spacing) * [1, 1, -1 if factor < 0 else 1]
    return np.column_stack([rotation * steps, offset])


def _opened(path: Path) -> BinaryIO:
    plain = path.open("rb")
    is_gzip = plain.read(len(_GZIP)) == _GZIP
    plain.seek(0)
    if not is_gzip:
        return plain
    plain.close()
    return gzip.open(path, "rb")  # type: ignore[return-value]  # a file for what is asked of it here


def _exactly(file: BinaryIO, length: int, *, or_end: bool = False) -> bytes:
    try:
        data = file.read(length)
    except EOFError:  # gzip ends before its own end
        data, or_end = b"", False
    except (zlib.error, gzip.BadGzipFile) as why:
        raise NotUsable(Refusal.UNREADABLE) from why
    if len(data) < length and not or_end:
        raise NotUsable(Refusal.TRUNCATED)
    return data


def _seek(file: BinaryIO, offset: int) -> None:
    try:
        file.seek(offset)
    except (EOFError, zlib.error, gzip.BadGzipFile) as why:
        raise NotUsable(Refusal.UNREADABLE) from why

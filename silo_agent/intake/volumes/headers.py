"""What one slice says for stacking: where it lies, and what tells it from others at the same place. Pure.

A slice is a single-frame instance or one frame of an Enhanced object. Instance Number, Slice Location and Series
Description are never read: the first two lie often enough, the third is free text. Sources: PS3.3 C.7.6.2 (Image
Plane), C.7.6.16 (Multi-frame Functional Groups: .2.1 Pixel Measures, .2.2 Frame Content, .2.3 Plane Position,
.2.4 Plane Orientation, .2.9 Pixel Value Transformation), C.8.13.5 (MR Echo, Frame Type), C.8.15.3 (CT Frame Type).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from silo_agent.intake.header import ACCESSION_NUMBER, HEADER_TAGS, Header, Identifiers

_KEYWORDS = (
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "FrameOfReferenceUID"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "DimensionIndexSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber"),
    *("SegmentationType", "SegmentSequence", "ReferencedSeriesSequence"),  # of segmentations, see `intake.masks`
)
SLICE_TAGS: tuple[int, ...] = (
    *(tag for tag in HEADER_TAGS if tag != ACCESSION_NUMBER),  # volumes have masks, and no table of labels
    *(tag for word in _KEYWORDS if (tag := tag_for_keyword(word)) is not None),
)
ORTHONORMAL = 1e-3  # as far as cosines written with four decimals are from unit length and a right angle
LARGEST_MM = 1e6  # of a coordinate: a kilometre. Beyond it, distances lose what the tolerances ask for, then overflow
SPACINGS_MM = (1e-4, 1e4)  # between pixels: what images a patient lies far within
_MOST_PARTS = 2**16 - 1  # of a concatenation: its numbers are US
_TEMPORAL_POINTERS = frozenset({0x00209128, 0x0020930D})  # Temporal Position Index, Temporal Position Time Offset

Vector = tuple[float, float, float]  # millimetres, or cosines; LPS as in DICOM


@dataclass(frozen=True, slots=True)
class Plane:
    """Where the pixels of a slice lie. Complete or absent: half a geometry is none.

    `across` is the direction in which the column index grows, `down` that of the row index (unit vectors, LPS).
    `position` is the centre of the first pixel, mm. `spacing` is (between rows, between columns), mm.
    """

    position: Vector
    across: Vector
    down: Vector
    spacing: tuple[float, float]
    frame_of_reference: str = field(repr=False)  # UID: positions compare only within one


@dataclass(frozen=True, slots=True)
class Variant:
    """What may tell apart two slices at the same place. A number that is absent or malformed is `None`."""

    acquisition: float | None
    temporal: float | None
    echo_time: float | None  # milliseconds
    image_type: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a concatenation a file is (PS3.3 C.7.6.16.2.2.4). 0 where a number is not given or is none."""

    concatenation: str = field(repr=False)  # UID
    number: int  # from 1
    total: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: frame `frame` (from 0) of file `file`, its number in the scan."""

    file: int
    frame: int
    identifiers: Identifiers = field(repr=False)
    modality: str
    rows: int
    columns: int
    plane: Plane | None
    variant: Variant
    rescale: tuple[float, float] | None  # (slope, intercept)
    part: Part | None = None  # None unless it is of a concatenation


def parse_slices(ds: Dataset, header: Header, file: int) -> tuple[Slice, ...]:
    """Take the slices out of a data set with the tags of `SLICE_TAGS`: one, or one per frame where it has groups.

    Raises `ValueError` if the functional groups do not fit the number of frames.
    """
    per_frame, shared = items(ds, "PerFrameFunctionalGroupsSequence"), items(ds, "SharedFunctionalGroupsSequence")
    if not per_frame and not shared:
        return (_slice(header, (file, 0), _plane(ds, ds, ds, ds), _variant(ds, header), _rescale(ds)),)
    if len(per_frame) != header.frames:
        raise ValueError("the per-frame functional groups do not fit the number of frames")
    temporal = _temporal_dimension(ds)
    groups, part = [Groups(own, shared[0] if shared else Dataset()) for own in per_frame], _part(ds)
    return tuple(
        _slice(
            header,
            (file, number),
            one.plane(ds),
            one.variant(header, temporal),
            _rescale(one.macro("PixelValueTransformationSequence")),
            part,
        )
        for number, one in enumerate(groups)
    )


@dataclass(frozen=True, slots=True)
class Groups:
    """The functional groups of one frame: its own ones, and those that all frames share (PS3.3 C.7.6.16.1)."""

    own: Dataset
    shared: Dataset

    def macro(self, keyword: str) -> Dataset:
        """The one item of a functional group, or an empty data set."""
        for groups in (self.own, self.shared):
            for item in items(groups, keyword):
                return item
        return Dataset()

    def plane(self, ds: Dataset) -> Plane | None:
        orientation, measures = self.macro("PlaneOrientationSequence"), self.macro("PixelMeasuresSequence")
        return _plane(ds, self.macro("PlanePositionSequence"), orientation, measures)

    def variant(self, header: Header, temporal: int | None) -> Variant:
        content, echo = self.macro("FrameContentSequence"), self.macro("MREchoSequence")
        kinds = (self.macro("MRImageFrameTypeSequence"), self.macro("CTImageFrameTypeSequence"))
        frame_type = next((found for kind in kinds if (found := _texts(kind, "FrameType"))), header.image_type)
        return Variant(
            acquisition=_first(content, "FrameAcquisitionNumber"),
            temporal=_temporal(content, temporal),
            echo_time=_first(echo, "EffectiveEchoTime"),
            image_type=frame_type,
        )


def _slice(
    header: Header,
    place: tuple[int, int],
    plane: Plane | None,
    variant: Variant,
    rescale: tuple[float, float] | None,
    part: Part | None = None,
) -> Slice:
    file, frame = place
    return Slice(
        file=file,
        frame=frame,
        identifiers=header.identifiers,
        modality=header.modality,
        rows=header.rows or 0,
        columns=header.columns or 0,
        plane=plane,
        variant=variant,
        rescale=rescale,
        part=part,
    )


def _part(ds: Dataset) -> Part | None:
    concatenation = str(ds.get("ConcatenationUID") or "").strip(" \0")
    number, total = (_count(ds, keyword) for keyword in ("InConcatenationNumber", "InConcatenationTotalNumber"))
    return Part(concatenation, number, total) if concatenation or number or total else None


def _count(ds: Dataset, keyword: str) -> int:
    found = _first(ds, keyword)
    return int(found) if found is not None and found.is_integer() and 0 < found <= _MOST_PARTS else 0


def _rescale(ds: Dataset) -> tuple[float, float] | None:
    slope, intercept = _first(ds, "RescaleSlope"), _first(ds, "RescaleIntercept")
    return (slope, intercept) if slope and intercept is not None else None


def _variant(ds: Dataset, header: Header) -> Variant:
    return Variant(
        acquisition=_first(ds, "AcquisitionNumber"),
        temporal=_first(ds, "TemporalPositionIdentifier"),
        echo_time=_first(ds, "EchoTime"),
        image_type=header.image_type,
    )


def _plane(ds: Dataset, position: Dataset, orientation: Dataset, measures: Dataset) -> Plane | None:
    origin = numbers(position, "ImagePositionPatient", 3)
    cosines = numbers(orientation, "ImageOrientationPatient", 6)
    spacing = numbers(measures, "PixelSpacing", 2)
    if origin is None or cosines is None or spacing is None:
        return None
    if max(map(abs, origin)) > LARGEST_MM or not SPACINGS_MM[0] <= min(spacing) <= max(spacing) <= SPACINGS_MM[1]:
        return None
    across, down = _vector(cosines[:3]), _vector(cosines[3:])
    if not _orthonormal(across, down):
        return None
    frame_of_reference = str(ds.get("FrameOfReferenceUID") or "").strip(" \0")
    return Plane(_vector(origin), across, down, (spacing[0], spacing[1]), frame_of_reference)


def _orthonormal(across: Vector, down: Vector) -> bool:
    angle = sum(a * b for a, b in zip(across, down, strict=True))
    return max(abs(math.hypot(*across) - 1), abs(math.hypot(*down) - 1), abs(angle)) <= ORTHONORMAL


def _vector(values: Sequence[float]) -> Vector:
    return values[0], values[1], values[2]


def _temporal_dimension(ds: Dataset) -> int | None:
    """Which of a frame's dimension index values counts time (PS3.3 C.7.6.17), if any does."""
    for number, item in enumerate(items(ds, "DimensionIndexSequence")):
        if item.get("DimensionIndexPointer") in _TEMPORAL_POINTERS:
            return number
    return None


def _temporal(content: Dataset, dimension: int | None) -> float | None:
    if (index := _first(content, "TemporalPositionIndex")) is not None or dimension is None:
        return index
    values = list(_numbers(content, "DimensionIndexValues"))
    return values[dimension] if dimension < len(values) else None


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, or `None`: an absent, short, long or malformed value is no value."""
    values = tuple(_numbers(ds, keyword))
    return values if len(values) == count and all(math.isfinite(value) for value in values) else None


def _first(ds: Dataset, keyword: str) -> float | None:
    found = numbers(ds, keyword, 1)
    return None if found is None else found[0]


def _numbers(ds: Dataset, keyword: str) -> Iterator[float]:
    for value in _values(ds, keyword):
        try:
            yield float(value)
        except (TypeError, ValueError, OverflowError):
            yield math.nan


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    return tuple(str(value).strip(" \0").upper() for value in _values(ds, keyword))


def _values(ds: Dataset, keyword: str) -> Sequence[Any]:
    try:
        value = ds.get(keyword)
    except (TypeError, ValueError, OverflowError, AttributeError):  # pydicom parses a value when it is asked for
        return ()
    if value is None or isinstance(value, str | bytes):
        return () if not value else (value,)
    return tuple(value) if hasattr(value, "__iter__") else (value,)


def items(ds: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence, none where there is no sequence."""
    return [item for item in _values(ds, keyword) if isinstance(item, Dataset)]

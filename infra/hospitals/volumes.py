"""Writing volumes as DICOM series: one file per slice, or one Enhanced object with a frame per slice.

Only what the information object definitions ask for and an intake checks (PS3.3 A.3 CT, A.4 MR, A.36 Enhanced MR,
A.38 Enhanced CT). A function of the arguments, like `writing`: no clock, no entropy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
)

from infra.hospitals.writing import Identity, uid, write_image

Modality = Literal["CT", "MR"]
Attributes = Mapping[str, Any]
_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}
_ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}
_IMAGE_TYPES = {"CT": ["ORIGINAL", "PRIMARY", "AXIAL"], "MR": ["ORIGINAL", "PRIMARY", "M"]}
_RESCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType")

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@dataclass(frozen=True, slots=True)
class Lie:
    """How a stack lies in the patient: LPS, mm. `cosines` are ImageOrientationPatient, `spacing` PixelSpacing."""

    cosines: tuple[float, ...] = AXIAL
    origin: tuple[float, float, float] = (-10.5, -20.25, -300.0)
    spacing: tuple[float, float] = (0.8, 0.7)
    gap: float = 2.5
    shear: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added per slice: a tilted gantry

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.cosines[:3], self.cosines[3:])

    def position(self, number: float) -> list[str]:
        """ImagePositionPatient of slice `number`, as decimal strings of at most 16 characters (PS3.5 6.2)."""
        step = self.normal * self.gap + np.array(self.shear)
        return decimals(np.array(self.origin) + number * step)


def decimals(values: Any) -> list[str]:
    """Write numbers as decimal strings."""
    return [f"{float(value):.9g}" for value in values]


def write_series(  # noqa: PLR0913 - the attributes that differ between the series we write
    folder: Path,
    pixels: NDArray[np.integer],
    *,
    identity: Identity,
    modality: Modality = "CT",
    lie: Lie | None = None,
    series: int = 1,
    rescale: Callable[[int], tuple[float, float]] | None = None,
    extra: Callable[[int], Attributes] | None = None,
) -> list[Path]:
    """Write uint16 or int16 [D,H,W] as D files; return them in spatial order.

    `rescale` and `extra` are asked for each slice: (slope, intercept), and attributes by keyword that are added or
    override ours (`None` takes one away). MR without `rescale` gets none.
    """
    lie = lie or Lie()
    return [
        _write_slice(
            folder / f"{series:02}-{number:04}.dcm",
            plane,
            replace(identity, image=1000 * series + number),
            modality,
            {
                "SeriesInstanceUID": uid(identity.series_uid, series),
                "ImagePositionPatient": lie.position(number),
                "ImageOrientationPatient": decimals(lie.cosines),
                "PixelSpacing": decimals(lie.spacing),
                "ImageType": _IMAGE_TYPES[modality],
                **(extra(number) if extra else {}),
            },
            rescale(number) if rescale else None,
        )
        for number, plane in enumerate(pixels)
    ]


def _write_slice(
    path: Path,
    plane: NDArray[np.integer],
    identity: Identity,
    modality: Modality,
    attributes: Attributes,
    rescale: tuple[float, float] | None,
) -> Path:
    write_image(path, plane, identity=identity, modality="CT", rescale=rescale)
    ds = pydicom.dcmread(path)
    if modality == "MR":
        _become(ds, _CLASSES["MR"], "MR")
    if modality == "MR" and rescale is None:
        _take_away(ds, _RESCALE)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    _take_away(ds, [keyword for keyword, value in attributes.items() if value is None])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return path


def write_enhanced(  # noqa: PLR0913 - the attributes that differ between the objects we write
    path: Path,
    pixels: NDArray[np.integer],
    *,
    identity: Identity,
    modality: Modality = "CT",
    lie: Lie | None = None,
    order: Sequence[int] | None = None,
    rescale: Callable[[int], tuple[float, float]] = lambda _number: (1.0, 0.0),
    temporal: Callable[[int], int] | None = None,
    places: Callable[[int], int] = lambda number: number,
    syntax: str | None = None,
) -> Path:
    """Write uint16 or int16 [D,H,W] as one Enhanced CT or MR with D frames.

    `order` is that of the frames in the file; `places` says at which step of the stack slice d lies, so that
    several may share one; `temporal` gives each its Temporal Position Index. `syntax` compresses the frames.
    """
    lie, order = lie or Lie(), list(order if order is not None else range(len(pixels)))
    write_image(path, pixels[order[0]], identity=identity, modality="CT")
    ds = pydicom.dcmread(path)
    _become(ds, _ENHANCED[modality], modality)
    ds.ImageType = [*_IMAGE_TYPES[modality], "NONE"]
    _take_away(ds, [*_RESCALE, "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "AcquisitionNumber"])
    ds.NumberOfFrames = len(order)
    ds.PixelData = np.ascontiguousarray(pixels[order]).tobytes()
    ds.SharedFunctionalGroupsSequence = [_shared(lie, modality)]
    ds.PerFrameFunctionalGroupsSequence = [
        _frame(lie.position(places(number)), rescale(number), temporal(number) if temporal else None)
        for number in order
    ]
    if syntax is not None:
        ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    return path


def _become(ds: FileDataset, sop_class: UID, modality: Modality) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.Modality, ds.ImageType = modality, _IMAGE_TYPES[modality]


def _take_away(ds: Dataset, keywords: Sequence[str]) -> None:
    for keyword in keywords:
        ds.pop(keyword, None)


def _shared(lie: Lie, modality: Modality) -> Dataset:
    orientation, measures, kind = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = decimals(lie.cosines)
    measures.PixelSpacing, measures.SliceThickness = decimals(lie.spacing), f"{lie.gap:g}"
    kind.FrameType = [*_IMAGE_TYPES[modality], "NONE"]
    groups = Dataset()
    groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = [orientation], [measures]
    setattr(groups, f"{modality}ImageFrameTypeSequence", [kind])
    return groups


def _frame(position: list[str], rescale: tuple[float, float], temporal: int | None) -> Dataset:
    plane, values, content = Dataset(), Dataset(), Dataset()
    plane.ImagePositionPatient = position
    values.RescaleSlope, values.RescaleIntercept = decimals(rescale)
    values.RescaleType = "US"
    content.FrameAcquisitionNumber = 1
    if temporal is not None:
        content.TemporalPositionIndex = temporal
    groups = Dataset()
    groups.PlanePositionSequence, groups.PixelValueTransformationSequence = [plane], [values]
    groups.FrameContentSequence = [content]
    return groups

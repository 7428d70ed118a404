"""Writing masks as DICOM Segmentations: BINARY, one frame for each slice of each segment (PS3.3 A.51).

Only what the information object definition asks for and an intake checks. A function of the arguments, like `volumes`:
no clock, no entropy. The bits are packed by pydicom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import UID, ExplicitVRLittleEndian, SegmentationStorage

from infra.hospitals.volumes import Lie, decimals
from infra.hospitals.writing import Identity, uid

_IMPLEMENTATION = "2.25.168215384390361537398186921937846121473"


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a volume's slices that the frames hold, in rows and columns; the ends are not in it."""

    top: int = 0
    bottom: int | None = None
    left: int = 0
    right: int | None = None


def write_segmentation(  # noqa: PLR0913 - what differs between the objects we write
    path: Path,
    mask: NDArray[np.uint8],
    labels: Mapping[int, str],
    *,
    identity: Identity,
    series: str,
    lie: Lie | None = None,
    cut: Cut | None = None,
    all_slices: bool = False,
    shared: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write uint8 [D,H,W] as one object; `labels` are the Segment Labels of its values other than 0.

    `series` is the Series Instance UID it refers to. A frame is written for each slice that shows the segment, or with
    `all_slices` for each. `shared`: what all frames have in common stands once, not in each. `extra` sets further
    attributes by keyword, or overrides ours.
    """
    lie, cut = lie or Lie(), cut or Cut()
    values = mask[:, cut.top : cut.bottom, cut.left : cut.right]
    shown = {(value, depth) for depth in range(len(mask)) for value in np.unique(mask[depth]).tolist()}
    pairs = [(value, depth) for value in labels for depth in range(len(mask)) if all_slices or (value, depth) in shown]
    bits = np.array([values[depth] == value for value, depth in pairs], dtype=np.uint8)
    ds = FileDataset(str(path), {}, file_meta=_file_meta(identity), preamble=b"\0" * 128)
    _describe(ds, identity, series)
    ds.SegmentSequence = [_segment(number, label) for number, label in labels.items()]
    common, own = _groups(lie, cut, pairs)
    if shared:
        ds.SharedFunctionalGroupsSequence = [common]
    else:
        own = [_joined(one, common) for one in own]
        ds.SharedFunctionalGroupsSequence = [Dataset()]
    ds.PerFrameFunctionalGroupsSequence = own
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.NumberOfFrames, (ds.Rows, ds.Columns) = len(pairs), values.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.add_new("PixelData", "OB", pack_bits(bits.reshape(-1)))
    for keyword, value in (extra or {}).items():
        setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def _file_meta(identity: Identity) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SegmentationStorage, UID(identity.sop_uid)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, UID(_IMPLEMENTATION)
    return meta


def _describe(ds: Dataset, identity: Identity, series: str) -> None:
    ds.SpecificCharacterSet, ds.ImageType = "ISO_IR 192", ["DERIVED", "PRIMARY"]
    ds.SOPClassUID, ds.SOPInstanceUID = SegmentationStorage, UID(identity.sop_uid)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(identity.study_uid), UID(uid(identity.series_uid, "masks"))
    ds.FrameOfReferenceUID = uid(identity.study_uid, "frame of reference")
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20200101", "120000", identity.accession
    ds.ReferringPhysicianName = ""
    ds.ContentDate, ds.ContentTime, ds.ContentLabel, ds.ContentDescription = "20200101", "120000", "MASK", ""
    ds.ContentCreatorName, ds.Modality, ds.Manufacturer = "", "SEG", identity.manufacturer
    ds.PatientName, ds.PatientID = f"Phantom^{identity.patient}", identity.patient
    ds.PatientBirthDate, ds.PatientSex = "", identity.sex
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = str(identity.study), "900", str(identity.image)
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.SegmentationType = "NO", "00", "BINARY"
    referred = Dataset()
    referred.SeriesInstanceUID = UID(series)
    ds.ReferencedSeriesSequence = [referred]


def _segment(number: int, label: str) -> Dataset:
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = number, label, "MANUAL"
    return segment


def _groups(lie: Lie, cut: Cut, pairs: Sequence[tuple[int, int]]) -> tuple[Dataset, list[Dataset]]:
    """What all frames share, and what each has of its own."""
    orientation, measures, common = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = decimals(lie.cosines)
    measures.PixelSpacing, measures.SliceThickness = decimals(lie.spacing), f"{lie.gap:g}"
    common.PlaneOrientationSequence, common.PixelMeasuresSequence = [orientation], [measures]
    aside = _aside(lie, cut)
    own = []
    for value, depth in pairs:
        plane, segment, groups = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = decimals(np.array(lie.position(depth), dtype=np.float64) + aside)
        segment.ReferencedSegmentNumber = value
        groups.PlanePositionSequence, groups.SegmentIdentificationSequence = [plane], [segment]
        own.append(groups)
    return common, own


def _aside(lie: Lie, cut: Cut) -> NDArray[np.float64]:
    """From the first pixel of a slice to the first of the cut, mm."""
    across, down = np.array(lie.cosines[:3]), np.array(lie.cosines[3:])
    return down * lie.spacing[0] * cut.top + across * lie.spacing[1] * cut.left


def _joined(own: Dataset, common: Dataset) -> Dataset:
    groups = Dataset(own)
    groups.update(common)
    return groups

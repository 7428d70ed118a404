"""Writing one image as a proper, minimal DICOM instance: CT, CR or US, Explicit VR Little Endian.

Only what the information object definitions ask for (PS3.3 A.3 CT, A.2 CR, A.6 US) and an intake checks.
Everything is a function of the arguments: the same call writes the same bytes, with no clock and no entropy.
"""

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
)

Modality = Literal["CT", "CR", "US"]
SOP_CLASSES = {"CT": CTImageStorage, "CR": ComputedRadiographyImageStorage, "US": UltrasoundImageStorage}
IMAGE_TYPES = {
    "CT": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "CR": ["DERIVED", "PRIMARY"],
    "US": ["ORIGINAL", "PRIMARY"],
}
_IMPLEMENTATION = "2.25.168215384390361537398186921937846121473"  # PS3.7 D.3.3.2: any UID of ours
_STUDY_DATE = "20200101"
PIXEL_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int16))


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose image it is and where it was made. UIDs are derived from it, so it must be unique per image."""

    hospital: str
    patient: str  # the Patient ID, unique within the hospital
    study: int = 1
    image: int = 1
    manufacturer: str = "ACME"
    sex: Literal["F", "M", "O"] = "O"

    @property
    def study_uid(self) -> str:
        return uid(self.hospital, self.patient, self.study, "study")

    @property
    def accession(self) -> str:
        """The number of the order that the study was made for: 16 digits, the most that SH holds, zeros first."""
        number = int(uid(self.hospital, self.patient, self.study, "order").removeprefix("2.25."))
        return f"00{number % 10**14:014d}"

    @property
    def series_uid(self) -> str:
        return uid(self.hospital, self.patient, self.study, "series")

    @property
    def sop_uid(self) -> str:
        return uid(self.hospital, self.patient, self.study, "image", self.image)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line of labels.csv."""

    identity: Identity
    label: str


def uid(*parts: object) -> str:
    """Return a UID under 2.25 (PS3.5 B.2) derived from the parts: the same parts, the same UID."""
    name = "\x1f".join(str(part) for part in parts).encode()
    return f"2.25.{int.from_bytes(hashlib.sha256(name).digest()[:16])}"


def write_image(  # noqa: PLR0913 - the attributes that differ between the images we write
    path: Path,
    pixels: NDArray[np.integer],
    *,
    identity: Identity,
    modality: Modality,
    rescale: tuple[float, float] | None = None,
    spacing_mm: float = 1.0,
    bits_stored: int | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write uint8, uint16 or int16 pixels [H,W], MONOCHROME2, as one instance.

    `rescale` is (slope, intercept) to the modality's unit; CT without it gets (1, 0), that is, HU as stored.
    `extra` sets further attributes by keyword, or overrides ours: tests build bad images with it.
    Raises `ValueError` for other shapes and types.
    """
    if pixels.ndim != 2 or pixels.dtype not in PIXEL_TYPES:
        raise ValueError(f"pixels are uint8, uint16 or int16 [H,W], not {pixels.dtype} {pixels.shape}")
    ds = FileDataset(str(path), {}, file_meta=_file_meta(identity, modality), preamble=b"\0" * 128)
    _describe(ds, identity, modality)
    _add_pixels(ds, pixels, bits_stored or pixels.dtype.itemsize * 8)
    if modality == "CT":
        rescale = rescale or (1.0, 0.0)
        ds.RescaleType, ds.KVP = "HU", "120"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [f"{spacing_mm:.4f}"] * 2, "5"
        ds.FrameOfReferenceUID = uid(identity.study_uid, "frame of reference")
    if rescale is not None:
        ds.RescaleSlope, ds.RescaleIntercept = (f"{value:g}" for value in rescale)
    for keyword, value in (extra or {}).items():
        setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def write_labels(path: Path, column: str, rows: Iterable[LabelRow]) -> None:
    """Write the table an intake reads: keyed by SOPInstanceUID, with the series and study beside it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", column))
        for row in rows:
            who = row.identity
            table.writerow((who.sop_uid, who.series_uid, who.study_uid, row.label))


def _file_meta(identity: Identity, modality: Modality) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SOP_CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = UID(identity.sop_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    return meta


def _describe(ds: Dataset, identity: Identity, modality: Modality) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = IMAGE_TYPES[modality]
    ds.SOPClassUID, ds.SOPInstanceUID = SOP_CLASSES[modality], UID(identity.sop_uid)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(identity.study_uid), UID(identity.series_uid)
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = _STUDY_DATE, "120000", identity.accession
    ds.Modality, ds.Manufacturer, ds.ReferringPhysicianName = modality, identity.manufacturer, ""
    ds.InstitutionName = identity.hospital
    ds.PatientName, ds.PatientID = f"Phantom^{identity.patient}", identity.patient
    ds.PatientBirthDate, ds.PatientSex = "", identity.sex
    ds.StudyID, ds.SeriesNumber = str(identity.study), "1"
    ds.AcquisitionNumber, ds.InstanceNumber = "1", str(identity.image)
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.PatientOrientation, ds.Laterality = "", ""
    if modality == "CR":
        ds.BodyPartExamined, ds.ViewPosition = "CHEST", "PA"


def _add_pixels(ds: Dataset, pixels: NDArray[np.integer], bits_stored: int) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits_stored, bits_stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.add_new("PixelData", "OB" if ds.BitsAllocated == 8 else "OW", data + b"\0" * (len(data) % 2))

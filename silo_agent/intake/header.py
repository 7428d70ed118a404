"""What a header says, and whether an image with such a header may be used: pure decisions, no pixels.

Only the tags in `HEADER_TAGS` are ever read. Sources: PS3.3 C.7.6.1 (General Image: Image Type, Burned In
Annotation, Lossy Image Compression), C.7.6.3 (Image Pixel), C.7.1.1 (Patient), C.11.1 (Modality LUT),
PS3.4 B.5 (storage SOP classes).
"""

import math
from collections.abc import Collection
from dataclasses import astuple, dataclass, field

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException

from silo_agent.intake.encoding import Limits, judge_size, judge_transfer_syntax
from silo_agent.intake.refusals import Refusal

_KEYWORDS = (
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    "AccessionNumber",
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "BurnedInAnnotation"),
    *("RescaleIntercept", "RescaleSlope", "LossyImageCompression", "ModalityLUTSequence"),
)
HEADER_TAGS: tuple[int, ...] = tuple(tag for word in _KEYWORDS if (tag := tag_for_keyword(word)) is not None)
ACCESSION_NUMBER = 0x00080050  # not read of volumes
# Of those that the intake reads, the ones that are sequences (PS3.6).
SEQUENCE_TAGS = frozenset({0x00283000, 0x52009229, 0x52009230, 0x00209222, 0x00081115, 0x00620002})

_STORAGE = "1.2.840.10008.5.1.4.1.1."
SINGLE_FRAME = {
    _STORAGE + "1": frozenset({"CR", "DX"}),  # Computed Radiography; some vendors write DX there
    _STORAGE + "1.1": frozenset({"DX", "CR"}),  # Digital X-Ray, for presentation
    _STORAGE + "1.1.1": frozenset({"DX", "CR"}),  # Digital X-Ray, for processing
    _STORAGE + "2": frozenset({"CT"}),
    _STORAGE + "4": frozenset({"MR"}),
    _STORAGE + "6.1": frozenset({"US"}),
}
MULTI_FRAME = frozenset(_STORAGE + part for part in ("2.1", "2.2", "3.1", "4.1", "4.3", "4.4"))
SECONDARY_CAPTURE = frozenset(_STORAGE + part for part in ("7", "7.1", "7.2", "7.3", "7.4"))
_MANY_SLICES = "MOSAIC"  # Siemens tiles the slices of a volume into one MR image
SCOUTS = frozenset({"LOCALIZER", "SCOUT"})


@dataclass(frozen=True, slots=True)
class Identifiers:
    """Who and what an image is. Stays in the process that read it; `repr` shows nothing.

    `accession` is the Accession Number (PS3.3 C.7.2.1), the number of the order that the image was made for. It is no
    UID: one may stand for several studies, and two systems may give the same one to two patients.
    """

    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    accession: str = field(repr=False, default="")

    @property
    def series(self) -> tuple[str, str, str]:
        """What all files of one series have in common, also where two patients were given the same UIDs."""
        return self.patient_id, self.study_uid, self.series_uid


@dataclass(frozen=True, slots=True)
class Header:
    """The allow-listed part of a header. A number that is absent or malformed is `None`."""

    sop_class: str
    transfer_syntax: str
    modality: str
    image_type: tuple[str, ...]
    burned_in: str
    lossy: str
    photometric: str
    rows: int | None
    columns: int | None
    frames: int | None
    samples: int | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    signed: bool
    rescale: bool
    modality_lut: bool
    identifiers: Identifiers


def parse_header(ds: Dataset, transfer_syntax: str, media_class: str) -> Header:
    """Take the allow-listed values out of a data set. `media_class` is the file meta's SOP class (0002,0002).

    The SOP class of the file meta stands in for a data set that ends before its own. Raises `ValueError` where an
    identifier is no text; what else pydicom raises for a value that makes no sense passes through.
    """
    bits_allocated, bits_stored = _integer(ds, "BitsAllocated"), _integer(ds, "BitsStored")
    slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
    return Header(
        sop_class=_text(ds, "SOPClassUID") or media_class,
        transfer_syntax=transfer_syntax,
        modality=_text(ds, "Modality").upper(),
        image_type=_texts(ds, "ImageType"),
        burned_in=_text(ds, "BurnedInAnnotation").upper(),
        lossy=_text(ds, "LossyImageCompression"),
        photometric=_text(ds, "PhotometricInterpretation").upper(),
        rows=_integer(ds, "Rows"),
        columns=_integer(ds, "Columns"),
        frames=_integer(ds, "NumberOfFrames") if ds.get("NumberOfFrames") not in {None, ""} else 1,
        samples=_integer(ds, "SamplesPerPixel"),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=_integer(ds, "HighBit"),
        signed=_integer(ds, "PixelRepresentation") == 1,
        rescale=slope is not None and slope != 0 and intercept is not None,
        modality_lut=bool(ds.get("ModalityLUTSequence")),
        identifiers=Identifiers(
            patient_id=_identifier(ds, "PatientID"),
            study_uid=_identifier(ds, "StudyInstanceUID"),
            series_uid=_identifier(ds, "SeriesInstanceUID"),
            sop_uid=_identifier(ds, "SOPInstanceUID"),
            accession=_accession(ds),
        ),
    )


def judge_header(header: Header, modalities: Collection[str], limits: Limits) -> Refusal | None:
    """Decide from the header alone; `None` means that the pixels may be read.

    What the object *is* comes first, so that a colour screen capture is told to be a screen capture.
    """
    return (
        _judge_kind(header)
        or _judge_modality(header, modalities)
        or judge_transfer_syntax(header.transfer_syntax)
        or (Refusal.LOSSY_NOT_ALLOWED if header.lossy not in {"", "00"} else None)
        or _judge_annotation(header)
        or _judge_pixels(header, limits)
        or _judge_identity(header)
    )


def _judge_kind(header: Header) -> Refusal | None:
    if header.sop_class in SECONDARY_CAPTURE:
        return Refusal.DERIVED_SECONDARY
    if header.sop_class in MULTI_FRAME:
        return Refusal.MULTI_FRAME
    if header.sop_class not in SINGLE_FRAME:
        return Refusal.NOT_AN_IMAGE if header.rows is None else _other_image(header.sop_class)
    return _judge_image_type(header)


def _judge_image_type(header: Header) -> Refusal | None:
    """Value 2 tells what was acquired from what was made of it, values 3 and on are the modality's own."""
    if not SCOUTS.isdisjoint(header.image_type):
        return Refusal.LOCALIZER
    if _MANY_SLICES in header.image_type or (header.frames or 1) > 1:
        return Refusal.MULTI_FRAME
    captured = any(value.startswith("SCREEN") for value in header.image_type)
    return Refusal.DERIVED_SECONDARY if captured or header.image_type[1:2] == ("SECONDARY",) else None


def _other_image(sop_class: str) -> Refusal:
    # Segmentations, parametric maps, dose grids and the like have rows and are no image of a patient.
    other = (_STORAGE + "66", _STORAGE + "67", _STORAGE + "30", _STORAGE + "481", _STORAGE + "104")
    return Refusal.NOT_AN_IMAGE if sop_class.startswith(other) else Refusal.MODALITY_MISMATCH


def _judge_modality(header: Header, modalities: Collection[str]) -> Refusal | None:
    agrees = header.modality in SINGLE_FRAME[header.sop_class]
    return None if agrees and header.modality in modalities else Refusal.MODALITY_MISMATCH


def _judge_annotation(header: Header) -> Refusal | None:
    """Ultrasound scanners write the patient's name into the pixels, so silence is not enough there.

    The design asks for a region mask before ultrasound is used. Until masks exist, ultrasound is taken only
    if the plan names US (checked before) *and* the header says NO in so many words.
    """
    silent_is_clean = header.modality != "US"
    clean = header.burned_in == "NO" or (silent_is_clean and header.burned_in == "")
    return None if clean else Refusal.BURNED_IN


def _judge_pixels(header: Header, limits: Limits) -> Refusal | None:
    numbers = (header.rows, header.columns, header.bits_allocated, header.bits_stored, header.high_bit)
    rows, columns, allocated, stored, high = (0 if number is None else number for number in numbers)
    if header.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return Refusal.PHOTOMETRIC
    if header.samples != 1 or header.frames != 1 or not 1 <= stored <= allocated or high != stored - 1:
        return Refusal.UNREADABLE
    if too_much := judge_size(rows, columns, allocated, limits):
        return too_much
    return Refusal.RESCALE_MISSING if header.modality == "CT" and not header.rescale else None


def _judge_identity(header: Header) -> Refusal | None:
    who = header.identifiers
    if not who.patient_id:
        return Refusal.PATIENT_ID_MISSING
    return None if who.sop_uid and all(map(_is_one_text, astuple(who))) else Refusal.UNREADABLE


def _is_one_text(value: str) -> bool:
    """Whether it is one value (PS3.5 6.2: several are parted by a backslash) and Unicode can write it.

    A file may name any codec of Python as its character set, and some decode to halves of characters.
    """
    return "\\" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _identifier(ds: Dataset, keyword: str) -> str:
    """One text, or several with backslashes between them as in the file. Raises `ValueError` for any other type."""
    value = ds.get(keyword)
    parts = [value] if isinstance(value, str) else value or []
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{keyword} is no text")
    return "\\".join(part.strip(" \0") for part in parts)


def _accession(ds: Dataset) -> str:
    """Empty where it is not one text: such a one finds no label, and nothing else of the image needs it."""
    try:
        found = _identifier(ds, "AccessionNumber")
    except (TypeError, ValueError, BytesLengthException):  # the last is pydicom's, of a value of another type
        return ""
    return found if _is_one_text(found) else ""


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value = ds.get(keyword)
    values = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    return tuple(str(part).strip(" \0").upper() for part in values)


def _integer(ds: Dataset, keyword: str) -> int | None:
    number = _number(ds, keyword)
    return int(number) if number is not None and number.is_integer() else None


def _number(ds: Dataset, keyword: str) -> float | None:
    try:
        number = float(ds.get(keyword))  # None and lists raise TypeError
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

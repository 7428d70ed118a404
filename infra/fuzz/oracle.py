"""The same file as pydicom alone reads it: all of it at once, with no rule of ours, and by another decoder."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from silo_agent.intake.pixels import content_digest

# RLE in Python, because the decoder in Rust panics on damaged input; JPEG 2000 by another binding than ours.
_DECODERS = {RLELossless: "pydicom", JPEG2000Lossless: "pillow"}

_ENHANCED = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2.1", "2.2", "4.1", "4.4"))


@dataclass(frozen=True, slots=True)
class Frame:
    """`stored` int32 [H,W], the bits above the stored ones taken away; `values` in the modality's unit; RAS mm."""

    stored: NDArray[np.int32]
    values: NDArray[np.float64]
    position: NDArray[np.float64] | None

    @property
    def content(self) -> bytes:
        return content_digest(self.stored)


def frames_of(path: Path) -> list[Frame] | None:
    """The frames of a file, or `None` where pydicom cannot say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _frames(path)
    except Exception:  # noqa: BLE001 - an oracle that does not know says so
        return None


def _frames(path: Path) -> list[Frame]:
    with path.open("rb") as file:
        ds = read_partial(file, stop_when=_after_pixels(), force=True)
    ds.file_meta.TransferSyntaxUID = UID(_syntax(ds))
    raw = pixel_array(ds, raw=True, decoding_plugin=_DECODERS.get(ds.file_meta.TransferSyntaxUID, ""))
    frames = raw if int(ds.get("NumberOfFrames") or 1) > 1 else raw[np.newaxis]
    return [_frame(ds, number, values) for number, values in enumerate(frames)]


def _after_pixels() -> Callable[[BaseTag, str | None, int], bool]:
    """Stop at whatever comes after the first pixel data: there it is out of order (PS3.5 section 7.1)."""
    seen: list[BaseTag] = []

    def stop(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if seen:
            return True
        if tag == 0x7FE00010:
            seen.append(tag)
        return False

    return stop


def _syntax(ds: Any) -> str:
    named = str(ds.file_meta.get("TransferSyntaxUID", "")).strip(" \0")
    implicit, little = ds.original_encoding
    return named or (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _frame(ds: Any, number: int, raw: NDArray[Any]) -> Frame:
    bits, signed = int(ds.BitsStored), int(ds.PixelRepresentation) == 1
    shift = 32 - bits
    stored = (raw.astype(np.int64).astype(np.uint32) << np.uint32(shift)).astype(np.uint32)
    cut = (stored.view(np.int32) >> shift) if signed else (stored >> np.uint32(shift)).astype(np.int32)
    lowest = -(1 << (bits - 1)) if signed else 0
    ends = np.array([lowest, lowest + (1 << bits) - 1], np.int32)
    transform = _macro(ds, number, "PixelValueTransformationSequence")
    values = _in_units(cut, ds, transform)
    if ds.PhotometricInterpretation.strip() == "MONOCHROME1":
        if ds.get("ModalityLUTSequence"):
            ends = np.array([0, 2 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1])
            values = float(ends.sum()) - values
        else:
            values = _in_units(ends, ds, transform).sum() - values
    return Frame(cut, values, _position(_macro(ds, number, "PlanePositionSequence")))


def _macro(ds: Any, number: int, keyword: str) -> Any:
    """Of a frame of an Enhanced object, the item of a functional group; of any other object, itself."""
    if ds.SOPClassUID not in _ENHANCED:
        return ds
    for groups in (ds.PerFrameFunctionalGroupsSequence[number], *ds.get("SharedFunctionalGroupsSequence", [])):
        if groups.get(keyword):
            return groups[keyword].value[0]
    return Dataset()


def _in_units(stored: NDArray[np.int32], ds: Any, transform: Any) -> NDArray[np.float64]:
    if ds.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, ds).astype(np.float64)
    if "RescaleSlope" in transform and "RescaleIntercept" in transform:
        return stored.astype(np.float64) * float(transform.RescaleSlope) + float(transform.RescaleIntercept)
    return stored.astype(np.float64)


def _position(plane: Any) -> NDArray[np.float64] | None:
    try:
        x, y, z = (float(value) for value in plane.ImagePositionPatient)
    except (AttributeError, TypeError, ValueError):
        return None
    return np.array([-x, -y, z])

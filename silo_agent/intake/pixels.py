"""From stored values to values in the modality's unit: arrays in, arrays out.

The order is that of PS3.4 N.2: stored value, Modality LUT (PS3.3 C.11.1), and there we stop. The VOI LUT
(C.11.2) is a radiographer's choice of brightness for one screen; the plan's window does that job, the same in
every hospital, so a VOI LUT in the file is never applied.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from silo_agent.intake.header import Header

_WIDTHS = ("<i2", "<u2", "<i4")
_EXACT = 2**22  # together with 16 bits still below the 2^24 up to which float32 has every whole number


def unused_bits_cleared(stored: NDArray[np.integer], bits_stored: int, *, signed: bool) -> NDArray[np.integer]:
    """Keep the low `bits_stored` bits of each value, sign-extended where `signed`: [H,W] int32, or as it is if all are.

    Older equipment keeps overlays in the high bits of the same words (PS3.5 section 8.1.1); read as values
    they would be the brightest pixels of the image.
    """
    if stored.dtype.itemsize * 8 == bits_stored and (stored.dtype.kind == "i") is signed:
        return stored
    values = stored.astype(np.int32) & ((1 << bits_stored) - 1)
    if signed:
        sign = 1 << (bits_stored - 1)
        values = (values ^ sign) - sign
    return values.astype(np.int32)


def content_digest(stored: NDArray[np.integer]) -> bytes:
    """SHA-256 over shape and stored values, so that one image has one digest however it was compressed.

    The values decide in how many bytes they are hashed, not the type that a decoder gave them.
    """
    low, high = (int(stored.min()), int(stored.max())) if stored.size else (0, 0)
    kind = next(kind for kind in _WIDTHS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    digest = hashlib.sha256(f"{stored.shape} {kind} ".encode())
    digest.update(np.ascontiguousarray(stored, dtype=kind).reshape(-1).view(np.uint8).data)
    return digest.digest()


def in_modality_units(stored: NDArray[np.integer], header: Header, ds: Dataset) -> NDArray[np.float32]:
    """Apply the Modality LUT and undo MONOCHROME1: [H,W] float32 in the modality's unit (HU for CT).

    Rescale slope and intercept, or the LUT sequence, are applied wherever they are present. Classic MR has
    neither and keeps its stored values, which have no unit; where a vendor adds a rescale to MR it differs
    from slice to slice, so leaving it out would make slices of one patient incomparable.

    MONOCHROME1 (low values are bright, PS3.3 C.7.6.3.1.2) is mirrored within the range that the stored bits
    can express, after the Modality LUT, so the result does not depend on what happens to be in the picture.

    Raises `ValueError` where the slope is zero or the result is not finite; pydicom's errors for a malformed
    LUT pass through.
    """
    if "RescaleSlope" in ds and not (header.rescale or header.modality_lut):
        raise ValueError("a rescale that is incomplete, or that maps every value to one")
    exact = _exactly(stored, header, ds)
    values = apply_modality_lut(stored, ds) if exact is None else exact
    if header.photometric == "MONOCHROME1":
        low, high = _range(header, ds)
        values = (low + high) - values.astype(np.float64)
    result = values.astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        raise ValueError("the Modality LUT leads to values that are not finite")
    return result


def _exactly(stored: NDArray[np.integer], header: Header, ds: Dataset) -> NDArray[np.float32] | None:
    """As most CT has it: a whole number is added to values of 16 bits, which float32 can do without rounding."""
    if not header.rescale or header.modality_lut or stored.dtype.itemsize > 2:
        return None
    slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
    if slope != 1 or not intercept.is_integer() or abs(intercept) > _EXACT:
        return None
    values = stored.astype(np.float32)
    values += np.float32(intercept)
    return values


def _range(header: Header, ds: Dataset) -> tuple[float, float]:
    if header.modality_lut:
        return 0.0, float(2 ** int(ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = header.bits_stored or 0
    lowest = -(1 << (bits - 1)) if header.signed else 0
    ends = apply_modality_lut(np.array([lowest, lowest + (1 << bits) - 1], dtype=np.int32), ds)
    return float(ends[0]), float(ends[1])

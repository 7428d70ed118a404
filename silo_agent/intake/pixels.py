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


def unused_bits_cleared(stored: NDArray[np.integer], bits_stored: int, *, signed: bool) -> NDArray[np.int32]:
    """Keep the low `bits_stored` bits of each value, sign-extended where `signed`: [H,W] int32.

    Older equipment keeps overlays in the high bits of the same words (PS3.5 section 8.1.1); read as values
    they would be the brightest pixels of the image.
    """
    values = stored.astype(np.int32) & ((1 << bits_stored) - 1)
    if signed:
        sign = 1 << (bits_stored - 1)
        values = (values ^ sign) - sign
    return values.astype(np.int32)


def content_digest(stored: NDArray[np.int32]) -> bytes:
    """SHA-256 over shape and stored values, so that one image has one digest however it was compressed."""
    shape = np.array(stored.shape, dtype="<i4").tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(stored, dtype="<i4").tobytes()).digest()


def in_modality_units(stored: NDArray[np.int32], header: Header, ds: Dataset) -> NDArray[np.float32]:
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
    values = apply_modality_lut(stored, ds)
    if header.photometric == "MONOCHROME1":
        low, high = _range(header, ds)
        values = (low + high) - values.astype(np.float64)
    result = values.astype(np.float32)
    if not np.isfinite(result).all():
        raise ValueError("the Modality LUT leads to values that are not finite")
    return result


def _range(header: Header, ds: Dataset) -> tuple[float, float]:
    if header.modality_lut:
        return 0.0, float(2 ** int(ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = header.bits_stored or 0
    lowest = -(1 << (bits - 1)) if header.signed else 0
    ends = apply_modality_lut(np.array([lowest, lowest + (1 << bits) - 1], dtype=np.int32), ds)
    return float(ends[0]), float(ends[1])

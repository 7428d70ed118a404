"""Small frames of JPEG without loss and of JPEG-LS, made by DCMTK 3.6.7: nothing that is installed writes them."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate

from infra.hospitals.writing import Identity, write_image

_ROWS, _COLUMNS = np.mgrid[:9, :11]
SHAPE = (9, 11)
_PATTERN = (_ROWS * 71 + _COLUMNS * 53 + _ROWS * _ROWS * _COLUMNS * 13 % 411) % 1000 / 999  # 0 to 1, slopes and noise


def _between(low: int, high: int, kind: str) -> NDArray[np.integer]:
    return np.rint(low + _PATTERN * (high - low)).astype(kind)


PIXELS: dict[str, tuple[NDArray[np.integer], int]] = {
    # what: (pixels, bits stored)
    "8 bits": (_between(0, 255, "<u1"), 8),
    "8 bits of 16": (_between(0, 255, "<u2"), 8),
    "7 bits of 8": (_between(0, 127, "<u1"), 7),
    "12 bits": (_between(0, 4095, "<u2"), 12),
    "12 bits with sign": (_between(-2048, 2047, "<i2"), 12),
    "16 bits": (_between(0, 65535, "<u2"), 16),
    "16 bits with sign": (_between(-32768, 32767, "<i2"), 16),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One image as DCMTK compressed it; `pixels` is its name in `PIXELS`."""

    pixels: str
    syntax: str
    frame: bytes = field(repr=False)


def frames() -> list[Frame]:
    """All that there are: each of `PIXELS` in each transfer syntax."""
    found = json.loads((Path(__file__).parent / "jpeg_frames.json").read_text("utf-8"))["frames"]
    return [Frame(one["pixels"], one["syntax"], base64.b64decode(one["frame"])) for one in found]


def write_frame(path: Path, one: Frame, identity: Identity) -> Path:
    """Write it as a radiograph."""
    pixels, bits = PIXELS[one.pixels]
    write_image(path, pixels, identity=identity, modality="CR", bits_stored=bits)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = one.syntax
    ds.PixelData = encapsulate([one.frame])
    ds["PixelData"].VR = "OB"
    ds.save_as(path)
    return path

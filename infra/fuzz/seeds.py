"""What the fuzzer starts from: small files of every kind that the intake reads, written here, and the real ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from infra.fuzz.jpegs import frames, write_frame
from infra.hospitals.segmentations import Cut, write_segmentation
from infra.hospitals.volumes import write_enhanced, write_series
from infra.hospitals.writing import Identity, write_image

WHO = Identity("st-olavs", "P1")
LARGEST = 1_000_000  # bytes of a real file: larger ones say nothing that smaller ones do not, and take longer
_MOST_OF_A_FOLDER = 24  # real files: a hundred slices of one series are one seed
_RAMP = (np.add.outer(np.arange(48), np.arange(40)) * 9).astype(np.uint16)
_STACK = np.arange(5 * 16 * 12, dtype=np.int16).reshape(5, 16, 12) - 40
_FOLDERS = ("dirty-headers", "phi-burned-in", "mr-two-vendors", "seg-rt-sr", "mr-t1-series", "ct-contrast")
_SERIES = (  # a folder of the real ones, and which file is the first that is taken
    ("seg-rt-sr/dcmqi/data/segmentations/23x38x3/image", 0),
    ("seg-rt-sr/dcmqi/data/segmentations/24x38x3/image", 0),
    ("seg-rt-sr/dcmqi/data/segmentations/23x38x3/multiframe", 0),
    ("mr-two-vendors/20180918GE/mr_0004", 5),
    ("mr-two-vendors/20180918Si/mr_0003", 0),
    ("mr-t1-series", 20),
    ("seg-rt-sr/rt_utils/mock_data", 0),
)
_SLICES = 4


@dataclass(frozen=True, slots=True)
class Seed:
    """One file, or the slices of a series in spatial order."""

    name: str
    files: tuple[bytes, ...] = field(repr=False)


def images(folder: Path) -> list[Seed]:
    """Single files, written by way of `folder`."""
    return [Seed(name, (path.read_bytes(),)) for name, path in _written(folder)]


def series(folder: Path) -> list[Seed]:
    """Whole small series, and objects of several frames, written by way of `folder`."""
    return [Seed(name, tuple(path.read_bytes() for path in paths)) for name, paths in _written_series(folder)]


def _written(folder: Path) -> Iterator[tuple[str, Path]]:
    def write(name: str, modality: Any = "CT", pixels: Any = _RAMP, **more: Any) -> tuple[str, Path]:
        path = folder / f"{name}.dcm"
        write_image(path, pixels, identity=WHO, modality=modality, **more)
        return name, path

    yield write("CT")
    yield write("CT in 12 of 16 bits, signed", pixels=(_RAMP % 4096).astype(np.int16) - 1024, rescale=(2.0, -1024.0))
    yield write("CR, dark is high", "CR", bits_stored=14, extra={"PhotometricInterpretation": "MONOCHROME1"})
    yield write("CR with a modality LUT", "CR", (_RAMP % 4).astype(np.uint16), extra=_lut())
    yield write("US", "US", (_RAMP % 256).astype(np.uint8))
    yield write("CT with sequences", extra=_nested())
    for name, syntax in {"implicit": ImplicitVRLittleEndian, "big endian": ExplicitVRBigEndian}.items():
        yield _encoded(write(f"CT, {name}", extra=_nested()), syntax)
    for name, syntax in {"RLE": RLELossless, "JPEG 2000": JPEG2000Lossless}.items():
        yield _compressed(write(f"CT, {name}"), syntax)
        yield _compressed(write(f"US, {name}", "US", (_RAMP % 256).astype(np.uint8)), syntax)
    for one in frames():
        if one.pixels in {"8 bits", "12 bits with sign"}:
            name = f"CR, JPEG {one.syntax}, {one.pixels}"
            yield name, write_frame(folder / f"{name}.dcm", one, WHO)
    yield _deflated(write("CT, deflated"))
    mask = (np.add.outer(np.arange(3), np.add.outer(np.arange(7), np.arange(11))) % 5 < 2).astype(np.uint8)
    for name, more in {"SEG": {}, "SEG, groups in each frame": {"shared": False, "cut": Cut(1, 6, 2, 9)}}.items():
        yield (
            name,
            write_segmentation(folder / f"{name}.dcm", mask, {1: "lesion"}, identity=WHO, series="1.2.3", **more),
        )
    name, path = write("CT without a preamble")
    path.write_bytes(path.read_bytes()[132:])
    yield name, path


def _written_series(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    yield "CT series", write_series(folder / "ct", _STACK, identity=WHO)
    yield "MR series", write_series(folder / "mr", _STACK, identity=WHO, modality="MR")
    steps: Callable[[int], tuple[float, float]] = lambda number: (1.0 + number / 4, -10.0 * number)  # noqa: E731
    yield "CT series, a slope for each slice", write_series(folder / "slopes", _STACK, identity=WHO, rescale=steps)
    for name, syntax in {"": None, ", RLE": RLELossless, ", JPEG 2000": JPEG2000Lossless}.items():
        path = folder / f"enhanced{name}.dcm"
        stored = _STACK if syntax is None else np.tile(_RAMP, (4, 1, 1))
        yield f"Enhanced CT{name}", [write_enhanced(path, stored, identity=WHO, syntax=syntax)]
    path = folder / "times.dcm"
    two: dict[str, Any] = {"places": lambda number: number // 2, "temporal": lambda number: 1 + number % 2}
    yield "Enhanced MR at two times", [write_enhanced(path, _STACK[:4], identity=WHO, modality="MR", **two)]


def _lut() -> dict[str, Any]:
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [4, 0, 16], "US"
    lut.add_new("LUTData", "US", [5, 50, 500, 5000])
    return {"ModalityLUTSequence": Sequence([lut])}


def _nested() -> dict[str, Any]:
    """Sequences with and without a length, one in another."""
    inner, outer, open_ended = Dataset(), Dataset(), Dataset()
    inner.ReferencedSOPClassUID, inner.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    outer.ReferencedSeriesSequence = Sequence([inner])
    open_ended.ReferencedImageSequence = Sequence([inner, inner])
    open_ended.is_undefined_length_sequence_item = True
    made = Sequence([open_ended])
    made.is_undefined_length = True
    return {"ReferencedStudySequence": Sequence([outer]), "SourceImageSequence": made}


def _encoded(one: tuple[str, Path], syntax: Any) -> tuple[str, Path]:
    ds = pydicom.dcmread(one[1])
    ds.PixelData = ds.pixel_array.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    made = Dataset(ds)  # forgets the encoding it was read with
    made.file_meta = ds.file_meta
    pydicom.dcmwrite(one[1], made, enforce_file_format=True)
    return one


def _compressed(one: tuple[str, Path], syntax: Any) -> tuple[str, Path]:
    ds = pydicom.dcmread(one[1])
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(one[1])
    return one


def _deflated(one: tuple[str, Path]) -> tuple[str, Path]:
    ds = pydicom.dcmread(one[1])
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(one[1])
    return one


def real_images(real: Path) -> Iterator[Seed]:
    """Files below the folder of shared data that look like DICOM and are not large, in a fixed order."""
    for folder in _FOLDERS:
        files = [path for path in sorted((real / folder).rglob("*")) if path.is_file()]
        readable = [path for path in files if path.stat().st_size <= LARGEST and _looks_like_dicom(path)]
        for path in readable[:: max(1, len(readable) // _MOST_OF_A_FOLDER)]:
            yield Seed(str(path.relative_to(real)), (path.read_bytes(),))


def _looks_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or start[:1] in {b"\2", b"\x08"}


def real_series(real: Path) -> Iterator[Seed]:
    """A few neighbouring slices each of the real series that make volumes, or nearly."""
    for folder, first in _SERIES:
        paths = sorted((real / folder).glob("*.dcm"))[first : first + _SLICES]
        if paths:
            yield Seed(folder, tuple(path.read_bytes() for path in paths))

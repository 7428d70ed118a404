"""JPEG without loss and JPEG-LS: frames that DCMTK wrote are read bit for bit, what contradicts the header is refused.

DCMTK shares no code with GDCM, which reads them here.
"""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.encaps import encapsulate

from infra.fuzz.jpegs import PIXELS, SHAPE, Frame, frames, write_frame
from infra.hospitals.volumes import write_enhanced
from infra.hospitals.writing import Identity, write_image
from silo_agent.intake.encoding import JPEG, JPEG_LS_LOSSLESS, judge_jpeg
from silo_agent.intake.image import Refused, read_image
from silo_agent.intake.volumes.assemble import Volume, assemble
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.survey import survey

WHO = Identity("st-olavs", "P1")
FRAMES = frames()


def frame_of(pixels: str, syntax: str) -> bytes:
    return next(one.frame for one in FRAMES if (one.pixels, one.syntax) == (pixels, syntax))


def compressed(path: Path, pixels: str, syntax: str, frame: bytes) -> Path:
    return write_frame(path, Frame(pixels, syntax, frame), WHO)


def ends(path: Path) -> str:
    found = read_image(path, modalities=("CR",))
    return found.code.value if isinstance(found, Refused) else "used"


def test_all_kinds_are_there() -> None:
    assert {one.pixels for one in FRAMES} == set(PIXELS)
    assert {one.syntax for one in FRAMES} == JPEG


@pytest.mark.parametrize("one", FRAMES, ids=lambda one: f"{one.pixels}, {one.syntax}")
def test_what_dcmtk_wrote_is_read_bit_for_bit(one: Frame, tmp_path: Path) -> None:
    stored, bits = PIXELS[one.pixels]
    write_image(tmp_path / "plain.dcm", stored, identity=WHO, modality="CR", bits_stored=bits)
    plain = read_image(tmp_path / "plain.dcm", modalities=("CR",))
    found = read_image(compressed(tmp_path / "one.dcm", one.pixels, one.syntax, one.frame), modalities=("CR",))
    assert not isinstance(plain, Refused)
    assert not isinstance(found, Refused), found
    assert_array_equal(found.image, stored.astype(np.float32))
    assert found.content == plain.content


@pytest.mark.parametrize("syntax", sorted(JPEG))
def test_frames_of_an_enhanced_object_are_read(syntax: str, tmp_path: Path) -> None:
    stored, _ = PIXELS["16 bits"]
    path = write_enhanced(tmp_path / "one.dcm", np.stack([stored] * 3), identity=WHO)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame_of("16 bits", syntax)] * 3)
    ds["PixelData"].VR = "OB"
    ds.save_as(path)
    grid = place(survey([path], modalities=("CT",)).stacks[0].slices)
    assert isinstance(grid, Grid)
    volume = assemble(grid, [path])
    assert isinstance(volume, Volume)
    assert_array_equal(volume.image, np.stack([stored] * 3).astype(np.float32))


SV1 = "1.2.840.10008.1.2.4.70"
PLAIN, LS = frame_of("12 bits", SV1), frame_of("12 bits", JPEG_LS_LOSSLESS)


def changed(frame: bytes, marker: bytes, by: int, value: bytes) -> bytes:
    """Replace bytes at a distance from a marker."""
    at = frame.index(marker) + by
    return frame[:at] + value + frame[at + len(value) :]


FAULTS: dict[str, tuple[str, bytes, str]] = {
    "no stream": (SV1, b"\xff\x4f" + PLAIN[2:], "UNREADABLE"),
    "its end is missing": (SV1, PLAIN[:-4], "TRUNCATED"),
    "more rows than the header": (SV1, changed(PLAIN, b"\xff\xc3", 5, b"\xea\x60"), "UNREADABLE"),
    "fewer columns than the header": (SV1, changed(PLAIN, b"\xff\xc3", 7, b"\0\x0a"), "UNREADABLE"),
    "three components": (SV1, changed(PLAIN, b"\xff\xc3", 9, b"\x03"), "UNREADABLE"),
    "a scan of three components": (SV1, changed(PLAIN, b"\xff\xda", 4, b"\x03"), "UNREADABLE"),
    "a process with loss": (SV1, changed(PLAIN, b"\xff\xc3", 0, b"\xff\xc1"), "UNREADABLE"),
    "no predictor": (SV1, changed(PLAIN, b"\xff\xda", 7, b"\0"), "UNREADABLE"),
    "two frame headers": (
        SV1, PLAIN[:2] + PLAIN[PLAIN.index(b"\xff\xc3"):][:13] + PLAIN[2:], "UNREADABLE"
    ),
    "no scan": (SV1, PLAIN[: PLAIN.index(b"\xff\xda")] + b"\xff\xd9", "UNREADABLE"),
    "a segment that is shorter than its length": (SV1, b"\xff\xd8\xff\xe1\0\0" + PLAIN[2:], "UNREADABLE"),
    "another JFIF": (SV1, changed(PLAIN, b"JFIF", 5, b"\x02"), "UNREADABLE"),
    "loss that is not declared": (JPEG_LS_LOSSLESS, changed(LS, b"\xff\xda", 7, b"\x03"), "LOSSY_NOT_ALLOWED"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_stream_that_contradicts_its_header_is_refused_before_it_is_decoded(case: str, tmp_path: Path) -> None:
    syntax, frame, code = FAULTS[case]
    assert ends(compressed(tmp_path / "one.dcm", "12 bits", syntax, frame)) == code


def test_padding_and_fill_are_no_fault(tmp_path: Path) -> None:
    padded = PLAIN[:2] + b"\xff\xff" + PLAIN[2:] + b"\0\0"
    assert ends(compressed(tmp_path / "one.dcm", "12 bits", SV1, padded)) == "used"


def test_samples_of_two_bytes_do_not_fit_into_one() -> None:
    assert judge_jpeg(PLAIN, *SHAPE, 16) is None
    assert judge_jpeg(PLAIN, *SHAPE, 8) == "UNREADABLE"

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from infra.hospitals.writing import Identity
from silo_agent.intake import image as image_module
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import Refused, StoredImage, read_image
from silo_agent.intake.refusals import Refusal

CT = ("CT",)
STORAGE = "1.2.840.10008.5.1.4.1.1."


def code_of(path: Path, modalities: tuple[str, ...] = CT, **options: Any) -> Refusal:
    found = read_image(path, modalities=modalities, **options)
    assert isinstance(found, Refused), found
    return found.code


def image_of(path: Path, modalities: tuple[str, ...] = CT) -> StoredImage:
    found = read_image(path, modalities=modalities)
    assert isinstance(found, StoredImage), found
    return found


def test_a_ct_is_read_in_hounsfield_units(write_one: Callable[..., Path]) -> None:
    pixels = np.arange(120, dtype=np.int16).reshape(12, 10)
    found = image_of(write_one(pixels=pixels, rescale=(2.0, -1024.0)))
    assert found.image.dtype == np.float32
    assert_array_equal(found.image, pixels * 2.0 - 1024)
    assert found.identifiers.patient_id == "P1"


def test_no_identifier_shows_in_a_repr(write_one: Callable[..., Path]) -> None:
    found = image_of(write_one(identity=Identity("st-olavs", "SECRET-7")))
    assert "SECRET" not in repr(found) + repr(found.identifiers)
    assert found.identifiers.sop_uid not in repr(found) + repr(found.identifiers)


HEADERS = {
    "secondary capture": ({"SOPClassUID": STORAGE + "7"}, "DERIVED_SECONDARY"),
    "image type says secondary": ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, "DERIVED_SECONDARY"),
    "screen save": ({"ImageType": ["DERIVED", "PRIMARY", "SCREEN SAVE"]}, "DERIVED_SECONDARY"),
    "scout": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "LOCALIZER"),
    "slices tiled into one image": ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "MULTI_FRAME"),
    "several frames": ({"NumberOfFrames": 2}, "MULTI_FRAME"),
    "a billion frames": ({"NumberOfFrames": 10**9}, "MULTI_FRAME"),
    "enhanced CT": ({"SOPClassUID": STORAGE + "2.1"}, "MULTI_FRAME"),
    "encapsulated PDF": ({"SOPClassUID": STORAGE + "104.1"}, "NOT_AN_IMAGE"),
    "segmentation": ({"SOPClassUID": STORAGE + "66.4"}, "NOT_AN_IMAGE"),
    "mammography": ({"SOPClassUID": STORAGE + "1.2", "Modality": "MG"}, "MODALITY_MISMATCH"),
    "MR in a CT study": ({"SOPClassUID": STORAGE + "4", "Modality": "MR"}, "MODALITY_MISMATCH"),
    "modality contradicts the SOP class": ({"Modality": "MR"}, "MODALITY_MISMATCH"),
    "compressed with loss once": ({"LossyImageCompression": "01"}, "LOSSY_NOT_ALLOWED"),
    "burned-in annotation": ({"BurnedInAnnotation": "YES"}, "BURNED_IN"),
    "burned-in annotation says neither": ({"BurnedInAnnotation": "MAYBE"}, "BURNED_IN"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PHOTOMETRIC"),
    "colour": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "PHOTOMETRIC"),
    "two samples of grey": ({"SamplesPerPixel": 2}, "UNREADABLE"),
    "more bits stored than allocated": ({"BitsStored": 17, "HighBit": 16}, "UNREADABLE"),
    "high bit elsewhere": ({"HighBit": 12}, "UNREADABLE"),
    "no width": ({"Columns": 0}, "UNREADABLE"),
    "CT without a unit": ({"RescaleSlope": None}, "RESCALE_MISSING"),
    "CT that maps all values to one": ({"RescaleSlope": "0"}, "RESCALE_MISSING"),
    "empty patient id": ({"PatientID": ""}, "PATIENT_ID_MISSING"),
    "blank patient id": ({"PatientID": "  "}, "PATIENT_ID_MISSING"),
    "larger than its pixel data": ({"Rows": 13}, "TRUNCATED"),
    "wider than the limit": ({"Columns": 20_000}, "TOO_LARGE"),
    "no pixel data in it": ({"PixelData": b""}, "NO_PIXELS"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_refused(case: str, write_one: Callable[..., Path]) -> None:
    attributes, expected = HEADERS[case]
    assert code_of(write_one(extra=attributes)) == expected


def test_absent_burned_in_annotation_is_taken_for_ct(write_one: Callable[..., Path]) -> None:
    image_of(write_one(extra={"BurnedInAnnotation": None}))


@pytest.mark.parametrize(
    ("annotation", "modalities", "expected"),
    [
        ("NO", ("US",), None),
        (None, ("US",), Refusal.BURNED_IN),
        ("YES", ("US",), Refusal.BURNED_IN),
        ("NO", ("CT",), Refusal.MODALITY_MISMATCH),
    ],
)
def test_ultrasound_must_say_that_nothing_is_burned_in(
    annotation: str | None, modalities: tuple[str, ...], expected: Any, write_one: Callable[..., Path]
) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(12, 10)
    path = write_one(modality="US", pixels=pixels, extra={"BurnedInAnnotation": annotation})
    found = read_image(path, modalities=modalities)
    assert (found.code if isinstance(found, Refused) else None) == expected


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_the_same_image_in_every_transfer_syntax(syntax: Any, write_one: Callable[..., Path]) -> None:
    path = write_one(pixels=np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 4000, bits_stored=12)
    plain = image_of(path)
    ds = pydicom.dcmread(path)
    if syntax in {RLELossless, JPEG2000Lossless}:
        ds.compress(syntax, generate_instance_uid=False)
    else:
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        ds.PixelData = ds.pixel_array.astype(order).tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
    other = path.with_name("other.dcm")
    written = ds
    if syntax in {ImplicitVRLittleEndian, ExplicitVRBigEndian}:
        written = Dataset(ds)  # forgets the encoding it was read with
        written.file_meta = ds.file_meta
    pydicom.dcmwrite(other, written, enforce_file_format=True)
    found = image_of(other)
    assert_array_equal(found.image, plain.image)
    assert found.content == plain.content


@pytest.mark.parametrize(
    ("uid", "expected"),
    [
        ("1.2.840.10008.1.2.4.50", Refusal.LOSSY_NOT_ALLOWED),
        ("1.2.840.10008.1.2.4.91", Refusal.LOSSY_NOT_ALLOWED),
        ("1.2.840.10008.1.2.4.102", Refusal.LOSSY_NOT_ALLOWED),
        ("1.2.840.10008.1.2.4.92", Refusal.TRANSFER_SYNTAX),
        ("1.2.3.4", Refusal.TRANSFER_SYNTAX),
    ],
)
def test_a_transfer_syntax_that_is_refused(uid: str, expected: Any, write_one: Callable[..., Path]) -> None:
    path = write_one()
    old, new = b"1.2.840.10008.1.2.1\0", uid.encode() + b"\0" * (len(uid) % 2)
    data = path.read_bytes().replace(struct.pack("<H", len(old)) + old, struct.pack("<H", len(new)) + new)
    path.write_bytes(data)
    assert code_of(path) == expected


def test_a_deflated_bomb_is_not_inflated(write_one: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_one()
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("inflated"))
    assert code_of(path) == Refusal.TRANSFER_SYNTAX
    path.write_bytes(path.read_bytes()[132:])  # without a preamble too
    assert code_of(path) == Refusal.TRANSFER_SYNTAX


def test_a_codestream_larger_than_its_header_is_not_decoded(
    write_one: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_one(pixels=np.zeros((64, 64), dtype=np.uint16))
    ds = pydicom.dcmread(path)
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    ds.save_as(path)
    data = path.read_bytes()
    start = data.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(data[:start] + struct.pack(">2I", 60_000, 60_000) + data[start + 8 :])
    monkeypatch.setattr(image_module, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    assert code_of(path) == Refusal.UNREADABLE


@pytest.mark.parametrize("closed", [False, True])
def test_sequences_nested_without_end_are_refused(closed: bool, write_one: Callable[..., Path]) -> None:
    path, depth = write_one(), 2000
    before, after = path.read_bytes().split(b"\x08\x00\x60\x00CS")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    start = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item
    end = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    path.write_bytes(before + start * depth + end * depth * closed + b"\x08\x00\x60\x00CS" + after)
    assert code_of(path) == Refusal.TOO_LARGE


def test_the_limits_are_the_policy_s(write_one: Callable[..., Path]) -> None:
    path = write_one()
    assert code_of(path, limits=Limits(max_file_bytes=500)) == Refusal.TOO_LARGE
    assert code_of(path, limits=Limits(max_pixel_bytes=100)) == Refusal.TOO_LARGE
    assert code_of(path, limits=Limits(max_side=11)) == Refusal.TOO_LARGE


def test_without_a_preamble_only_what_has_a_sop_class(write_one: Callable[..., Path], tmp_path: Path) -> None:
    path = write_one()
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(path.read_bytes()[132:])
    assert_array_equal(image_of(bare).image, image_of(path).image)
    data_set = pydicom.dcmread(path)
    data_set.pop("SOPClassUID")
    pydicom.dcmwrite(bare, Dataset(data_set), implicit_vr=True, little_endian=True)
    assert code_of(bare) == Refusal.NOT_DICOM


@pytest.mark.parametrize("content", [b"", b"a text", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(4096)])
def test_other_files_are_not_dicom(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    assert code_of(tmp_path / "other") == Refusal.NOT_DICOM


def test_a_dicomdir_is_not_an_image(write_one: Callable[..., Path]) -> None:
    path = write_one()
    ds = pydicom.dcmread(path)
    ds.pop("SOPClassUID")
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    pydicom.dcmwrite(path, ds)
    assert code_of(path) == Refusal.NOT_DICOM


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_is_never_an_image(compressed: bool, write_one: Callable[..., Path]) -> None:
    path = write_one(pixels=np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    if compressed:
        ds = pydicom.dcmread(path)
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        ds.save_as(path)
    data = path.read_bytes()
    codes = set()
    for end in range(140, len(data) - 9, 61):
        path.write_bytes(data[:end])
        codes.add(code_of(path))
    assert Refusal.TRUNCATED in codes
    path.write_bytes(data[: len(data) - 20])
    assert code_of(path) == Refusal.TRUNCATED


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_damaged_bytes_never_raise_and_log_nothing(
    syntax: Any, write_one: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_one(pixels=(np.add.outer(np.arange(64), np.arange(40)) * 9).astype(np.uint16))
    if syntax:
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path)
    data = path.read_bytes()
    for seed in range(150):
        chance = random.Random(seed)  # noqa: S311 - reproducible damage, no secret
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 4, 32])):
            damaged[chance.randrange(128, len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        assert isinstance(read_image(path, modalities=CT), StoredImage | Refused)
    assert caplog.records == []


def test_overlay_bits_above_the_stored_ones_are_no_values(write_one: Callable[..., Path]) -> None:
    clean = np.arange(120, dtype=np.uint16).reshape(12, 10)
    found = image_of(write_one(pixels=clean | 0x8000, bits_stored=12))
    assert_array_equal(found.image, clean)


def test_monochrome1_is_mirrored_within_the_stored_range(write_one: Callable[..., Path]) -> None:
    pixels = np.array([[0, 1], [100, 4095]], dtype=np.uint16)
    options = {"modality": "CR", "bits_stored": 12, "extra": {"PhotometricInterpretation": "MONOCHROME1"}}
    found = image_of(write_one(pixels=pixels, **options), ("CR",))
    assert_array_equal(found.image, 4095 - pixels.astype(np.float32))
    rescaled = image_of(write_one(pixels=pixels, rescale=(2.0, 10.0), **options), ("CR",))
    assert_array_equal(rescaled.image, (2 * (4095 - pixels.astype(np.float32))) + 10)


def test_a_modality_lut_is_applied_and_a_voi_lut_is_not(write_one: Callable[..., Path]) -> None:
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [4, 0, 16], "US"
    lut.add_new("LUTData", "US", [5, 50, 500, 5000])
    extra = {"ModalityLUTSequence": Sequence([lut]), "WindowCenter": "10", "WindowWidth": "5"}
    pixels = np.array([[0, 1], [2, 3]], dtype=np.uint16)
    found = image_of(write_one(modality="CR", pixels=pixels, extra=extra), ("CR",))
    assert_array_equal(found.image, [[5, 50], [500, 5000]])


def test_a_file_one_may_not_read_is_told_apart_from_a_broken_disk(
    write_one: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_one()
    for error, expected in ((PermissionError(), "PERMISSION_DENIED"), (OSError(5, "I/O"), "READ_ERROR")):

        def refuse(*_args: object, error: OSError = error, **_kwargs: object) -> None:
            raise error

        monkeypatch.setattr(Path, "open", refuse)
        assert code_of(path) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_real_file_without_read_permission(write_one: Callable[..., Path]) -> None:
    path = write_one()
    path.chmod(0)
    assert code_of(path) == Refusal.PERMISSION_DENIED

"""Files as they come: damaged, forbidden, real. Nothing raises, nothing is said about a patient, nothing is lost."""

import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from infra.hospitals.volumes import write_enhanced, write_series
from infra.hospitals.writing import Identity
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import Refused
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.assemble import Volume, assemble
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.reading import VolumeLimits, read_slices
from silo_agent.intake.volumes.select import SeriesRule, select
from silo_agent.intake.volumes.survey import Survey, survey


def test_no_identifier_shows_in_a_repr(write: Callable[..., list[Path]], read: Callable[..., Survey]) -> None:
    files = write(identity=Identity("st-olavs", "SECRET-7"))
    shown = repr(read(files)) + repr(assemble(read_grid(read(files)), files))
    assert "SECRET" not in shown
    assert "2.25." not in shown


def read_grid(found: Survey) -> Grid:
    grid = place(found.stacks[0].slices)
    assert isinstance(grid, Grid)
    return grid


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_same_volume_in_every_byte_order(
    syntax: Any, write: Callable[..., list[Path]], volume_of: Callable[..., Volume], pixels: NDArray[np.int16]
) -> None:
    files = write()
    before = volume_of(files)
    for file in files:
        ds = pydicom.dcmread(file)
        ds.PixelData = ds.pixel_array.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        written = Dataset(ds)  # forgets the encoding it was read with
        written.file_meta = ds.file_meta
        pydicom.dcmwrite(file, written, enforce_file_format=True)
    after = volume_of(files)
    assert_array_equal(after.image, pixels)
    assert after.content == before.content


def test_the_rules_of_single_images_hold_for_slices(
    write: Callable[..., list[Path]], codes_of: Callable[..., dict[str, int]]
) -> None:
    faults: Sequence[tuple[dict[str, Any], str]] = [
        ({"BurnedInAnnotation": "YES"}, "BURNED_IN"),
        ({"PatientID": ""}, "PATIENT_ID_MISSING"),
        ({"LossyImageCompression": "01"}, "LOSSY_NOT_ALLOWED"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "DERIVED_SECONDARY"),
        ({"RescaleSlope": None}, "RESCALE_MISSING"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PHOTOMETRIC"),
    ]

    def extra(number: int) -> dict[str, Any]:
        own_series = {"SeriesInstanceUID": f"2.25.{number}"}  # or the slices left would be one short
        return {**faults[number - 6][0], **own_series} if number >= 6 else {}

    files = write(np.zeros((12, 4, 4), np.int16), extra=extra)
    assert codes_of(files) == {"used": 6, **{code: 1 for _, code in faults}}
    assert codes_of(files, modalities=("MR",))["MODALITY_MISMATCH"] == 11


def test_what_is_cut_off_or_no_image_is_said_as_of_a_single_image(write: Callable[..., list[Path]]) -> None:
    """Found by acceptance: a slice that ends within its header was MODALITY_MISMATCH, a segmentation UNREADABLE."""
    cut, mask, directory, *_ = write()
    cut.write_bytes(cut.read_bytes()[:400])
    for path, sop_class in ((mask, "1.2.840.10008.5.1.4.1.1.66.4"), (directory, "1.2.840.10008.1.3.10")):
        ds = pydicom.dcmread(path)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
        ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [Dataset()], [Dataset()] * 2
        ds.save_as(path)
    found = [read_slices(path, 0, modalities=("CT",)) for path in (cut, mask, directory)]
    assert found == [Refused(code) for code in (Refusal.TRUNCATED, Refusal.NOT_AN_IMAGE, Refusal.NOT_DICOM)]


def test_secondary_images_are_taken_only_where_asked_for_and_screens_never(
    write: Callable[..., list[Path]], codes_of: Callable[..., dict[str, int]]
) -> None:
    files = write(extra=lambda n: {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE" if n == 5 else "DEFACED"]})
    assert codes_of(files) == {"DERIVED_SECONDARY": 6}
    assert codes_of(files, take_secondary=True) == {"used": 5, "DERIVED_SECONDARY": 1}


def test_the_limits_of_single_files_hold(write: Callable[..., list[Path]]) -> None:
    (path, *_) = write()
    for limits in (Limits(max_file_bytes=500), Limits(max_pixel_bytes=39), Limits(max_side=4)):
        found = read_slices(path, 0, modalities=("CT",), limits=VolumeLimits(file=limits))
        assert found == Refused(Refusal.TOO_LARGE)


def test_a_file_one_may_not_read_is_told_apart_from_a_broken_disk(
    write: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = write()
    for error, expected in ((PermissionError(), "PERMISSION_DENIED"), (OSError(5, "I/O"), "READ_ERROR")):

        def refuse(*_args: object, error: OSError = error, **_kwargs: object) -> None:
            raise error

        monkeypatch.setattr(Path, "open", refuse)
        assert read_slices(path, 0, modalities=("CT",)) == Refused(Refusal(expected), lasting=False)


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless])
def test_damaged_bytes_never_raise_and_log_nothing(
    syntax: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = (np.add.outer(np.arange(3), np.add.outer(np.arange(64), np.arange(48))) * 9).astype(np.uint16)
    path = write_enhanced(tmp_path / "one.dcm", stored, identity=Identity("st-olavs", "P1"), syntax=syntax)
    caplog.clear()
    data, ends = path.read_bytes(), Counter[str]()
    for seed in range(60):
        chance = random.Random(seed)  # noqa: S311 - reproducible damage, no secret
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 4, 32])):
            damaged[chance.randrange(128, len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        found = survey([path], modalities=("CT",))
        for stack in found.stacks:
            grid = place(stack.slices)
            end = assemble(grid, [path]) if isinstance(grid, Grid) else Refused(grid)
            ends["used" if isinstance(end, Volume) else end.code] += 1
        ends.update(code.value for _, code in found.refused_files)
    assert caplog.records == []
    assert len(ends) > 2


def test_sequences_nested_without_end_are_refused(write: Callable[..., list[Path]]) -> None:
    (path, *_), depth = write(), 2000
    before, after = path.read_bytes().split(b"\x08\x00\x60\x00CS")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    start = struct.pack("<HH2sHL", 0x0008, 0x0051, b"SQ", 0, 0xFFFFFFFF) + item
    path.write_bytes(before + start * depth + b"\x08\x00\x60\x00CS" + after)
    assert read_slices(path, 0, modalities=("CT",)) == Refused(Refusal.TOO_LARGE)


@pytest.mark.parametrize("syntax", [None, RLELossless])
@pytest.mark.parametrize("one_object", [False, True])
def test_beside_the_volume_a_few_slices_are_in_memory(syntax: Any, one_object: bool, tmp_path: Path) -> None:
    stored = np.arange(64 * 128 * 128, dtype=np.uint16).reshape(64, 128, 128) % 4000
    who = Identity("st-olavs", "P1")
    if one_object:
        files = [write_enhanced(tmp_path / "one.dcm", stored, identity=who, syntax=syntax)]
    else:
        files = write_series(tmp_path, stored, identity=who)
    grid = read_grid(survey(files, modalities=("CT",)))
    tracemalloc.start()
    try:
        volume = assemble(grid, files)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(volume, Volume)
    header = files[0].stat().st_size + 2_000_000 if one_object else 0  # as read, and as pydicom's objects
    assert peak - volume.image.nbytes < 16 * volume.image[0].nbytes + header


RULE = SeriesRule(modality="MR", smallest_slices=10)
FOLDERS: dict[str, dict[str, int]] = {
    "mr-t1-series": {"used": 64, "NOT_DICOM": 1},
    "mr-two-vendors": {"DUPLICATE_POSITION": 150, "MULTI_FRAME": 8, "NOT_DICOM": 2},
    "ct-contrast": {"SINGLE_SLICE": 61, "DUPLICATE": 3, "LOSSY_NOT_ALLOWED": 1, "NOT_DICOM": 5},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_slice_of_a_real_folder_ends_somewhere(
    folder: str, real_data: Path, codes_of: Callable[..., dict[str, int]]
) -> None:
    files = [path for path in sorted((real_data / folder).rglob("*")) if path.is_file()]
    assert codes_of(files, take_secondary=True) == FOLDERS[folder]


def test_from_a_real_folder_to_the_volume_of_its_study(real_data: Path) -> None:
    files = sorted((real_data / "mr-t1-series").iterdir())
    found = survey(files, modalities=("MR",), take_secondary=True)
    (study,) = select(found.stacks, RULE)
    assert study.used is not None
    volume = assemble(study.used, files, take_secondary=True)
    assert isinstance(volume, Volume)
    assert (volume.image.shape, volume.image.dtype) == ((64, 384, 274), np.float32)
    assert volume.spacing_mm == pytest.approx((4.0, 0.6667, 0.7), abs=0.01)

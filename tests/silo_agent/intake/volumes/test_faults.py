"""What goes wrong with series in real archives: each fault is refused by its code, its near miss is taken."""

from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from infra.hospitals.volumes import CORONAL, SAGITTAL, Lie, decimals, write_series
from infra.hospitals.writing import Identity, uid
from silo_agent.intake.volumes.assemble import Volume

WHO = Identity("st-olavs", "P1")
LIE = Lie()
Write = Callable[..., list[Path]]


def at(number: int, place: float, lie: Lie = LIE) -> Callable[[int], Mapping[str, Any]]:
    """Put slice `number` at another place of the stack."""
    return lambda index: {"ImagePositionPatient": lie.position(place)} if index == number else {}


def only(number: int, **attributes: Any) -> Callable[[int], Mapping[str, Any]]:
    return lambda index: attributes if index == number else {}


def turned(by: float) -> list[str]:
    """Axial cosines turned about the x axis by a small angle (radians)."""
    return decimals([1, 0, 0, 0, np.cos(by), np.sin(by)])


SERIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "nothing is wrong": ({}, {"used": 6}),
    "a slice moved up by 6 % of the gap": ({"extra": at(2, 2.06)}, {"SPACING_NONUNIFORM": 6}),
    "a slice moved by exactly the 0.05 mm that are allowed": ({"extra": at(2, 2.02)}, {"used": 6}),
    "a slice moved by a hair more than 0.05 mm": ({"extra": at(2, 2.0201)}, {"SPACING_NONUNIFORM": 6}),
    "the last slice 0.06 mm too far on": ({"extra": at(5, 5.024)}, {"SPACING_NONUNIFORM": 6}),
    "thick slices off by exactly 1 % of the gap": (
        {"lie": Lie(gap=10.0), "extra": at(2, 2.01, Lie(gap=10.0))},
        {"used": 6},
    ),
    "thick slices off by more than 1 % of the gap": (
        {"lie": Lie(gap=10.0), "extra": at(2, 2.0101, Lie(gap=10.0))},
        {"SPACING_NONUNIFORM": 6},
    ),
    "a slice shifted within its own plane": (
        {"extra": only(2, ImagePositionPatient=["-7", "-20.25", "-295"])},
        {"SPACING_NONUNIFORM": 6},
    ),
    "a gantry tilted by 3 degrees": ({"lie": Lie(shear=(0, 2.5 * np.tan(np.radians(3)), 0))}, {"GANTRY_TILT": 6}),
    "a gantry tilted by 2 degrees": ({"lie": Lie(shear=(0, 2.5 * np.tan(np.radians(2)), 0))}, {"used": 6}),
    "two slices at one place with different pixels": ({"extra": at(3, 2)}, {"DUPLICATE_POSITION": 6}),
    "a slice at an angle, in the middle": (
        {"extra": only(2, ImageOrientationPatient=turned(0.01))},
        {"SPACING_NONUNIFORM": 5, "MIXED_ORIENTATION": 1},
    ),
    "a slice at an angle, at the end": (
        {"extra": only(5, ImageOrientationPatient=turned(0.01))},
        {"used": 5, "MIXED_ORIENTATION": 1},
    ),
    "an angle within what rounding does": ({"extra": only(2, ImageOrientationPatient=turned(0.0009))}, {"used": 6}),
    "MR of which a slice lacks the vendor's rescale": (
        {"modality": "MR", "rescale": lambda index: None if index == 2 else (2.0, 0.0)},
        {"RESCALE_MISSING": 6},
    ),
    "MR of which a slice lacks a rescale that changes nothing": (
        {"modality": "MR", "rescale": lambda index: None if index == 2 else (1.0, 0.0)},
        {"used": 6},
    ),
    "a scout that says so": (
        {"extra": only(5, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])},
        {"used": 5, "LOCALIZER": 1},
    ),
    "a scout that does not say so": (
        {"extra": only(0, ImageOrientationPatient=decimals(CORONAL), PixelSpacing=["2", "2"])},
        {"used": 5, "MIXED_ORIENTATION": 1},
    ),
    "a slice with another pixel spacing": (
        {"extra": only(0, PixelSpacing=["0.8", "0.7002"])},
        {"used": 5, "SINGLE_SLICE": 1},
    ),
    "a pixel spacing within what rounding does": ({"extra": only(0, PixelSpacing=["0.8", "0.70005"])}, {"used": 6}),
    "no position": ({"extra": only(5, ImagePositionPatient=None)}, {"GEOMETRY_MISSING": 6}),
    "an empty position": ({"extra": only(5, ImagePositionPatient="")}, {"GEOMETRY_MISSING": 6}),
    "half an orientation": (
        {"extra": only(5, ImageOrientationPatient=["1", "0", "0"])},
        {"GEOMETRY_MISSING": 6},
    ),
    "an orientation that is none": (
        {"extra": only(5, ImageOrientationPatient=["1", "0", "0", "1", "0", "0"])},
        {"GEOMETRY_MISSING": 6},
    ),
    "no pixel spacing": ({"extra": lambda _: {"PixelSpacing": None}}, {"GEOMETRY_MISSING": 6}),
    "a pixel spacing of zero": ({"extra": only(0, PixelSpacing=["0", "0.7"])}, {"GEOMETRY_MISSING": 6}),
    "another acquisition number in the middle, no position twice": (
        {"extra": lambda index: {"AcquisitionNumber": str(index // 3)}},
        {"used": 6},
    ),
    "an acquisition number of its own for every slice": (
        {"extra": lambda index: {"AcquisitionNumber": str(index)}},
        {"used": 6},
    ),
    "two phases that no tag tells apart": (
        {"extra": lambda index: {"ImagePositionPatient": LIE.position(index // 2)}},
        {"DUPLICATE_POSITION": 6},
    ),
}


@pytest.mark.parametrize("case", SERIES)
def test_a_series_with_one_thing_changed(case: str, write: Write, codes_of: Callable[..., dict[str, int]]) -> None:
    options, expected = SERIES[case]
    assert codes_of(write(**options)) == expected


@pytest.mark.parametrize("missing", range(6))
def test_a_missing_slice_is_seen_unless_it_is_the_last(
    missing: int, write: Write, codes_of: Callable[..., dict[str, int]]
) -> None:
    files = write()
    del files[missing]
    assert codes_of(files) == ({"used": 5} if missing in {0, 5} else {"SPACING_NONUNIFORM": 5})


def test_one_slice_makes_no_volume_and_two_do(write: Write, codes_of: Callable[..., dict[str, int]]) -> None:
    files = write()
    assert codes_of(files[:1]) == {"SINGLE_SLICE": 1}
    assert codes_of(files[:2]) == {"used": 2}


def test_instance_numbers_and_file_order_decide_nothing(
    write: Write, volume_of: Callable[..., Volume], pixels: NDArray[np.int16]
) -> None:
    numbers = [3, 1, 4, 0, 5, 2]
    lying = {"extra": lambda index: {"InstanceNumber": str(numbers[index]), "SliceLocation": str(numbers[index])}}
    files = write(**lying)
    assert_array_equal(volume_of([files[number] for number in numbers]).image, pixels)


def test_the_same_instance_twice_is_used_once(
    write: Write, volume_of: Callable[..., Volume], codes_of: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    files = write()
    again = tmp_path / "again.dcm"
    copyfile(files[2], again)
    assert codes_of([*files, again]) == {"used": 6, "DUPLICATE": 1}
    assert_array_equal(volume_of([*files, again]).image, volume_of(files).image)


def test_one_uid_for_different_pixels_is_trusted_by_neither(
    write: Write, codes_of: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    files = write()
    other = change(files[5], tmp_path / "other.dcm", PixelData=b"\1\0" * 20)
    assert codes_of([*files, other]) == {"UID_CONFLICT": 7}
    moved = change(files[5], tmp_path / "other.dcm", ImagePositionPatient=LIE.position(7))
    assert codes_of([*files, moved]) == {"UID_CONFLICT": 7}


def test_the_same_pixels_under_another_uid_are_used_once(
    write: Write, codes_of: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    files = write()
    again = change(files[2], tmp_path / "again.dcm", SOPInstanceUID=uid("again"))
    assert codes_of([*files, again]) == {"used": 6, "DUPLICATE_PIXELS": 1}
    rescaled = change(files[2], tmp_path / "again.dcm", SOPInstanceUID=uid("again"), RescaleSlope="2")
    assert codes_of([*files, rescaled]) == {"DUPLICATE_POSITION": 7}


def change(path: Path, to: Path, **attributes: Any) -> Path:
    ds = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(to)
    return to


def test_two_series_in_one_folder_are_two_stacks(
    write: Write, read: Callable[..., Any], codes_of: Callable[..., dict[str, int]]
) -> None:
    files = [*write(), *write(series=2)]
    assert [len(stack.slices) for stack in read(files).stacks] == [6, 6]
    assert codes_of(files) == {"used": 12}


SPLITTERS: dict[str, Callable[[int], Mapping[str, Any]]] = {
    "acquisition number": lambda phase: {"AcquisitionNumber": str(phase)},
    "temporal position": lambda phase: {"TemporalPositionIdentifier": str(phase + 1)},
    "echo time": lambda phase: {"EchoTime": f"{2.46 * (phase + 1):.2f}"},
    "image type": lambda phase: {"ImageType": ["ORIGINAL", "PRIMARY", "MPR"[phase]]},
    "acquisition and echo": lambda phase: {"AcquisitionNumber": str(phase // 2), "EchoTime": str(phase % 2)},
}


@pytest.mark.parametrize("case", SPLITTERS)
def test_a_series_of_several_phases_is_split_where_positions_repeat(
    case: str, write: Write, read: Callable[..., Any], codes_of: Callable[..., dict[str, int]]
) -> None:
    def extra(index: int) -> Mapping[str, Any]:
        return {"ImagePositionPatient": LIE.position(index // 3), **SPLITTERS[case](index % 3)}

    stored = np.arange(12 * 5 * 4, dtype=np.int16).reshape(12, 5, 4)
    files = write(stored, modality="MR", extra=extra)
    assert [[one.file for one in stack.slices] for stack in read(files).stacks] == [
        [0, 3, 6, 9],
        [1, 4, 7, 10],
        [2, 5, 8, 11],
    ]
    assert codes_of(files) == {"used": 12}


def test_a_slope_that_changes_is_applied_slice_by_slice(
    write: Write, volume_of: Callable[..., Volume], pixels: NDArray[np.int16]
) -> None:
    found = volume_of(write(rescale=lambda index: (1.0 + index / 4, -10.0 * index)))
    expected = [plane * (1.0 + index / 4) - 10.0 * index for index, plane in enumerate(pixels)]
    assert_allclose(found.image, np.array(expected), rtol=1e-6)


def test_monochrome1_is_mirrored_slice_by_slice(write: Write, volume_of: Callable[..., Volume]) -> None:
    stored = np.arange(6 * 5 * 4, dtype=np.uint16).reshape(6, 5, 4)
    dark_is_high = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    found = volume_of(write(stored, modality="MR", extra=lambda index: dark_is_high if index % 2 else {}))
    assert_array_equal(found.image[::2], stored[::2])
    assert_array_equal(found.image[1::2], 4095 - stored[1::2].astype(np.float32))


def test_bits_above_the_stored_ones_are_no_values(write: Write, volume_of: Callable[..., Volume]) -> None:
    stored = np.arange(6 * 5 * 4, dtype=np.uint16).reshape(6, 5, 4)
    found = volume_of(write(stored | 0x8000, extra=lambda _: {"BitsStored": 12, "HighBit": 11}))
    assert_array_equal(found.image, stored)


LIES = {
    "axial": (Lie(), [[0, 0, -0.7, 10.5], [0, -0.8, 0, 20.25], [2.5, 0, 0, -300]]),
    "coronal": (Lie(CORONAL), [[0, 0, -0.7, 10.5], [-2.5, 0, 0, 20.25], [0, -0.8, 0, -300]]),
    "sagittal": (Lie(SAGITTAL), [[2.5, 0, 0, 10.5], [0, 0, -0.7, 20.25], [0, -0.8, 0, -300]]),
    "axial, rows from back to front": (
        Lie((1, 0, 0, 0, -1, 0)),
        [[0, 0, -0.7, 10.5], [0, 0.8, 0, 20.25], [-2.5, 0, 0, -300]],
    ),
    "prone and feet first": (
        Lie((-1, 0, 0, 0, 1, 0)),
        [[0, 0, 0.7, 10.5], [0, -0.8, 0, 20.25], [-2.5, 0, 0, -300]],
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_the_affine_leads_to_ras(case: str, write: Write, volume_of: Callable[..., Volume]) -> None:
    lie, expected = LIES[case]
    found = volume_of(write(lie=lie))
    assert_allclose(found.affine, [*expected, [0, 0, 0, 1]], atol=1e-9)
    assert_allclose(found.spacing_mm, (2.5, 0.8, 0.7))


def test_written_from_head_to_feet_is_the_same_volume(
    write: Write, volume_of: Callable[..., Volume], pixels: NDArray[np.int16], tmp_path: Path
) -> None:
    up = volume_of(write())
    backwards = write_series(
        tmp_path / "down",
        pixels[::-1],
        identity=WHO,
        extra=lambda index: {"ImagePositionPatient": LIE.position(5 - index)},
    )
    down = volume_of(backwards)
    assert_array_equal(down.image, up.image)
    assert_array_equal(down.affine, up.affine)
    assert down.content == up.content


APART = {
    "patients": lambda index: {"PatientID": "P1" if index < 3 else "P2"},
    "studies": lambda index: {"StudyInstanceUID": uid("study", index // 3)},
    "frames of reference": lambda index: {"FrameOfReferenceUID": uid("frame", index // 3)},
    "sizes": lambda index: {"Rows": 5, "Columns": 4} if index < 3 else {"Rows": 4, "Columns": 5},
}


@pytest.mark.parametrize("case", APART)
def test_slices_under_one_series_uid_that_do_not_belong_together_are_two_stacks(
    case: str, write: Write, read: Callable[..., Any], codes_of: Callable[..., dict[str, int]]
) -> None:
    files = write(extra=APART[case])
    assert [[one.file for one in stack.slices] for stack in read(files).stacks] == [[0, 1, 2], [3, 4, 5]]
    assert codes_of(files) == {"used": 6}


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_instance_that_does_not_say_where_it_belongs_is_refused(
    keyword: str, write: Write, codes_of: Callable[..., dict[str, int]]
) -> None:
    files = write()
    ds = pydicom.dcmread(files[5])
    ds.pop(keyword)
    pydicom.dcmwrite(files[5], ds)
    is_known = keyword != "SeriesInstanceUID"  # which series it is of, so that the rest of it is one slice short
    assert codes_of(files) == ({"UNREADABLE": 6} if is_known else {"used": 5, "UNREADABLE": 1})

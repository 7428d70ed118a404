"""Enhanced CT and MR: the frames of one file are the slices of a stack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from infra.hospitals.volumes import Lie, write_enhanced, write_series
from infra.hospitals.writing import Identity
from silo_agent.intake.image import Refused
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.assemble import Volume, assemble
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.reading import VolumeLimits, read_slices

WHO = Identity("st-olavs", "P1")
ORDER = [3, 0, 5, 1, 4, 2]


@pytest.fixture
def write_one(tmp_path: Path, pixels: NDArray[np.int16]) -> Callable[..., Path]:
    def write(stored: NDArray[Any] | None = None, **options: Any) -> Path:
        return write_enhanced(tmp_path / "one.dcm", pixels if stored is None else stored, identity=WHO, **options)

    return write


def code_of(path: Path, **options: Any) -> Refusal:
    found = read_slices(path, 0, modalities=("CT", "MR"), **options)
    assert isinstance(found, Refused), found
    return found.code


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_frames_in_any_order_and_encoding_are_the_volume_of_single_slices(
    syntax: Any, modality: Any, write_one: Callable[..., Path], volume_of: Callable[..., Volume], tmp_path: Path
) -> None:
    stored = np.arange(6 * 64 * 48, dtype=np.int16).reshape(6, 64, 48)
    rescale = {"rescale": lambda index: (1.0 + index / 8, -1024.0)}
    single = volume_of(write_series(tmp_path / "single", stored, identity=WHO, modality=modality, **rescale))
    enhanced = volume_of([write_one(stored, modality=modality, order=ORDER, syntax=syntax, **rescale)])
    assert_array_equal(enhanced.image, single.image)
    assert_allclose(enhanced.affine, single.affine, atol=1e-9)
    assert enhanced.content == single.content
    assert_allclose(single.image[5], stored[5] * 1.625 - 1024)


def test_time_points_in_one_object_are_stacks(
    write_one: Callable[..., Path], codes_of: Callable[..., dict[str, int]], read: Callable[..., Any]
) -> None:
    options: dict[str, Any] = {"modality": "MR", "places": lambda number: number // 2}
    assert codes_of([write_one(**options)]) == {"DUPLICATE_POSITION": 6}
    path = write_one(**options, temporal=lambda number: 1 + number % 2)
    assert codes_of([path]) == {"used": 6}
    assert [[one.frame for one in stack.slices] for stack in read([path]).stacks] == [[0, 2, 4], [1, 3, 5]]


def test_time_may_be_a_dimension_index(write_one: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write_one(modality="MR", places=lambda number: number // 2)
    ds = pydicom.dcmread(path)
    pointers = []
    for pointer in (0x00200032, 0x00209128):
        item = Dataset()
        item.DimensionIndexPointer = pointer
        pointers.append(item)
    ds.DimensionIndexSequence = pointers
    for number, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        frame.FrameContentSequence[0].DimensionIndexValues = [1 + number // 2, 1 + number % 2]
    ds.save_as(path)
    assert [len(stack.slices) for stack in read([path]).stacks] == [3, 3]


def test_geometry_may_be_shared_or_per_frame(write_one: Callable[..., Path], volume_of: Callable[..., Volume]) -> None:
    path = write_one()
    expected = volume_of([path]).affine
    ds = pydicom.dcmread(path)
    shared = ds.SharedFunctionalGroupsSequence[0]
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    ds.SharedFunctionalGroupsSequence = [Dataset()]
    ds.save_as(path)
    assert_array_equal(volume_of([path]).affine, expected)


def frame_without(keyword: str) -> Callable[[Any], None]:
    return lambda ds: ds.PerFrameFunctionalGroupsSequence[2].pop(keyword)


def without_shared(keyword: str) -> Callable[[Any], None]:
    return lambda ds: ds.SharedFunctionalGroupsSequence[0].pop(keyword)


def scout_frame(ds: Any) -> None:
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    ds.PerFrameFunctionalGroupsSequence[0].CTImageFrameTypeSequence = [kind]


FAULTS: dict[str, tuple[Callable[[Any], Any], dict[str, int]]] = {
    "nothing is wrong": (lambda _: None, {"used": 6}),
    "a frame without a position": (
        frame_without("PlanePositionSequence"),
        {"GEOMETRY_MISSING": 6},
    ),
    "no orientation": (without_shared("PlaneOrientationSequence"), {"GEOMETRY_MISSING": 6}),
    "no pixel measures": (without_shared("PixelMeasuresSequence"), {"GEOMETRY_MISSING": 6}),
    "a frame of CT without a rescale": (frame_without("PixelValueTransformationSequence"), {"RESCALE_MISSING": 1}),
    "a frame that is a scout": (scout_frame, {"used": 5, "LOCALIZER": 1}),
    "fewer functional groups than frames": (lambda ds: ds.PerFrameFunctionalGroupsSequence.pop(), {"UNREADABLE": 1}),
    "no functional groups": (lambda ds: ds.pop("PerFrameFunctionalGroupsSequence"), {"UNREADABLE": 1}),
    "more frames than pixels": (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), {"TRUNCATED": 1}),
    "several frames in a class of single frames": (
        lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"),
        {"MULTI_FRAME": 1},
    ),
    "a video of ultrasound": (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.3.1"), {"MULTI_FRAME": 1}),
    "a secondary image": (lambda ds: setattr(ds, "ImageType", ["DERIVED", "SECONDARY"]), {"DERIVED_SECONDARY": 1}),
    "lossy compression in the past": (lambda ds: setattr(ds, "LossyImageCompression", "01"), {"LOSSY_NOT_ALLOWED": 1}),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_object_with_one_thing_changed(
    case: str, write_one: Callable[..., Path], codes_of: Callable[..., dict[str, int]]
) -> None:
    path = write_one()
    ds = pydicom.dcmread(path)
    change, expected = FAULTS[case]
    change(ds)
    ds.save_as(path)
    assert codes_of([path]) == expected


def test_a_huge_number_of_frames_is_refused_before_anything_is_made_for_them(write_one: Callable[..., Path]) -> None:
    path = write_one()
    ds = pydicom.dcmread(path)
    for number in (4097, 2**31 - 1):
        ds.NumberOfFrames = number
        ds.save_as(path)
        assert code_of(path) == Refusal.TOO_LARGE
    ds.NumberOfFrames = 7
    ds.save_as(path)
    assert code_of(path) == Refusal.UNREADABLE


def test_a_header_beyond_its_limits_is_not_parsed(write_one: Callable[..., Path]) -> None:
    path = write_one()
    for size in range(300, 1700, 70):
        assert code_of(path, limits=VolumeLimits(max_header_bytes=size)) == Refusal.TOO_LARGE, size
    assert code_of(path, limits=VolumeLimits(max_items=20)) == Refusal.TOO_LARGE
    assert code_of(path, limits=VolumeLimits(max_frames=5)) == Refusal.TOO_LARGE
    limits = VolumeLimits(max_header_bytes=8000, max_items=60, max_frames=6)
    assert isinstance(read_slices(path, 0, modalities=("CT",), limits=limits), tuple)


def test_the_size_of_a_volume_is_checked_before_it_is_allocated(
    write_one: Callable[..., Path], grid_of: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_one()
    grid = grid_of([path])
    exact = VolumeLimits(max_voxels=120, max_source_bytes=path.stat().st_size)
    assert isinstance(assemble(grid, [path], limits=exact), Volume)
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("allocated"))
    assert assemble(grid, [path], limits=VolumeLimits(max_voxels=119)) == Refused(Refusal.TOO_LARGE)
    short = VolumeLimits(max_source_bytes=path.stat().st_size - 1)
    assert assemble(grid, [path], limits=short) == Refused(Refusal.TOO_LARGE)


def compressed(path: Path, encapsulated: bytes) -> Path:
    ds = pydicom.dcmread(path)
    ds.PixelData = encapsulated
    ds.save_as(path)
    return path


@pytest.fixture
def frames(write_one: Callable[..., Path]) -> tuple[Path, list[bytes]]:
    """An RLE object, and its frames as they are encoded."""
    path = write_one(syntax=RLELossless)
    return path, list(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=6))


@pytest.mark.parametrize(("per_frame", "table"), [(1, True), (1, False), (2, True)])
def test_fragments_are_given_to_their_frames(
    per_frame: int,
    table: bool,
    frames: tuple[Path, list[bytes]],
    volume_of: Callable[..., Volume],
    pixels: NDArray[np.int16],
) -> None:
    path, encoded = frames
    compressed(path, encapsulate(encoded, fragments_per_frame=per_frame, has_bot=table))
    assert_array_equal(volume_of([path]).image, pixels)


ENCAPSULATED: dict[str, tuple[Callable[[list[bytes]], bytes], Refusal]] = {
    "two fragments per frame and no table": (
        lambda encoded: encapsulate(encoded, fragments_per_frame=2, has_bot=False),
        Refusal.UNREADABLE,
    ),
    "a frame less than the header says": (lambda encoded: encapsulate(encoded[:5]), Refusal.UNREADABLE),
    "a frame more than the header says": (lambda encoded: encapsulate([*encoded, encoded[0]]), Refusal.UNREADABLE),
    "no fragment": (lambda _: b"\xfe\xff\x00\xe0\0\0\0\0", Refusal.UNREADABLE),
    "fragments by the thousand": (lambda _: b"\xfe\xff\x00\xe0\0\0\0\0" * 1000, Refusal.TOO_LARGE),
    "a fragment much larger than its image": (
        lambda encoded: encapsulate([*encoded[:5], encoded[5] + bytes(70_000)]),
        Refusal.TOO_LARGE,
    ),
    "a fragment that is no picture": (lambda encoded: encapsulate([*encoded[:5], bytes(64)]), Refusal.UNREADABLE),
}


@pytest.mark.parametrize("case", ENCAPSULATED)
def test_damaged_encapsulation_ends_as_a_code(
    case: str, frames: tuple[Path, list[bytes]], grid_of: Callable[..., Grid]
) -> None:
    path, encoded = frames
    grid = grid_of([path])
    damage, expected = ENCAPSULATED[case]
    compressed(path, damage(encoded))
    assert assemble(grid, [path]) == Refused(expected)


def test_a_compressed_object_cut_short_is_never_a_volume(
    frames: tuple[Path, list[bytes]], grid_of: Callable[..., Grid]
) -> None:
    path, _ = frames
    grid, data = grid_of([path]), path.read_bytes()
    codes = set()
    for end in range(len(data) - 1, len(data) - 600, -13):
        path.write_bytes(data[:end])
        found = assemble(grid, [path])
        assert isinstance(found, Refused)
        codes.add(found.code)
    assert codes == {Refusal.TRUNCATED}


def test_a_file_that_changed_since_it_was_sorted_is_refused(
    write_one: Callable[..., Path], grid_of: Callable[..., Grid]
) -> None:
    path = write_one()
    grid = grid_of([path])
    write_one(lie=Lie(gap=3.0))
    assert assemble(grid, [path]) == Refused(Refusal.UNREADABLE, lasting=False)
    path.unlink()
    assert assemble(grid, [path]) == Refused(Refusal.READ_ERROR, lasting=False)

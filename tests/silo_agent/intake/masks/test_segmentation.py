"""DICOM Segmentations: written by pydicom and by others, read bit by bit, laid on the volume or refused."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from infra.hospitals.segmentations import Cut, write_segmentation
from infra.hospitals.volumes import CORONAL, SAGITTAL, Lie
from infra.hospitals.writing import Identity
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import NotUsable
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.reading import VolumeLimits
from silo_agent.intake.volumes.survey import survey
from tests.silo_agent.intake.masks.reading import SERIES, WHO, Masks, grid_of

LABELS = {1: "liver", 2: "tumour"}
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
LIES = (Lie(), Lie(CORONAL), Lie(SAGITTAL), Lie(OBLIQUE), Lie((1, 0, 0, 0, -1, 0)), Lie(spacing=(0.7, 1.3), gap=5))


def random_mask(shape: tuple[int, ...], seed: int = 0, classes: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def write(path: Path, mask: NDArray[np.uint8], **options: Any) -> Path:
    options.setdefault("identity", WHO)
    options.setdefault("labels", LABELS)
    return write_segmentation(path, mask, options.pop("labels"), series=options.pop("series", SERIES), **options)


# --- what was written is read ----------------------------------------------------------------------------
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(2, 4), st.integers(1, 19), st.integers(1, 19)),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    lie=st.sampled_from(LIES),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_a_mask_that_is_written_and_read_is_the_same(
    tmp_path: Path, shape: tuple[int, int, int], data: st.DataObject, seed: int, lie: Lie, flags: tuple[bool, bool]
) -> None:
    top, left = data.draw(st.integers(0, shape[1] - 1)), data.draw(st.integers(0, shape[2] - 1))
    bottom, right = data.draw(st.integers(top + 1, shape[1])), data.draw(st.integers(left + 1, shape[2]))
    mask, expected = random_mask(shape, seed), np.zeros(shape, np.uint8)
    mask[0, top, left] = 1  # something is outlined
    inside = np.s_[:, top:bottom, left:right]
    expected[inside] = mask[inside]
    path = write(
        tmp_path / "mask.dcm", mask, lie=lie, cut=Cut(top, bottom, left, right), all_slices=flags[0], shared=flags[1]
    )
    assert_array_equal(Masks([path]).of(grid_of(shape, lie)), expected)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian])
def test_the_byte_order_of_the_header_changes_nothing(syntax: Any, tmp_path: Path) -> None:
    mask = random_mask((3, 5, 7))
    path = write(tmp_path / "mask.dcm", mask)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    written = Dataset(ds)
    written.file_meta = ds.file_meta
    pydicom.dcmwrite(path, written, enforce_file_format=True)
    assert_array_equal(Masks([path]).of(grid_of((3, 5, 7))), mask)


def test_segments_of_other_names_are_nobody_s_business(tmp_path: Path) -> None:
    mask = random_mask((3, 5, 7), classes=5)
    path = write(tmp_path / "mask.dcm", mask, labels={1: "spleen", 2: " liver ", 3: "Tumour", 4: "background"})
    assert_array_equal(Masks([path]).of(grid_of((3, 5, 7))), mask == 2)


def test_a_segment_that_is_named_and_never_shown_is_absent(tmp_path: Path) -> None:
    mask = (random_mask((3, 5, 7)) == 1).astype(np.uint8)
    assert_array_equal(Masks([write(tmp_path / "mask.dcm", mask)]).of(grid_of((3, 5, 7))), mask)


def other(number: int) -> Identity:
    return replace(WHO, image=number)


def test_several_files_are_one_mask_if_each_names_segments_of_its_own(tmp_path: Path) -> None:
    mask = random_mask((3, 5, 7))
    files = [
        write(tmp_path / "1.dcm", (mask == 1).astype(np.uint8), labels={1: "liver"}, identity=other(1)),
        write(tmp_path / "2.dcm", (mask == 2).astype(np.uint8), labels={1: "tumour"}, identity=other(2)),
        write(tmp_path / "3.dcm", mask, labels={1: "spleen", 2: "aorta"}, identity=other(3)),
    ]
    for some in (files, files[::-1], [*files, files[0]]):
        assert_array_equal(Masks(some).of(grid_of((3, 5, 7))), mask)


# --- what is refused -------------------------------------------------------------------------------------
SHAPE = (3, 6, 9)


def changed(**attributes: Any) -> dict[str, Any]:
    return {"extra": attributes}


def moved(*by: float, **options: Any) -> dict[str, Any]:
    """The grid that the mask is written on, `by` voxels along slices, rows and columns from the volume's."""
    lie = Lie()
    steps = np.array([lie.normal * lie.gap, (0, lie.spacing[0], 0), (lie.spacing[1], 0, 0)])
    origin = np.array(lie.origin) + np.array(by) @ steps
    return {"lie": Lie(origin=(origin[0], origin[1], origin[2]), **options)}


def deflated(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, ds)


def big_endian(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    written = Dataset(ds)
    written.file_meta = ds.file_meta
    pydicom.dcmwrite(path, written, enforce_file_format=True)


def cut_by(count: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def edited(change: Callable[[pydicom.FileDataset], object], path: Path) -> None:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)


def without_frames_geometry(ds: pydicom.FileDataset) -> None:
    del ds.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def of_no_segment(ds: pydicom.FileDataset) -> None:
    ds.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 7


def twice_on_a_slice(ds: pydicom.FileDataset) -> None:
    first, second = ds.PerFrameFunctionalGroupsSequence[:2]
    second.PlanePositionSequence = first.PlanePositionSequence


def over_each_other(ds: pydicom.FileDataset) -> None:
    ds.PixelData = bytes([255]) * len(ds.PixelData)


def a_frame_less(ds: pydicom.FileDataset) -> None:
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[1:]


def labelled(*labels: str) -> dict[str, Any]:
    return {"labels": dict(enumerate(labels, start=1))}


Fault = tuple[dict[str, Any], Callable[[Path], object] | None]
FAULTS: dict[str, tuple[Fault, Refusal]] = {
    # sentence: (what is written, what is done to the file), the code
    "fractions": ((changed(SegmentationType="FRACTIONAL"), None), Refusal.MASK_TYPE),
    "a label map": ((changed(SegmentationType="LABELMAP"), None), Refusal.MASK_TYPE),
    "not said of which type": ((changed(SegmentationType=None), None), Refusal.MASK_TYPE),
    "big endian": (({}, big_endian), Refusal.TRANSFER_SYNTAX),
    "eight bits": ((changed(BitsAllocated=8, BitsStored=8, HighBit=7), None), Refusal.UNREADABLE),
    "colour": ((changed(PhotometricInterpretation="RGB"), None), Refusal.UNREADABLE),
    "a frame of no segment": (({}, partial(edited, of_no_segment)), Refusal.UNREADABLE),
    "a frame without its groups": (({}, partial(edited, a_frame_less)), Refusal.UNREADABLE),
    "pixels of a frame more": ((changed(PixelData=bytes(50)), None), Refusal.UNREADABLE),
    "the last byte is missing": (({}, partial(cut_by, 2)), Refusal.TRUNCATED),
    "fewer pixels than its frames have": ((changed(PixelData=bytes(38)), None), Refusal.TRUNCATED),
    "no pixels": ((changed(PixelData=b""), None), Refusal.NO_PIXELS),
    "a frame that lies nowhere": (({}, partial(edited, without_frames_geometry)), Refusal.GEOMETRY_MISSING),
    "no segment that the plan names": ((labelled("spleen", "Liver"), None), Refusal.LABEL_UNKNOWN),
    "two segments of one name": ((labelled("liver", "liver"), None), Refusal.LABEL_CONFLICT),
    "another frame of reference": ((changed(FrameOfReferenceUID="1.2.3"), None), Refusal.MASK_GRID),
    "half a pixel aside": ((moved(0, 0, 0.5), None), Refusal.MASK_GRID),
    "a fifth of a pixel down": ((moved(0, 0.2, 0), None), Refusal.MASK_GRID),
    "between two slices": ((moved(0.5, 0, 0), None), Refusal.MASK_GRID),
    "a slice too high": ((moved(1, 0, 0), None), Refusal.MASK_GRID),
    "a column beyond the edge": ((moved(0, 0, 1), None), Refusal.MASK_GRID),
    "a row before the first": ((moved(0, -1, 0), None), Refusal.MASK_GRID),
    "wider pixels": (({"lie": Lie(spacing=(0.8, 0.72))}, None), Refusal.MASK_GRID),
    "slices of another distance": (({"lie": Lie(gap=2.2)}, None), Refusal.MASK_GRID),
    "turned round": (({"lie": Lie((1, 0, 0, 0, -1, 0))}, None), Refusal.MASK_GRID),
    "turned by two degrees": (
        ({"lie": Lie((np.cos(0.035), np.sin(0.035), 0, -np.sin(0.035), np.cos(0.035), 0))}, None),
        Refusal.MASK_GRID,
    ),
    "a segment twice on one slice": (({}, partial(edited, twice_on_a_slice)), Refusal.MASK_GRID),
    "two segments on one voxel": (({}, partial(edited, over_each_other)), Refusal.MASK_OVERLAP),
}
USED: dict[str, Fault] = {
    "a twentieth of a pixel aside, as rounding does": (moved(0.05, -0.05, 0.05), None),
    "angles as rounding has them": ({"lie": Lie((1, 0.0005, 0, -0.0005, 1, 0))}, None),
    "a byte more, as padding": (changed(PixelData=bytes(42)), None),
    "a colour to show it in": (changed(RecommendedDisplayGrayscaleValue=3), None),
}


def test_frames_that_each_begin_with_a_byte_are_refused_and_not_read_as_if_they_did_not(tmp_path: Path) -> None:
    """Found by acceptance: some writers pad each frame, and their masks were read shifted."""
    shape = (3, 5, 9)
    path = write(tmp_path / "mask.dcm", random_mask(shape))
    assert code_of(path, shape=shape) == "used"
    ds = pydicom.dcmread(path)
    rows = np.pad(ds.pixel_array.reshape(ds.NumberOfFrames, -1), ((0, 0), (0, 3)))
    ds.PixelData = np.packbits(rows, axis=1, bitorder="little").tobytes()
    ds.save_as(path)
    assert code_of(path, shape=shape) == "UNREADABLE"


def code_of(*files: Path, limits: VolumeLimits | None = None, shape: tuple[int, int, int] = SHAPE) -> str:
    try:
        Masks(files, limits).of(grid_of(shape))
    except NotUsable as why:
        return why.code.value
    return "used"


@pytest.mark.parametrize("case", FAULTS)
def test_a_mask_that_cannot_be_laid_on_its_volume_is_refused(case: str, tmp_path: Path) -> None:
    (options, damage), code = FAULTS[case]
    path = write(tmp_path / "mask.dcm", random_mask(SHAPE), **options)
    if damage is not None:
        damage(path)
    assert code_of(path) == code


@pytest.mark.parametrize("case", USED)
def test_its_near_miss_is_used(case: str, tmp_path: Path) -> None:
    options, _ = USED[case]
    assert code_of(write(tmp_path / "mask.dcm", random_mask(SHAPE), **options)) == "used"


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    mask = random_mask(SHAPE)
    whole = write(tmp_path / "whole.dcm", mask, identity=other(1))
    assert code_of(whole, write(tmp_path / "2.dcm", mask, identity=other(2))) == "LABEL_CONFLICT"
    assert code_of(whole, write(tmp_path / "3.dcm", mask[::-1], identity=other(1))) == "UID_CONFLICT"
    assert code_of(whole, write(tmp_path / "4.dcm", mask, identity=other(1))) == "used"
    liver = write(tmp_path / "5.dcm", mask, labels={1: "liver"}, identity=other(5))
    full = np.ones(SHAPE, np.uint8)
    assert code_of(liver, write(tmp_path / "6.dcm", full, labels={1: "tumour"}, identity=other(6))) == "MASK_OVERLAP"
    damaged = write(tmp_path / "7.dcm", mask, labels={1: "tumour"}, identity=other(7), extra={"PixelData": b""})
    assert code_of(liver, damaged) == "NO_PIXELS"
    foreign = write(tmp_path / "8.dcm", mask, labels={1: "spleen"}, identity=other(8), extra={"PixelData": b""})
    assert code_of(liver, foreign) == "used"
    assert code_of() == "LABEL_MISSING"


def test_a_file_that_names_nobody_is_refused_as_a_file(tmp_path: Path) -> None:
    for keyword, code in (("PatientID", "PATIENT_ID_MISSING"), ("SOPInstanceUID", "UNREADABLE")):
        path = write(tmp_path / "mask.dcm", random_mask(SHAPE), extra={keyword: ""})
        assert [one.code for one in Masks([path]).facts] == [code]
    deflated(path)
    assert [one.code for one in Masks([path]).facts] == ["TRANSFER_SYNTAX"]


def test_limits_hold_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.dcm", random_mask(SHAPE))
    assert code_of(path, limits=VolumeLimits(max_mask_frames=6)) == "used"
    assert code_of(path, limits=VolumeLimits(max_mask_frames=5)) == "TOO_LARGE"
    assert code_of(path, limits=VolumeLimits(file=Limits(max_side=8))) == "TOO_LARGE"
    many = write(tmp_path / "many.dcm", random_mask(SHAPE), extra={"NumberOfFrames": 2**31 - 1})
    assert code_of(many) == "TOO_LARGE"
    few = Masks([path], VolumeLimits(max_items=20))
    assert [one.code for one in few.facts] == ["TOO_LARGE"]


def test_nothing_that_identifies_anybody_shows_in_a_repr(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.dcm", random_mask(SHAPE), labels={1: "Jane Doe's liver"})
    shown = repr(Masks([path]).facts)
    assert "2.25." not in shown
    assert "Jane" not in shown


# --- real ones -------------------------------------------------------------------------------------------
DCMQI = "seg-rt-sr/dcmqi/data/segmentations"
REAL = {  # case: (series, segmentation, {label: (ITK's reading of the mask it was made of, its value there)})
    "a liver": ("ct-3slice", "liver.dcm", {"Liver": ("liver_seg.nrrd", 1)}),
    "a crop of 24 x 38": ("24x38x3/image", "24x38x3/seg/label.seg", {"Liver": ("24x38x3/nrrd/label.nrrd", 1)}),
    "frames that end within a byte": (
        "23x38x3/image",
        "23x38x3/seg/label.seg",
        {"Liver": ("23x38x3/nrrd/label.nrrd", 1)},
    ),
    "two of several segments, on some slices": (
        "ct-3slice",
        "partial_overlaps.dcm",
        {"LIGHT_BLUE": ("partial_overlaps-1.nrrd", 4), "DARK_BLUE": ("partial_overlaps-1.nrrd", 5)},
    ),
}


def real_grid(folder: Path) -> Grid:
    grid = place(survey(sorted(folder.iterdir()), modalities=("CT",)).stacks[0].slices)
    assert isinstance(grid, Grid)
    return grid


@pytest.mark.skipif(importlib.util.find_spec("SimpleITK") is None, reason="needs the oracle: pip install SimpleITK")
@pytest.mark.parametrize("case", REAL)
def test_a_real_segmentation_is_the_mask_that_it_was_made_of(case: str, real_data: Path) -> None:
    import SimpleITK

    series, name, segments = REAL[case]
    folder = real_data / DCMQI
    ours = Masks([folder / name]).of(real_grid(folder / series), ("background", *segments))
    expected = np.zeros(ours.shape, np.uint8)
    for number, (oracle, value) in enumerate(segments.values(), start=1):
        expected[SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / oracle))) == value] = number
    assert_array_equal(ours, expected)
    assert (ours > 0).any()


def test_real_segmentations_that_are_no_use_say_why(real_data: Path) -> None:
    folder = real_data / DCMQI

    def code(series: str, name: str, *labels: str) -> str:
        try:
            Masks([folder / name]).of(real_grid(folder / series), ("background", *labels))
        except NotUsable as why:
            return why.code.value
        return "used"

    assert code("ct-3slice", "partial_overlaps.dcm", "GREEN", "ORANGE", "PURPLE") == "MASK_OVERLAP"
    assert code("ct-3slice", "liver.dcm", "liver") == "LABEL_UNKNOWN"
    assert code("24x38x3/image", "liver.dcm", "Liver") == "MASK_GRID"
    assert code("24x38x3/image", "23x38x3/seg/label.seg", "Liver") == "MASK_GRID"
    assert code("24x38x3/image", "sparse-labelmap-ppv5.dcm", "Liver") == "MASK_TYPE"

"""A series that lost a slice is not a shorter series: wherever the slice lay, what is left of it makes no volume."""

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from infra.hospitals.volumes import CORONAL, Lie, decimals, write_enhanced, write_series
from infra.hospitals.writing import Identity, uid
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.survey import survey_mixed, survey_volumes
from silo_agent.intake.volumes.losses import NO_SLICE_OF_IT
from tests.silo_agent.intake.volumes.test_remembered import LIE, PATIENTS, Hospital, write_patient

WHO = Identity("st-olavs", "P1")
KEY = b"k" * 32
Write = Callable[..., list[Path]]
Codes = Callable[..., dict[str, int]]
Damage = Callable[[Path], object]


def change(**attributes: Any) -> Damage:
    """Set what is given, take away what is None."""

    def apply(path: Path) -> None:
        ds = pydicom.dcmread(path)
        for keyword, value in attributes.items():
            if value is None:
                ds.pop(keyword)
            else:
                setattr(ds, keyword, value)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "2.25.1")
        pydicom.dcmwrite(path, ds)

    return apply


def cut(by: int) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[:-by])


def cut_before_the_pixels(path: Path) -> None:
    """Behind the UIDs (group 0020), before the Image Pixel module (group 0028)."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x28\x00\x02\x00US")])


def stored_as(syntax: str) -> Damage:
    def apply(path: Path) -> None:
        ds = pydicom.dcmread(path)
        data = path.read_bytes()
        old = ds.file_meta.TransferSyntaxUID.encode()
        assert data.count(old) == 1
        new = syntax.encode().ljust(len(old) + len(old) % 2, b"\0")
        assert len(new) == len(old) + len(old) % 2, "or the lengths are wrong"
        path.write_bytes(data.replace(old.ljust(len(new), b"\0"), new))

    return apply


SLICES: dict[str, tuple[Damage, str]] = {
    "its pixels are cut off": (cut(3), "TRUNCATED"),
    "it is cut off before its pixels": (cut_before_the_pixels, "TRUNCATED"),
    "its SOP Instance UID is gone": (change(SOPInstanceUID=None), "UNREADABLE"),
    "its study is not said": (change(StudyInstanceUID=None), "UNREADABLE"),
    "its bits make no sense": (change(BitsStored=17), "UNREADABLE"),
    "it has no pixels": (change(PixelData=None), "NO_PIXELS"),
    "it is too large": (change(Rows=60000, Columns=60000), "TOO_LARGE"),
    "it is in a compression that is not read": (stored_as("1.2.840.10008.1.9.9"), "TRANSFER_SYNTAX"),
    "it was compressed with loss": (change(LossyImageCompression="01"), "LOSSY_NOT_ALLOWED"),
    "it is a mosaic": (change(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "MULTI_FRAME"),
    "it does not say where it lies": (change(ImagePositionPatient=None), "GEOMETRY_MISSING"),
    "it has text in its pixels": (change(BurnedInAnnotation="YES"), "BURNED_IN"),
    "it is in colour": (change(PhotometricInterpretation="PALETTE COLOR"), "PHOTOMETRIC"),
    "it has no rescale": (change(RescaleSlope=None), "RESCALE_MISSING"),
    "it is nobody's": (change(PatientID=""), "PATIENT_ID_MISSING"),
}


@pytest.mark.parametrize("number", [0, 2, 5])
@pytest.mark.parametrize("case", SLICES)
def test_a_slice_that_was_lost_costs_its_series_wherever_it_lay(
    case: str, number: int, write: Write, codes_of: Codes
) -> None:
    damage, code = SLICES[case]
    files = write()
    damage(files[number])
    assert codes_of(files) == {code: 6}
    assert codes_of(files[::-1]) == {code: 6}


STRANGERS: dict[str, tuple[Damage, str]] = {
    "a scout": (change(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "LOCALIZER"),
    "a scout that does not say where it lies": (
        change(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImagePositionPatient=None),
        "LOCALIZER",
    ),
    "a scout that does not say so": (change(ImageOrientationPatient=decimals(CORONAL)), "MIXED_ORIENTATION"),
    "a derived image": (change(ImageType=["DERIVED", "SECONDARY", "MPR"]), "DERIVED_SECONDARY"),
    "a screen save": (change(ImageType=["ORIGINAL", "PRIMARY", "SCREEN SAVE"]), "DERIVED_SECONDARY"),
    "a screen save in colour, with text": (
        change(
            SOPClassUID="1.2.840.10008.5.1.4.1.1.7", PhotometricInterpretation="RGB", BurnedInAnnotation="YES"
        ),
        "DERIVED_SECONDARY",
    ),
    "an image of another kind": (change(Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128"), "MODALITY_MISMATCH"),
    "a segmentation": (change(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "NOT_AN_IMAGE"),
    "a report": (change(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Rows=None), "NOT_AN_IMAGE"),
    "a copy": (lambda _: None, "DUPLICATE"),
    "the same pixels under another UID": (change(SOPInstanceUID=uid("again")), "DUPLICATE_PIXELS"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGERS)
def test_what_is_no_slice_of_it_costs_no_series(case: str, write: Write, codes_of: Codes, tmp_path: Path) -> None:
    make, code = STRANGERS[case]
    files = write()
    stranger = tmp_path / "stranger.dcm"
    copyfile(files[5], stranger)
    if code not in {"DUPLICATE", "DUPLICATE_PIXELS"}:
        change(SOPInstanceUID=uid("stranger"))(stranger)
    make(stranger)
    assert codes_of([*files, stranger]) == {"used": 6, code: 1}


def test_every_code_of_a_file_is_decided_and_tried() -> None:
    tried = {code for _, code in (*SLICES.values(), *STRANGERS.values())} | {"UID_CONFLICT"}  # in `test_faults`
    not_of_a_series = {
        *("PERMISSION_DENIED", "READ_ERROR", "READ_TIMEOUT", "NOT_DICOM"),  # it is not known of which
        *("DUPLICATE_POSITION", "SPACING_NONUNIFORM", "GANTRY_TILT", "SINGLE_SLICE"),  # of whole stacks
        *("AMBIGUOUS_SERIES", "SERIES_NOT_SELECTED", "OVER_PATIENT_CAP", "WITHDRAWN"),
        *("LABEL_MISSING", "LABEL_UNKNOWN", "LABEL_CONFLICT", "MASK_TYPE", "MASK_GRID", "MASK_OVERLAP"),  # of masks
    }
    assert tried | not_of_a_series == set(Refusal)
    assert {code for _, code in SLICES.values()}.isdisjoint(NO_SLICE_OF_IT)
    assert {code for _, code in STRANGERS.values()} <= NO_SLICE_OF_IT


# --- near misses -------------------------------------------------------------------------------------------
def test_a_slice_that_was_sent_again_is_not_lost(write: Write, codes_of: Codes, tmp_path: Path) -> None:
    files = write()
    broken = tmp_path / "broken.dcm"
    copyfile(files[5], broken)
    cut(3)(broken)
    assert codes_of([broken, *files]) == {"used": 6, "TRUNCATED": 1}


def test_only_the_series_that_lost_it_pays(write: Write, codes_of: Codes) -> None:
    files = [*write(), *write(series=2)]
    cut(3)(files[5])
    assert codes_of(files) == {"TRUNCATED": 6, "used": 6}


def test_a_file_of_somebody_else_costs_no_series_whatever_it_is_called(
    write: Write, codes_of: Codes, tmp_path: Path
) -> None:
    files = write()
    other = tmp_path / "other.dcm"
    copyfile(files[5], other)
    change(PatientID="P2", SOPInstanceUID=uid("other"), BurnedInAnnotation="YES")(other)
    assert codes_of([*files, other]) == {"used": 6, "BURNED_IN": 1}
    change(PatientID="P1")(other)
    assert codes_of([*files, other]) == {"BURNED_IN": 7}


def test_a_file_of_which_the_series_is_not_known_costs_none(write: Write, codes_of: Codes) -> None:
    files = write()
    files[5].write_bytes(files[5].read_bytes()[:300])
    assert codes_of(files) == {"used": 5, "TRUNCATED": 1}


def test_all_phases_of_the_series_pay(write: Write, codes_of: Codes) -> None:
    def extra(index: int) -> dict[str, Any]:
        return {"ImagePositionPatient": Lie().position(index // 2), "AcquisitionNumber": str(index % 2)}

    files = write(extra=extra)
    assert codes_of(files) == {"used": 6}
    cut(3)(files[5])
    assert codes_of(files) == {"TRUNCATED": 6}


def test_a_lone_slice_that_is_left_has_the_code_of_the_others(write: Write, codes_of: Codes) -> None:
    files = write()[:2]
    cut(3)(files[0])
    assert codes_of(files) == {"TRUNCATED": 2}


# --- concatenations ----------------------------------------------------------------------------------------
@pytest.fixture
def parts(tmp_path: Path, pixels: NDArray[np.int16]) -> Callable[..., list[Path]]:
    """Six slices in three objects."""

    def write(total: int | None = 3, numbers: tuple[int | None, ...] = (1, 2, 3)) -> list[Path]:
        found = []
        for part, number in enumerate(numbers):
            path = tmp_path / f"part-{part}.dcm"
            who = Identity("st-olavs", "P1", image=part + 1)
            place = 2 * part
            write_enhanced(path, pixels[place : place + 2], identity=who, places=lambda one, at=place: at + one)  # type: ignore[misc]
            told = {"ConcatenationUID": uid("whole"), "InConcatenationNumber": number}
            change(**{key: value for key, value in told.items() if value is not None})(path)
            if total is not None:
                change(InConcatenationTotalNumber=total)(path)
            found.append(path)
        return found

    return write


def test_a_concatenation_is_used_whole_or_not_at_all(parts: Callable[..., list[Path]], codes_of: Codes) -> None:
    files = parts()
    assert codes_of(files) == codes_of(files[::-1]) == {"used": 6}
    assert codes_of(files[:2]) == codes_of(files[1:]) == {"TRUNCATED": 4}
    assert codes_of([files[0], files[2]]) == {"TRUNCATED": 4}


def test_without_a_total_the_numbers_show_what_is_missing_before_the_last(
    parts: Callable[..., list[Path]], codes_of: Codes
) -> None:
    files = parts(total=None)
    assert codes_of(files) == {"used": 6}
    assert codes_of(files[1:]) == {"TRUNCATED": 4}
    assert codes_of(files[:2]) == {"used": 4}  # nothing says that there was a third


def test_parts_without_numbers_or_with_too_few_are_not_whole(parts: Callable[..., list[Path]], codes_of: Codes) -> None:
    assert codes_of(parts(total=None, numbers=(None, None, None))) == {"used": 6}
    assert codes_of(parts(total=3, numbers=(1, None, 3))) == {"TRUNCATED": 6}
    assert codes_of(parts(total=3, numbers=(1, 2, 2))) == {"TRUNCATED": 6}


# --- through the scans -------------------------------------------------------------------------------------
def test_a_survey_counts_the_series_under_the_code(write: Write, tmp_path: Path) -> None:
    files = write()
    for survey in (survey_volumes, survey_mixed):
        assert survey(tmp_path / "dicom", KEY, lambda *_: None).refused == {}
    cut(3)(files[5])
    for survey in (survey_volumes, survey_mixed):
        found = survey(tmp_path / "dicom", KEY, lambda *_: None)
        assert (found.used, found.refused) == (0, {"TRUNCATED": 2})  # the file, and its series
        assert len(found.named) == 6
    change(ImagePositionPatient=None)(files[4])
    files[5].unlink()
    found = survey_mixed(tmp_path / "dicom", KEY, lambda *_: None)
    assert (found.used, found.refused) == (0, {"GEOMETRY_MISSING": 1})


def test_a_slice_that_is_left_is_no_image_that_stands_alone(tmp_path: Path, pixels: NDArray[np.int16]) -> None:
    files = write_series(tmp_path, pixels[:2], identity=WHO)
    cut(3)(files[1])
    found = survey_mixed(tmp_path, KEY, lambda *_: None)
    assert (found.used, found.refused) == (0, {"TRUNCATED": 2})
    files[1].unlink()
    assert survey_mixed(tmp_path, KEY, lambda *_: None).used == 1


def test_a_scan_for_a_plan_refuses_it_and_so_does_the_next_without_opening_a_file(tmp_path: Path) -> None:
    for seed, patient in enumerate(PATIENTS):
        write_patient(tmp_path, patient, seed)
    cut(3)(tmp_path / "dicom" / "ANNA" / "01-0003.dcm")
    change(PatientID="")(tmp_path / "dicom" / "BERT" / "01-0000.dcm")
    carl = in_two_parts(tmp_path / "dicom" / "CARL")
    hospital = Hospital(tmp_path)
    first = hospital.look("a")
    assert (first.used, first.refused) == (1, {"PATIENT_ID_MISSING": 2, "TRUNCATED": 2})
    hospital.opened.clear()
    assert hospital.look("b", others=("a",)) == first
    assert hospital.opened == []
    carl[1].unlink()
    hospital.both("c")
    hospital.opened.clear()
    again = hospital.look("d", others=("c",))
    assert (again.used, again.refused["TRUNCATED"], hospital.opened) == (0, 3, [])


def in_two_parts(folder: Path) -> list[Path]:
    """The series of four slices in it again, as a concatenation of two objects."""
    found, files = [], sorted(folder.glob("01-*.dcm"))
    series = pydicom.dcmread(files[0]).SeriesInstanceUID
    for number in (1, 2):
        pair = files[2 * number - 2 : 2 * number]
        pixels, path = np.stack([pydicom.dcmread(one).pixel_array for one in pair]), folder / f"part-{number}.dcm"
        who = Identity("st-olavs", "CARL", image=number)
        write_enhanced(path, pixels, identity=who, lie=LIE, places=lambda one, first=2 * number - 2: first + one)  # type: ignore[misc]
        parted = {"InConcatenationNumber": number, "InConcatenationTotalNumber": 2}
        change(SeriesInstanceUID=series, ConcatenationUID=uid("whole"), **parted)(path)
        found.append(path)
    for one in files:
        one.unlink()
    return found

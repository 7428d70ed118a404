"""A label table keyed by AccessionNumber: whom a number labels, and whom it does not because two patients have it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boundary.guarantee import PatientPrivacy
from boundary.plan import StudyPlan
from infra.hospitals.writing import Identity, write_image
from silo_agent.intake import index, remembered
from silo_agent.intake.cache import load_cache
from silo_agent.intake.encoding import Limits
from silo_agent.intake.errors import LabelsUnreadable
from silo_agent.intake.header import Identifiers
from silo_agent.intake.image import Refused, StoredImage, quiet, read_image
from silo_agent.intake.opened import OpenFile
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Means, Memory
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.volumes.reading import read_slices
from silo_agent.intake.withdrawn import Withdrawn, reference_of
from tests.silo_agent.intake.test_dicomdir import written

MASTER = b"the hospital's master key"
ORDER = "00420 17"  # zeros in front, and a blank that counts
A_GUARANTEE = PatientPrivacy(mechanism="patient-dp", epsilon=8)


@dataclass
class Ward:
    """A hospital's folder; each image has pixels of its own."""

    folder: Path
    plan: StudyPlan
    key: bytes
    images: int = 0
    gone: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, patient: str, accession: str | None, study: int = 1, **extra: Any) -> Identity:
        self.images += 1
        who = Identity("st-olavs", patient, study=study, image=self.images)
        pixels = np.full((12, 10), self.images, dtype=np.int16)
        path = self.folder / "dicom" / f"{self.images}.dcm"
        write_image(path, pixels, identity=who, modality="CT", extra={"AccessionNumber": accession, **extra})
        return who

    def labels(self) -> list[int]:
        return [int(one) for one in load_cache(self.folder / "cache")[0].labels]

    def table(self, *rows: str) -> Path:
        path = self.folder / "labels.csv"
        path.write_text("\n".join((*rows, "")))
        return path

    def scan(self, *rows: str, source: Path | None = None, cache: str = "cache") -> IntakeReport:
        table = self.table(*rows) if rows else self.folder / "labels.csv"
        told = {when: frozenset(reference_of(MASTER, who) for who in some) for when, some in self.gone.items()}
        memory = Memory(self.folder / "index.sqlite", datetime.now(UTC) + timedelta(hours=1), ())
        return scan(
            FolderSource(source or self.folder / "dicom", table), self.plan, self.key, self.folder / cache,
            lambda *_: None, withdrawn=Withdrawn(MASTER, **told), means=Means(memory=memory),
        )  # fmt: skip


@pytest.fixture
def ward(tmp_path: Path, make_plan: Callable[..., StudyPlan], key: bytes) -> Ward:
    return Ward(tmp_path, make_plan(), key)


# --- whom a number labels ----------------------------------------------------------------------------------
def test_one_row_labels_all_images_of_all_studies_of_an_order(ward: Ward) -> None:
    for study in (1, 1, 2, 3):
        ward.add("ANNA", ORDER, study)
    ward.add("BERT", "0043")
    report = ward.scan("AccessionNumber,contrast", f"{ORDER},1", "0043,0")
    assert (report.used, report.refused, report.label_rows_without_image) == (5, {}, 0)
    assert sorted(ward.labels()) == [0, 1, 1, 1, 1]


def test_blanks_around_a_number_do_not_count_and_zeros_do(ward: Ward) -> None:
    ward.add("ANNA", "  00123 ")
    ward.add("BERT", "123")
    report = ward.scan("AccessionNumber,contrast", " 00123 ,1")
    assert (report.used, report.refused) == (1, {"LABEL_MISSING": 1})


@pytest.mark.parametrize("number", [None, "", "   ", ["00123", "00124"]], ids=str)
def test_an_image_without_a_number_has_no_label_by_it(ward: Ward, number: Any) -> None:
    """Two numbers are none: which of them the table means nobody knows."""
    ward.add("ANNA", number)
    ward.add("BERT", "00123")
    report = ward.scan("AccessionNumber,contrast", "00123,1", "00124,1", ",0")
    assert (report.used, report.refused) == (1, {"LABEL_MISSING": 1})


def test_an_image_without_a_number_has_its_label_by_its_uid_all_the_same(ward: Ward) -> None:
    who = [ward.add("ANNA", ["1", "2"]), ward.add("BERT", None)]
    report = ward.scan("SOPInstanceUID,AccessionNumber,contrast", *(f"{one.sop_uid},1,1" for one in who))
    assert (report.used, report.refused) == (2, {})


def test_a_study_has_a_row_of_its_own_beside_that_of_its_order(ward: Ward) -> None:
    ward.add("ANNA", ORDER, 1)
    exception = ward.add("ANNA", ORDER, 2)
    report = ward.scan("StudyInstanceUID,AccessionNumber,contrast", f",{ORDER},1", f"{exception.study_uid},{ORDER},0")
    assert report.refused == {}
    assert sorted(ward.labels()) == [0, 1]


def test_a_table_in_parquet_has_the_numbers_as_text(ward: Ward) -> None:
    ward.add("ANNA", "00123")
    pq.write_table(pa.table({"AccessionNumber": ["00123"], "contrast": [1]}), ward.folder / "labels.csv")
    source = FolderSource(ward.folder / "dicom", ward.folder / "labels.csv", "parquet")
    assert scan(source, ward.plan, ward.key, ward.folder / "cache", lambda *_: None).used == 1
    pq.write_table(pa.table({"AccessionNumber": [123], "contrast": [1]}), ward.folder / "labels.csv")
    with pytest.raises(LabelsUnreadable, match="00123 is not 123"):
        scan(source, ward.plan, ward.key, ward.folder / "cache", lambda *_: None)


def test_from_a_dicomdir_come_the_labels_of_the_folder(ward: Ward) -> None:
    ward.add("ANNA", ORDER)
    ward.add("BERT", "0043")
    medium = written(sorted((ward.folder / "dicom").iterdir()), ward.folder / "medium")
    folder = ward.scan("AccessionNumber,contrast", f"{ORDER},1", "0043,0")
    listed = ward.scan(source=medium / "DICOMDIR", cache="listed")
    assert (listed.used, listed.refused) == (2, {})
    assert listed.dataset_digest == folder.dataset_digest


# --- whom it does not --------------------------------------------------------------------------------------
def test_a_number_that_two_patients_have_labels_neither(ward: Ward) -> None:
    ward.add("ANNA", ORDER)
    ward.add("BERT", ORDER)
    ward.add("CARL", "0043")
    named = ward.add("DORA", ORDER)
    report = ward.scan(
        "SOPInstanceUID,AccessionNumber,contrast", f",{ORDER},1", ",0043,0", f"{named.sop_uid},{ORDER},1"
    )
    assert (report.used, report.refused) == (2, {"UID_CONFLICT": 2}), "who is named by a UID is not in doubt"
    again = ward.scan(cache="again")
    assert again == report, "the same from the index"


UNUSED: dict[str, Any] = {
    "of another modality": {"Modality": "MR"},
    "with burned-in text": {"BurnedInAnnotation": "YES"},
}


@pytest.mark.parametrize("case", UNUSED)
def test_another_patient_s_file_that_cannot_be_used_shows_it_too(ward: Ward, case: str) -> None:
    ward.add("ANNA", ORDER)
    ward.add("BERT", ORDER, **UNUSED[case])
    assert ward.scan("AccessionNumber,contrast", f"{ORDER},1").refused["UID_CONFLICT"] == 1


def test_so_does_a_file_of_somebody_who_withdrew(ward: Ward) -> None:
    """Or a withdrawal would bring somebody else's image into the study."""
    ward.add("ANNA", ORDER)
    ward.add("BERT", ORDER)
    ward.gone = {"before": ("BERT",)}
    assert ward.scan("AccessionNumber,contrast", f"{ORDER},1").refused == {"UID_CONFLICT": 1, "WITHDRAWN": 1}


def test_a_file_that_does_not_say_whose_it_is_shows_nothing(ward: Ward) -> None:
    ward.add("ANNA", ORDER)
    ward.add("BERT", ORDER, PatientID="")
    assert ward.scan("AccessionNumber,contrast", f"{ORDER},1").refused == {"PATIENT_ID_MISSING": 1}


def test_with_a_guarantee_what_is_used_of_one_patient_does_not_depend_on_another(ward: Ward) -> None:
    ward.plan = ward.plan.model_copy(update={"privacy": A_GUARANTEE})
    ward.add("ANNA", ORDER)
    assert ward.scan("AccessionNumber,contrast", f"{ORDER},1").used == 1
    ward.add("BERT", ORDER)
    report = ward.scan()
    assert (report.used, report.refused) == (2, {})


# --- what is read of it, and remembered --------------------------------------------------------------------
def test_a_number_comes_through_both_ways_of_reading_alike(ward: Ward) -> None:
    for patient, number in (("ANNA", " 00123 "), ("BERT", "MÜ-7"), ("CARL", ["1", "2"]), ("DORA", "")):
        ward.add(patient, number)
    found = []
    for path in sorted((ward.folder / "dicom").iterdir()):
        image = read_image(path, modalities=("CT",))
        assert isinstance(image, StoredImage)
        skimmed = OpenFile(path, Limits())
        with quiet():
            assert skimmed.header().who == image.identifiers
        skimmed.close()
        found.append(image.identifiers.accession)
    assert found == ["00123", "MÜ-7", "", ""]


@pytest.mark.parametrize("number", ["00123", "00123456"])
def test_a_number_that_is_none_does_not_spoil_the_image(ward: Ward, number: str) -> None:
    """Six or eight bytes that claim to be floats of eight: nothing but a table of labels asks for it."""
    ward.add("ANNA", number)
    path = ward.folder / "dicom" / "1.dcm"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x08\x00\x50\x00SH", b"\x08\x00\x50\x00FD"))
    assert path.read_bytes() != data
    image = read_image(path, modalities=("CT",))
    assert isinstance(image, StoredImage)
    assert image.identifiers.accession == ""


def test_of_slices_it_is_not_read_because_volumes_have_no_table(ward: Ward) -> None:
    ward.add("ANNA", ORDER)
    found = read_slices(ward.folder / "dicom" / "1.dcm", 0, modalities=("CT",))
    assert not isinstance(found, Refused)
    assert [one.identifiers.accession for one in found] == [""]


def test_an_index_of_before_numbers_were_read_is_begun_again(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    who = ward.add("ANNA", ORDER)
    with monkeypatch.context() as before:
        before.setattr(index, "FORMAT", 2)
        before.setattr(remembered, "_UIDS", ("study_uid", "series_uid", "sop_uid"))
        assert ward.scan("SOPInstanceUID,contrast", f"{who.sop_uid},1").used == 1
    assert ward.scan("AccessionNumber,contrast", f"{ORDER},1").used == 1


def test_a_second_scan_knows_the_numbers_and_opens_nothing(ward: Ward, read: list[str]) -> None:
    ward.add("ANNA", ORDER)
    ward.add("BERT", None)
    first = ward.scan("AccessionNumber,contrast", f"{ORDER},1")
    assert ward.labels() == [1]
    read.clear()
    second = ward.scan("AccessionNumber,contrast", f"{ORDER},0")
    assert read == ["1.dcm"], "for its input, which no other scan was named for; the other has no label"
    assert first.refused == second.refused == {"LABEL_MISSING": 1}
    assert ward.labels() == [0]


def test_a_number_stands_nowhere_but_in_the_hospital_s_own_files(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ward.add("ANNA", ORDER)
    ward.add("BERT", ORDER)
    ward.add("CARL", "0043-SECRET")
    said = repr(ward.scan("AccessionNumber,contrast", f"{ORDER},1", "0043-SECRET,0", "0044-NOBODY,0"))
    kept = [ward.folder / "index.sqlite", *(ward.folder / "cache").iterdir()]
    for number in (ORDER, "0043-SECRET", "0044-NOBODY"):
        assert number not in caplog.text + said
        for form in (number.encode(), number.encode("utf-16-le")):
            assert not [path for path in kept if form in path.read_bytes()]


def test_a_number_is_a_pseudonym_once_it_is_read() -> None:
    who = Identifiers("ANNA", "1.2", "1.3", "1.4", ORDER)
    assert ORDER not in repr(who)
    named = Pseudonyms(Withdrawn(MASTER)).of(who)
    other = Pseudonyms(Withdrawn(b"another hospital's key")).of(who)
    assert len(bytes.fromhex(named.accession)) == 32
    assert named.accession != other.accession
    assert Pseudonyms(Withdrawn(MASTER)).of(Identifiers("ANNA", "1.2", "1.3", "1.4")).accession == ""

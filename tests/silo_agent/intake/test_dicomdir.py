"""A DICOMDIR is a list of files below its folder; what else it could be is refused."""

import gc
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.fileset import FileSet

from infra.hospitals.writing import Identity
from silo_agent.intake.archive import list_archive
from silo_agent.intake.dicomdir import DicomdirUnreadable, list_dicomdir
from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing
from silo_agent.intake.image import read_image
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource

Change = Callable[[Dataset], None]


def written(files: Iterable[Path], folder: Path) -> Path:
    """Write a file-set; the folders that pydicom leaves to the collector are collected where their warnings are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        made = FileSet()
        for path in files:
            ds = dcmread(path)
            ds.StudyID = ds.get("StudyID") or "1"  # which pydicom asks for
            made.add(ds)
        made.write(folder)
        del made
        gc.collect()
    return folder


@pytest.fixture
def medium(write_one: Callable[..., Path], tmp_path: Path) -> Path:
    """Three images of two patients, written as a file-set; returns the folder."""
    images = (("P1", 1), ("P1", 2), ("P2", 1))
    files = [write_one(f"{who}-{n}.dcm", identity=Identity("st-olavs", who, image=n)) for who, n in images]
    return written(files, tmp_path / "medium")


LINKS = ("OffsetOfTheNextDirectoryRecord", "OffsetOfReferencedLowerLevelDirectoryEntity")
ROOT = tuple(f"OffsetOfThe{which}DirectoryRecordOfTheRootDirectoryEntity" for which in ("First", "Last"))


def changed(medium: Path, change: Change) -> Path:
    """Change each record that names a file, and let the others lead to where the records are then."""
    path = medium / "DICOMDIR"
    with disable_value_validation():
        ds = dcmread(path)
        records = ds.DirectoryRecordSequence
        before = [record.seq_item_tell for record in records]
        for record in records:
            if "ReferencedFileID" in record:
                change(record)
        ds.save_as(path)
        after = dict(
            zip(before, (record.seq_item_tell for record in dcmread(path).DirectoryRecordSequence), strict=True)
        )
        for holder, link in [(ds, root) for root in ROOT] + [(record, link) for record in records for link in LINKS]:
            setattr(holder, link, after.get(holder[link].value, holder[link].value))
        ds.save_as(path)
    return path


def naming(value: Any) -> Change:
    return lambda record: setattr(record, "ReferencedFileID", value)


def test_a_scan_takes_it_in_the_place_of_the_folder(
    medium: Path, tmp_path: Path, make_plan: Callable[..., Any], key: bytes
) -> None:
    """What it names and no more: a file that was laid beside is not the archive's."""
    labels = tmp_path / "labels.csv"
    people = [dcmread(path).SOPInstanceUID for path in list_dicomdir(medium / "DICOMDIR").files]
    labels.write_text("\n".join(["SOPInstanceUID,contrast", *(f"{uid},{n % 2}" for n, uid in enumerate(people)), ""]))
    alone = scan(FolderSource(medium / "DICOMDIR", labels), make_plan(), key, tmp_path / "alone", lambda *_: None)
    (medium / "laid-beside").write_bytes(b"no image")
    listed = scan(FolderSource(medium / "DICOMDIR", labels), make_plan(), key, tmp_path / "listed", lambda *_: None)
    folder = scan(FolderSource(medium, labels), make_plan(), key, tmp_path / "folder", lambda *_: None)
    assert listed == alone
    assert (listed.files, folder.files) == (3, 5)
    assert (listed.used, listed.dataset_digest) == (folder.used, folder.dataset_digest)
    rows = [(tmp_path / name / "images.npy").read_bytes() for name in ("listed", "folder")]
    assert rows[0] == rows[1]


def test_its_files_are_those_of_the_folder(medium: Path) -> None:
    listing = list_dicomdir(medium / "DICOMDIR")
    assert listing.refused == ()
    assert listing.files == tuple(path for path in list_archive(medium).files if path.name != "DICOMDIR")
    assert len(listing.files) == 3


def test_real_files_are_the_same_as_from_the_folder(real_data: Path, tmp_path: Path) -> None:
    originals = sorted((real_data / "ct-contrast" / "site-50" / "dicom").iterdir())
    written(originals, tmp_path / "medium")
    found = [read_image(path, modalities=("CT",)) for path in list_dicomdir(tmp_path / "medium" / "DICOMDIR").files]
    expected = [read_image(path, modalities=("CT",)) for path in originals]
    assert sorted(one.content for one in found) == sorted(one.content for one in expected)
    assert len(found) == 12


def test_what_is_not_in_the_directory_is_not_listed(medium: Path) -> None:
    (medium / "AUTORUN.INF").write_text("[autorun]")
    assert len(list_dicomdir(medium / "DICOMDIR").files) == 3


def test_a_medium_copied_with_small_letters_is_read(medium: Path) -> None:
    for path in sorted(medium.rglob("*"), reverse=True):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower()))
    listing = list_dicomdir(medium / "DICOMDIR")
    assert listing.refused == ()
    assert [path.relative_to(medium).parts[0] for path in listing.files] == ["pt000000", "pt000000", "pt000001"]


def test_a_file_that_is_missing_is_refused_and_the_others_are_listed(medium: Path) -> None:
    lost = list_dicomdir(medium / "DICOMDIR").files[1]
    lost.unlink()
    listing = list_dicomdir(medium / "DICOMDIR")
    assert listing.refused == ((lost, Refusal.READ_ERROR),)
    assert len(listing.files) == 2


def test_a_folder_where_a_file_should_be_is_refused(medium: Path) -> None:
    first = list_dicomdir(medium / "DICOMDIR").files[0]
    listing = list_dicomdir(changed(medium, naming(list(first.parent.relative_to(medium).parts))))
    assert listing.files == ()
    assert listing.refused == ((first.parent, Refusal.READ_ERROR),)


def test_a_file_that_is_named_twice_is_listed_once(medium: Path) -> None:
    first = list_dicomdir(medium / "DICOMDIR").files[0]
    listing = list_dicomdir(changed(medium, naming(list(first.relative_to(medium).parts))))
    assert listing.files == (first,)


def test_a_record_out_of_use_is_left_out(medium: Path) -> None:
    assert list_dicomdir(changed(medium, lambda record: setattr(record, "RecordInUseFlag", 0))).files == ()


def test_records_that_lead_in_a_circle_are_each_taken_once(medium: Path) -> None:
    def loop(record: Dataset) -> None:
        record.OffsetOfTheNextDirectoryRecord = record.seq_item_tell
        record.OffsetOfReferencedLowerLevelDirectoryEntity = record.seq_item_tell

    assert len(list_dicomdir(changed(medium, loop)).files) == 3


def test_a_record_that_leads_to_none_means_that_records_are_lost(medium: Path) -> None:
    path = changed(medium, lambda record: setattr(record, "OffsetOfTheNextDirectoryRecord", 12))
    with pytest.raises(DicomdirUnreadable, match="damaged"):
        list_dicomdir(path)


def test_a_directory_that_is_cut_short_anywhere_is_never_taken_for_whole(medium: Path) -> None:
    path = medium / "DICOMDIR"
    content = path.read_bytes()
    for length in range(132, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DicomdirUnreadable):
            list_dicomdir(path)


def test_so_is_one_whose_sequence_does_not_tell_its_length(medium: Path) -> None:
    path = medium / "DICOMDIR"
    ds = dcmread(path)
    before = [record.seq_item_tell for record in ds.DirectoryRecordSequence]
    ds["DirectoryRecordSequence"].is_undefined_length = True
    ds.save_as(path)
    assert [record.seq_item_tell for record in dcmread(path).DirectoryRecordSequence] == before
    assert len(list_dicomdir(path).files) == 3
    content = path.read_bytes()
    for length in range(400, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DicomdirUnreadable):
            list_dicomdir(path)


OUTSIDE = {
    "the folder above": ["..", "OTHER"],
    "the folder above, further in": ["PT000000", "..", "..", "OTHER"],
    "an absolute path": ["/etc/passwd"],
    "an absolute path in parts": ["", "etc", "passwd"],
    "a path in one part": "PT000000/../../OTHER",
    "a path with backslashes": "..\\OTHER",
    "a drive": "C:",
    "here": ".",
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_directory_that_points_outside_of_its_folder_is_refused(case: str, medium: Path) -> None:
    (medium.parent / "OTHER").write_bytes(b"DICM")
    with pytest.raises(DicomdirUnreadable, match="not in its folder"):
        list_dicomdir(changed(medium, naming(OUTSIDE[case])))


def test_a_link_that_leads_outside_of_its_folder_is_refused(medium: Path) -> None:
    (medium.parent / "OTHER").write_bytes(b"DICM")
    (medium / "LINK").symlink_to(medium.parent / "OTHER")
    with pytest.raises(DicomdirUnreadable, match="not in its folder"):
        list_dicomdir(changed(medium, naming(["LINK"])))


def deflated(medium: Path) -> None:
    data = (medium / "DICOMDIR").read_bytes()
    (medium / "DICOMDIR").write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))


DAMAGED: dict[str, Callable[[Path], object]] = {
    "an image": lambda medium: shutil.copy(medium.parent / "P1-1.dcm", medium / "DICOMDIR"),
    "a text": lambda medium: (medium / "DICOMDIR").write_text("DICOMDIR"),
    "nothing": lambda medium: (medium / "DICOMDIR").write_bytes(b""),
    "in another transfer syntax": deflated,
    "cut off": lambda medium: (medium / "DICOMDIR").write_bytes((medium / "DICOMDIR").read_bytes()[:900]),
    "without records": lambda medium: (medium / "DICOMDIR").write_bytes((medium / "DICOMDIR").read_bytes()[:500]),
    "very long": lambda medium: os.truncate(medium / "DICOMDIR", 40_000_000),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_whole_dicomdir_is_refused_with_the_fix(
    case: str, medium: Path, recwarn: pytest.WarningsRecorder
) -> None:
    DAMAGED[case](medium)
    with pytest.raises(DicomdirUnreadable, match=r"export it again, or give the folder") as why:
        list_dicomdir(medium / "DICOMDIR")
    assert why.value.code == "ARCHIVE_MISSING"
    assert not recwarn


def test_a_dicomdir_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ArchiveMissing, match="there is no DICOMDIR"):
        list_dicomdir(tmp_path / "DICOMDIR")


def test_a_dicomdir_that_may_not_be_read_is_denied(medium: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("silo_agent.intake.dicomdir.read_file_meta_info", denied)
    with pytest.raises(ArchiveDenied, match="grant the agent's user"):
        list_dicomdir(medium / "DICOMDIR")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_no_damage_lists_anything_outside_or_raises_anything_else(medium: Path, data: st.DataObject) -> None:
    path = medium / "broken" / "DICOMDIR"
    path.parent.mkdir(exist_ok=True)
    content = bytearray((medium / "DICOMDIR").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        listing = list_dicomdir(path)
    except DicomdirUnreadable:
        return
    assert all(one.is_relative_to(path.parent) for one in listing.files)

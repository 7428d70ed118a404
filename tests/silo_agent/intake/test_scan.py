import csv
import errno
import json
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from boundary.plan import StudyPlan
from infra.hospitals.writing import Identity, write_image
from silo_agent.intake import archive
from silo_agent.intake import cache as cache_module
from silo_agent.intake.cache import load_cache
from silo_agent.intake.errors import ArchiveMissing, CacheMissing, CacheUnreadable, LabelsMissingFile
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.scan import Progress, scan
from silo_agent.intake.sources import FolderSource

PATIENTS = {"ANNA": "01", "BERT": "00", "CARL": "1", "DORA": "11", "EMIL": "0"}


def quiet(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def run(
    make_archive: Callable[..., Path], make_plan: Callable[..., StudyPlan], tmp_path: Path, key: bytes
) -> Callable[..., IntakeReport]:
    def run(
        patients: dict[str, str] = PATIENTS,
        before: Callable[[Path], object] = lambda _folder: None,
        on_progress: Progress = quiet,
        **plan: Any,
    ) -> IntakeReport:
        folder = make_archive(patients)
        before(folder)
        source = FolderSource(folder, folder / "labels.csv")
        return scan(source, make_plan(**plan), key, tmp_path / "cache", on_progress)

    return run


def test_a_clean_archive_becomes_arrays(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    report = run()
    arrays, loaded = load_cache(tmp_path / "cache")
    assert loaded == report
    assert (report.files, report.used, report.refused, report.problems) == (8, 8, {}, ())
    assert arrays.images.shape == (8, 1, 16, 24)
    assert (arrays.images.dtype, arrays.labels.dtype, arrays.patients.dtype) == (np.float32, np.int64, np.int64)
    assert sorted(arrays.labels) == [0] * 4 + [1] * 4
    assert len(set(arrays.patients)) == sum(report.patients.values()) == 5
    assert report.patients["holdout"] == len(set(arrays.patients[arrays.holdout])) >= 1
    assert report.images["holdout"]["1"] == int(arrays.labels[arrays.holdout].sum())


def test_pixels_and_labels_stay_together(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    run()
    arrays, _ = load_cache(tmp_path / "cache")
    # The archive's pixel values are 100 * patient + image, in HU; the window maps [-200, 300] to [0, 1].
    values = np.rint(arrays.images.max(axis=(1, 2, 3)) * 500 - 200).astype(int)
    expected = {
        min(100 * index + image, 300): int(label)
        for index, labels in enumerate(PATIENTS.values())
        for image, label in enumerate(labels, start=1)
    }
    assert all(expected[value] == label for value, label in zip(values, arrays.labels, strict=True) if value < 300)


def test_every_file_ends_somewhere(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        (folder / "README.txt").write_text("hello")
        (folder / "dicom" / "ANNA" / "1.dcm").write_bytes(b"")
        data = (folder / "dicom" / "BERT" / "1.dcm").read_bytes()
        (folder / "dicom" / "BERT" / "1.dcm").write_bytes(data[:-100])
        (folder / "dicom" / "BERT" / "copy.dcm").write_bytes((folder / "dicom" / "BERT" / "2.dcm").read_bytes())
        unlabelled = Identity("st-olavs", "FRED")
        write_image(folder / "new.dcm", np.full((9, 9), 7, np.int16), identity=unlabelled, modality="CT")
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to(folder)
        (folder / "broken").symlink_to(folder / "nowhere")

    report = run(before=spoil)
    assert report.refused == {
        "DUPLICATE": 1,
        "LABEL_MISSING": 1,
        "NOT_DICOM": 3,
        "READ_ERROR": 1,
        "TRUNCATED": 1,
    }
    assert report.files == 8 + 5
    assert report.label_rows_without_image == 2
    with (tmp_path / "cache" / "refused.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["code"] for row in rows}["dicom/BERT/1.dcm"] == "TRUNCATED"
    assert len(rows) == sum(report.refused.values())


def test_nothing_but_refused_csv_names_anything(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    run(before=lambda folder: (folder / "dicom" / "ANNA" / "x.txt").write_text("x"))
    for file in (tmp_path / "cache").iterdir():
        named = any(name.encode() in file.read_bytes() for name in (*PATIENTS, "2.25."))
        assert named == (file.name == "refused.csv"), file
        assert not any(Identity("st-olavs", who).accession.encode() in file.read_bytes() for who in PATIENTS), file


def test_only_the_digest_and_one_bit_may_be_published(run: Callable[..., IntakeReport]) -> None:
    report = run()
    assert report.publishable().model_dump() == {"dataset_digest": report.dataset_digest, "contract_met": True}


def test_the_cache_is_private(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    run()
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "cache").iterdir()}
    assert set(files.values()) == {0o600}
    arrays = {"images.npy", "labels.npy", "patients.npy", "split.npy", "made_of.npy"}
    assert files.keys() == arrays | {"report.json", "refused.csv", "known.bin", "withdrawn.bin"}


def test_the_same_archive_gives_the_same_bytes(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    run()
    first = {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir()}
    run()
    assert first == {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir()}


def test_a_scan_that_dies_leaves_the_cache_before_it(
    run: Callable[..., IntakeReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run()

    def die(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("silo_agent.intake.outcome.write_report", die)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert load_cache(tmp_path / "cache")[1] == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".lock"]


def test_progress_ends_with_all_files(run: Callable[..., IntakeReport]) -> None:
    seen = []
    run(on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 8) for number in range(9)]


PROBLEMS = {
    "class too small": ({"labels": {"classes": ["0", "1"], "minimum_per_class": 5}}, "class '0' has 4"),
    "class nobody has": ({"labels": {"classes": ["0", "1", "2"]}}, "class '2' has 0"),
    "too few patients": ({"min_patients": 6}, "5 patients"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_contract_that_is_not_met_is_told_in_a_sentence(case: str, run: Callable[..., IntakeReport]) -> None:
    plan, sentence = PROBLEMS[case]
    report = run(**plan)
    assert [problem[: len(sentence)] for problem in report.problems][:1] == [sentence]
    assert not report.publishable().contract_met


def test_too_many_exclusions_break_the_contract(run: Callable[..., IntakeReport]) -> None:
    def spoil(folder: Path) -> None:
        for path in sorted((folder / "dicom").rglob("*.dcm"))[:3]:
            path.write_bytes(path.read_bytes()[:-10])

    report = run(before=spoil, max_excluded_share=0.25)
    assert report.problems == ("3 of 8 candidate images had to be refused, the plan allows 25%; most often TRUNCATED",)


def test_an_empty_archive_is_a_report_with_problems(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    report = run(patients={}, before=lambda folder: (folder / "dicom").mkdir())
    arrays, _ = load_cache(tmp_path / "cache")
    assert arrays.images.shape == (0, 1, 16, 24)
    assert len(report.problems) == 3


def test_a_folder_that_may_not_be_listed_is_counted(
    run: Callable[..., IntakeReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def refuse(folder: str) -> Any:
        if str(folder).endswith("ANNA"):
            raise PermissionError
        return listed(folder)

    monkeypatch.setattr(archive.os, "scandir", refuse)
    assert run().refused == {"PERMISSION_DENIED": 1}


def test_an_archive_is_the_same_from_wherever_it_is_looked_at(
    make_archive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_archive(PATIENTS)
    (folder / "a-b").mkdir()
    (folder / "a-b" / "x").touch()
    (folder / "a").mkdir()
    (folder / "a" / "x").touch()
    os.mkfifo(folder / "pipe")
    whole = archive.folder_inventory(folder, 0.0)
    assert [item.name for item in whole.items][:3] == ["a/x", "a-b/x", "dicom/ANNA/1.dcm"]
    assert whole.refused == (("pipe", Refusal.NOT_DICOM),)
    monkeypatch.chdir(folder)
    assert archive.folder_inventory(Path(), 0.0).root == whole.root
    for root in (Path(), folder):
        for found in (archive.folder_inventory(root, 0.0), archive.list_archive(root).inventory(root, 0.0)):
            assert [item.name for item in found.items] == [item.name for item in whole.items]
            assert found.refused == whole.refused


def test_what_is_missing_is_named(
    make_plan: Callable[..., StudyPlan], make_archive: Callable[..., Path], tmp_path: Path, key: bytes
) -> None:
    folder = make_archive(PATIENTS)
    with pytest.raises(LabelsMissingFile):
        scan(FolderSource(folder, folder / "no.csv"), make_plan(), key, tmp_path / "cache", quiet)
    with pytest.raises(ArchiveMissing):
        scan(FolderSource(tmp_path / "no", folder / "labels.csv"), make_plan(), key, tmp_path / "cache", quiet)
    with pytest.raises(CacheMissing):
        load_cache(tmp_path / "cache")


def test_a_short_key_is_a_mistake_of_ours(
    make_plan: Callable[..., StudyPlan], make_archive: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_archive(PATIENTS)
    with pytest.raises(ValueError, match="16 bytes"):
        scan(FolderSource(folder, folder / "labels.csv"), make_plan(), b"short", tmp_path / "cache", quiet)


DAMAGE = {
    "images cut": lambda cache: os.truncate(cache / "images.npy", 500),
    "labels of another scan": lambda cache: np.save(cache / "labels.npy", np.zeros(3, dtype=np.int64)),
    "labels of another type": lambda cache: np.save(cache / "labels.npy", np.zeros(8)),
    "objects": lambda cache: np.save(cache / "labels.npy", np.array([None] * 8), allow_pickle=True),
    "counts that do not add up": lambda cache: (cache / "report.json").write_text(
        json.dumps(json.loads((cache / "report.json").read_text()) | {"files": 99})
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cache_is_not_loaded(case: str, run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    run()
    DAMAGE[case](tmp_path / "cache")
    with pytest.raises(CacheUnreadable):
        load_cache(tmp_path / "cache")


def test_a_file_name_that_is_not_utf8_is_escaped(run: Callable[..., IntakeReport], tmp_path: Path) -> None:
    run(before=lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("x"))
    assert "\\udcff.txt,NOT_DICOM" in (tmp_path / "cache" / "refused.csv").read_text()


def test_a_scan_leaves_the_last_of_the_disk_to_the_journal(
    run: Callable[..., IntakeReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run()
    free = cache_module.SPARE_BYTES + 10_000
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    with pytest.raises(OSError, match="256 MB are free for the scan") as why:
        run()
    assert why.value.errno == errno.ENOSPC
    assert load_cache(tmp_path / "cache")[1] == before
    assert not list(tmp_path.glob(".cache.*"))


def test_a_spool_gives_each_row_once_and_zeros_for_what_it_does_not_have(tmp_path: Path) -> None:
    rows = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 1, 4, 4)
    spool = cache_module.InputSpool(tmp_path, (4, 4), spare=0)
    spool.add(7, rows[0])
    spool.add_row(5, rows[1].tobytes())
    spool.add(9, rows[2])
    assert (5 in spool, 6 in spool) == (True, False)
    sums = spool.write([9, 6, 5], tmp_path / "images.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), np.stack([rows[2], rows[0] * 0, rows[1]]))
    assert sums == [zlib.crc32(row.tobytes()) for row in (rows[2], rows[0] * 0, rows[1])]
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]


def test_of_what_a_spool_is_given_twice_the_last_counts(tmp_path: Path) -> None:
    rows = np.arange(4 * 4 * 4, dtype=np.float32).reshape(4, 1, 4, 4)
    spool = cache_module.InputSpool(tmp_path, (4, 4), spare=0)
    for file, row in zip((7, 5, 7, 9), rows, strict=True):
        spool.add(file, row)
    spool.write([5, 7, 9], tmp_path / "images.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), rows[1:])


def test_a_spool_takes_only_the_plan_s_shape(tmp_path: Path) -> None:
    spool = cache_module.InputSpool(tmp_path, (4, 4))
    with pytest.raises(ValueError, match="the plan asks for"):
        spool.add(0, np.zeros((1, 4, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="the plan asks for"):
        spool.add_row(0, bytes(63))
    spool.close()

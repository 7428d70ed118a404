"""An archive that did not change is not read again, and every scan finds what it would find without an index."""

import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from infra.hospitals.writing import Identity, LabelRow, write_image, write_labels
from silo_agent import trainer
from silo_agent.errors import WorkCancelled
from silo_agent.intake import erasing, reading
from silo_agent.intake.archive import LocalFile, folder_inventory, list_archive, shown
from silo_agent.intake.cache import load_cache
from silo_agent.intake.encoding import Limits
from silo_agent.intake.erasing import MADE_OF, erase, forget_rows
from silo_agent.intake.index import Index
from silo_agent.intake.inputs import Preparation
from silo_agent.intake.outcome import NOT_NAMED
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Means, Memory
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.reuse import OtherScan
from silo_agent.intake.scan import Progress, scan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.withdrawn import Withdrawn, reference_of, tag_of
from tests.silo_agent.intake.kept import files, rows

MASTER = b"the hospital's master key"
KEY, OTHER_KEY = bytes(range(32)), bytes(reversed(range(32)))
PATIENTS = {"ANNA": "01", "BERT": "00", "CARL": "1", "DORA": "11", "EMIL": "0"}
HOSPITALS = [{"silo": f"hospital-{i}", "signing_key": SigningIdentity.generate().public.text} for i in range(3)]
LATER = timedelta(hours=1)
FILES = 11
Look = Callable[..., IntakeReport]


def make_plan(**dataset: Any) -> StudyPlan:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
    return parse_plan(
        {
            "version": 1,
            "name": "ct-contrast",
            "revision": 1,
            "purpose": {**purpose, "expires": "2030-01-01"},
            "hospitals": HOSPITALS,
            "model": {"name": "densenet-small", "version": 1},
            "preprocessing": {"size": [16, 24], "intensity": "window", "low": -200, "high": 300},
            "labels": {"classes": ["0", "1"]},
            "dataset": {"name": "chest-ct", "modalities": ["CT"], **dataset},
            "training": {"rounds": 2},
        }
    )


def write_one(path: Path, value: int, patient: str = "ANNA", image: int = 1, **extra: Any) -> None:
    pixels = np.full((12, 10), value, dtype=np.int16)
    write_image(path, pixels, identity=Identity("st-olavs", patient, image=image), modality="CT", extra=extra)


def write_hospital(folder: Path) -> Path:
    """Eight images, a copy, a text, and one that ends early; of CARL there is no label."""
    rows = []
    for number, (patient, labels) in enumerate(PATIENTS.items()):
        for image, label in enumerate(labels, start=1):
            write_one(folder / "dicom" / patient / f"{image}.dcm", 100 * number + image, patient, image)
            rows.append(LabelRow(Identity("st-olavs", patient, image=image), label))
    write_labels(folder / "labels.csv", "contrast", [row for row in rows if row.identity.patient != "CARL"])
    shutil.copy(folder / "dicom" / "BERT" / "2.dcm", folder / "dicom" / "BERT" / "copy.dcm")
    (folder / "notes.txt").write_text("hello")
    half = (folder / "dicom" / "EMIL" / "1.dcm").read_bytes()
    (folder / "dicom" / "EMIL" / "half.dcm").write_bytes(half[:-50])
    return folder


@dataclass(frozen=True, slots=True)
class Hospital:
    """An archive, and where its index and scans lie. The scan `mine` is under `KEY`."""

    folder: Path
    state: Path

    @property
    def index(self) -> Path:
        return self.state / "index.sqlite"

    def cache(self, name: str) -> Path:
        return self.state / "caches" / name

    def other(self, name: str = "mine") -> tuple[OtherScan, ...]:
        return (OtherScan(self.cache(name), KEY),)

    def look(
        self,
        cache: str = "a",
        *,
        index: bool = True,
        key: bytes = KEY,
        later: timedelta = LATER,
        others: tuple[OtherScan, ...] = (),
        limits: Limits | None = None,
        on_progress: Progress = lambda _done, _files: None,
        before: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        plan: StudyPlan | None = None,
    ) -> IntakeReport:
        told = Withdrawn(MASTER, *(frozenset(reference_of(MASTER, who) for who in some) for some in (before, after)))
        memory = Memory(self.index, datetime.now(UTC) + later, others) if index else None
        return scan(
            FolderSource(self.folder, self.folder / "labels.csv"), plan or make_plan(), key, self.cache(cache),
            on_progress, limits=limits, withdrawn=told, means=Means(memory=memory),
        )  # fmt: skip


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """Scanned with an index as `mine`, and without one under the other key as `plain`. Not to be changed."""
    hospital = Hospital(write_hospital(tmp_path_factory.mktemp("hospital")), tmp_path_factory.mktemp("state"))
    hospital.look("mine")
    hospital.look("plain", index=False, key=OTHER_KEY)
    return hospital


@pytest.fixture
def known(scanned: Hospital, tmp_path: Path) -> Hospital:
    """The same archive, with an index and scans of the test's own."""
    shutil.copytree(scanned.state, tmp_path / "state")
    return Hospital(scanned.folder, tmp_path / "state")


@pytest.fixture
def fresh(tmp_path: Path) -> Hospital:
    """An archive that may be changed."""
    return Hospital(write_hospital(tmp_path / "hospital"), tmp_path / "state")


# --- an archive that did not change ----------------------------------------------------------------------
def test_a_second_scan_opens_no_file_and_finds_the_same(known: Hospital, read: list[str]) -> None:
    report = known.look(others=known.other())
    assert read == []
    assert report.refused == {"DUPLICATE": 1, "LABEL_MISSING": 1, "NOT_DICOM": 1, "TRUNCATED": 1}
    assert (report.files, report.used) == (FILES, 7)
    assert files(known.cache("a")) == files(known.cache("mine"))


def test_a_scan_finds_the_same_with_an_index_and_without(known: Hospital) -> None:
    """`plain` was scanned without; the inputs are made anew, since no other scan is named."""
    known.look(key=OTHER_KEY)
    assert files(known.cache("a")) == files(known.cache("plain"))


def test_inputs_that_no_scan_has_are_made_again_of_those_that_are_used(known: Hospital, read: list[str]) -> None:
    said: list[tuple[int, int]] = []
    known.look(on_progress=lambda done, all_of_them: said.append((done, all_of_them)))
    assert len(read) == 7, "eight images, one without a label; neither the copy nor what is refused"
    assert said == sorted(said)
    assert said[-1] == (FILES, FILES)
    assert said[0] == (0, FILES)


def _replace(path: Path) -> None:
    """The inode and the time of the change tell it, which no program can set."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# what happens to one file, and what has to be read then
CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a new file": (lambda dicom: shutil.copy(dicom / "ANNA" / "1.dcm", dicom / "new.dcm"), {"dicom/new.dcm"}),
    "a file written over": (lambda dicom: write_one(dicom / "ANNA" / "1.dcm", 77), {"dicom/ANNA/1.dcm"}),
    "a file touched": (lambda dicom: os.utime(dicom / "ANNA" / "2.dcm"), {"dicom/ANNA/2.dcm"}),
    "a file replaced by another of the same size and time": (
        lambda dicom: _replace(dicom / "BERT" / "1.dcm"), {"dicom/BERT/1.dcm"},
    ),
    "a file renamed": (lambda dicom: (dicom / "DORA" / "1.dcm").rename(dicom / "x.dcm"), {"dicom/x.dcm"}),
    "a file gone": (lambda dicom: (dicom / "DORA" / "2.dcm").unlink(), set()),
    "the place of everything in the listing": (lambda dicom: (dicom / "0").write_text("hello"), {"dicom/0"}),
}  # fmt: skip


def test_what_changed_is_read_and_nothing_else(fresh: Hospital, read: list[str]) -> None:
    fresh.look("mine")
    for change, _ in CHANGES.values():
        change(fresh.folder / "dicom")
    read.clear()
    report = fresh.look(others=fresh.other())
    assert set(read) == set().union(*(expected for _, expected in CHANGES.values()))
    assert rows(fresh.index) == report.files, "what is gone is forgotten"
    assert report == fresh.look("anew", index=False)


def test_whatever_happens_to_an_archive_both_ways_find_the_same(fresh: Hospital) -> None:
    chance = random.Random(11)  # noqa: S311 - to choose files
    for step in range(4):
        for _ in range(4):
            chosen = chance.choice(sorted((fresh.folder / "dicom").rglob("*.dcm")))
            match chance.choice(["copy", "cut", "remove", "write"]):
                case "copy":
                    shutil.copy(chosen, fresh.folder / "dicom" / f"{step}{chance.random()}.dcm")
                case "cut":
                    chosen.write_bytes(chosen.read_bytes()[: chance.randrange(1, 900)])
                case "remove":
                    chosen.unlink()
                case "write":
                    write_one(chosen, chance.randrange(500))
        others = tuple(OtherScan(fresh.cache(str(number)), KEY) for number in range(step))
        assert fresh.look(str(step), others=others) == fresh.look("anew", index=False)
        assert files(fresh.cache(str(step))) == files(fresh.cache("anew"))


# --- what is remembered ----------------------------------------------------------------------------------
def test_the_index_names_nobody_and_nothing(known: Hospital) -> None:
    data = known.index.read_bytes()
    for name in (*PATIENTS, "st-olavs", "2.25.", ".dcm", "notes", str(known.folder), "TRUNCATED", '"CT"'):
        assert name.encode() not in data, name
    assert rows(known.index) == FILES


def test_the_index_is_one_file_for_the_agent_alone(scanned: Hospital) -> None:
    assert stat.S_IMODE(scanned.index.stat().st_mode) == 0o600
    assert sorted(path.name for path in scanned.state.iterdir()) == ["caches", "index.sqlite"]


def test_a_file_that_changed_just_now_is_not_remembered_yet(fresh: Hospital, read: list[str]) -> None:
    fresh.look(later=timedelta(0))
    assert rows(fresh.index) == 0
    read.clear()
    fresh.look()
    assert len(read) == FILES


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text("before")
    (item,) = folder_inventory(tmp_path, (datetime.now(UTC) + LATER).timestamp()).items
    assert isinstance(item, LocalFile)
    assert item.unchanged()
    path.write_text("change")
    assert not item.unchanged()
    path.unlink()
    assert not item.unchanged()


def test_what_may_be_otherwise_another_time_is_not_remembered(fresh: Hospital, read: list[str]) -> None:
    (fresh.folder / "gone.dcm").symlink_to("/proc/self/mem")  # a regular file that opens and cannot be read
    assert fresh.look().refused["READ_ERROR"] == 1
    assert rows(fresh.index) == FILES
    read.clear()
    assert fresh.look(others=fresh.other("a")).refused["READ_ERROR"] == 1
    assert read == ["gone.dcm"]


def test_a_scan_that_was_stopped_leaves_what_it_has_read(fresh: Hospital) -> None:
    def stop(done: int, _files: int) -> None:
        if done == 6:
            raise WorkCancelled("between two files")

    with pytest.raises(WorkCancelled):
        fresh.look(on_progress=stop)
    assert rows(fresh.index) >= 6


def test_a_plan_for_another_modality_reads_only_what_it_needs(fresh: Hospital, read: list[str]) -> None:
    of_no_use = make_plan(modalities=["CR"])
    assert fresh.look(plan=of_no_use).refused["MODALITY_MISMATCH"] == 10
    read.clear()
    assert fresh.look().used == 7
    # a text is no image for any plan, and half an image is half an image
    assert set(read) == {name for name in _names(fresh) if name not in {"notes.txt", "dicom/EMIL/half.dcm"}}
    read.clear()
    assert fresh.look(plan=of_no_use).refused["MODALITY_MISMATCH"] == 10
    assert read == []


def _names(hospital: Hospital) -> set[str]:
    listing = list_archive(hospital.folder, skip=hospital.folder / "labels.csv")
    return {shown(path, hospital.folder) for path in listing.files}


def test_other_limits_read_everything_anew(known: Hospital, read: list[str]) -> None:
    assert known.look(limits=Limits(max_side=11)).refused["TOO_LARGE"] == 10
    assert len(read) == FILES
    assert rows(known.index) == FILES


# --- an index that is not what it should be --------------------------------------------------------------
def _statement(sql: str) -> Callable[[Path], None]:
    def run(index: Path) -> None:
        with closing(sqlite3.connect(index, isolation_level=None)) as db:
            db.execute(sql)

    return run


BROKEN: dict[str, tuple[Callable[[Path], object], int]] = {
    "no database": (lambda index: index.write_bytes(b"no database at all" * 100), FILES),
    "cut": (lambda index: os.truncate(index, index.stat().st_size // 2), FILES),
    "empty": (lambda index: index.write_bytes(b""), FILES),
    "a folder": (lambda index: (index.unlink(), index.mkdir()), FILES),
    "another's tables": (_statement("ALTER TABLE files RENAME TO things"), FILES),
    "another version": (_statement("UPDATE made SET version = 'of long ago'"), FILES),
    # of these one row may be right by chance
    "one file's facts at another's": (_statement("UPDATE files SET facts = (SELECT MAX(facts) FROM files)"), FILES - 1),
    "another's patient": (_statement("UPDATE files SET patient = 'ff'"), FILES),
    "facts that are none": (_statement("UPDATE files SET facts = x'00'"), FILES),
    "facts of another type": (_statement("UPDATE files SET facts = 7, patient = 8"), FILES),
    "facts that go on": (_statement("UPDATE files SET facts = CAST(facts || x'00' AS BLOB)"), FILES),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_that_was_changed_is_not_believed(case: str, known: Hospital, read: list[str]) -> None:
    change, at_least = BROKEN[case]
    change(known.index)
    known.look(others=known.other())
    assert len(set(read)) >= at_least
    assert files(known.cache("a")) == files(known.cache("mine"))


def test_what_is_no_index_is_made_again(known: Hospital, read: list[str]) -> None:
    known.index.write_bytes(b"no database at all" * 100)
    known.look("mine")
    read.clear()
    known.look(others=known.other())
    assert read == []


def test_an_index_that_another_process_holds_is_done_without(
    known: Hospital, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "_WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(known.index, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        known.look()
    assert len(set(read)) == FILES
    assert files(known.cache("a")) == files(known.cache("mine"))
    assert rows(known.index) == FILES


# --- inputs of other studies -----------------------------------------------------------------------------
def test_another_study_of_the_same_preprocessing_takes_its_inputs_over(known: Hospital, read: list[str]) -> None:
    known.look(key=OTHER_KEY, others=known.other())
    assert read == []
    assert files(known.cache("a")) == files(known.cache("plain"))


def test_studies_cannot_be_matched_by_what_their_inputs_were_made_of(scanned: Hospital) -> None:
    mine, plain = (
        {row.tobytes() for row in np.load(scanned.cache(name) / MADE_OF)[:, :32]} for name in ("mine", "plain")
    )
    assert len(mine) == len(plain) == 7
    assert mine.isdisjoint(plain)


def test_another_preprocessing_makes_its_own_inputs(known: Hospital, read: list[str]) -> None:
    plan = make_plan()
    other = plan.model_copy(update={"preprocessing": plan.preprocessing.model_copy(update={"high": 299})})
    known.look(plan=other, others=known.other())
    assert len(read) == 7


def _zero_a_row(cache: Path) -> None:
    images = np.load(cache / "images.npy")
    images[2] = 0
    np.save(cache / "images.npy", images)


SPOILED: dict[str, tuple[Callable[[Path], object], int]] = {
    "a row of zeros, as one that is being erased": (_zero_a_row, 1),
    "cut": (lambda cache: os.truncate(cache / "images.npy", 2000), 6),
    "of another size": (lambda cache: np.save(cache / "images.npy", np.zeros((7, 1, 8, 8), np.float32)), 7),
    "of another number": (lambda cache: np.save(cache / MADE_OF, np.load(cache / MADE_OF)[1:]), 7),
    "objects": (lambda cache: np.save(cache / MADE_OF, np.array([None] * 7), allow_pickle=True), 7),
    "of before there were any": (lambda cache: (cache / MADE_OF).unlink(), 7),
    "not there": (shutil.rmtree, 7),
}


@pytest.mark.parametrize("case", SPOILED)
def test_an_input_that_is_not_whole_is_made_again(case: str, known: Hospital, read: list[str]) -> None:
    spoil, made_again = SPOILED[case]
    spoil(known.cache("mine"))
    known.look(key=OTHER_KEY, others=known.other())
    assert len(read) == made_again
    assert files(known.cache("a")) == files(known.cache("plain"))


# --- who withdrew ----------------------------------------------------------------------------------------
def test_forgetting_somebody_leaves_no_trace_of_them(known: Hospital, read: list[str]) -> None:
    dora = reference_of(MASTER, "DORA")
    assert dora.encode() in known.index.read_bytes()
    for _ in range(2):
        forget_rows(known.index, {dora, reference_of(MASTER, "NOBODY")})
        assert dora.encode() not in known.index.read_bytes()
        assert rows(known.index) == FILES - 2
    known.look(others=known.other())
    assert sorted(read) == ["dicom/DORA/1.dcm", "dicom/DORA/2.dcm"]


def test_a_damaged_index_raises_nothing_and_keeps_nobody_who_withdrew(tmp_path: Path) -> None:
    """From pages that do not hang together SQLite deletes less than there is, and quotes what is no text."""
    key, names = bytes(range(32)), Pseudonyms(Withdrawn(bytes(range(32))))
    people = [reference_of(key, f"patient {number}") for number in range(12)]
    whole, damaged, chance = tmp_path / "whole.sqlite", tmp_path / "index.sqlite", random.Random(1)  # noqa: S311
    with closing(Index(whole, names)) as index:
        section = index.section("archive", "images", "limits")
        for number in range(400):
            section.keep(f"{number}.dcm", b"state", people[number % 12], chance.randbytes(200))
        index.finish()
    data = whole.read_bytes()
    assert all(one.encode() in data for one in people)
    for _ in range(150):
        spoiled = bytearray(data)
        for _ in range(chance.choice([1, 5, 20, 60])):
            spoiled[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        damaged.write_bytes(spoiled)
        gone = chance.sample(people, 2)
        with closing(Index(damaged, names, gone)) as index:
            section = index.section("archive", "images", "limits")
            section.find([(f"{number}.dcm", b"state") for number in range(200)])
            section.keep("another.dcm", b"state", people[0], b"facts")
            index.finish()
        left = damaged.read_bytes() if damaged.exists() else b""
        assert not any(one.encode() in left for one in gone)


@pytest.mark.parametrize("spoil", [lambda index: index.write_bytes(b"no database"), lambda index: index.unlink()])
def test_an_index_that_nobody_can_be_taken_out_of_is_removed(spoil: Callable[[Path], object], known: Hospital) -> None:
    spoil(known.index)
    forget_rows(known.index, {reference_of(MASTER, "DORA")})
    assert not known.index.exists()


def test_whoever_withdrew_comes_back_neither_from_the_index_nor_from_another_study(known: Hospital) -> None:
    """Also where nobody took them out of either: the index and the other scan are those of before."""
    report = known.look(key=OTHER_KEY, others=known.other(), before=("DORA",))
    assert report.refused["WITHDRAWN"] == 2
    assert report == known.look("anew", index=False, key=OTHER_KEY, before=("DORA",))
    assert files(known.cache("a")) == files(known.cache("anew"))
    assert reference_of(MASTER, "DORA").encode() not in known.index.read_bytes()
    assert rows(known.index) == FILES - 2
    refused = (known.cache("a") / "refused.csv").read_text()
    assert "DORA" not in refused
    assert refused.count(NOT_NAMED) == 2


def test_whoever_withdrew_since_counts_and_nothing_of_them_is_kept_or_taken_over(known: Hospital) -> None:
    report = known.look(others=known.other(), after=("DORA",))
    arrays, before = load_cache(known.cache("a"))[0], load_cache(known.cache("mine"))[1]
    assert report == before
    assert arrays.withdrawn.sum() == 2
    assert not arrays.images[arrays.withdrawn].any()
    assert not np.load(known.cache("a") / MADE_OF)[arrays.withdrawn].any()
    assert rows(known.index) == FILES - 2


def test_an_erased_row_is_not_taken_over_by_another_study(known: Hospital, read: list[str]) -> None:
    erase(known.cache("mine"), {tag_of(KEY, reference_of(MASTER, "DORA"))})
    known.look(key=OTHER_KEY, others=known.other())
    assert sorted(read) == ["dicom/DORA/1.dcm", "dicom/DORA/2.dcm"], "made of the archive, which still has them"


def test_no_pixel_of_whoever_withdrew_before_is_read_nor_any_file_of_theirs_named(
    fresh: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_one(fresh.folder / "dicom" / "DORA" / "scout.dcm", 9, "DORA", 9, ImageType=scout)
    decoded: list[int] = []

    def noted(_self: Preparation, image: Any) -> Any:
        decoded.append(image.size)
        return np.zeros((1, 16, 24), np.float32)

    monkeypatch.setattr(Preparation, "input_of", noted)
    report = fresh.look(before=("DORA",))
    assert (report.refused["LOCALIZER"], report.refused["WITHDRAWN"]) == (1, 2)
    assert len(decoded) == 7, "of nine images that could be decoded"
    assert "DORA" not in (fresh.cache("a") / "refused.csv").read_text()


# --- as the daemon asks for it ---------------------------------------------------------------------------
class Nobody:
    """The daemon's side of the pipes."""

    def progress(self, _step: int, _steps: int) -> None:
        pass

    def rest(self, _seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")


def test_the_child_scans_with_the_index_and_the_studies_beside(
    fresh: Hospital, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SETTLED_SECONDS", -LATER.total_seconds())
    (fresh.state / "caches").mkdir(parents=True)
    (fresh.state / "dataset.key").write_bytes(MASTER)
    command = {
        "plan": make_plan().model_dump(mode="json"), "threads": 2,
        "source": {"kind": "folder", "path": str(fresh.folder)},
        "labels": {"kind": "csv", "path": str(fresh.folder / "labels.csv")},
        "key_file": str(fresh.state / "dataset.key"),
        "withdrawn": {"before": [], "after": []}, "index": str(fresh.index),
    }  # fmt: skip
    for study in ("first-study", "second-study"):
        read.clear()
        trainer._scan(command | {"study": study, "cache": str(fresh.cache(study))}, Nobody())  # type: ignore[arg-type]
    assert read == []
    arrays = [load_cache(fresh.cache(study))[0] for study in ("first-study", "second-study")]
    assert sorted(row.tobytes() for row in arrays[0].images) == sorted(row.tobytes() for row in arrays[1].images)
    assert rows(fresh.index) == FILES


def test_torch_has_its_threads_back_after_a_scan() -> None:
    import torch

    before = torch.get_num_threads()
    preparation = Preparation(make_plan().preprocessing)
    preparation.input_of(np.zeros((9, 9), np.float32))
    assert torch.get_num_threads() == 1
    preparation.close()
    assert torch.get_num_threads() == before

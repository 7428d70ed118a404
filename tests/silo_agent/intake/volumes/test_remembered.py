"""Series that did not change are not read again, and every scan finds what it would find without an index."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infra.hospitals.segmentations import write_segmentation
from infra.hospitals.volumes import Lie, write_enhanced, write_series
from infra.hospitals.writing import Identity, uid
from silo_agent import trainer
from silo_agent.errors import WorkCancelled
from silo_agent.intake import reading
from silo_agent.intake.cache import load_cache
from silo_agent.intake.erasing import MADE_OF, MASKS, erase, forget_rows
from silo_agent.intake.image import NotUsable, Refused
from silo_agent.intake.reading import Means, Memory
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.reuse import OtherScan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.volumes import process, scan
from silo_agent.intake.volumes.opened import FileFacts, OpenVolumeFile
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits
from silo_agent.intake.volumes.scan import scan_volumes
from silo_agent.intake.withdrawn import Withdrawn, reference_of, tag_of
from tests.silo_agent.intake.kept import files, rows
from tests.silo_agent.intake.masks.test_nifti import nifti
from tests.silo_agent.intake.test_index import Nobody
from tests.silo_agent.intake.volumes.test_scan_volumes import plan_of

MASTER, KEY, OTHER_KEY = b"the hospital's master key", bytes(range(32)), bytes(reversed(range(32)))
SHAPE, LIE = (4, 8, 6), Lie(origin=(-10.3, -20.7, -300.1), spacing=(2.0, 2.0), gap=4.0)
VOXELS = plan_of({"size": [16, 16, 16], "spacing": [4, 2, 2]})
PIXELS = plan_of({"size": [16, 16], "spacing": [2, 2]}, max_images_per_patient=1000)
PATIENTS = ("ANNA", "BERT", "CARL")
FILES = len(PATIENTS) * (SHAPE[0] + 1)


def write_patient(folder: Path, patient: str, seed: int, lie: Lie = LIE) -> None:
    """A series, and its mask both as a segmentation beside it and as a NIfTI file elsewhere."""
    rng, who = np.random.default_rng(seed), Identity("st-olavs", patient)
    values, mask = rng.integers(-900, 900, SHAPE).astype(np.int16), rng.integers(0, 3, SHAPE).astype(np.uint8)
    write_series(folder / "dicom" / patient, values, identity=who, lie=lie)
    write_mask(folder, who, mask, lie=lie)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 4, -2, -2, 1
    affine[:3, 3] = -LIE.origin[0], -LIE.origin[1], LIE.origin[2]
    (folder / "nifti").mkdir(exist_ok=True)
    (folder / "nifti" / f"{uid(who.series_uid, 1)}.nii").write_bytes(nifti(mask, affine))


def write_mask(
    folder: Path, who: Identity, mask: NDArray[np.uint8], number: int = 900, tumour: str = "tumour", lie: Lie = LIE
) -> None:
    path, named = folder / "dicom" / who.patient / f"mask-{number}.dcm", {1: "liver", 2: tumour}
    write_segmentation(
        path, mask, named, identity=replace(who, image=number), series=uid(who.series_uid, 1), lie=lie
    )  # fmt: skip


@dataclass
class Hospital:
    """An archive, its index, and scans. Files are read in this process, and `opened` are their names."""

    folder: Path
    opened: list[str] = field(default_factory=list)

    @property
    def index(self) -> Path:
        return self.folder / "index.sqlite"

    def cache(self, name: str) -> Path:
        return self.folder / "caches" / name

    def look(
        self,
        cache: str = "a",
        *,
        index: bool = True,
        others: tuple[str, ...] = ("first",),
        later: timedelta = timedelta(hours=1),
        plan: Any = VOXELS,
        key: bytes = KEY,
        kind: Any = "seg",
        before: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        limits: VolumeLimits | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _files: None,
    ) -> IntakeReport:
        told = Withdrawn(MASTER, *(frozenset(reference_of(MASTER, who) for who in some) for some in (before, after)))
        scans = tuple(OtherScan(self.cache(name), KEY) for name in others)
        memory = Memory(self.index, datetime.now(UTC) + later, scans) if index else None
        dicom = self.folder / "dicom"
        source = FolderSource(dicom, self.folder / "nifti" if kind == "nifti" else dicom, kind)
        with self.reading():
            return scan_volumes(
                source, plan, key, self.cache(cache), on_progress,
                limits=limits, withdrawn=told, means=Means(memory=memory), held_back=False,
            )  # fmt: skip

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Without another process, whose start takes longer than all the rest."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scan, "VolumeReader", lambda limits, how, _patience: _ReaderHere(self, limits, how))
            yield

    def both(self, cache: str, **more: Any) -> None:
        """With what is remembered and without, the same is found and kept, to the byte."""
        assert self.look(cache, **more) == self.look("anew", index=False, **more)
        assert files(self.cache(cache)) == files(self.cache("anew"))


class _ReaderHere:
    """As `process.VolumeReader`, with the answers through the same JSON."""

    def __init__(self, hospital: Hospital, limits: VolumeLimits, how: Acceptance) -> None:
        self._hospital, self._limits, self._how = hospital, limits, how
        self._file: OpenVolumeFile | None = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def facts(self, path: Path, number: int, *, is_nifti: bool) -> FileFacts:
        self._hospital.opened.append(os.fspath(path.relative_to(self._hospital.folder)))
        self.close()
        self._file = OpenVolumeFile(path, number, self._how, self._limits)
        said = process._FACTS.dump_json(self._file.facts(is_nifti=is_nifti))
        return process._FACTS.validate_json(said, strict=True)

    def frame(self, _path: Path, _number: int, frame: int, *, is_nifti: bool) -> NDArray[np.float32]:
        assert self._file is not None, is_nifti
        found = self._file.frame(frame)
        if isinstance(found, Refused):
            raise NotUsable(found.code, lasting=found.lasting)
        return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    for seed, patient in enumerate(PATIENTS):
        write_patient(folder, patient, seed)
    (folder / "dicom" / "notes.txt").write_text("hello")
    return folder


@pytest.fixture
def known(archive: Path, tmp_path: Path) -> Hospital:
    """Scanned once, as `first`; with nothing opened since."""
    shutil.copytree(archive, tmp_path / "hospital")
    hospital = Hospital(tmp_path / "hospital")
    assert hospital.look("first").used == 3
    assert len(hospital.opened) == 2 * FILES + 1, "each for its header and for its pixels, and a text"
    hospital.opened.clear()
    return hospital


# --- an archive that did not change ----------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["seg", "nifti"])
@pytest.mark.parametrize("plan", [VOXELS, PIXELS], ids=["volumes", "slices"])
def test_a_second_scan_opens_no_file_and_finds_the_same(known: Hospital, plan: Any, kind: str) -> None:
    known.look("first", plan=plan, kind=kind)
    known.opened.clear()
    seen: list[tuple[int, int]] = []
    report = known.look(plan=plan, kind=kind, on_progress=lambda *step: seen.append(step))
    assert known.opened == []
    assert report.used == (3 if plan is VOXELS else 12)
    assert files(known.cache("a")) == files(known.cache("first"))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_scan_replaces_the_one_that_it_takes_its_inputs_from(known: Hospital) -> None:
    before = files(known.cache("first"))
    known.look("first")
    assert known.opened == []
    assert files(known.cache("first")) == before


def test_a_scan_for_another_series_reads_no_header_again(known: Hospital) -> None:
    nothing = plan_of({"size": [16, 16, 16], "spacing": [4, 2, 2]}, series={"orientation": "sagittal"})
    assert known.look(plan=nothing).refused == {"NOT_DICOM": 1, "SERIES_NOT_SELECTED": 3}
    assert known.opened == []


def test_inputs_that_no_scan_has_are_made_again_of_those_that_are_used(known: Hospital) -> None:
    capped = plan_of({"size": [16, 16], "spacing": [2, 2]}, max_images_per_patient=2)
    known.look("first", plan=capped)
    known.opened.clear()
    known.look(plan=capped)
    assert known.opened == [], "what is over the cap has no input, and needs none"
    shutil.rmtree(known.cache("first"))
    known.look(plan=capped)
    assert len(known.opened) == FILES
    assert len(set(known.opened)) == FILES


def test_of_a_series_of_which_a_scan_has_some_slices_all_are_made(known: Hospital) -> None:
    known.look("first", plan=plan_of({"size": [16, 16], "spacing": [2, 2]}, max_images_per_patient=2))
    known.both("a", plan=PIXELS)


def test_copies_and_slices_at_one_place_are_compared_once(known: Hospital) -> None:
    dicom = known.folder / "dicom"
    shutil.copy(dicom / "ANNA" / "01-0002.dcm", dicom / "copy.dcm")
    _as_another_instance(dicom / "BERT" / "01-0001.dcm", dicom / "again.dcm", value=None)
    _as_another_instance(dicom / "CARL" / "01-0001.dcm", dicom / "other.dcm", value=7)
    report = known.look("first")
    assert {"DUPLICATE", "DUPLICATE_PIXELS", "DUPLICATE_POSITION"} <= report.refused.keys()
    known.opened.clear()
    assert known.look() == report
    assert known.opened == []


def test_what_the_frames_of_one_object_say_is_remembered(known: Hospital) -> None:
    shutil.rmtree(known.folder / "dicom" / "ANNA")
    who, rng = Identity("st-olavs", "ANNA"), np.random.default_rng(0)
    values, mask = rng.integers(-900, 900, SHAPE).astype(np.int16), rng.integers(0, 3, SHAPE).astype(np.uint8)
    path = known.folder / "dicom" / "ANNA" / "one.dcm"
    slopes = [(2.0, -1.5), (1.0, 0.0), (2.0, -1.5), (3.25, 4.0)]
    write_enhanced(path, values, identity=who, lie=LIE, order=[3, 0, 1, 2], rescale=slopes.__getitem__)
    write_segmentation(
        path.with_name("m.dcm"), mask, {1: "liver", 2: "tumour"}, identity=replace(who, image=900),
        series=who.series_uid, lie=LIE,
    )  # fmt: skip
    assert known.look("first").used == 3
    known.opened.clear()
    known.look("second", others=(), plan=PIXELS)
    assert sum(name == "dicom/ANNA/one.dcm" for name in known.opened) == 1
    known.both("a", plan=PIXELS)


# --- what changed ----------------------------------------------------------------------------------------
def _as_another_instance(path: Path, to: Path, value: int | None) -> None:
    ds = pydicom.dcmread(path)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid(to.name)
    if value is not None:
        ds.PixelData = np.full((ds.Rows, ds.Columns), value, np.int16).tobytes()
    ds.save_as(to)


def _edit(path: Path, **attributes: Any) -> None:
    ds = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.save_as(path)


def _all_of(patient: str) -> set[str]:
    return {f"dicom/{patient}/{name}" for name in (*(f"01-{n:04}.dcm" for n in range(SHAPE[0])), "mask-900.dcm")}


# what happens to one file, and what has to be read then
CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "pixels": (lambda dicom: _edit(dicom / "ANNA" / "01-0001.dcm", PixelData=b"\1\0" * 48), _all_of("ANNA")),
    "a place": (
        lambda dicom: _edit(dicom / "ANNA" / "01-0001.dcm", ImagePositionPatient=LIE.position(1.001)), _all_of("ANNA"),
    ),
    "a file touched": (lambda dicom: os.utime(dicom / "BERT" / "01-0002.dcm"), _all_of("BERT")),
    "a mask": (lambda dicom: os.utime(dicom / "BERT" / "mask-900.dcm"), _all_of("BERT")),
    "a file renamed": (
        lambda dicom: (dicom / "CARL" / "01-0000.dcm").rename(dicom / "x.dcm"),
        _all_of("CARL") - {"dicom/CARL/01-0000.dcm"} | {"dicom/x.dcm"},
    ),
    "a slice gone from the end": (
        lambda dicom: (dicom / "CARL" / "01-0003.dcm").unlink(),
        set(),  # frames of the mask lie on no slice any more, which headers tell
    ),
    "a slice gone from within": (lambda dicom: (dicom / "CARL" / "01-0001.dcm").unlink(), set()),
    "a mask gone": (lambda dicom: (dicom / "CARL" / "mask-900.dcm").unlink(), set()),
    "the place of everything in the listing": (lambda dicom: (dicom / "0").write_text("hello"), {"dicom/0"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_changed_is_read_and_nothing_else(case: str, known: Hospital) -> None:
    change, expected = CHANGES[case]
    change(known.folder / "dicom")
    known.look()
    assert set(known.opened) == expected
    known.both("b")


def test_a_nifti_mask_that_changed_is_read_with_its_series(known: Hospital) -> None:
    known.look("first", kind="nifti")
    path = next((known.folder / "nifti").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    known.opened.clear()
    known.look(kind="nifti")
    assert len(set(known.opened)) == SHAPE[0] + 1
    assert known.opened.count(f"nifti/{path.name}") == 2
    known.both("b", kind="nifti")


def test_a_file_that_changes_after_its_header_was_looked_up_is_not_taken_for_the_former(known: Hospital) -> None:
    """No scan has the inputs, so that they are read again; what is then found counts, and is not remembered."""
    victim = known.folder / "dicom" / "ANNA" / "01-0001.dcm"

    def change(done: int, _total: int) -> None:
        if done == FILES + 1:  # all is looked up
            _edit(victim, PixelData=b"\1\0" * 48)

    known.look(others=(), on_progress=change)
    assert files(known.cache("a"))["images.npy"] != files(known.cache("first"))["images.npy"]
    known.both("b")


def test_other_limits_read_everything_anew(known: Hospital) -> None:
    assert known.look(limits=VolumeLimits(max_voxels=100)).refused["TOO_LARGE"] == 3
    assert len(set(known.opened)) == FILES + 1
    known.both("b")


def test_segments_are_called_as_the_plan_has_them(known: Hospital) -> None:
    other = plan_of({"size": [16, 16, 16], "spacing": [4, 2, 2]}, labels={"classes": ["background", "lever", "liver"]})
    known.both("a", plan=other)
    assert load_cache(known.cache("a"))[1].used == 3


# --- whatever happens ------------------------------------------------------------------------------------
def _a_slice(folder: Path, chance: random.Random) -> Path:
    found = [path for path in sorted((folder / "dicom").rglob("*.dcm")) if "mask" not in path.name]
    assume(found)
    return chance.choice(found)


def _copy(folder: Path, chance: random.Random) -> None:
    data = _a_slice(folder, chance).read_bytes()
    (folder / "dicom" / f"{chance.random()}.dcm").write_bytes(data)


def _write_over(folder: Path, chance: random.Random) -> None:
    path = _a_slice(folder, chance)
    with path.open("r+b") as file:
        file.seek(-chance.randrange(1, 90), os.SEEK_END)
        file.write(bytes([chance.randrange(256)]))


def _shift(folder: Path, chance: random.Random) -> None:
    # by nothing that matters, by enough to be refused, or onto the next one
    by = chance.choice([0.001, 0.5, 1])
    path = _a_slice(folder, chance)
    ds = _read(path)
    if ds is not None:
        x, y, z = (float(one) for one in ds.ImagePositionPatient)
        _edit(path, ImagePositionPatient=[x, y, f"{z + by * LIE.gap:.6g}"])


def _read(path: Path) -> pydicom.Dataset | None:
    """None where it was cut before."""
    try:
        ds = pydicom.dcmread(path)
        _ = ds.ImagePositionPatient, ds.PixelData
    except (AttributeError, pydicom.errors.InvalidDicomError, EOFError, OSError):
        return None
    return ds


def _another_instance(folder: Path, chance: random.Random) -> None:
    path = _a_slice(folder, chance)
    if _read(path) is not None:
        to = path.with_name(f"i{chance.random()}.dcm")
        _as_another_instance(path, to, value=chance.choice([None, 7]))


def _cut(folder: Path, chance: random.Random) -> None:
    path = _a_slice(folder, chance)
    path.write_bytes(path.read_bytes()[: chance.randrange(1, 1500)])


def _mask(folder: Path, chance: random.Random) -> None:
    patient = chance.choice(PATIENTS)
    mask = np.random.default_rng(chance.randrange(9)).integers(0, 3, SHAPE).astype(np.uint8)
    number, tumour = chance.choice([900, 900, 901]), chance.choice(["tumour", "tumour", "cyst", "liver"])
    write_mask(folder, Identity("st-olavs", patient), mask, number, tumour)


def _nifti(folder: Path, chance: random.Random) -> None:
    path = chance.choice(sorted((folder / "nifti").iterdir()))
    data = bytearray(path.read_bytes())
    data[-chance.randrange(1, 90)] = chance.choice([0, 1, 2, 2, 3])
    path.write_bytes(data)


def _exchange(folder: Path, chance: random.Random) -> None:
    one, other = _a_slice(folder, chance), _a_slice(folder, chance)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def _spoil(folder: Path, chance: random.Random) -> None:
    index = folder / "index.sqlite"
    if index.exists():
        data = bytearray(index.read_bytes())
        for _ in range(20):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        index.write_bytes(data)


def _forget_a_scan(folder: Path, chance: random.Random) -> None:
    scans = sorted((folder / "caches").glob("[0-9]*"))
    if scans:
        shutil.rmtree(chance.choice(scans))


def _erase(folder: Path, chance: random.Random) -> None:
    """As a withdrawal does, of somebody whom the next scan may have again all the same."""
    who = reference_of(MASTER, chance.choice(PATIENTS))
    forget_rows(folder / "index.sqlite", {who})
    for cache in sorted((folder / "caches").glob("[0-9]*")):
        erase(cache, {tag_of(KEY, who)})


MUTATIONS: dict[str, Callable[[Path, random.Random], object]] = {
    "written over": _write_over,
    "shifted": _shift,
    "removed": lambda folder, chance: _a_slice(folder, chance).unlink(),
    "copied": _copy,
    "another instance": _another_instance,
    "renamed": lambda folder, chance: _a_slice(folder, chance).rename(folder / "dicom" / f"r{chance.random()}.dcm"),
    "exchanged": _exchange,
    "cut": _cut,
    "a mask": _mask,
    "a NIfTI mask": _nifti,
    "another patient": lambda folder, chance: write_patient(folder, f"NEW{chance.randrange(3)}", chance.randrange(4)),
    "index spoiled": _spoil,
    "scan gone": _forget_a_scan,
    "patient erased": _erase,
}
POLICIES: dict[str, dict[str, Any]] = {
    "volumes": {},
    "slices": {"plan": PIXELS},
    "NIfTI": {"kind": "nifti"},
    "slices, NIfTI": {"plan": PIXELS, "kind": "nifti"},
    "few slices": {"plan": plan_of({"size": [16, 16], "spacing": [2, 2]}, max_images_per_patient=2)},
    "each alone": {"plan": plan_of({"size": [16, 16, 16], "spacing": [4, 2, 2]}, private=True)},
    "other size": {"plan": plan_of({"size": [16, 16, 16], "spacing": [4, 3, 3]})},
    "other class": {
        "plan": plan_of({"size": [16, 16, 16], "spacing": [4, 2, 2]}, labels={"classes": ["background", "cyst"]})
    },
    "long series": {"plan": plan_of({"size": [16, 16, 16], "spacing": [4, 2, 2]}, series={"smallest_slices": 4})},
    "small": {"limits": VolumeLimits(max_voxels=3 * 8 * 6)},
    "withdrawn": {"before": ("ANNA",), "after": ("BERT",)},
    "withdrawn, slices": {"plan": PIXELS, "before": ("CARL",), "after": ("ANNA",)},
}
STEP = st.tuples(
    st.lists(st.tuples(st.sampled_from(sorted(MUTATIONS)), st.integers(0, 2**16)), max_size=3),
    st.sampled_from(sorted(POLICIES)),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(STEP, min_size=2, max_size=5))
def test_whatever_happens_to_an_archive_both_ways_find_the_same(
    archive: Path, steps: list[tuple[list[tuple[str, int]], str]]
) -> None:
    with TemporaryDirectory() as name:
        hospital = Hospital(Path(name) / "hospital")
        shutil.copytree(archive, hospital.folder)
        for number, (mutations, policy) in enumerate(steps):
            for mutation, seed in mutations:
                MUTATIONS[mutation](hospital.folder, random.Random(seed))  # noqa: S311 - to choose files
            told = POLICIES[policy]
            hospital.both(str(number), others=tuple(map(str, range(number))), **told)
            if any(mutation == "index spoiled" for mutations, _ in steps[: number + 1] for mutation, _ in mutations):
                continue  # what hardware left of a row nobody can promise: see test_index.py
            gone = (*told.get("before", ()), *told.get("after", ()))
            data = hospital.index.read_bytes()
            assert not any(reference_of(MASTER, who).encode() in data for who in gone)


# --- what is remembered ----------------------------------------------------------------------------------
def test_the_index_names_nobody_and_tells_no_place(known: Hospital) -> None:
    data = known.index.read_bytes()
    assert rows(known.index) == FILES + 1 + 3
    for name in (*PATIENTS, "st-olavs", "2.25.", ".dcm", "liver", str(known.folder), "ORIGINAL", "-300.1"):
        assert name.encode() not in data, name
    for number in range(SHAPE[0]):
        place = np.array([*LIE.origin[:2], LIE.origin[2] + number * LIE.gap])
        assert not any(value.tobytes() in data for value in (place, place[2:], place.astype(np.float32)))


def test_nothing_that_a_scan_has_of_a_mask_is_its_free_text(known: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[FileFacts] = []
    take = scan.Looked.take
    monkeypatch.setattr(scan.Looked, "take", lambda self, number, says: (said.append(says), take(self, number, says)))
    known.look(others=(), index=False)
    segments = [segment for says in said if says.segmentation for segment in says.segmentation.segments]
    assert len(segments) == 6
    assert not {"liver", "tumour"} & {segment.label for segment in segments}


def test_a_file_that_changed_just_now_is_not_remembered_yet(known: Hospital) -> None:
    known.index.unlink()
    known.look(later=timedelta(0))
    assert rows(known.index) == 0


def test_what_may_be_otherwise_another_time_is_not_remembered(known: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at the pixels of one slice, and at the header of another."""
    for patient in ("ANNA", "BERT"):
        os.utime(known.folder / "dicom" / patient / "01-0001.dcm")
    header, frame = OpenVolumeFile.facts, OpenVolumeFile.frame

    def failing_header(self: OpenVolumeFile, *, is_nifti: bool) -> FileFacts:
        failing = self._path.parts[-2:] == ("BERT", "01-0001.dcm")
        return FileFacts(Refusal.READ_ERROR, lasting=False) if failing else header(self, is_nifti=is_nifti)

    def failing_frame(self: OpenVolumeFile, number: int) -> Any:
        failing = self._path.parts[-2:] == ("ANNA", "01-0001.dcm")
        return Refused(Refusal.READ_ERROR, lasting=False) if failing else frame(self, number)

    with monkeypatch.context() as disk:
        disk.setattr(OpenVolumeFile, "facts", failing_header)
        disk.setattr(OpenVolumeFile, "frame", failing_frame)
        assert known.look().refused == {"NOT_DICOM": 1, "READ_ERROR": 2, "SPACING_NONUNIFORM": 1}
    known.both("b")
    assert load_cache(known.cache("b"))[1].used == 3


def test_what_is_no_file_s_fault_is_not_remembered(known: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    os.utime(known.folder / "dicom" / "ANNA" / "01-0001.dcm")
    with monkeypatch.context() as full:
        full.setattr("silo_agent.intake.volumes.making.stacked", no_memory)
        assert known.look().refused == {"NOT_DICOM": 1, "TOO_LARGE": 1}
    assert known.look().used == 3


def test_a_scan_that_was_stopped_leaves_what_it_has_read(known: Hospital) -> None:
    known.index.unlink()

    def stop(done: int, _files: int) -> None:
        if done == 6:
            raise WorkCancelled("between two files")

    with pytest.raises(WorkCancelled):
        known.look(on_progress=stop)
    assert rows(known.index) >= 5


def test_what_an_archive_has_no_more_is_forgotten(known: Hospital) -> None:
    shutil.rmtree(known.folder / "dicom" / "ANNA")
    known.look()
    assert rows(known.index) == FILES + 1 + 3 - (SHAPE[0] + 1) - 1
    assert reference_of(MASTER, "ANNA").encode() not in known.index.read_bytes()


# --- inputs of other scans -------------------------------------------------------------------------------
def test_another_study_takes_inputs_and_masks_over_and_cannot_be_matched(known: Hospital) -> None:
    known.look(key=OTHER_KEY)
    assert known.opened == []
    known.look("anew", index=False, key=OTHER_KEY)
    assert files(known.cache("a")) == files(known.cache("anew"))
    mine, other = ({row.tobytes() for row in np.load(known.cache(name) / MADE_OF)[:, :32]} for name in ("first", "a"))
    assert len(mine) == len(other) == 3
    assert mine.isdisjoint(other)


def _zero_a_row(path: Path) -> None:
    values = np.load(path)
    values[1] = 0
    np.save(path, values)


SPOILED: dict[str, tuple[Callable[[Path], object], int]] = {
    "an image of zeros": (lambda cache: _zero_a_row(cache / "images.npy"), 1),
    "a mask of zeros, as one that is being erased": (lambda cache: _zero_a_row(cache / MASKS), 1),
    "masks cut": (lambda cache: os.truncate(cache / MASKS, 1000), 3),
    "no masks": (lambda cache: (cache / MASKS).unlink(), 3),
    "of images without masks": (lambda cache: np.save(cache / MADE_OF, np.load(cache / MADE_OF)[:, :36]), 3),
    "not there": (shutil.rmtree, 3),
}


@pytest.mark.parametrize("case", SPOILED)
def test_an_input_that_is_not_whole_is_made_again(case: str, known: Hospital) -> None:
    spoil, made_again = SPOILED[case]
    before = files(known.cache("first"))
    spoil(known.cache("first"))
    known.look()
    assert len(known.opened) == made_again * (SHAPE[0] + 1)
    assert files(known.cache("a")) == before


@pytest.mark.parametrize("what", ["where it lies", "its mask"])
def test_the_same_values_with_something_else_are_another_input(known: Hospital, what: str) -> None:
    """The scan before the change is asked first."""
    if what == "where it lies":
        write_patient(known.folder, "ANNA", 0, replace(LIE, gap=8.0))
    else:
        mask = np.zeros(SHAPE, np.uint8)
        mask[1, 2:4] = 1
        write_mask(known.folder, Identity("st-olavs", "ANNA"), mask)
    known.look("second")
    known.opened.clear()
    known.look(others=("first", "second"))
    assert known.opened == []
    known.look("anew", index=False)
    assert files(known.cache("a")) == files(known.cache("anew"))
    assert files(known.cache("a"))["images.npy"] != files(known.cache("first"))["images.npy"] or what == "its mask"


# --- who withdrew ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["seg", "nifti"])
def test_whoever_withdrew_comes_back_from_nowhere(known: Hospital, when: str, kind: str) -> None:
    """Also where nobody took them out of the index and the other scan."""
    known.look("first", kind=kind)
    bert = reference_of(MASTER, "BERT")
    assert bert.encode() in known.index.read_bytes()
    gone: dict[str, Any] = {when: ("BERT",)}
    known.both("a", kind=kind, **gone)
    assert bert.encode() not in known.index.read_bytes()
    assert "BERT" not in (known.cache("a") / "refused.csv").read_text()
    arrays = load_cache(known.cache("a"))[0]
    assert arrays.masks is not None
    assert arrays.withdrawn.sum() == (when == "after")
    for kept in (arrays.images, arrays.masks, np.load(known.cache("a") / MADE_OF)):
        assert not kept[arrays.withdrawn].any()


def test_an_erased_row_is_not_taken_over(known: Hospital) -> None:
    before = files(known.cache("first"))
    erase(known.cache("first"), {tag_of(KEY, reference_of(MASTER, "BERT"))})
    known.look()
    assert set(known.opened) == _all_of("BERT"), "made of the archive, which still has them"
    assert files(known.cache("a")) == before


# --- as the daemon asks for it ---------------------------------------------------------------------------
def test_the_child_scans_with_the_index_and_the_studies_beside(
    known: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SETTLED_SECONDS", -3600.0)
    shutil.rmtree(known.folder / "caches")
    (known.folder / "caches").mkdir()
    (known.folder / "dataset.key").write_bytes(MASTER)
    command = {
        "plan": VOXELS.model_dump(mode="json"), "threads": 2,
        "source": {"kind": "folder", "path": str(known.folder / "dicom")},
        "labels": {"kind": "seg", "path": str(known.folder / "dicom")},
        "key_file": str(known.folder / "dataset.key"),
        "withdrawn": {"before": [], "after": []}, "index": str(known.index),
    }  # fmt: skip
    with known.reading():
        for study in ("first-study", "second-study"):
            known.opened.clear()
            told = command | {"study": study, "cache": str(known.cache(study))}
            trainer._scan(told, Nobody())  # type: ignore[arg-type]
    assert known.opened == []
    assert load_cache(known.cache("second-study"))[1].used == 3

"""Every code has a case that ends as it and as nothing else, and a near miss that does not.

Where another test has the case in its table, it is taken from there by its sentence.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from boundary.plan import StudyPlan
from infra.hospitals.segmentations import write_segmentation
from infra.hospitals.volumes import SAGITTAL, Lie, write_series
from infra.hospitals.writing import Identity, LabelRow, uid, write_image, write_labels
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import Refused, read_image
from silo_agent.intake.readers import Readers
from silo_agent.intake.reading import Reading
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.scan import scan_volumes
from silo_agent.intake.volumes.select import SeriesRule, select
from silo_agent.intake.volumes.survey import survey
from silo_agent.intake.withdrawn import Withdrawn
from tests.silo_agent.intake.test_image import HEADERS
from tests.silo_agent.intake.test_readers import NAMES, Everything, TestItem, codes
from tests.silo_agent.intake.volumes.test_faults import SERIES
from tests.silo_agent.intake.volumes.test_scan_volumes import plan_of

Ends = set[str]  # codes, or "used"
USED = frozenset({"used"})


@dataclass(frozen=True)
class Bench:
    """An empty folder and what a scan asks for."""

    folder: Path
    key: bytes
    make_plan: Callable[..., StudyPlan]
    patch: pytest.MonkeyPatch


@pytest.fixture
def bench(tmp_path: Path, key: bytes, make_plan: Callable[..., StudyPlan], monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, key, make_plan, monkeypatch)


Case = Callable[[Bench], Ends]
Change = Callable[[Path], object]


# --- one image ---------------------------------------------------------------------------------------------
def image(bench: Bench, change: Change = lambda _: None, *, limits: Limits | None = None, **options: Any) -> Ends:
    """Write an image, change its file, read it."""
    path = bench.folder / "image.dcm"
    options = {"pixels": np.arange(120, dtype=np.int16).reshape(12, 10), "modality": "CT", **options}
    pixels = options.pop("pixels")
    write_image(path, pixels, identity=Identity("st-olavs", "P1"), **options)
    change(path)
    found = read_image(path, modalities=("CT", "CR", "US", "DX"), limits=limits)
    return {found.code.value if isinstance(found, Refused) else "used"}


def one(change: Change = lambda _: None, **options: Any) -> Case:
    return lambda bench: image(bench, change, **options)


def header(**attributes: Any) -> Case:
    return one(extra=attributes)


def told(sentence: str) -> Case:
    """The case of that name in the table of headers."""
    return header(**HEADERS[sentence][0])


def unopened(error: OSError, times: int) -> Case:
    """The file cannot be opened the first `times` times."""

    def read(bench: Bench) -> Ends:
        opened, failures = Path.open, [error] * times

        def fail(self: Path, *arguments: Any, **named: Any) -> Any:
            if self.name == "image.dcm" and failures:
                raise failures.pop()
            return opened(self, *arguments, **named)

        return image(bench, lambda _: bench.patch.setattr(Path, "open", fail))

    return read


def bare(path: Path) -> None:
    path.write_bytes(path.read_bytes()[132:])


def longer(by: int) -> Change:
    return lambda path: os.truncate(path, path.stat().st_size + by)


def renamed_syntax(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.4.92"))


def compressed(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(path)


def answered(*, at_all: bool) -> Case:
    """What a reading process says of a file, or of one that never answers, as on a share that is gone."""

    def read(bench: Bench) -> Ends:
        path = bench.folder / "image.dcm"
        if at_all:
            image(bench)
        else:
            os.mkfifo(path)
        with Readers(1, Limits(), patience=20.0 if at_all else 0.5) as some:
            (found,) = Reading(some, Everything(), NAMES, lambda: None).look([TestItem(path)])
        return set(codes([found]))

    return read


# --- a series ------------------------------------------------------------------------------------------------
def stacked(files: Sequence[Path]) -> Ends:
    found = survey(files, modalities=("CT", "MR"))
    ends = [stack.refusal or place(stack.slices) for stack in found.stacks]
    codes = [code for _, code in (*found.refused, *found.refused_files)]
    return {"used" if isinstance(end, Grid) else end.value for end in (*ends, *codes)}


def series(slices: int = 6, **options: Any) -> Case:
    stored = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 40

    def read(bench: Bench) -> Ends:
        return stacked(write_series(bench.folder, stored, identity=Identity("st-olavs", "P1"), **options)[:slices])

    return read


def faulty(sentence: str) -> Case:
    """The series of that name in the table of faults."""
    return series(**SERIES[sentence][0])


def echoes(index: int) -> dict[str, Any]:
    return {"ImagePositionPatient": Lie().position(index // 2), "EchoTime": str(1 + index % 2)}


def selected(rule: SeriesRule, *lies: Lie) -> Case:
    """A series for each lie, of one study, and what the rule makes of them."""

    def read(bench: Bench) -> Ends:
        stored, who = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4), Identity("st-olavs", "P1")
        files = [
            path
            for number, lie in enumerate(lies, start=1)
            for path in write_series(bench.folder, stored + number, identity=who, lie=lie, series=number)
        ]
        (study,) = select(survey(files, modalities=("CT",)).stacks, rule)
        return {code.value for _, code in study.refused} | ({"used"} if study.used else set())

    return read


# --- a whole archive -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Archived:
    """An image of an archive: whose it is, what is in it, and what the table says of it."""

    who: Identity
    fill: int
    labels: Sequence[str] = ("1",)


ANNA, AGAIN, BERT = (Identity("st-olavs", "ANNA"), Identity("st-olavs", "ANNA", image=2), Identity("st-olavs", "BERT"))


def scanned(*images: Archived, plan: dict[str, Any] | None = None, withdrew: Iterable[str] = ()) -> Case:
    """Scan an archive of these images. `withdrew`: Patient IDs of those who withdrew before."""

    def read(bench: Bench) -> Ends:
        rows = [LabelRow(one.who, label) for one in images for label in one.labels]
        for number, one in enumerate(images):
            pixels = np.full((12, 10), one.fill, np.int16)
            write_image(bench.folder / "dicom" / f"{number}.dcm", pixels, identity=one.who, modality="CT")
        write_labels(bench.folder / "labels.csv", "contrast", rows)
        gone = Withdrawn(bench.key)
        gone = Withdrawn(bench.key, before=frozenset(map(gone.reference_of, withdrew)))
        source = FolderSource(bench.folder / "dicom", bench.folder / "labels.csv")
        made, cache = bench.make_plan(**(plan or {})), bench.folder / "cache"
        report = scan(source, made, bench.key, cache, lambda _done, _total: None, withdrawn=gone)
        return {*report.refused, *(USED if report.used else ())}

    return read


# --- a mask ----------------------------------------------------------------------------------------------------
OUTLINED = np.zeros((6, 5, 4), np.uint8)
OUTLINED[2:4, 1:3, 1:3] = 1
OUTLINED[4, 1:3, 1:3] = 2


def masked(change: Change = lambda _: None, **options: Any) -> Case:
    """A series and its mask, whose file is changed, scanned for a plan of volumes."""

    def read(bench: Bench) -> Ends:
        who, labels = Identity("st-olavs", "ANNA"), {1: "liver", 2: "tumour"}
        stored = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 40
        write_series(bench.folder / "dicom", stored, identity=who)
        named = {"identity": replace(who, image=900), "series": uid(who.series_uid, 1), **options}
        change(write_segmentation(bench.folder / "dicom" / "mask.dcm", OUTLINED, labels, **named))
        source = FolderSource(bench.folder / "dicom", bench.folder / "dicom", "seg")
        report = scan_volumes(source, plan_of(), bench.key, bench.folder / "cache", lambda _done, _total: None)
        return {*report.refused, *(USED if report.used else ())}

    return read


def all_outlined(path: Path) -> None:
    """Every frame is full, and both segments have one on the same slice."""
    ds = pydicom.dcmread(path)
    ds.PixelData = bytes([255]) * len(ds.PixelData)
    first, *_, last = ds.PerFrameFunctionalGroupsSequence
    last.PlanePositionSequence = first.PlanePositionSequence
    ds.save_as(path)


RULE = partial(SeriesRule, modality="CT")
SILENT = {"modality": "US", "pixels": np.arange(120, dtype=np.uint8).reshape(12, 10)}

PAIRS: dict[Refusal, tuple[Case, Case]] = {
    # code: (a case that ends as it, a near miss)
    Refusal.PERMISSION_DENIED: (unopened(PermissionError(13, "no"), 1), unopened(PermissionError(13, "no"), 0)),
    Refusal.READ_ERROR: (unopened(OSError(5, "I/O error"), 1), unopened(OSError(5, "I/O error"), 0)),
    Refusal.READ_TIMEOUT: (answered(at_all=False), answered(at_all=True)),
    Refusal.NOT_DICOM: (one(lambda path: path.write_bytes(b"a text")), one(bare)),
    Refusal.NOT_AN_IMAGE: (
        told("encapsulated PDF"),
        header(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX"),
    ),
    Refusal.NO_PIXELS: (told("no pixel data in it"), one(pixels=np.zeros((1, 1), np.int16))),
    Refusal.TRUNCATED: (one(longer(-1)), one(longer(1))),
    Refusal.UNREADABLE: (told("high bit elsewhere"), one(bits_stored=12)),
    Refusal.TOO_LARGE: (one(limits=Limits(max_side=11)), one(limits=Limits(max_side=12))),
    Refusal.TRANSFER_SYNTAX: (one(renamed_syntax), one(compressed)),
    Refusal.LOSSY_NOT_ALLOWED: (told("compressed with loss once"), header(LossyImageCompression="00")),
    Refusal.MULTI_FRAME: (told("several frames"), header(NumberOfFrames=1)),
    Refusal.GEOMETRY_MISSING: (faulty("no pixel spacing"), faulty("a pixel spacing within what rounding does")),
    Refusal.MIXED_ORIENTATION: (
        faulty("a slice at an angle, at the end"),
        faulty("an angle within what rounding does"),
    ),
    Refusal.DUPLICATE_POSITION: (
        faulty("two slices at one place with different pixels"),
        series(modality="MR", extra=echoes),
    ),
    Refusal.SPACING_NONUNIFORM: (
        faulty("a slice moved by a hair more than 0.05 mm"),
        faulty("a slice moved by exactly the 0.05 mm that are allowed"),
    ),
    Refusal.GANTRY_TILT: (faulty("a gantry tilted by 3 degrees"), faulty("a gantry tilted by 2 degrees")),
    Refusal.SINGLE_SLICE: (series(slices=1), series(slices=2)),
    Refusal.AMBIGUOUS_SERIES: (
        selected(RULE(), Lie(), Lie()),
        selected(RULE(orientation="axial"), Lie(), Lie(SAGITTAL)),
    ),
    Refusal.SERIES_NOT_SELECTED: (
        selected(RULE(smallest_slices=7), Lie()),
        selected(RULE(smallest_slices=6), Lie()),
    ),
    Refusal.LOCALIZER: (told("scout"), header(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZED"])),
    Refusal.DERIVED_SECONDARY: (
        told("image type says secondary"),
        header(ImageType=["DERIVED", "PRIMARY", "AXIAL", "SECONDARY"]),
    ),
    Refusal.BURNED_IN: (
        one(**SILENT, extra={"BurnedInAnnotation": None}),
        one(**SILENT, extra={"BurnedInAnnotation": "NO"}),
    ),
    Refusal.MODALITY_MISMATCH: (told("modality contradicts the SOP class"), one(modality="CR")),
    Refusal.PHOTOMETRIC: (told("palette"), header(PhotometricInterpretation="MONOCHROME1")),
    Refusal.RESCALE_MISSING: (told("CT without a unit"), one(rescale=(1e-6, 0.0))),
    Refusal.PATIENT_ID_MISSING: (told("blank patient id"), header(PatientID=" 0 ")),
    Refusal.LABEL_MISSING: (
        scanned(Archived(ANNA, 1), Archived(BERT, 2, labels=())),
        scanned(Archived(ANNA, 1), Archived(BERT, 2)),
    ),
    Refusal.LABEL_UNKNOWN: (
        scanned(Archived(ANNA, 1), Archived(BERT, 2, labels=("1.0",))),
        scanned(Archived(ANNA, 1), Archived(BERT, 2, labels=(" 1 ",))),
    ),
    Refusal.LABEL_CONFLICT: (
        scanned(Archived(ANNA, 1), Archived(BERT, 2, labels=("0", "1"))),
        scanned(Archived(ANNA, 1), Archived(BERT, 2, labels=("1", "1"))),
    ),
    Refusal.MASK_TYPE: (
        masked(extra={"SegmentationType": "FRACTIONAL"}),
        masked(extra={"SegmentationFractionalType": "PROBABILITY"}),
    ),
    Refusal.MASK_GRID: (
        masked(lie=Lie(origin=(-10.5, -20.25, -299.5))),
        masked(lie=Lie(origin=(-10.5, -20.25, -299.8))),
    ),
    Refusal.MASK_OVERLAP: (masked(all_outlined), masked()),
    Refusal.UID_CONFLICT: (
        scanned(Archived(ANNA, 1), Archived(ANNA, 2), Archived(BERT, 3)),
        scanned(Archived(ANNA, 1), Archived(AGAIN, 2), Archived(BERT, 3)),
    ),
    Refusal.DUPLICATE: (
        scanned(Archived(ANNA, 1), Archived(ANNA, 1)),
        scanned(Archived(ANNA, 1), Archived(AGAIN, 2)),
    ),
    Refusal.DUPLICATE_PIXELS: (
        scanned(Archived(ANNA, 1), Archived(BERT, 1)),
        scanned(Archived(ANNA, 1), Archived(BERT, 2)),
    ),
    Refusal.OVER_PATIENT_CAP: (
        scanned(Archived(ANNA, 1), Archived(AGAIN, 2), plan={"max_images_per_patient": 1}),
        scanned(Archived(ANNA, 1), Archived(AGAIN, 2), plan={"max_images_per_patient": 2}),
    ),
    Refusal.WITHDRAWN: (
        scanned(Archived(ANNA, 1), Archived(BERT, 2), withdrew=["BERT"]),
        scanned(Archived(ANNA, 1), Archived(BERT, 2), withdrew=["bert"]),
    ),
}
ANOTHER_END = {Refusal.AMBIGUOUS_SERIES: {"SERIES_NOT_SELECTED"}}  # of a near miss, beside "used"


def test_no_code_is_without_its_pair() -> None:
    assert set(PAIRS) == set(Refusal)


@pytest.mark.parametrize("code", PAIRS)
def test_a_code_is_triggered_alone(code: Refusal, bench: Bench) -> None:
    assert PAIRS[code][0](bench) - USED == {code.value}


@pytest.mark.parametrize("code", PAIRS)
def test_its_near_miss_is_used(code: Refusal, bench: Bench) -> None:
    assert PAIRS[code][1](bench) == USED | ANOTHER_END.get(code, set())

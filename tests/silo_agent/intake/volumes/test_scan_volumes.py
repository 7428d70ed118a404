"""An archive of series with masks becomes arrays: who and what is used, what is refused, what is kept of whom."""

import csv
import gzip
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from infra.hospitals.segmentations import write_segmentation
from infra.hospitals.volumes import CORONAL, Lie, write_enhanced, write_series
from infra.hospitals.writing import Identity, uid
from silo_agent.intake import erasing
from silo_agent.intake.archive import Inventory, Item, LabelKind, folder_inventory
from silo_agent.intake.cache import CohortArrays, load_cache
from silo_agent.intake.erasing import erase
from silo_agent.intake.errors import CacheUnreadable, LabelsMissingFile, LabelsUnreadable
from silo_agent.intake.inputs import Preparation
from silo_agent.intake.outcome import NOT_NAMED
from silo_agent.intake.readers import NoReader
from silo_agent.intake.reading import Means
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.volumes import process
from silo_agent.intake.volumes.scan import scan_volumes
from silo_agent.intake.withdrawn import Withdrawn, read_known, reference_of, tag_of
from tests.silo_agent.intake.masks.test_nifti import nifti

MASTER = b"the hospital's master key"
SHAPE, LIE = (8, 12, 10), Lie(spacing=(2.0, 2.0), gap=4.0)
VOXELS: dict[str, Any] = {"size": [16, 16, 16], "spacing": [4, 2, 2]}  # as they are stored, padded
PIXELS: dict[str, Any] = {"size": [16, 16]}
INSIDE = np.s_[4:12, 2:14, 3:13]
SILOS = [{"silo": f"hospital-{i}", "signing_key": SigningIdentity.generate().public.text} for i in range(3)]


def plan_of(
    inputs: dict[str, Any] | None = None, labels: dict[str, Any] | None = None, private: bool = False, **dataset: Any
) -> StudyPlan:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
    series = {"modality": "CT", **dataset.pop("series", {})}
    plan = {
        "version": 1,
        "name": "lesions",
        "revision": 1,
        "task": "segmentation",
        "purpose": {**purpose, "expires": "2030-01-01"},
        "hospitals": SILOS,
        "model": {"name": "unet-small", "version": 1},
        "preprocessing": {**(inputs or VOXELS), "intensity": "window", "low": -1000, "high": 1000},
        "labels": {"classes": ["background", "liver", "tumour"], **(labels or {})},
        "dataset": {"name": "abdomen", "modalities": ["CT"], "min_patients": 1, "series": series, **dataset},
        "training": {"rounds": 2, **({"weighting": "equal"} if private else {})},
    }
    if private:
        plan["privacy"] = {"mechanism": "patient-dp", "epsilon": 8}
    return parse_plan(plan)


@dataclass
class Ward:
    """A hospital with a folder of series and their segmentations, and its scans."""

    folder: Path
    key: bytes
    volumes: dict[str, NDArray[np.int16]] = field(default_factory=dict)
    masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.folder / "caches" / "a"

    def admit(self, patient: str, seed: int, *, labels: dict[int, str] | None = None, study: int = 1) -> Identity:
        """A series and its mask; voxels of the highest class of the mask are bright."""
        rng, who = np.random.default_rng(seed), Identity("st-olavs", patient, study=study)
        self.masks[patient] = rng.integers(0, 3, SHAPE).astype(np.uint8)
        self.volumes[patient] = rng.integers(-900, 900, SHAPE).astype(np.int16)
        write_series(self.folder / "dicom" / patient, self.volumes[patient], identity=who, lie=LIE)
        self.outline(who, self.masks[patient], labels)
        return who

    def outline(
        self,
        who: Identity,
        mask: NDArray[np.uint8],
        labels: dict[int, str] | None = None,
        number: int = 900,
        **more: Any,
    ) -> Path:
        path = self.folder / "dicom" / who.patient / f"mask-{number}.dcm"
        named = labels or {1: "liver", 2: "tumour"}
        more.setdefault("series", uid(who.series_uid, 1))
        more.setdefault("lie", LIE)
        return write_segmentation(path, mask, named, identity=replace(who, image=number), **more)

    def scan(
        self,
        plan: StudyPlan | None = None,
        before: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        kind: LabelKind | None = "seg",
        masks: Path | None = None,
        **more: Any,
    ) -> IntakeReport:
        told = Withdrawn(MASTER, *(frozenset(reference_of(MASTER, who) for who in some) for some in (before, after)))
        source = FolderSource(self.folder / "dicom", masks or self.folder / "dicom", kind)
        more.setdefault("on_progress", lambda _done, _total: None)
        return scan_volumes(source, plan or plan_of(), self.key, more.pop("cache", self.cache), withdrawn=told, **more)

    def arrays(self) -> CohortArrays:
        return load_cache(self.cache)[0]

    def refused(self) -> list[tuple[str, str]]:
        with (self.cache / "refused.csv").open(newline="") as file:
            return sorted((row["file"], row["code"]) for row in csv.DictReader(file))


@pytest.fixture
def ward(tmp_path: Path, key: bytes) -> Ward:
    ward = Ward(tmp_path, key)
    for seed, patient in enumerate(("ANNA", "BERT", "CARL")):
        ward.admit(patient, seed)
    return ward


# --- what is used ------------------------------------------------------------------------------------------
def test_series_and_their_masks_become_arrays(ward: Ward) -> None:
    seen: list[tuple[int, int]] = []
    report = ward.scan(on_progress=lambda *step: seen.append(step))
    assert (report.files, report.used, report.refused, report.problems) == (3, 3, {}, ())
    assert report.labels_column == ""
    assert report.label_rows_without_image == 0
    assert load_cache(ward.cache)[1] == report
    arrays = ward.arrays()
    assert arrays.masks is not None
    assert (arrays.images.shape, arrays.masks.shape) == ((3, 1, 16, 16, 16), (3, 16, 16, 16))
    found = set()
    for image, mask in zip(arrays.images, arrays.masks, strict=True):
        (who,) = [name for name, known in ward.masks.items() if np.array_equal(mask[INSIDE], known)]
        assert_allclose(image[0][INSIDE], (ward.volumes[who] + 1000) / 2000, atol=1e-6)
        assert mask.sum() == ward.masks[who].sum()
        found.add(who)
    assert found == {"ANNA", "BERT", "CARL"}
    assert arrays.labels.tolist() == [2, 2, 2]
    assert report.images["training"] == dict.fromkeys(("background", "liver", "tumour"), report.patients["training"])
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, 54), (54, 54))


def test_the_slices_of_a_series_are_images_of_their_patient(ward: Ward) -> None:
    ward.masks["CARL"][:5] = 0
    ward.outline(Identity("st-olavs", "CARL"), ward.masks["CARL"])
    report = ward.scan(plan_of(PIXELS, max_images_per_patient=1000))
    assert (report.files, report.used, report.refused) == (24, 24, {})
    arrays = ward.arrays()
    assert arrays.masks is not None
    assert (arrays.images.shape, arrays.masks.shape) == ((24, 1, 16, 16), (24, 16, 16))
    assert np.bincount(arrays.patients).tolist() == [8, 8, 8]
    assert np.bincount(arrays.labels).tolist() == [5, 0, 19]
    assert_array_equal(arrays.labels, arrays.masks.max(axis=(1, 2)))
    assert sum(classes["background"] for classes in report.images.values()) == 24
    assert sum(classes["tumour"] for classes in report.images.values()) == 19
    capped = ward.scan(plan_of(PIXELS, max_images_per_patient=3))
    assert (capped.files, capped.used, capped.refused) == (24, 9, {"OVER_PATIENT_CAP": 15})


def test_the_order_of_the_files_and_where_the_masks_lie_change_nothing(ward: Ward, tmp_path: Path) -> None:
    first = ward.scan()
    before = {file.name: file.read_bytes() for file in ward.cache.iterdir()}
    assert ward.scan() == first
    assert before == {file.name: file.read_bytes() for file in ward.cache.iterdir()}
    beside = tmp_path / "masks"
    for path in sorted((tmp_path / "dicom").rglob("mask-*.dcm")):
        (beside / path.parent.name).mkdir(parents=True)
        path.rename(beside / path.parent.name / path.name)
    (tmp_path / "dicom" / "BERT").rename(tmp_path / "dicom" / "AAAA")
    assert ward.scan(masks=beside) == first
    assert before == {file.name: file.read_bytes() for file in ward.cache.iterdir()}


def test_a_mask_counts_for_the_dataset_s_digest(ward: Ward) -> None:
    first = ward.scan()
    ward.masks["BERT"][0, 0, 0] ^= 1
    ward.outline(Identity("st-olavs", "BERT"), ward.masks["BERT"])
    other = ward.scan()
    assert (other.used, other.images) == (first.used, first.images)
    assert other.dataset_digest != first.dataset_digest
    assert other.labels_digest != first.labels_digest


def test_masks_of_nifti_are_the_same_as_segmentations(ward: Ward, tmp_path: Path) -> None:
    first = ward.scan()
    beside = tmp_path / "nifti" / "deep"
    beside.mkdir(parents=True)
    for number, (patient, mask) in enumerate(ward.masks.items()):
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 4, -2, -2, 1
        affine[:3, 3] = -LIE.origin[0], -LIE.origin[1], LIE.origin[2]
        flip = np.eye(4)
        flip[1, 1], flip[1, 3] = -1, SHAPE[1] - 1
        data = nifti(mask[:, ::-1], affine @ flip)
        series = uid(Identity("st-olavs", patient).series_uid, 1)
        if number:
            (beside / f"{series}.nii.gz").write_bytes(gzip.compress(data))
        else:
            (beside / f"{series}.nii").write_bytes(data)
    (beside / "1.2.3.nii").write_bytes(b"of nobody")
    (beside / "notes.txt").write_text("of nobody")
    report = ward.scan(kind="nifti", masks=tmp_path / "nifti")
    assert report.dataset_digest == first.dataset_digest
    assert report.refused == {"NOT_AN_IMAGE": 3}  # the segmentations
    assert (report.used, report.label_rows_without_image) == (3, 1)
    (beside / f"{series}.nii").write_bytes(data)
    assert ward.scan(kind="nifti", masks=tmp_path / "nifti").refused == {"LABEL_CONFLICT": 1, "NOT_AN_IMAGE": 3}


def test_frames_of_one_object_are_slices_too(ward: Ward, tmp_path: Path) -> None:
    first = ward.scan(plan_of(PIXELS))
    who = Identity("st-olavs", "ANNA")
    for path in (tmp_path / "dicom" / "ANNA").glob("01-*.dcm"):
        path.unlink()
    ward.outline(who, ward.masks["ANNA"], series=who.series_uid)
    path = tmp_path / "dicom" / "ANNA" / "one.dcm"
    write_enhanced(path, ward.volumes["ANNA"], identity=who, lie=LIE, order=[7, 0, 3, 1, 2, 4, 6, 5])
    again = ward.scan(plan_of(PIXELS))
    assert (again.used, again.refused) == (24, {})
    assert again.dataset_digest == first.dataset_digest


def test_a_volume_is_brought_to_one_orientation_with_its_mask(ward: Ward) -> None:
    who, lie = Identity("st-olavs", "DORA"), Lie(CORONAL, spacing=(2.0, 2.0), gap=4.0)
    rng = np.random.default_rng(5)
    pixels, mask = rng.integers(-900, 900, SHAPE).astype(np.int16), rng.integers(0, 3, SHAPE).astype(np.uint8)
    write_series(ward.folder / "coronal", pixels, identity=who, lie=lie)
    write_segmentation(
        ward.folder / "coronal" / "m.dcm", mask, {1: "liver", 2: "tumour"}, identity=replace(who, image=900),
        series=uid(who.series_uid, 1), lie=lie,
    )  # fmt: skip
    source = FolderSource(ward.folder / "coronal", ward.folder / "coronal", "seg")
    plan = plan_of({"size": [16, 16, 16], "spacing": [2, 4, 2]})
    scan_volumes(source, plan, ward.key, ward.cache, lambda _done, _total: None)
    arrays = ward.arrays()
    assert arrays.masks is not None
    upright = np.s_[2:14, 4:12, 3:13]  # rows were from head to foot, slices from front to back
    assert_array_equal(arrays.masks[0][upright], mask.transpose(1, 0, 2)[::-1])
    assert_allclose(arrays.images[0, 0][upright], (pixels.transpose(1, 0, 2)[::-1] + 1000) / 2000, atol=1e-6)


# --- what is not -------------------------------------------------------------------------------------------
def spoil_one_slice(ward: Ward) -> None:
    (ward.folder / "dicom" / "ANNA" / "01-0003.dcm").unlink()


def ambiguous(ward: Ward) -> None:
    who = Identity("st-olavs", "ANNA")
    write_series(ward.folder / "dicom" / "ANNA", ward.volumes["ANNA"] + 1, identity=who, lie=LIE, series=2)


def no_mask(ward: Ward) -> None:
    (ward.folder / "dicom" / "ANNA" / "mask-900.dcm").unlink()


def mask_of_somebody_else(ward: Ward) -> None:
    who = Identity("st-olavs", "BERT")
    ward.outline(who, ward.masks["ANNA"], series=uid(Identity("st-olavs", "ANNA").series_uid, 1), number=901)
    no_mask(ward)


def same_series_twice(ward: Ward) -> None:
    who = Identity("st-olavs", "ANNA", study=2)
    write_series(ward.folder / "dicom" / "ANNA" / "2", ward.volumes["BERT"], identity=who, lie=LIE)
    ward.outline(who, ward.masks["BERT"], number=901)


def same_pixels_other_mask(ward: Ward) -> None:
    who = Identity("st-olavs", "ANNA", study=2)
    write_series(ward.folder / "dicom" / "ANNA" / "2", ward.volumes["BERT"], identity=who, lie=LIE)
    ward.outline(who, ward.masks["ANNA"], number=901)


def strangers(ward: Ward) -> None:
    folder = ward.folder / "dicom"
    (folder / "README.txt").write_text("hello")
    who = Identity("st-olavs", "DORA")
    write_series(folder / "DORA", ward.volumes["ANNA"][:2], identity=who, lie=LIE, extra=lambda _: {"Modality": "MR"})
    ward.outline(who, ward.masks["ANNA"])


def damaged_mask(ward: Ward) -> None:
    path = ward.folder / "dicom" / "ANNA" / "mask-900.dcm"
    path.write_bytes(path.read_bytes()[:-3])


def moved_mask(ward: Ward) -> None:
    ward.outline(
        Identity("st-olavs", "ANNA"), ward.masks["ANNA"], lie=Lie(spacing=(2.0, 2.0), gap=4.0, origin=(0, 0, 0))
    )


ARCHIVES: dict[str, tuple[Callable[[Ward], object], dict[str, int], int, int]] = {
    # sentence: (what is done to the archive, refused of volumes, masks without a series, files named)
    "a slice is missing": (spoil_one_slice, {"SPACING_NONUNIFORM": 1}, 0, 8),
    "two series match the rule": (ambiguous, {"AMBIGUOUS_SERIES": 2}, 0, 17),
    "there is no mask": (no_mask, {"LABEL_MISSING": 1}, 0, 8),
    "the mask says that it is of somebody else": (mask_of_somebody_else, {"LABEL_MISSING": 1, "NOT_AN_IMAGE": 1}, 1, 9),
    "a mask is damaged": (damaged_mask, {"TRUNCATED": 1}, 0, 9),
    "a mask lies elsewhere": (moved_mask, {"MASK_GRID": 1}, 0, 9),
    "the same volume under another patient": (same_series_twice, {"DUPLICATE_PIXELS": 1}, 0, 9),
    "and with another mask": (same_pixels_other_mask, {"LABEL_CONFLICT": 2}, 0, 18),
    "files of other kinds": (strangers, {"MODALITY_MISMATCH": 2, "NOT_AN_IMAGE": 1, "NOT_DICOM": 1}, 1, 4),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_everything_ends_somewhere(case: str, ward: Ward) -> None:
    spoil, refused, unmet, named = ARCHIVES[case]
    spoil(ward)
    report = ward.scan()
    assert report.refused == refused
    assert report.label_rows_without_image == unmet
    assert report.files == report.used + sum(refused.values())
    assert len(ward.refused()) == named


def test_of_slices_slices_are_counted(ward: Ward) -> None:
    spoil_one_slice(ward)
    report = ward.scan(plan_of(PIXELS, max_images_per_patient=1000))
    assert (report.files, report.used, report.refused) == (23, 16, {"SPACING_NONUNIFORM": 7})


def test_a_series_is_selected_by_the_plan_s_rule(ward: Ward) -> None:
    assert ward.scan(plan_of(series={"smallest_slices": 9})).refused == {"SERIES_NOT_SELECTED": 3}
    assert ward.scan(plan_of(series={"largest_gap_mm": 4.0})).used == 3


def test_volumes_beyond_the_limits_are_not_begun(ward: Ward) -> None:
    from silo_agent.intake.volumes.reading import VolumeLimits

    assert ward.scan(limits=VolumeLimits(max_voxels=8 * 12 * 10)).used == 3
    assert ward.scan(limits=VolumeLimits(max_voxels=8 * 12 * 10 - 1)).refused == {"TOO_LARGE": 3}


def test_nothing_but_refused_csv_names_anything(ward: Ward) -> None:
    no_mask(ward)
    ward.scan()
    assert {file.name for file in ward.cache.iterdir()} == {
        *("images.npy", "masks.npy", "labels.npy", "patients.npy", "split.npy", "made_of.npy"),
        *("report.json", "refused.csv", "known.bin", "withdrawn.bin"),
    }
    for file in ward.cache.iterdir():
        named = any(name in file.read_bytes() for name in (b"ANNA", b"BERT", b"CARL", b"2.25."))
        assert named == (file.name == "refused.csv"), file


def test_what_is_missing_is_named(ward: Ward) -> None:
    with pytest.raises(LabelsMissingFile):
        ward.scan(masks=ward.folder / "nowhere")
    for kind in ("csv", "parquet", None):
        with pytest.raises(LabelsUnreadable, match="asks for masks"):
            ward.scan(kind=kind)
    with pytest.raises(ValueError, match="16 bytes"):
        Ward(ward.folder, b"short").scan()


def test_masks_that_name_no_patient_are_not_taken_with_a_guarantee(ward: Ward, tmp_path: Path) -> None:
    """Two patients with one Series UID would move each other's masks."""
    (tmp_path / "nifti").mkdir()
    with pytest.raises(LabelsUnreadable, match="give the masks as DICOM SEG"):
        ward.scan(plan_of(private=True), kind="nifti", masks=tmp_path / "nifti")


def test_a_folder_of_masks_below_a_dicomdir_that_leaves_them_out_is_read(ward: Ward) -> None:
    first = ward.scan()
    for path in sorted((ward.folder / "dicom").rglob("mask-*.dcm")):
        target = ward.folder / "dicom" / "masks" / path.parent.name / path.name
        target.parent.mkdir(parents=True)
        path.rename(target)

    def listed(_self: FolderSource, settled: float) -> Inventory:
        found = folder_inventory(ward.folder / "dicom", settled)
        return Inventory(found.root, tuple(one for one in found.items if "mask" not in one.name), ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderSource, "inventory", listed)
        report = ward.scan(masks=ward.folder / "dicom" / "masks")
    assert (report.used, report.dataset_digest) == (first.used, first.dataset_digest)


def test_a_series_that_there_is_no_memory_for_costs_that_series(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = Preparation.inputs_of, list[int]()

    def inputs_of(self: Preparation, *about: Any) -> Any:
        seen.append(1)
        if len(seen) == 1:
            raise MemoryError
        return whole(self, *about)

    monkeypatch.setattr(Preparation, "inputs_of", inputs_of)
    report = ward.scan()
    assert (report.used, report.refused["TOO_LARGE"]) == (2, 1)


@pytest.mark.parametrize("wrong", [np.zeros((3, 16, 16, 15), np.uint8), np.zeros((3, 16, 16, 16), np.int8), None])
def test_masks_that_do_not_fit_the_images_are_not_loaded(wrong: NDArray[Any] | None, ward: Ward) -> None:
    ward.scan()
    if wrong is None:
        (ward.cache / "masks.npy").unlink()
    else:
        np.save(ward.cache / "masks.npy", wrong)
    with pytest.raises(CacheUnreadable):
        ward.arrays()


# --- withdrawal --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("inputs", [VOXELS, PIXELS], ids=["volumes", "slices"])
def test_who_withdrew_before_is_refused_and_no_pixel_of_theirs_is_read(ward: Ward, inputs: dict[str, Any]) -> None:
    images = 1 if inputs is VOXELS else 8
    whole = ward.scan(plan_of(inputs))
    for path in (ward.folder / "dicom" / "BERT").glob("01-*.dcm"):
        ds = pydicom.dcmread(path)
        ds.PixelData = bytes(len(ds.PixelData))
        ds.save_as(path)
    without = ward.scan(plan_of(inputs), before=("BERT",))
    assert (without.used, without.refused) == (2 * images, {"WITHDRAWN": images})
    assert without.dataset_digest != whole.dataset_digest
    assert ward.refused() == [(NOT_NAMED, "WITHDRAWN")] * 9
    known = {tag for tag, _ in read_known((ward.cache / "known.bin").read_bytes())}
    assert known == {tag_of(ward.key, reference_of(MASTER, who)) for who in ("ANNA", "CARL")}


@pytest.mark.parametrize("inputs", [VOXELS, PIXELS], ids=["volumes", "slices"])
def test_who_withdrew_since_counts_for_the_digest_and_is_not_kept(ward: Ward, inputs: dict[str, Any]) -> None:
    whole, since = ward.scan(plan_of(inputs)), ward.scan(plan_of(inputs), after=("BERT",))
    assert since == whole
    arrays = ward.arrays()
    assert arrays.masks is not None
    assert arrays.withdrawn.sum() == (1 if inputs is VOXELS else 8)
    for array in (arrays.images, arrays.masks, arrays.labels):
        assert not array[arrays.withdrawn].any()
    assert arrays.masks[~arrays.withdrawn].any()


@pytest.mark.parametrize("inputs", [VOXELS, PIXELS], ids=["volumes", "slices"])
def test_erasing_gives_the_very_files_of_a_scan_without_the_images(ward: Ward, inputs: dict[str, Any]) -> None:
    anew = ward.cache.with_name("b")
    ward.scan(plan_of(inputs))
    ward.scan(plan_of(inputs), after=("BERT", "CARL"), cache=anew)
    erase(ward.cache, {tag_of(ward.key, reference_of(MASTER, who)) for who in ("BERT", "CARL", "NOBODY")})
    assert {file.name: file.read_bytes() for file in ward.cache.iterdir()} == {
        file.name: file.read_bytes() for file in anew.iterdir()
    }


def test_files_of_theirs_are_not_named_whatever_they_are_refused_for(ward: Ward, tmp_path: Path) -> None:
    scout = tmp_path / "dicom" / "ANNA" / "scout"
    who = Identity("st-olavs", "ANNA", study=3)
    write_series(scout, ward.volumes["ANNA"][:1], identity=who, extra=lambda _: {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})  # fmt: skip  # noqa: E501
    damaged_mask(ward)
    for told in ({"before": ("ANNA",)}, {"after": ("ANNA",)}):
        ward.scan(**told)  # type: ignore[arg-type]
        assert {name for name, _ in ward.refused()} == {NOT_NAMED}
    assert {code for _, code in ward.refused()} == {"LOCALIZER", "TRUNCATED"}


def test_masks_are_erased_before_anybody_may_read_them_again(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the mask of rows and before the first row: what is left says that the rows are gone."""
    ward.scan()
    monkeypatch.setattr(erasing, "_zero", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if not child:
        try:
            erase(ward.cache, {tag_of(ward.key, reference_of(MASTER, "BERT"))})
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert ward.arrays().withdrawn.sum() == 1


# --- a guarantee per patient -------------------------------------------------------------------------------
def test_with_a_guarantee_what_is_used_of_one_patient_does_not_depend_on_others(ward: Ward, tmp_path: Path) -> None:
    who = Identity("st-olavs", "DORA")
    write_series(tmp_path / "dicom" / "DORA", ward.volumes["ANNA"], identity=who, lie=LIE)
    ward.outline(who, ward.masks["BERT"])
    path = tmp_path / "dicom" / "DORA" / "01-0002.dcm"
    ds = pydicom.dcmread(path)
    ds.SOPInstanceUID = pydicom.dcmread(tmp_path / "dicom" / "BERT" / "01-0004.dcm").SOPInstanceUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path)
    assert ward.scan(plan_of()).refused == {"UID_CONFLICT": 2}
    assert ward.scan(plan_of(private=True)).used == 4


# --- processes ---------------------------------------------------------------------------------------------
def test_a_file_that_hangs_or_ends_its_reader_costs_that_file(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ward.folder / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(ward.folder))
    monkeypatch.setattr(process.VolumeProcess, "module", "stand_in")
    (ward.folder / "dicom" / "ANNA" / "01-0002.dcm").rename(ward.folder / "dicom" / "ANNA" / "hangs.dcm")
    (ward.folder / "dicom" / "BERT" / "01-0002.dcm").rename(ward.folder / "dicom" / "BERT" / "dies.dcm")
    (ward.folder / "dicom" / "CARL" / "01-0002.dcm").rename(ward.folder / "dicom" / "CARL" / "killed.dcm")
    report = ward.scan(means=Means(patience=3.0))
    assert report.refused == {"READ_TIMEOUT": 1, "SPACING_NONUNIFORM": 3, "TOO_LARGE": 1, "UNREADABLE": 1}
    assert ("ANNA/hangs.dcm", "READ_TIMEOUT") in ward.refused()


STAND_IN = """
import os, signal, time
from silo_agent.intake.volumes import opened, reader

facts = opened.OpenVolumeFile.facts

def odd(self, *, is_nifti):
    match self._path.stem:
        case "hangs":
            time.sleep(60)
        case "dies":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    return facts(self, is_nifti=is_nifti)

opened.OpenVolumeFile.facts = odd
reader.main()
"""


def test_a_reader_that_does_not_start_is_no_file_s_fault(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.VolumeProcess, "module", "silo_agent.intake.no_such_module")
    with pytest.raises(NoReader):
        ward.scan()


def test_a_file_that_changes_between_its_header_and_its_pixels_is_refused(ward: Ward) -> None:
    def change(done: int, _total: int) -> None:
        if done == 27:  # all headers are read
            path = ward.folder / "dicom" / "ANNA" / "01-0002.dcm"
            path.write_bytes((ward.folder / "dicom" / "BERT" / "01-0002.dcm").read_bytes())

    assert ward.scan(on_progress=change).refused == {"UNREADABLE": 1}


@dataclass(frozen=True)
class Fetched:
    """An item that is there only while it is read, and always under the same name, as if from an archive elsewhere."""

    item: Item
    scratch: Path
    name: str
    state: None = None

    @contextmanager
    def opened(self) -> Iterator[Path | Refusal]:
        with self.item.opened() as path:
            assert isinstance(path, Path)
            assert not self.scratch.exists()
            self.scratch.write_bytes(path.read_bytes())
            yield self.scratch
        self.scratch.unlink()

    def unchanged(self) -> bool:
        return False


def test_files_that_are_fetched_for_each_reading_give_the_same(ward: Ward, tmp_path: Path) -> None:
    whole = ward.scan()
    folder = FolderSource(tmp_path / "dicom", tmp_path / "dicom", "seg")
    found = folder.inventory(0.0)
    items = tuple(Fetched(item, tmp_path / "fetched", item.name) for item in found.items)
    elsewhere = SimpleNamespace(
        labels_path=tmp_path / "masks",
        labels_kind="seg",
        inventory=lambda _settled: Inventory("https://pacs.example/dicomweb", items, ()),
    )
    (tmp_path / "masks").mkdir()
    told = Withdrawn(MASTER)
    assert scan_volumes(elsewhere, plan_of(), ward.key, ward.cache, lambda *_: None, withdrawn=told) == whole
    assert not (tmp_path / "fetched").exists()

"""Scan an archive for one plan: read every file, build the cohort, write the cache.

The one composition of this package. It holds one image in memory at a time; model inputs go to disk as they
are made, and identifiers are gone when the function returns.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.plan import StudyPlan, digest_of
from silo_agent.intake.archive import list_archive, shown
from silo_agent.intake.cache import InputSpool, replacing, write_refused, write_report
from silo_agent.intake.cohort import Candidate, Cohort, build_cohort
from silo_agent.intake.encoding import Limits
from silo_agent.intake.erasing import GONE, KNOWN
from silo_agent.intake.image import Refused, read_image
from silo_agent.intake.labels import Key, LabelTable, read_labels
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport, contract_problems, images_by_class, patients_by_split
from silo_agent.intake.withdrawn import Withdrawn, known_patients, tag_of

SMALLEST_KEY_BYTES = 16
NOT_NAMED = "(not named: consent was withdrawn)"
_SOFTWARE = ("wardround", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "numpy")

Progress = Callable[[int, int], None]  # (files done, files in all)
ToInput = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder tree of DICOM files and the label table that goes with it."""

    path: Path
    labels_path: Path


def scan(
    source: FolderSource,
    plan: StudyPlan,
    key: bytes,
    cache: Path,
    on_progress: Progress,
    *,
    limits: Limits | None = None,
    withdrawn: Withdrawn | None = None,
) -> IntakeReport:
    """Read `source` for `plan` and put the result in `cache`, replacing an earlier one as a whole.

    `key` is this hospital's secret for this study: patient references, the split and the dataset digest hang
    on it. Without `withdrawn` nobody is. Raises a subclass of `IntakeError` if there is no archive or no usable label
    table; a single bad file never raises.
    """
    if len(key) < SMALLEST_KEY_BYTES:
        raise ValueError(f"a scan key has at least {SMALLEST_KEY_BYTES} bytes")
    table = read_labels(source.labels_path, plan.labels)
    listing = list_archive(source.path, skip=source.labels_path)
    size = plan.preprocessing.size
    with replacing(cache) as folder, closing(InputSpool(folder, size)) as spool:
        reading = _Reading(plan, table, spool, limits or Limits(), withdrawn or Withdrawn(key))
        for number, path in enumerate(listing.files):
            on_progress(number, len(listing.files))
            reading.take(number, path)
        on_progress(len(listing.files), len(listing.files))
        cohort = build_cohort(reading.candidates, plan.dataset, key=key, each_alone=plan.bands > 0)
        refused = reading.refused | dict(cohort.refused)
        named = [(reading.name_of(number, listing.files, source.path), code) for number, code in refused.items()]
        named += [(shown(path, source.path), code) for path, code in listing.refused]
        files = len(listing.files) + len(listing.refused)
        codes = Counter(code.value for _, code in named)
        report = _report(plan, table, len(table.outcomes.keys() - reading.keys_met), cohort, files, codes)
        spool.write([member.file for member in cohort.members], folder / "images.npy")
        _write_columns(folder, cohort, reading, key)
        write_refused(folder / "refused.csv", sorted(named))
        write_report(folder / "report.json", report)
    return report


class _Reading:
    """What reading the files one by one has found so far."""

    def __init__(
        self, plan: StudyPlan, table: LabelTable, spool: InputSpool, limits: Limits, withdrawn: Withdrawn
    ) -> None:
        self.candidates: list[Candidate] = []
        self.refused: dict[int, Refusal] = {}
        self.keys_met: set[Key] = set()
        self.references: dict[int, str] = {}  # of the patients of candidates
        self.gone: set[int] = set()  # files of patients who withdrew: not named, and no image of them is kept
        self._withdrawn = withdrawn
        self._plan, self._table, self._limits, self._spool = plan, table, limits, spool
        self._to_input = _preprocessing(plan)

    def take(self, number: int, path: Path) -> None:
        found = read_image(path, modalities=self._plan.dataset.modalities, limits=self._limits)
        if isinstance(found, Refused):
            self.refused[number] = found.code
            return
        who = found.identifiers
        if met := self._table.key_of(who):
            self.keys_met.add(met)
        reference = self._withdrawn.reference_of(who.patient_id)
        if reference in self._withdrawn.before | self._withdrawn.after:
            self.gone.add(number)
        if reference in self._withdrawn.before:
            self.refused[number] = Refusal.WITHDRAWN
            return
        label = self._table.label_of(who)
        if isinstance(label, Refusal):
            self.refused[number] = label
            return
        if number not in self.gone:
            self._spool.add(number, self._to_input(found.image))
        self.references[number] = reference
        self.candidates.append(Candidate(number, label, who.sop_uid, who.patient_id, found.content))

    def name_of(self, number: int, files: tuple[Path, ...], root: Path) -> str:
        """As `refused.csv` tells it: a path often has the patient's name or number in it."""
        return NOT_NAMED if number in self.gone else shown(files[number], root)


def _preprocessing(plan: StudyPlan) -> ToInput:
    from models.preprocessing import to_input

    return lambda image: to_input(image, plan.preprocessing)


def _report(
    plan: StudyPlan, table: LabelTable, rows_without_image: int, cohort: Cohort, files: int, codes: Counter[str]
) -> IntakeReport:
    refused = dict(sorted(codes.items()))
    images = images_by_class(cohort.members, plan.labels.classes)
    patients = patients_by_split(cohort.members)
    return IntakeReport(
        plan_digest=digest_of(plan),
        dataset_digest=cohort.digest,
        labels_digest=table.digest,
        labels_column=table.column,
        label_rows_without_image=rows_without_image,
        files=files,
        used=len(cohort.members),
        refused=refused,
        images=images,
        patients=patients,
        problems=contract_problems(plan, images, patients, refused),
        software=_versions(),
    )


def _write_columns(folder: Path, cohort: Cohort, reading: _Reading, key: bytes) -> None:
    members = cohort.members
    gone = [member.file in reading.gone for member in members]
    labels = [0 if member.file in reading.gone else member.label for member in members]
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    np.save(folder / "patients.npy", np.array([member.patient for member in members], dtype=np.int64))
    np.save(folder / "split.npy", np.array([member.holdout for member in members], dtype=np.bool_))
    (folder / GONE).write_bytes(bytes(gone))
    known = {one.patient: (tag_of(key, reading.references[one.file]), one.holdout) for one in members}
    (folder / KNOWN).write_bytes(known_patients(known[number] for number in range(len(known))))


def _versions() -> dict[str, str]:
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found

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
from silo_agent.intake.image import Refused, read_image
from silo_agent.intake.labels import Key, LabelTable, read_labels
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport, contract_problems, images_by_class, patients_by_split

SMALLEST_KEY_BYTES = 16
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
) -> IntakeReport:
    """Read `source` for `plan` and put the result in `cache`, replacing an earlier one as a whole.

    `key` is this hospital's secret for this study: patient references, the split and the dataset digest hang
    on it. Raises a subclass of `IntakeError` if there is no archive or no usable label table; a single bad
    file never raises.
    """
    if len(key) < SMALLEST_KEY_BYTES:
        raise ValueError(f"a scan key has at least {SMALLEST_KEY_BYTES} bytes")
    table = read_labels(source.labels_path, plan.labels)
    listing = list_archive(source.path, skip=source.labels_path)
    size = plan.preprocessing.size
    with replacing(cache) as folder, closing(InputSpool(folder, size)) as spool:
        reading = _Reading(plan, table, spool, limits or Limits())
        for number, path in enumerate(listing.files):
            on_progress(number, len(listing.files))
            reading.take(number, path)
        on_progress(len(listing.files), len(listing.files))
        cohort = build_cohort(reading.candidates, plan.dataset, key=key, each_alone=plan.bands > 0)
        refused = reading.refused | dict(cohort.refused)
        named = [(shown(listing.files[number], source.path), code) for number, code in refused.items()]
        named += [(shown(path, source.path), code) for path, code in listing.refused]
        files = len(listing.files) + len(listing.refused)
        codes = Counter(code.value for _, code in named)
        report = _report(plan, table, len(table.outcomes.keys() - reading.keys_met), cohort, files, codes)
        spool.write([member.file for member in cohort.members], folder / "images.npy")
        _write_columns(folder, cohort)
        write_refused(folder / "refused.csv", sorted(named))
        write_report(folder / "report.json", report)
    return report


class _Reading:
    """What reading the files one by one has found so far."""

    def __init__(self, plan: StudyPlan, table: LabelTable, spool: InputSpool, limits: Limits) -> None:
        self.candidates: list[Candidate] = []
        self.refused: dict[int, Refusal] = {}
        self.keys_met: set[Key] = set()
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
        label = self._table.label_of(who)
        if isinstance(label, Refusal):
            self.refused[number] = label
            return
        self._spool.add(number, self._to_input(found.image))
        self.candidates.append(Candidate(number, label, who.sop_uid, who.patient_id, found.content))


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


def _write_columns(folder: Path, cohort: Cohort) -> None:
    members = cohort.members
    np.save(folder / "labels.npy", np.array([member.label for member in members], dtype=np.int64))
    np.save(folder / "patients.npy", np.array([member.patient for member in members], dtype=np.int64))
    np.save(folder / "split.npy", np.array([member.holdout for member in members], dtype=np.bool_))


def _versions() -> dict[str, str]:
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found

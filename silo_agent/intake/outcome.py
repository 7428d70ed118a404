"""What a scan leaves: the report, the columns of the cohort, the list of refused files. Identifiers are in none.

Only `refused.csv` names files, for the hospital's own staff; none of a patient who withdrew.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boundary.plan import StudyPlan, digest_of
from silo_agent.intake.archive import Inventory
from silo_agent.intake.cache import InputSpool, write_refused, write_report
from silo_agent.intake.cohort import Candidate, Cohort
from silo_agent.intake.erasing import GONE, KNOWN, MADE_OF
from silo_agent.intake.labels import LabelTable
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport, contract_problems, images_by_class, patients_by_split
from silo_agent.intake.reuse import Tags, made_of, recipe_of
from silo_agent.intake.selection import Selection
from silo_agent.intake.software import release_of
from silo_agent.intake.withdrawn import known_patients, tag_of

NOT_NAMED = "(not named: consent was withdrawn)"
_SOFTWARE = ("wardround", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm", "numpy")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one scan. `key` is the hospital's for the study."""

    plan: StudyPlan
    key: bytes = field(repr=False)
    table: LabelTable
    archive: Inventory
    selection: Selection
    cohort: Cohort

    def write(self, folder: Path, spool: InputSpool) -> IntakeReport:
        """Everything into an empty folder, the report last."""
        named = self._named()
        report = self._report(named)
        checksums = spool.write([member.file for member in self.cohort.members], folder / "images.npy")
        write_columns(folder, self.key, self.cohort, self.selection.candidates, self.selection.gone)
        self._write_made_of(folder, checksums)
        write_refused(folder / "refused.csv", named)
        write_report(folder / "report.json", report)
        return report

    def _report(self, named: list[tuple[str, Refusal]]) -> IntakeReport:
        members = self.cohort.members
        refused = Counter(code.value for _, code in named)
        images, patients = images_by_class(members, self.plan.labels.classes), patients_by_split(members)
        return IntakeReport(
            plan_digest=digest_of(self.plan),
            dataset_digest=self.cohort.digest,
            labels_digest=self.table.digest,
            labels_column=self.table.column,
            label_rows_without_image=len(self.table.outcomes.keys() - self.selection.keys_met),
            files=len(self.archive.items) + len(self.archive.refused),
            used=len(members),
            refused=dict(sorted(refused.items())),
            images=images,
            patients=patients,
            problems=contract_problems(self.plan, images, patients, refused, len(members)),
            software=versions(),
        )

    def _named(self) -> list[tuple[str, Refusal]]:
        """Paths below the archive's root, which often have the patient's name or number in them."""
        refused = (self.selection.refused | dict(self.cohort.refused)).items()
        gone, items = self.selection.gone, self.archive.items
        named = [(NOT_NAMED if file in gone else items[file].name, code) for file, code in refused]
        return sorted([*named, *self.archive.refused])

    def _write_made_of(self, folder: Path, checksums: list[int]) -> None:
        tags = Tags(self.key, recipe_of(self.plan.preprocessing))
        kept = (self.selection.kept(member.file) for member in self.cohort.members)
        rows = (
            None if one is None else (tags.of(one.content), (checksum,))
            for one, checksum in zip(kept, checksums, strict=True)
        )
        np.save(folder / MADE_OF, made_of(rows, files=1))


def write_columns(
    folder: Path, key: bytes, cohort: Cohort, candidates: Mapping[int, Candidate], gone: Collection[int]
) -> None:
    """Write what is known of each row besides its image; `gone` are the numbers of those who withdrew since."""
    members = cohort.members
    is_gone = [member.file in gone for member in members]
    labels = [0 if one_is_gone else member.label for member, one_is_gone in zip(members, is_gone, strict=True)]
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    np.save(folder / "patients.npy", np.array([member.patient for member in members], dtype=np.int64))
    np.save(folder / "split.npy", np.array([member.holdout for member in members], dtype=np.bool_))
    (folder / GONE).write_bytes(bytes(is_gone))
    by_number = {one.patient: one for one in members}
    patients = (by_number[number] for number in range(len(by_number)))
    known = ((tag_of(key, candidates[one.file].patient_id), one.holdout) for one in patients)
    (folder / KNOWN).write_bytes(known_patients(known))


def versions() -> dict[str, str]:
    return {name: release_of(name) or "not installed" for name in _SOFTWARE}

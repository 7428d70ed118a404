"""What a scan of volumes leaves: as `silo_agent.intake.outcome` of images, with the mask of each row."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boundary.canonical import digest
from boundary.plan import StudyPlan, digest_of
from silo_agent.intake.cache import InputSpool, MaskSpool, write_refused, write_report
from silo_agent.intake.cohort import Cohort
from silo_agent.intake.erasing import MADE_OF, MASKS
from silo_agent.intake.outcome import versions, write_columns
from silo_agent.intake.report import IntakeReport, contract_problems, images_by_class, patients_by_split
from silo_agent.intake.reuse import Tags, made_of, recipe_of
from silo_agent.intake.volumes.ends import Ends
from silo_agent.intake.volumes.making import Making

NO_COLUMN = ""  # of a label table: there is none


@dataclass(frozen=True, slots=True)
class VolumeOutcome:
    """Of one scan. `key` is the hospital's for the study."""

    plan: StudyPlan
    key: bytes = field(repr=False)
    making: Making
    cohort: Cohort
    ends: Ends
    masks_without_series: int

    def write(self, folder: Path, inputs: InputSpool, masks: MaskSpool) -> IntakeReport:
        """Everything into an empty folder, the report last."""
        rows = [member.file for member in self.cohort.members]
        report = self._report()
        checksums = zip(inputs.write(rows, folder / "images.npy"), masks.write(rows, folder / MASKS), strict=True)
        write_columns(folder, self.key, self.cohort, self.making.candidates, self.making.gone)
        self._write_made_of(folder, rows, list(checksums))
        write_refused(folder / "refused.csv", self.ends.rows)
        write_report(folder / "report.json", report)
        return report

    def _write_made_of(self, folder: Path, rows: list[int], checksums: list[tuple[int, int]]) -> None:
        tags = Tags(self.key, recipe_of(self.plan.preprocessing))
        made = (self.making.made_of(row) for row in rows)
        tagged = (None if one is None else (tags.of(one), sums) for one, sums in zip(made, checksums, strict=True))
        np.save(folder / MADE_OF, made_of(tagged, files=2))

    def _report(self) -> IntakeReport:
        members = self.cohort.members
        refused = {code.value: count for code, count in sorted(self.ends.counts.items())}
        images, patients = images_by_class(members, self.plan.labels.classes), patients_by_split(members)
        return IntakeReport(
            plan_digest=digest_of(self.plan),
            dataset_digest=self.cohort.digest,
            labels_digest=digest(b"".join(sorted({one.mask for one in self.making.candidates.values()}))),
            labels_column=NO_COLUMN,
            label_rows_without_image=self.masks_without_series,
            files=len(members) + sum(refused.values()),
            used=len(members),
            refused=refused,
            images=images,
            patients=patients,
            problems=contract_problems(self.plan, images, patients, refused, len(members)),
            software=versions(),
        )

"""What a scan of volumes leaves: as `silo_agent.intake.outcome` of images, with the mask of each row.

No row says what it was made of: inputs with masks are not taken over from one scan to another.
"""

from dataclasses import dataclass, field
from pathlib import Path

from boundary.canonical import digest
from boundary.plan import StudyPlan, digest_of
from silo_agent.intake.cache import InputSpool, MaskSpool, write_refused, write_report
from silo_agent.intake.cohort import Candidate, Cohort
from silo_agent.intake.erasing import MASKS
from silo_agent.intake.outcome import versions, write_columns
from silo_agent.intake.report import IntakeReport, contract_problems, images_by_class, patients_by_split
from silo_agent.intake.volumes.ends import Ends

NO_COLUMN = ""  # of a label table: there is none


@dataclass(frozen=True, slots=True)
class VolumeOutcome:
    """Of one scan. `key` is the hospital's for the study; `gone` are candidates of patients who withdrew since."""

    plan: StudyPlan
    key: bytes = field(repr=False)
    candidates: dict[int, Candidate]
    gone: set[int]
    cohort: Cohort
    ends: Ends
    masks_without_series: int

    def write(self, folder: Path, inputs: InputSpool, masks: MaskSpool) -> IntakeReport:
        """Everything into an empty folder, the report last."""
        rows = [member.file for member in self.cohort.members]
        report = self._report()
        inputs.write(rows, folder / "images.npy")
        masks.write(rows, folder / MASKS)
        write_columns(folder, self.key, self.cohort, self.candidates, self.gone)
        write_refused(folder / "refused.csv", self.ends.rows)
        write_report(folder / "report.json", report)
        return report

    def _report(self) -> IntakeReport:
        members = self.cohort.members
        refused = {code.value: count for code, count in sorted(self.ends.counts.items())}
        images, patients = images_by_class(members, self.plan.labels.classes), patients_by_split(members)
        return IntakeReport(
            plan_digest=digest_of(self.plan),
            dataset_digest=self.cohort.digest,
            labels_digest=digest(b"".join(sorted({one.mask for one in self.candidates.values()}))),
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

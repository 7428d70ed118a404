"""Scan an archive for a plan of volumes: sort its slices, select one series of each study, lay its mask on it.

As `silo_agent.intake.scan` for images, with the same promises. Headers are read of everything first, pixels only of
what is selected. It holds one volume and its mask in memory; identifiers are gone once a file is read. Nothing is
remembered from one scan to the next: each opens every file.
"""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from boundary.plan import StudyPlan
from silo_agent.intake.archive import Inventory, Item, Source, folder_inventory
from silo_agent.intake.cache import InputSpool, MaskSpool, replacing
from silo_agent.intake.cohort import Candidate, build_cohort
from silo_agent.intake.errors import LabelsDenied, LabelsMissingFile, LabelsUnreadable
from silo_agent.intake.image import NotUsable
from silo_agent.intake.inputs import Preparation
from silo_agent.intake.masks.belonging import named_series
from silo_agent.intake.masks.merging import Mask
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Means
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.scan import SMALLEST_KEY_BYTES, Progress
from silo_agent.intake.volumes.assemble import Volume, refuse_large, stacked, volume_digest
from silo_agent.intake.volumes.ends import Ends
from silo_agent.intake.volumes.files import Files
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.looking import Looked
from silo_agent.intake.volumes.outcome import VolumeOutcome
from silo_agent.intake.volumes.process import VolumeReader
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits
from silo_agent.intake.withdrawn import Withdrawn

MaskKind = Literal["seg", "nifti"]
_MASK_KINDS: dict[str | None, MaskKind] = {"seg": "seg", "nifti": "nifti"}


def scan_volumes(  # noqa: PLR0913 - as of `scan`
    source: Source,
    plan: StudyPlan,
    key: bytes,
    cache: Path,
    on_progress: Progress,
    *,
    limits: VolumeLimits | None = None,
    withdrawn: Withdrawn | None = None,
    means: Means | None = None,
    held_back: bool = False,
) -> IntakeReport:
    """Read `source` for `plan`, which names a series, and put the result in `cache`. See `scan` for the arguments.

    `source.labels_kind` is "seg" or "nifti", and `labels_path` the folder of the masks. Segmentations may lie among the
    archive's own files, and it may be the archive's folder then. NIfTI files are called after the Series Instance UID
    they belong to. `on_progress` counts every file twice, for its header and for its pixels.

    Raises a subclass of `IntakeError` if there is no archive, if it stops answering, or if there is no folder of masks;
    a single bad file never raises.
    """
    rule = plan.dataset.series
    if len(key) < SMALLEST_KEY_BYTES or rule is None:
        raise ValueError(f"a scan key has at least {SMALLEST_KEY_BYTES} bytes, and the plan a rule for series")
    means, limits, withdrawn = means or Means(), limits or VolumeLimits(), withdrawn or Withdrawn(key)
    kind = _kind_of_masks(source)
    if kind == "nifti" and plan.bands:
        raise LabelsUnreadable(
            "a NIfTI file says of which series it is and not of which patient, and this plan has a guarantee per "
            "patient, whose masks must be theirs alone: give the masks as DICOM SEG"
        )
    archive = source.inventory(means.settled)
    beside = _beside(archive, kind, source.labels_path, means.settled)
    items, size = (*archive.items, *beside.items), plan.preprocessing.size
    how = Acceptance(frozenset({rule.modality}), rule.take_secondary, take_masks=kind == "seg")
    ends = Ends(items, (*archive.refused, *beside.refused), by_slice=len(size) == 2)
    names, looked, progress = Pseudonyms(withdrawn), Looked(withdrawn, ends), _Counted(on_progress, 2 * len(items))
    with (
        replacing(cache) as folder,
        closing(InputSpool(folder, size)) as inputs,
        closing(MaskSpool(folder, size)) as masks,
        closing(VolumeReader(limits, how, means.patience)) as reader,
        closing(Preparation(plan.preprocessing)) as preparation,
    ):
        first_nifti = len(archive.items) if kind == "nifti" else len(items)
        files = Files(items, first_nifti, reader, names, progress.still)
        _look(items, files, looked, names, progress)
        each_alone, rows = plan.bands > 0, _Rows(names, preparation, inputs, masks)
        work = _Work(plan, files, looked, rows, limits)
        for grid in looked.selected(rule, files.digests, each_alone=each_alone):
            work.take(grid)
            progress.done += len({one.file for one in grid.slices})
        candidates = rows.candidates.values()
        cohort = build_cohort(candidates, plan.dataset, key=key, each_alone=each_alone, held_back=held_back)
        for number, code in cohort.refused.items():
            ends.image(work.files_of[number], code)
        outcome = VolumeOutcome(plan, key, rows.candidates, work.gone, cohort, ends, looked.finish())
        progress.finish()
        return outcome.write(folder, inputs, masks)


@dataclass(slots=True)
class _Counted:
    """How far the scan is."""

    on_progress: Progress
    total: int
    done: int = 0

    def still(self) -> None:
        self.on_progress(self.done, self.total)

    def finish(self) -> None:
        self.on_progress(self.total, self.total)


def _look(items: Sequence[Item], files: Files, looked: Looked, names: Pseudonyms, progress: _Counted) -> None:
    """Read the header of everything."""
    for number, item in enumerate(items):
        says, series = files.facts(number), named_series(item.name)
        if files.is_nifti(number) and series is not None:
            looked.masks.add_nifti(number, names.uid(series), says)
        else:
            looked.take(number, says)
        progress.done += 1


@dataclass(slots=True)
class _Rows:
    """The inputs that are made, and what is known of each: a volume is one, or each of its slices."""

    names: Pseudonyms
    preparation: Preparation
    inputs: InputSpool
    masks: MaskSpool
    candidates: dict[int, Candidate] = field(default_factory=dict)

    def add(self, grid: Grid, volume: Volume, mask: Mask, *, is_kept: bool) -> list[int]:
        """The numbers of the new candidates. Without `is_kept` nothing but what the cohort is decided by is kept."""
        who, made = grid.slices[0].identifiers, list[int]()
        for depth, (image, classes) in enumerate(self.preparation.inputs_of(volume.image, mask, volume.affine)):
            is_whole = image.ndim == 4
            values = volume.content if is_whole else volume_digest(volume.image[depth : depth + 1])
            shows = tuple(int(one) for one in np.unique(classes))
            number = len(self.candidates)
            self.candidates[number] = Candidate(
                file=number,
                label=max(shows),
                sop_uid=f"{who.series_uid}/{'' if is_whole else depth}",
                patient_id=who.patient_id,
                content=self.names.content(values),
                mask=_mask_digest(mask if is_whole else mask[depth : depth + 1]),
                shows=shows,
            )
            if is_kept:
                self.inputs.add(number, image)
                self.masks.add(number, classes)
            made.append(number)
        return made


class _Work:
    """One selected series after the other. `files_of` are those of each candidate, `gone` who withdrew since."""

    def __init__(self, plan: StudyPlan, files: Files, looked: Looked, rows: _Rows, limits: VolumeLimits) -> None:
        self._classes, self._by_slice = plan.labels.classes, len(plan.preprocessing.size) == 2
        self._files, self._looked, self._rows, self._limits = files, looked, rows, limits
        self.files_of: dict[int, list[int]] = {}
        self.gone: set[int] = set()

    def take(self, grid: Grid) -> None:
        try:
            refuse_large(grid, self._limits)
            mask = self._looked.masks.mask_of(grid, self._classes, self._files.mask_values)
            volume = stacked(grid, self._files.slice_values, self._limits)
            is_gone = self._looked.is_gone(grid.slices[0].identifiers)
            made = self._rows.add(grid, volume, mask, is_kept=not is_gone)
        except NotUsable as why:
            self._looked.refuse(grid, why.code)
            return
        except MemoryError:
            self._looked.refuse(grid, Refusal.TOO_LARGE)
            return
        files = self._looked.files_of(grid)
        for depth, number in enumerate(made):
            self.files_of[number] = [grid.slices[depth].file] if self._by_slice else files
            if is_gone:
                self.gone.add(number)


def _kind_of_masks(source: Source) -> MaskKind:
    if source.labels_kind not in _MASK_KINDS:
        raise LabelsUnreadable(
            "the policy names a table for this data set, and the plan asks for masks: give the masks of this study a "
            'data set of its own in the policy, with labels of the kind "seg" or "nifti"'
        )
    try:
        if source.labels_path.is_dir():
            return _MASK_KINDS[source.labels_kind]
    except PermissionError as why:
        raise LabelsDenied(f"{source.labels_path} may not be read: grant the agent's user read access") from why
    raise LabelsMissingFile(
        f"there is no folder of masks at {source.labels_path}: correct labels.path of the data set in the policy"
    )


def _beside(archive: Inventory, kind: MaskKind, folder: Path, settled: float) -> Inventory:
    """What lies in the folder of the masks, unless the archive has it already."""
    root, masks = Path(archive.root).resolve(), folder.resolve()
    if kind == "seg" and masks.is_relative_to(root):
        below = "" if masks == root else f"{masks.relative_to(root)}/"
        if any(item.name.startswith(below) for item in archive.items):  # not so where a DICOMDIR leaves them out
            return Inventory("", (), ())
    found = folder_inventory(folder, settled)
    named = tuple(item for item in found.items if kind == "seg" or named_series(item.name) is not None)
    return Inventory(found.root, named, found.refused)


def _mask_digest(mask: Mask) -> bytes:
    """SHA-256 over shape and classes of uint8 [D,H,W]."""
    return hashlib.sha256(np.array(mask.shape, dtype="<i4").tobytes() + mask.tobytes()).digest()

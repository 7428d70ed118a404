"""Scan an archive for a plan of volumes: sort its slices, select one series of each study, lay its mask on it.

As `silo_agent.intake.scan` for images, with the same promises. Headers are read of everything first, pixels only of
what is selected. It holds one volume and its mask in memory; identifiers are gone once a file is read.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boundary.plan import StudyPlan
from silo_agent.intake.archive import Inventory, Item, Source, folder_inventory
from silo_agent.intake.cache import InputSpool, MaskSpool, replacing
from silo_agent.intake.cohort import Cohort, build_cohort
from silo_agent.intake.errors import LabelsDenied, LabelsMissingFile, LabelsUnreadable
from silo_agent.intake.index import Index
from silo_agent.intake.inputs import Preparation
from silo_agent.intake.masks.belonging import named_series
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Means
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.reuse import OtherInputs, recipe_of
from silo_agent.intake.scan import SMALLEST_KEY_BYTES, Progress
from silo_agent.intake.volumes.ends import Ends
from silo_agent.intake.volumes.files import Files
from silo_agent.intake.volumes.looking import Looked
from silo_agent.intake.volumes.making import Making, Rows
from silo_agent.intake.volumes.outcome import VolumeOutcome
from silo_agent.intake.volumes.process import VolumeReader
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits
from silo_agent.intake.volumes.remembered import RememberedFiles, RememberedVolumes
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
    others = OtherInputs(means.others, recipe_of(plan.preprocessing), size, with_masks=True)
    with (
        replacing(cache) as folder,
        closing(InputSpool(folder, size)) as inputs,
        closing(MaskSpool(folder, size)) as masks,
        closing(others),
        closing(Index(means.index, names, withdrawn.before | withdrawn.after)) as index,
        closing(VolumeReader(limits, how, means.patience)) as reader,
        closing(Preparation(plan.preprocessing)) as preparation,
    ):
        say_whose = [archive] if kind == "nifti" else [archive, beside]
        files = Files(items, RememberedFiles(index, say_whose, how, limits), reader, names, progress.still)
        _look(items, files, looked, names, progress)
        making = Making(
            classes=[names.label(one) for one in plan.labels.classes],
            by_slice=len(size) == 2,
            files=files,
            looked=looked,
            rows=Rows(names, preparation, inputs, masks, others),
            limits=limits,
            remembered=RememberedVolumes(index, [archive, beside], how, limits, plan),
            count=progress.count,
        )
        for grid in looked.selected(rule, files.digests, each_alone=plan.bands > 0):
            making.take(grid)
        cohort = making.filled(lambda: _cohort(plan, making, key, held_back=held_back))
        for number, code in cohort.refused.items():
            ends.image(making.files_of(number), code)
        index.finish()
        outcome = VolumeOutcome(plan, key, making, cohort, ends, looked.finish())
        progress.finish()
        return outcome.write(folder, inputs, masks)


def _cohort(plan: StudyPlan, making: Making, key: bytes, *, held_back: bool) -> Cohort:
    candidates, each_alone = making.candidates.values(), plan.bands > 0
    return build_cohort(candidates, plan.dataset, key=key, each_alone=each_alone, held_back=held_back)


@dataclass(slots=True)
class _Counted:
    """How far the scan is."""

    on_progress: Progress
    total: int
    done: int = 0

    def still(self) -> None:
        self.on_progress(self.done, self.total)

    def count(self, files: int) -> None:
        self.done += files
        self.still()

    def finish(self) -> None:
        self.on_progress(self.total, self.total)


def _look(items: Sequence[Item], files: Files, looked: Looked, names: Pseudonyms, progress: _Counted) -> None:
    """Ask what everything says but the NIfTI files, which say nothing of anybody."""
    number = 0
    for number, says in enumerate(files.look(), 1):
        looked.take(number - 1, says)
        progress.count(1)
    for nifti, item in enumerate(items[number:], number):
        looked.masks.add_nifti(nifti, names.uid(named_series(item.name) or ""))
        progress.count(1)


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

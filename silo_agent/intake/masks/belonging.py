"""Which mask belongs to which series: a segmentation by the series it refers to and its patient, NIfTI by its name."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import PurePath

from silo_agent.intake.header import Identifiers
from silo_agent.intake.image import NotUsable
from silo_agent.intake.masks.merging import Mask, Outlined, ValuesOf, mask_of_nifti, mask_of_segmentations
from silo_agent.intake.masks.nifti import ENDINGS
from silo_agent.intake.masks.segmentation import Segmentation
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.opened import FileFacts


class Masks:
    """Those of a scan, by the numbers of their files. UIDs and patients are compared as they are given."""

    def __init__(self) -> None:
        self._outlined: dict[tuple[str, str], list[Outlined]] = defaultdict(list)
        self._niftis: dict[str, list[int]] = defaultdict(list)
        self._segmentations: set[int] = set()
        self._met: set[int] = set()

    def add_segmentation(self, number: int, who: Identifiers, says: Segmentation) -> None:
        self._segmentations.add(number)
        for series in says.series:
            self._outlined[who.patient_id, series].append(Outlined(number, who.sop_uid, says))

    def add_nifti(self, number: int, series: str) -> None:
        self._niftis[series].append(number)

    @property
    def unmet_segmentations(self) -> set[int]:
        """Files that belong to no series that was asked for."""
        return self._segmentations - self._met

    @property
    def unmet_niftis(self) -> set[int]:
        return {number for found in self._niftis.values() for number in found} - self._met

    def files_of(self, who: Identifiers) -> list[int]:
        """What belongs to a series; from now on it is met."""
        outlined = [one.file for one in self._outlined.get((who.patient_id, who.series_uid), ())]
        found = outlined + self._niftis.get(who.series_uid, [])
        self._met.update(found)
        return found

    def mask_of(self, grid: Grid, classes: Sequence[str], facts: Callable[[int], FileFacts], values: ValuesOf) -> Mask:
        """As `merging.mask_of_segmentations` and `mask_of_nifti`; two NIfTI files are LABEL_CONFLICT.

        `classes` are called as the segments are. `facts` is asked what a NIfTI file says.
        """
        who = grid.slices[0].identifiers
        niftis = self._niftis.get(who.series_uid, [])
        if len(niftis) > 1:
            raise NotUsable(Refusal.LABEL_CONFLICT)
        for number in niftis:
            says = facts(number)
            if says.nifti is None:
                raise NotUsable(says.code or Refusal.UNREADABLE, lasting=says.lasting)
            return mask_of_nifti(grid, number, says.nifti, classes, values)
        return mask_of_segmentations(grid, self._outlined.get((who.patient_id, who.series_uid), []), classes, values)


def named_series(name: str) -> str | None:
    """The Series Instance UID that a NIfTI file is called after, None for a file of another kind."""
    last = PurePath(name).name
    return next((last.removesuffix(end) for end in reversed(ENDINGS) if last.endswith(end)), None)

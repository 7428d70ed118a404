"""A volume's grid without files, and masks read as a scan reads them, in this process."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.hospitals.volumes import Lie
from infra.hospitals.writing import Identity, uid
from silo_agent.intake.header import Identifiers
from silo_agent.intake.image import NotUsable, Refused
from silo_agent.intake.masks.merging import Mask, Outlined, mask_of_nifti, mask_of_segmentations
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.headers import Plane, Slice, Variant, Vector
from silo_agent.intake.volumes.opened import FileFacts, OpenVolumeFile
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits

WHO = Identity("st-olavs", "P1")
SERIES = uid(WHO.series_uid, 1)
CLASSES = ("background", "liver", "tumour")


def grid_of(shape: tuple[int, int, int], lie: Lie | None = None) -> Grid:
    """The grid of a series as `infra.hospitals.volumes.write_series` would write it."""
    lie = lie or Lie()
    depth, rows, columns = shape

    def vector(values: Iterable[float | str]) -> Vector:
        x, y, z = (float(value) for value in values)
        return x, y, z

    def one(number: int) -> Slice:
        across, down, frame = lie.cosines[:3], lie.cosines[3:], uid(WHO.study_uid, "frame of reference")
        plane = Plane(vector(lie.position(number)), vector(across), vector(down), lie.spacing, frame)
        who = Identifiers(WHO.patient, WHO.study_uid, SERIES, f"slice {number}")
        return Slice(number, 0, who, "CT", rows, columns, plane, Variant(None, None, None, ()), (1.0, 0.0))

    grid = place([one(number) for number in range(depth)])
    assert isinstance(grid, Grid)
    return grid


class Masks:
    """Files of masks by number, opened as the process that reads opens them."""

    def __init__(self, files: Iterable[Path], limits: VolumeLimits | None = None, *, are_nifti: bool = False) -> None:
        self._files, self._limits, self._are_nifti = list(files), limits or VolumeLimits(), are_nifti
        self.facts = [self._says(number) for number in range(len(self._files))]

    def of(self, grid: Grid, classes: tuple[str, ...] = CLASSES) -> Mask:
        """Raises `NotUsable`, as a scan hears it."""
        if self._are_nifti:
            (says,) = (one.nifti for one in self.facts)
            assert says is not None, self.facts
            return mask_of_nifti(grid, 0, says, classes, self._values)
        found = []
        for number, one in enumerate(self.facts):
            assert one.segmentation is not None, one.code
            assert one.who is not None
            found.append(Outlined(number, one.who.sop_uid, one.segmentation))
        return mask_of_segmentations(grid, found, classes, self._values)

    def _open(self, number: int) -> OpenVolumeFile:
        how = Acceptance(frozenset({"CT"}), take_masks=True)
        return OpenVolumeFile(self._files[number], number, how, self._limits)

    def _says(self, number: int) -> FileFacts:
        with closing(self._open(number)) as file:
            return file.facts(is_nifti=self._are_nifti)

    def _values(self, number: int, wanted: Iterable[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        with closing(self._open(number)) as file:
            file.facts(is_nifti=self._are_nifti)
            for frame in wanted:
                values = file.frame(frame)
                if isinstance(values, Refused):
                    raise NotUsable(values.code)
                yield frame, values

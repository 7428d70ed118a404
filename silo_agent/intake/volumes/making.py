"""From the series that were selected to the cohort's inputs: what each makes is read, or remembered with its inputs.

As `silo_agent.intake.scan` for images: what is remembered is enough to decide whose inputs the cohort has; then they
are taken over from another scan, and what no scan has is read after all.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from silo_agent.intake.cache import InputSpool, MaskSpool
from silo_agent.intake.cohort import Candidate, Cohort
from silo_agent.intake.image import NotUsable
from silo_agent.intake.inputs import Preparation
from silo_agent.intake.masks.merging import Mask
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.reuse import OtherInputs, part_of
from silo_agent.intake.volumes.assemble import Volume, refuse_large, stacked, volume_digest
from silo_agent.intake.volumes.files import Files
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.looking import Looked
from silo_agent.intake.volumes.reading import VolumeLimits
from silo_agent.intake.volumes.remembered import Made, Prepared, RememberedVolumes


@dataclass(frozen=True, slots=True)
class Series:
    """One that was selected. Its inputs are numbered from `first` on: one, or one for each slice."""

    grid: Grid
    masks: list[int]  # the files of its mask
    first: int
    inputs: int

    @property
    def files(self) -> list[int]:
        return sorted({one.file for one in self.grid.slices})

    def files_of(self, number: int) -> list[int]:
        """Those of an input: of a slice its own, of a volume those of its mask too."""
        return [*self.masks, *self.files] if self.inputs == 1 else [self.grid.slices[number - self.first].file]


@dataclass(frozen=True, slots=True)
class Rows:
    """How inputs are made of a volume, and where they go. See `reuse` for `others`."""

    names: Pseudonyms
    preparation: Preparation
    inputs: InputSpool
    masks: MaskSpool
    others: OtherInputs

    def made(self, series: Series, volume: Volume, mask: Mask, *, is_kept: bool) -> Prepared:
        """Make them all. Without `is_kept` nothing but what the cohort is decided by is kept."""
        found: list[Made] = []
        for depth, (image, classes) in enumerate(self.preparation.inputs_of(volume.image, mask, volume.affine)):
            is_whole = image.ndim == 4
            values = volume.content if is_whole else volume_digest(volume.image[depth : depth + 1])
            digest = _mask_digest(mask if is_whole else mask[depth : depth + 1])
            shows = tuple(int(one) for one in np.unique(classes))
            found.append(Made(self.names.content(values), digest, shows))
            if is_kept:
                self.inputs.add(series.first + depth, image)
                self.masks.add(series.first + depth, classes)
        whole = volume.content + _mask_digest(mask) + volume.affine.tobytes()
        return Prepared(self.names.made_of(whole), tuple(found))

    def take_over(self, number: int, made_of: bytes) -> bool:
        """Have an input that another scan has; whether there is one."""
        row = self.others.row(made_of)
        if row is not None:
            image, mask = row
            self.inputs.add_row(number, image)
            self.masks.add_row(number, mask)
        return row is not None


@dataclass(slots=True)
class Making:
    """One scan's. `count` is told how many files are done with."""

    classes: Sequence[str]
    by_slice: bool
    files: Files
    looked: Looked
    rows: Rows
    limits: VolumeLimits
    remembered: RememberedVolumes
    count: Callable[[int], None]
    candidates: dict[int, Candidate] = field(default_factory=dict)
    _series: dict[int, Series] = field(default_factory=dict)  # by the number of an input
    _made_of: dict[int, bytes] = field(default_factory=dict)  # the same
    _next: int = 0

    def take(self, grid: Grid) -> None:
        """One after the other."""
        inputs = len(grid.slices) if self.by_slice else 1
        series = Series(grid, self.looked.masks_of(grid), self._next, inputs)
        self._next += inputs
        known = self.remembered.find(grid, series.masks)
        if known is None:
            self._read(series)
            return
        self._note(series, known)
        if not self._comes_later(series):
            self.count(len(series.files))

    def filled(self, build: Callable[[], Cohort]) -> Cohort:
        """The cohort, with an input for each of its members; a series is read once more at most, and then counts."""
        cohort = build()
        while missing := [one.file for one in cohort.members if not self._has_input(one.file)]:
            for series in {self._series[number].first: self._series[number] for number in missing}.values():
                self._read(series)
            cohort = build()
        return cohort

    def files_of(self, number: int) -> list[int]:
        return self._series[number].files_of(number)

    def made_of(self, number: int) -> bytes | None:
        """What an input is made of; None of one of which nothing is kept."""
        return None if self._is_gone(number) else self._made_of[number]

    @property
    def gone(self) -> set[int]:
        """Candidates of patients who withdrew since: they count, and nothing is kept."""
        return {number for number in self.candidates if self._is_gone(number)}

    def _is_gone(self, number: int) -> bool:
        return self.looked.is_gone(self._series[number].grid.slices[0].identifiers)

    def _read(self, series: Series) -> None:
        found, lasting = self._found(series)
        if lasting:
            self.remembered.keep(series.grid, series.masks, found)
        self._note(series, found)
        self.count(len(series.files))

    def _found(self, series: Series) -> tuple[Prepared | Refusal, bool]:
        """What its files make, and whether another reading of the same bytes would find the same."""
        grid, files = series.grid, self.files
        try:
            refuse_large(grid, self.limits)
            mask = self.looked.masks.mask_of(grid, self.classes, files.facts, files.mask_values)
            volume = stacked(grid, files.slice_values, self.limits)
            is_kept = not self.looked.is_gone(grid.slices[0].identifiers)
            return self.rows.made(series, volume, mask, is_kept=is_kept), True
        except NotUsable as why:
            return why.code, why.lasting
        except MemoryError:
            return Refusal.TOO_LARGE, False

    def _note(self, series: Series, found: Prepared | Refusal) -> None:
        numbers = range(series.first, series.first + series.inputs)
        for number in numbers:
            self.candidates.pop(number, None)
        if isinstance(found, Refusal):
            self.looked.refuse(series.grid, found)
            return
        who = series.grid.slices[0].identifiers
        for depth, (number, one) in enumerate(zip(numbers, found.inputs, strict=True)):
            self._series[number], self._made_of[number] = series, part_of(found.made_of, depth)
            self.candidates[number] = Candidate(
                file=number,
                label=max(one.shows),
                sop_uid=f"{who.series_uid}/{depth if self.by_slice else ''}",
                patient_id=who.patient_id,
                content=one.content,
                mask=one.mask,
                shows=one.shows,
            )

    def _comes_later(self, series: Series) -> bool:
        numbers = range(series.first, series.first + series.inputs)
        return any(one in self.candidates and not self.rows.others.has(self._made_of[one]) for one in numbers)

    def _has_input(self, number: int) -> bool:
        """Whether it is spooled, if need be from another scan; nobody's who withdrew has one."""
        if number in self.rows.inputs or self._is_gone(number):
            return True
        return self.rows.take_over(number, self._made_of[number])


def _mask_digest(mask: Mask) -> bytes:
    """SHA-256 over shape and classes of uint8 [D,H,W]."""
    return hashlib.sha256(np.array(mask.shape, dtype="<i4").tobytes() + mask.tobytes()).digest()

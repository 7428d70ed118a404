"""What the headers of an archive decide: who is left out, which series of each study is used, where all else ended."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from boundary.series import SeriesRule
from silo_agent.intake.header import Identifiers
from silo_agent.intake.masks.belonging import Masks
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.ends import Ends
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.headers import Slice
from silo_agent.intake.volumes.losses import Lost
from silo_agent.intake.volumes.opened import FileFacts
from silo_agent.intake.volumes.select import select
from silo_agent.intake.volumes.stacks import Contents, sort_into_stacks
from silo_agent.intake.withdrawn import Withdrawn


class Looked:
    """What has been found so far, in pseudonyms. Of who withdrew before, nothing but headers is read."""

    def __init__(self, withdrawn: Withdrawn, ends: Ends) -> None:
        self.masks = Masks()
        self._before, self._gone, self._ends = withdrawn.before, withdrawn.before | withdrawn.after, ends
        self._slices: list[Slice] = []
        self._lost: dict[str, list[Lost]] = defaultdict(list)  # by patient
        self._left_out: dict[tuple[str, str], list[Slice]] = defaultdict(list)  # by patient and series

    def take(self, number: int, says: FileFacts) -> None:
        """One file of an archive, or a segmentation beside it."""
        who = says.who
        if who is not None and self.is_gone(who):
            self._ends.withheld.add(number)
        if says.code is not None or who is None:
            self._ends.file(number, says.code or Refusal.UNREADABLE)
            if who is not None and says.code is not None:
                self._lost[who.patient_id].append((who, says.code))
        elif who.patient_id in self._before:
            self._left_out[who.patient_id, who.series_uid] += says.slices
            self._ends.named([number], Refusal.WITHDRAWN)
        elif says.segmentation is not None:
            self.masks.add_segmentation(number, who, says.segmentation)
        else:
            self._slices += says.slices

    def selected(self, rule: SeriesRule, contents: Contents, *, each_alone: bool) -> Iterator[Grid]:
        """One grid for each study that has one; to be called once, when all is taken.

        `each_alone`, for plans with a guarantee per patient: UIDs are compared within each patient, as in
        `cohort.build_cohort`, so that what is used of one does not depend on who else is there.
        """
        for slices in self._left_out.values():
            self._refuse(slices, Refusal.WITHDRAWN)
        together: dict[str, list[Slice]] = defaultdict(list)
        for one in self._slices:
            together[one.identifiers.patient_id if each_alone else ""].append(one)
        self._slices = []
        everything = [one for found in self._lost.values() for one in found]
        for patient, some in together.items():
            lost = [*self._lost.get(patient, ()), *self._lost.get("", ())] if each_alone else everything
            yield from self._selected(some, lost, rule, contents)

    def _selected(self, some: list[Slice], lost: list[Lost], rule: SeriesRule, contents: Contents) -> list[Grid]:
        done = sort_into_stacks(some, contents, lost)
        by_end: dict[tuple[str, Refusal], list[Slice]] = defaultdict(list)
        for one, code in done.refused:
            by_end[one.identifiers.series_uid, code].append(one)
        studies = select(done.stacks, rule)
        for stack, code in (pair for study in studies for pair in study.refused):
            same_end = by_end.pop((stack.slices[0].identifiers.series_uid, code), ())  # or it would count twice
            self._refuse([*stack.slices, *same_end], code)
        for (_, code), slices in by_end.items():
            self._ends.series(slices, (), code)
        return [study.used for study in studies if study.used is not None]

    def masks_of(self, grid: Grid) -> list[int]:
        """The files of the mask of a series that was selected."""
        return self._masks_of(grid.slices)

    def refuse(self, grid: Grid, code: Refusal) -> None:
        """A series that was selected and is no use after all."""
        self._refuse(grid.slices, code)

    def is_gone(self, who: Identifiers) -> bool:
        """Whether the patient withdrew, before or since: nothing of them is kept or named."""
        return who.patient_id in self._gone

    def finish(self) -> int:
        """Refuse segmentations of no series here; how many masks there are without one."""
        unmet = self.masks.unmet_segmentations
        for number in unmet:
            self._ends.file(number, Refusal.NOT_AN_IMAGE)
        return len(unmet | self.masks.unmet_niftis)

    def _refuse(self, slices: Iterable[Slice], code: Refusal) -> None:
        slices = list(slices)
        if slices:
            self._ends.series(slices, self._masks_of(slices), code)

    def _masks_of(self, slices: Iterable[Slice]) -> list[int]:
        """Of one series. What is called after a series of who withdrew is not named either."""
        who = next(iter(slices)).identifiers
        found = self.masks.files_of(who)
        if self.is_gone(who):
            self._ends.withheld.update(found)
        return found

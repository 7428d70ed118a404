"""Scan an archive for one plan: look at every file, build the cohort, write the cache.

The one composition of this package. It holds one image in memory for each process that reads; model inputs go to disk
as they are made, and identifiers are gone once a file is read: all that follows is decided on keyed hashes of them.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.plan import StudyPlan
from silo_agent.intake.archive import Inventory, Source
from silo_agent.intake.cache import InputSpool, replacing
from silo_agent.intake.cohort import Cohort, build_cohort
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import HeaderFacts, Known, Pixels
from silo_agent.intake.index import Index
from silo_agent.intake.inputs import Preparation
from silo_agent.intake.labels import read_labels
from silo_agent.intake.outcome import Outcome
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Looked, Means, Reading
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.remembered import RememberedImages
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.reuse import OtherInputs, recipe_of
from silo_agent.intake.selection import Selection
from silo_agent.intake.withdrawn import Withdrawn

SMALLEST_KEY_BYTES = 16

Progress = Callable[[int, int], None]  # (files done, files in all)


def scan(  # noqa: PLR0913 - one for each part of the daemon's command
    source: Source,
    plan: StudyPlan,
    key: bytes,
    cache: Path,
    on_progress: Progress,
    *,
    limits: Limits | None = None,
    withdrawn: Withdrawn | None = None,
    means: Means | None = None,
    held_back: bool = False,
) -> IntakeReport:
    """Read `source` for `plan` and put the result in `cache`, replacing an earlier one as a whole.

    `key` is this hospital's secret for this study: patient references, the split and the dataset digest hang
    on it, and on the hospital's master key in `withdrawn`. Without `withdrawn` nobody is, and `key` stands for both.
    With a memory in `means` the result is the same, and files that did not change are not opened. With `held_back`
    nobody is trained on: all patients are held out.

    Raises a subclass of `IntakeError` if there is no archive, if it stops answering, or if there is no usable label
    table; a single bad file never raises.
    """
    if len(key) < SMALLEST_KEY_BYTES:
        raise ValueError(f"a scan key has at least {SMALLEST_KEY_BYTES} bytes")
    means, limits, withdrawn = means or Means(), limits or Limits(), withdrawn or Withdrawn(key)
    table = read_labels(source.labels_path, plan.labels, source.labels_kind)
    archive = source.inventory(means.settled)
    names = Pseudonyms(withdrawn)
    selection = Selection(plan, table, withdrawn, names)
    with replacing(cache) as folder, closing(InputSpool(folder, plan.preprocessing.size)) as spool:
        with ExitStack() as stack:
            work = _Work(archive, selection, spool, stack.enter_context(closing(_others(plan, means))), on_progress)
            preparation = stack.enter_context(closing(Preparation(plan.preprocessing)))
            index = stack.enter_context(closing(Index(means.index, names, withdrawn.before | withdrawn.after)))
            readers = stack.enter_context(means.readers(limits, len(archive.items)))
            errand = _Errand(names, selection, preparation)
            reading = Reading(readers, errand, names, work.still, RememberedImages(index, archive.root, limits))
            work.look(reading)
            cohort = work.filled(reading, lambda: _cohort(plan, selection, key, held_back=held_back))
            index.finish()
        return Outcome(plan, key, table, archive, selection, cohort).write(folder, spool)


@dataclass(frozen=True, slots=True)
class _Made:
    """What is kept of an image: SHA-256 of its stored values, and the model's input."""

    content: bytes = field(repr=False)
    values: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Errand:
    """What the threads that read are to do. See `readers.Errand`."""

    names: Pseudonyms
    selection: Selection
    preparation: Preparation

    def note(self, header: HeaderFacts) -> Known:
        return self.names.known(header)

    def wants(self, known: Known) -> bool:
        return self.selection.wants(known)

    def make(self, pixels: Pixels) -> _Made:
        return _Made(pixels.content, self.preparation.input_of(pixels.image))


class _Work:
    """One scan under way: every file is looked at, then the inputs of those that are used are completed."""

    def __init__(
        self, archive: Inventory, selection: Selection, spool: InputSpool, others: OtherInputs, on_progress: Progress
    ) -> None:
        self._archive, self._selection, self._spool, self._others = archive, selection, spool, others
        self._on_progress, self._done = on_progress, 0

    def still(self) -> None:
        self._on_progress(self._done, len(self._archive.items))

    def look(self, reading: Reading[_Made]) -> None:
        for looked in reading.look(self._archive.items):
            self.still()
            self._take(looked)
            self._done += not self._comes_later(looked.number)

    def filled(self, reading: Reading[_Made], build: Callable[[], Cohort]) -> Cohort:
        """The cohort, with an input for each of its members.

        A file may be read again here, of which the index knew all but its input. What it holds then is what counts, so
        the cohort is built again; each file is read once more at most.
        """
        cohort = build()
        while missing := [one.file for one in cohort.members if not self._has_input(one.file)]:
            for looked in reading.read(self._archive.items, missing):
                self.still()
                self._take(looked)
                self._done += 1
            cohort = build()
        self._on_progress(len(self._archive.items), len(self._archive.items))
        return cohort

    def _take(self, looked: Looked[_Made]) -> None:
        self._selection.take(looked.number, looked.known)
        if looked.made is not None and self._selection.kept(looked.number) is not None:
            self._spool.add(looked.number, looked.made.values)

    def _comes_later(self, number: int) -> bool:
        kept = self._selection.kept(number)
        return kept is not None and number not in self._spool and not self._others.has(kept.content)

    def _has_input(self, number: int) -> bool:
        """Whether it is spooled, if need be from another scan; nobody's who withdrew has one."""
        kept = self._selection.kept(number)
        if kept is None or number in self._spool:
            return True
        row = self._others.row(kept.content)
        if row is not None:
            self._spool.add_row(number, *row)
        return row is not None


def _others(plan: StudyPlan, means: Means) -> OtherInputs:
    return OtherInputs(means.others, recipe_of(plan.preprocessing), plan.preprocessing.size)


def _cohort(plan: StudyPlan, selection: Selection, key: bytes, *, held_back: bool) -> Cohort:
    """With `each_alone` numbers of orders are compared within each patient, as UIDs are: see `build_cohort`."""
    each_alone = plan.bands > 0
    unclear = set[int]() if each_alone else selection.whose_is_unclear()
    candidates = [one for number, one in selection.candidates.items() if number not in unclear]
    cohort = build_cohort(candidates, plan.dataset, key=key, each_alone=each_alone, held_back=held_back)
    return replace(cohort, refused={**cohort.refused, **dict.fromkeys(unclear, Refusal.UID_CONFLICT)})

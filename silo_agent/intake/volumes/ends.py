"""Where everything of a scan of volumes ended that is not used: counts by code, and the files' names for the hospital.

Volumes are counted by series: once for each code that befell it, and a file that belongs to none by itself, as
`silo-agent scan --volumes` does. Where the images of the study are slices, slices are counted.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from silo_agent.intake.archive import Item
from silo_agent.intake.outcome import NOT_NAMED
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import Slice


class Ends:
    """`by_slice`: whether a slice is an image."""

    def __init__(self, items: Sequence[Item], refused: Iterable[tuple[str, Refusal]], *, by_slice: bool) -> None:
        self._items, self._by_slice = items, by_slice
        self._unopened = list(refused)
        self.counts = Counter(code for _, code in self._unopened)
        self._files: set[tuple[int, Refusal]] = set()
        self.withheld: set[int] = set()  # files of patients who withdrew

    def file(self, number: int, code: Refusal) -> None:
        """One that belongs to no series."""
        self.counts[code] += 1
        self._files.add((number, code))

    def series(self, slices: Collection[Slice], masks: Iterable[int], code: Refusal) -> None:
        """Slices of one series that share this end, and the masks that were meant for them."""
        self.counts[code] += len(slices) if self._by_slice else 1
        self.named([*(one.file for one in slices), *masks], code)

    def image(self, files: Iterable[int], code: Refusal) -> None:
        """One that was made and is not used."""
        self.counts[code] += 1
        self.named(files, code)

    def named(self, files: Iterable[int], code: Refusal) -> None:
        """Name files that are counted with others."""
        self._files.update((number, code) for number in files)

    @property
    def rows(self) -> list[tuple[str, Refusal]]:
        """(name, code) of each file, without the names of those who withdrew."""
        named = [
            (NOT_NAMED if number in self.withheld else self._items[number].name, code) for number, code in self._files
        ]
        return sorted([*named, *self._unopened])

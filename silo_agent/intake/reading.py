"""What is known of every file of an archive, in the order of its listing: remembered where that holds, else read.

One file at a time comes out, however many are on their way, so that a scan in several processes finds what a scan in
one would find.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from silo_agent.intake.archive import SETTLED_SECONDS, Item
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import Known, PixelRefusal
from silo_agent.intake.index import FILES_AT_ONCE
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.readers import READ_SECONDS, TOGETHER, Errand, Found, Readers, in_order
from silo_agent.intake.remembered import RememberedImages
from silo_agent.intake.reuse import OtherScan

_FILES_A_PROCESS = 64  # below that, starting another costs more than it saves
_Question = tuple[int, Item, Known | None]  # an item, its number, and what is remembered if that is enough
_AHEAD = 2 * TOGETHER  # files on their way for each process


class HasContent(Protocol):
    """What is made of an image keeps the digest of its stored values."""

    @property
    def content(self) -> bytes: ...


Made = TypeVar("Made", bound=HasContent)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a hospital's scans may learn from each other: the file of the index, and scans whose inputs can be taken.

    `now`: a file that changed shortly before is not remembered yet, because it may change again unseen.
    """

    index: Path
    now: datetime
    others: tuple[OtherScan, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Means:
    """With what a scan reads: processes, seconds for each question about a file, and what it remembers."""

    processes: int = 2
    patience: float = READ_SECONDS
    memory: Memory | None = None

    @property
    def settled(self) -> float:
        """What changed later cannot be remembered: POSIX seconds."""
        return 0.0 if self.memory is None else self.memory.now.timestamp() - SETTLED_SECONDS

    @property
    def index(self) -> Path | None:
        return None if self.memory is None else self.memory.index

    @property
    def others(self) -> tuple[OtherScan, ...]:
        return () if self.memory is None else self.memory.others

    def readers(self, limits: Limits, files: int) -> Readers:
        return Readers(min(self.processes, 1 + files // _FILES_A_PROCESS), limits, self.patience)


@dataclass(frozen=True, slots=True)
class Looked(Generic[Made]):
    """A file and what is known of it; `made` only where its pixels were read just now."""

    number: int
    known: Known
    made: Made | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Reading(Generic[Made]):
    """How the files of an archive are read for one scan."""

    readers: Readers
    errand: Errand[Made]
    names: Pseudonyms
    still: Callable[[], None]  # called now and then; what it raises ends the reading
    remembered: RememberedImages | None = None

    def look(self, items: Sequence[Item]) -> Iterator[Looked[Made]]:
        """Every item, with its number."""
        return self._settled(self._remembered(items))

    def read(self, items: Sequence[Item], numbers: Sequence[int]) -> Iterator[Looked[Made]]:
        """Some items once more, whatever is remembered of them."""
        return self._settled((number, items[number], None) for number in numbers)

    def _remembered(self, items: Sequence[Item]) -> Iterator[_Question]:
        for start in range(0, len(items), FILES_AT_ONCE):
            some = items[start : start + FILES_AT_ONCE]
            found = [None] * len(some) if self.remembered is None else self.remembered.find(some)
            for number, (item, known) in enumerate(zip(some, found, strict=True), start):
                is_enough = known is not None and (known.content is not None or not self.errand.wants(known))
                yield number, item, known if is_enough else None

    def _settled(self, questions: Iterator[_Question]) -> Iterator[Looked[Made]]:
        def submit(one: _Question) -> "Future[Found[Made]] | None":
            _, item, known = one
            return None if known is not None else self.readers.submit(item, self.errand)

        ahead = self.readers.processes * _AHEAD
        for (number, item, known), found in in_order(questions, submit, ahead, self.still):
            if found is not None:
                yield self._taken(number, item, found)
            elif known is not None:
                yield Looked(number, known)

    def _taken(self, number: int, item: Item, found: Found[Made]) -> Looked[Made]:
        known, made = found.known, None
        if isinstance(found.image, PixelRefusal):
            known = replace(known, wanted=found.image.code)
        elif found.image is not None:
            made = found.image
            known = replace(known, content=self.names.content(made.content))
        if self.remembered is not None and found.lasting and item.unchanged():
            self.remembered.keep(item, known)
        return Looked(number, known, made)

"""The logs of a bundle as they are read: what each entry says, and which entries are not shown."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from boundary.errors import MalformedMessage
from compliance.bundle import LogCopy
from compliance.disclosure import hash_of
from compliance.events import AnyEvent, Event
from compliance.merkle import HASH_BYTES
from compliance.quick_leaf import read

E_co = TypeVar("E_co", bound=Event, covariant=True)
Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True, slots=True, order=True)
class Pointer:
    """Where something stands: entry number `sequence` of a party's log."""

    log: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.log} #{self.sequence}"


@dataclass(frozen=True, slots=True)
class Entry(Generic[E_co]):
    """One entry that is shown. `time` is RFC 3339 in UTC by the log's own clock; as text it sorts by time."""

    at: Pointer
    time: str
    actor: str
    event: E_co


@dataclass(frozen=True, slots=True)
class ReadLog:
    """One party's log. `others` counts entries about other studies, which say nothing here.

    `withheld` are the numbers of entries shown as hashes, `broken` of those that are no entry of this log there.
    """

    party: str
    is_there: bool
    hashes: tuple[bytes, ...]
    withheld: tuple[int, ...]
    broken: tuple[int, ...]
    others: int
    last_time: str | None
    _by_kind: dict[type[AnyEvent], tuple[Entry[AnyEvent], ...]]

    @property
    def size(self) -> int:
        return len(self.hashes)

    def of(self, kind: type[Kind]) -> tuple[Entry[Kind], ...]:
        """The entries of one kind about this study, in order."""
        found = self._by_kind.get(cast("type[AnyEvent]", kind), ())
        return cast("tuple[Entry[Kind], ...]", found)

    def everything(self) -> list[Entry[AnyEvent]]:
        """All that is shown about this study, in order."""
        return sorted((one for some in self._by_kind.values() for one in some), key=lambda one: one.at.sequence)


def missing(party: str) -> ReadLog:
    return ReadLog(party, False, (), (), (), 0, None, {})


def read_log(copy: LogCopy, study: str, parties: frozenset[str]) -> ReadLog:
    """Read a log for `study`; `parties` are well-formed names of who acts in it.

    What is no entry is noted in `broken` and does not stop the reading.
    """
    found: dict[type[AnyEvent], list[Entry[AnyEvent]]] = defaultdict(list)
    withheld, broken, others, last = [], [], 0, None
    for sequence, data in enumerate(copy.entries, start=1):
        if len(data) == HASH_BYTES:
            withheld.append(sequence)
            continue
        try:
            leaf = read(data, copy.party, parties)
        except MalformedMessage:
            broken.append(sequence)
            continue
        if (leaf.log, leaf.sequence) != (copy.party, sequence):
            broken.append(sequence)
            continue
        last = leaf.time
        if getattr(leaf.event, "study", study) != study:
            others += 1
            continue
        found[type(leaf.event)].append(Entry(Pointer(copy.party, sequence), leaf.time, leaf.actor, leaf.event))
    return ReadLog(
        party=copy.party,
        is_there=True,
        hashes=tuple(hash_of(data) for data in copy.entries),
        withheld=tuple(withheld),
        broken=tuple(broken),
        others=others,
        last_time=last,
        _by_kind={kind: tuple(entries) for kind, entries in found.items()},
    )


def in_round(entries: Iterable[Entry[Kind]], number: int) -> list[Entry[Kind]]:
    """Those about one round."""
    return [entry for entry in entries if getattr(entry.event, "round", None) == number]

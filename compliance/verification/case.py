"""What all checks look at: the bundle with its logs opened, their trees built, and the keys that are believed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar, cast

from boundary.aggregation import SMALLEST_COHORT
from boundary.canonical import Digest
from boundary.errors import BoundaryError
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR
from boundary.plan import digest_of
from compliance.bundle import Bundle, LogCopy, Manifest, Trust, parties_of
from compliance.events import Event, HeadsWitnessed, RoundClosed, RoundReceived
from compliance.merkle import HASH_BYTES, Tree, leaf_hash
from compliance.quick_leaf import read
from compliance.records import RoundRecord
from compliance.verification.findings import Finding, at, broken, note
from compliance.verification.signatures import MOST_COSIGNATURES, Forged, forged_aside, older

E = TypeVar("E", bound=Event)


@dataclass(slots=True)
class Entry(Generic[E]):
    """An entry that is shown, by its number in its log."""

    number: int
    time: str
    event: E


@dataclass(frozen=True)
class Log:
    """A log as it was opened. `faults` are those of its entries by themselves."""

    copy: LogCopy
    tree: Tree
    withheld: int
    faults: tuple[Finding, ...]
    _by_kind: dict[type[Event], list[Entry[Event]]]

    @property
    def party(self) -> str:
        return self.copy.party

    @property
    def size(self) -> int:
        return len(self.copy.entries)

    def of(self, kind: type[E], study: str | None = None) -> list[Entry[E]]:
        """The entries of a kind, in order; of one study only, if it is given."""
        found = cast("list[Entry[E]]", self._by_kind.get(kind, []))
        return [entry for entry in found if study is None or getattr(entry.event, "study", None) == study]

    def root(self, size: int) -> bytes:
        """The root over the first `size` entries, which are there."""
        if size not in self._roots:
            self._roots[size] = self.tree.root(size)
        return self._roots[size]

    @cached_property
    def _roots(self) -> dict[int, bytes]:
        return {}


@dataclass(frozen=True)
class Case:
    """One bundle under one reviewer's keys. `keys` has every party of the plan: the reviewer's, else the plan's.

    `forged` names the heads, cosignatures and receipts that do not verify under them; `unseen` is how many cosignatures
    were not looked at, because their witness has cosigned a newer head.
    """

    bundle: Bundle
    trust: Trust
    keys: Mapping[str, PublicIdentity]
    logs: Mapping[str, Log]
    manifest: Manifest | None
    forged: Forged
    unseen: int
    files: Mapping[str, bytes]

    @property
    def study(self) -> str:
        return self.bundle.study

    @cached_property
    def plan_digest(self) -> Digest:
        return digest_of(self.bundle.plan)

    @property
    def parties(self) -> tuple[str, ...]:
        return parties_of(self.bundle.plan)

    @property
    def least(self) -> int:
        """The smallest number of hospitals that a sum of this study may have."""
        return max(SMALLEST_COHORT, self.bundle.plan.aggregation.quorum)

    @cached_property
    def closed(self) -> list[Entry[RoundClosed]]:
        """The rounds that count, in the order of the coordinator's log."""
        log = self.logs.get(COORDINATOR)
        return [] if log is None else log.of(RoundClosed, self.study)

    @cached_property
    def records(self) -> dict[int, RoundRecord]:
        return {record.round: record for record in self.bundle.rounds}

    @cached_property
    def contributing(self) -> frozenset[str]:
        """Every hospital of the plan whose work is in some round."""
        return frozenset(silo for closed in self.closed for silo in closed.event.contributing) & set(self.parties)

    @cached_property
    def taking_part(self) -> frozenset[str]:
        """Who has to watch over the logs: the coordinator, and all that approved or that are in a round."""
        return self.contributing | (set(self.bundle.approvals) & set(self.parties)) | {COORDINATOR}

    @cached_property
    def shown_until(self) -> dict[str, int]:
        """The last round of which a hospital's log says how it ended, if no entry of that log is withheld."""
        return {
            party: max((entry.event.round for entry in log.of(RoundReceived, self.study)), default=0)
            for party, log in self.logs.items() if not log.withheld
        }  # fmt: skip

    @cached_property
    def witnessed(self) -> frozenset[str]:
        """Whose log somebody says to have seen."""
        return frozenset(
            head.log for log in self.logs.values() for entry in log.of(HeadsWitnessed) for head in entry.event.heads
        )


Check = Callable[[Case], Iterable[Finding]]


def open_case(
    bundle: Bundle,
    trust: Trust,
    manifest: Manifest | None,
    files: Mapping[str, bytes] | None = None,
    *,
    every: bool = False,
) -> Case:
    """`files` are those that the bundle was read from: in them every record has its canonical form already.

    With `every`, each cosignature is verified however many there are (`compliance.verification.signatures`).
    """
    of_plan = bundle.plan.keys
    keys = of_plan | {silo: key for silo, key in trust.hospitals.items() if silo in of_plan}
    keys |= {COORDINATOR: trust.coordinator}
    actors = frozenset(parties_of(bundle.plan))
    count = older(bundle)
    unseen = 0 if every or count <= MOST_COSIGNATURES else count
    with forged_aside(bundle, keys, every=not unseen) as wrong:
        logs = {party: open_log(copy, actors) for party, copy in bundle.logs.items()}
        return Case(bundle, trust, keys, logs, manifest, wrong(), unseen, files or {})


def open_log(copy: LogCopy, actors: frozenset[str]) -> Log:
    """Parse every entry that is shown, and hash all of them."""
    hashes, faults, withheld = [], [], 0
    by_kind: dict[type[Event], list[Entry[Event]]] = {}
    ahead, latest, is_late = 0, "", False
    for number, data in enumerate(copy.entries, start=1):
        if len(data) == HASH_BYTES:
            hashes.append(data)
            withheld += 1
            continue
        hashes.append(leaf_hash(data))
        try:
            leaf = read(data, copy.party, actors)
        except BoundaryError as why:
            where, means = at(copy.party, number), "the log holds what no version of this software writes"
            faults.append(broken(where, str(why), means))
            continue
        if leaf.log != copy.party:
            found = f"an entry of the log of {leaf.log}"
            faults.append(broken(at(copy.party, number), found, "two logs were mixed up"))
        if leaf.sequence - number != ahead:  # told once where it begins, not for all that follow
            ahead = leaf.sequence - number
            means = "entries were taken out, put in or moved"
            faults.append(broken(at(copy.party, number), f"calls itself entry {leaf.sequence}", means))
        if leaf.time >= latest:
            latest = leaf.time
        elif not is_late:
            is_late = True
            means = "the clock of this party was set back; order is by number, not by time"
            faults.append(note(at(copy.party, number), f"the time goes back from {latest} to {leaf.time}", means))
        by_kind.setdefault(type(leaf.event), []).append(Entry(number, leaf.time, leaf.event))
    return Log(copy, Tree.of(hashes), withheld, tuple(faults), by_kind)

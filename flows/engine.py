"""The round engine: pure decisions over what is known and the clock. Prefect only carries them out.

A collection is one sum over hospitals (architecture.md, section 4). Its life is a row of steps, of which each asks
hospitals for one message: they answer, refuse or fall silent. Never on with fewer than the step needs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self


class Next(StrEnum):
    """What to do now."""

    WAIT = "wait"
    GO_ON = "go-on"
    GIVE_UP = "give-up"  # this attempt: a new one may follow


class Reason(StrEnum):
    """Why. Stable codes: they are audited and shown."""

    WAITING = "WAITING"
    ALL_THERE = "ALL_THERE"
    REST_REFUSED = "REST_REFUSED"
    REST_SILENT = "REST_SILENT"
    DEADLINE = "DEADLINE"
    WANTED_THERE = "WANTED_THERE"
    BELOW_QUORUM = "BELOW_QUORUM"
    TOO_MANY_REFUSED = "TOO_MANY_REFUSED"
    CANNOT_UNMASK = "CANNOT_UNMASK"


class Standing(StrEnum):
    """Where one hospital stands in a collection, as people see it."""

    WORKING = "working"
    READY = "ready"
    NOT_NEEDED = "not-needed"
    REFUSED = "refused"
    SILENT = "silent"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Decision:
    """The next action with its reason."""

    next: Next
    reason: Reason


@dataclass(frozen=True, slots=True)
class Needed:
    """How many answers are enough: a number from each of some groups of hospitals, in at least `groups` of them."""

    parts: tuple[tuple[frozenset[str], int], ...]
    groups: int = 1

    @classmethod
    def of(cls, silos: Iterable[str], number: int) -> Self:
        """So many of these hospitals, whichever."""
        return cls(((frozenset(silos), number),))

    def met_by(self, silos: frozenset[str]) -> bool:
        return sum(len(silos & group) >= number for group, number in self.parts) >= self.groups

    def one_more(self, group: frozenset[str], there: frozenset[str]) -> Self:
        """The same, and of this group one more than are there."""
        parts = tuple((silos, len(silos & there) + 1 if silos == group else number) for silos, number in self.parts)
        return replace(self, parts=parts)

    @property
    def fewest(self) -> int:
        """With fewer answers it is never met."""
        return sum(sorted(number for _, number in self.parts)[: self.groups])


@dataclass(frozen=True, slots=True)
class CollectionView:
    """What is known of one step of a collection. `refused` gives silo -> code; `needed` says what is enough.

    With `wanted` answers there is nothing to wait for but the grace; None wants everybody's. `full_at` is when so many
    had come, None before. `grace` is waited for more then, and as long past `due` for those that are still at work.
    """

    expected: frozenset[str]
    answered: frozenset[str]
    refused: Mapping[str, str]
    silent: frozenset[str]
    due: datetime
    needed: Needed
    wanted: int | None = None
    grace: timedelta = timedelta(0)
    full_at: datetime | None = None

    @property
    def is_full(self) -> bool:
        """Whether as many as the plan wants have answered, and enough for a sum."""
        there = self.answered & self.expected
        is_full = self.full_at is not None and self.wanted is not None and len(there) >= self.wanted
        return is_full and self.needed.met_by(there)

    @property
    def until(self) -> datetime:
        """How long it is waited for at most."""
        if self.is_full and self.full_at is not None:
            return min(self.full_at + self.grace, self.due)
        return self.due + self.grace

    @property
    def outstanding(self) -> frozenset[str]:
        return self.expected - self.answered - set(self.refused)

    def standing(self, silo: str, now: datetime) -> Standing:
        if silo in self.answered:
            return Standing.READY
        if silo in self.refused:
            return Standing.REFUSED
        if now >= self.until:
            return Standing.NOT_NEEDED if self.is_full else Standing.LATE
        return Standing.SILENT if silo in self.silent else Standing.WORKING


def next_action(view: CollectionView, now: datetime) -> Decision:
    """Decide whether to wait, to go on with those who answered, or to give the attempt up.

    A silent hospital costs a wait only until the others are through: then the quorum goes on without it, and says so.
    A hospital that still gives signs of life is waited for until the deadline and the plan's grace behind it; if more
    were asked than are wanted, only until so many are there, and the grace behind that.
    """
    enough = view.needed.met_by(view.answered & view.expected)
    if not view.outstanding:
        if not view.refused:
            return Decision(Next.GO_ON, Reason.ALL_THERE) if enough else Decision(Next.GIVE_UP, Reason.BELOW_QUORUM)
        return _by_quorum(Reason.REST_REFUSED, Reason.TOO_MANY_REFUSED, enough=enough)
    if now >= view.until:
        reason = Reason.WANTED_THERE if view.is_full else Reason.DEADLINE
        return _by_quorum(reason, Reason.BELOW_QUORUM, enough=enough)
    if not view.needed.met_by(view.expected - set(view.refused)):
        return Decision(Next.GIVE_UP, Reason.TOO_MANY_REFUSED)
    if enough and view.outstanding <= view.silent:
        return Decision(Next.GO_ON, Reason.REST_SILENT)
    return Decision(Next.WAIT, Reason.WAITING)


def _by_quorum(met: Reason, missed: Reason, *, enough: bool) -> Decision:
    return Decision(Next.GO_ON, met) if enough else Decision(Next.GIVE_UP, missed)


class RoundStep(StrEnum):
    """Where a round stands in the store: what a restarted driver reads first."""

    TRAINING = "training"
    EVALUATING = "evaluating"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """What the store knows of a round."""

    number: int
    attempt: int
    has_candidate: bool
    is_committed: bool


def where(facts: RoundFacts) -> RoundStep:
    if facts.is_committed:
        return RoundStep.COMMITTED
    return RoundStep.EVALUATING if facts.has_candidate else RoundStep.TRAINING


def rounds_to_run(committed: int, planned: int, wanted: int) -> range:
    """Number the rounds of this run: from the first uncommitted one, at most `wanted`, never past the plan."""
    return range(committed + 1, min(planned, committed + wanted) + 1)


HEADLINES = {
    Reason.ALL_THERE: "all hospitals answered",
    Reason.REST_REFUSED: "the others refused",
    Reason.REST_SILENT: "the others give no sign of life",
    Reason.DEADLINE: "the deadline has passed",
    Reason.WANTED_THERE: "as many hospitals as the plan wants were ready",
    Reason.BELOW_QUORUM: "too few hospitals for a sum",
    Reason.TOO_MANY_REFUSED: "too many hospitals refused",
    Reason.CANNOT_UNMASK: "the revealed shares do not open the sum",
    Reason.WAITING: "waiting",
}

"""What a study cost the patients of each hospital, computed anew from the events in that hospital's log.

A log says after each reservation what it came to. That number is never copied: it is compared. If a reservation were
not shown, the log's own number would be larger than what the others come to.
"""

from dataclasses import dataclass

from compliance.accountant import epsilon
from compliance.events import BudgetReserved, ContributionReleased, StudyEnded, TrainingStarted
from compliance.evidence.reading import Pointer, ReadLog
from compliance.privacy import PrivacyEvent

_SAME = 1e-9  # relative; the log's number was rounded once, by JSON


@dataclass(frozen=True, slots=True)
class Spent:
    """After one reservation: epsilon as we compute it, and as the log says, both at `delta`."""

    at: Pointer
    round: int
    epsilon: float
    told: float
    delta: float

    @property
    def agrees(self) -> bool:
        return abs(self.epsilon - self.told) <= _SAME * max(1.0, self.told)


@dataclass(frozen=True, slots=True)
class Spending:
    """All reservations of a hospital. `unpaid` are the rounds it trained for, or sent a result of, without one."""

    after: tuple[Spent, ...]
    releases: tuple[PrivacyEvent, ...]
    unpaid: tuple[int, ...]
    is_hidden: bool

    @property
    def last(self) -> Spent | None:
        return self.after[-1] if self.after else None

    @property
    def overstated(self) -> bool:
        """The log says more than what is shown comes to: a reservation is not among what is shown."""
        return any(not spent.agrees and spent.told > spent.epsilon for spent in self.after)

    @property
    def is_whole(self) -> bool:
        """Whether nothing hints at a reservation that is not shown."""
        return not (self.is_hidden or self.overstated or self.unpaid)

    @property
    def understated(self) -> bool:
        return any(not spent.agrees and spent.told < spent.epsilon for spent in self.after)


def spending_of(log: ReadLog) -> Spending:
    """`is_hidden`: an entry after the last reservation, before the study's end, is withheld and may be one."""
    reserved = log.of(BudgetReserved)
    delta = min((entry.event.delta_study for entry in reserved), default=0.0)
    after, releases = [], []
    for entry in reserved:
        said = entry.event
        releases.append(said.release)
        after.append(Spent(entry.at, said.round, epsilon(releases, delta), said.epsilon_study, delta))
    paid = {entry.event.round for entry in reserved}
    started = {entry.event.round for entry in log.of(TrainingStarted) if entry.event.phase == "train"}
    sent = {entry.event.round for entry in log.of(ContributionReleased) if entry.event.phase == "train"}
    last = reserved[-1].at.sequence if reserved else 0
    end = min((entry.at.sequence for entry in log.of(StudyEnded)), default=log.size + 1)
    return Spending(
        after=tuple(after),
        releases=tuple(releases),
        unpaid=tuple(sorted((started | sent) - paid)),
        is_hidden=any(last < number < end for number in log.withheld),
    )

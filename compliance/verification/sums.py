"""The masked sums: who was in each, never too few, never two over different hospitals, and the hospitals say the same.

Of a sum the coordinator's log says who was ready (`CohortDecided`) and that it was unmasked (`SumOpened`); a hospital's
says that its masked vector left (`ContributionReleased`) and whom it helped to unmask (`UnmaskingHelped`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from boundary.aggregation import SMALLEST_COHORT
from boundary.groups import fewest_groups, groups_of, has_groups
from boundary.messages import Phase
from boundary.names import COORDINATOR
from boundary.parties import taking_part, trainers
from boundary.secagg.context import transcript_of
from boundary.secagg.graph import COMPLETE_UP_TO, thresholds
from compliance.bundle import round_file
from compliance.events import (
    AttemptFailed,
    CohortDecided,
    ContributionReleased,
    ModelMeasured,
    PersonalisationSummed,
    RoundClosed,
    StatisticsTaken,
    SumOpened,
    UnmaskingHelped,
)
from compliance.records import RoundRecord
from compliance.verification.case import Case, Log
from compliance.verification.findings import Finding, at, broken, incomplete, names, note

Place = tuple[int, str, int]  # round, phase, attempt


def place_of(event: Any) -> Place:
    return event.round, event.phase, event.attempt


def _told(place: Place) -> str:
    number, phase, attempt = place
    return f"the {phase} sum of round {number}, attempt {attempt}"


@dataclass(frozen=True)
class _Sums:
    """The coordinator's account, by place."""

    decided: dict[Place, CohortDecided]
    opened: dict[Place, SumOpened]
    failed: frozenset[Place]

    @classmethod
    def of(cls, log: Log, study: str) -> "_Sums":
        return cls(
            decided={place_of(one.event): one.event for one in log.of(CohortDecided, study)},
            opened={place_of(one.event): one.event for one in reversed(log.of(SumOpened, study))},
            failed=frozenset(place_of(one.event) for one in log.of(AttemptFailed, study)),
        )

    def train(self, case: Case, said: RoundClosed) -> SumOpened | None:
        """The sum that the round's record names."""
        record = case.records.get(said.round)
        return None if record is None else self.opened.get((said.round, "train", record.train.attempt))


def cohorts(case: Case) -> Iterator[Finding]:
    """By the coordinator's own log: no sum over too few, over others than were ready, or twice over different ones."""
    log = case.logs.get(COORDINATOR)
    if log is None:
        return  # told as a missing log
    sums = _Sums.of(log, case.study)
    first: dict[tuple[int, str], SumOpened] = {}
    for entry in log.of(SumOpened, case.study):
        said, where, what = entry.event, at(COORDINATOR, entry.number), _told(place_of(entry.event))
        yield from _too_few(case, where, said.phase, what, said.surviving)
        ready = sums.decided.get(place_of(said))
        if ready is None or not set(said.surviving) <= set(ready.members):
            yield broken(where, f"{what} is over others than were ready for it", "who was in the sum is not sure")
        strangers = set(said.surviving) - set(taking_part(case.bundle.plan, said.phase))
        if strangers:
            means = "their numbers are in a sum that the plan has without them"
            yield broken(where, f"{what}: {names(strangers)} have no part in it by the plan", means)
        earlier = first.setdefault((said.round, said.phase), said)
        if (earlier.surviving, earlier.survivors) != (said.surviving, said.survivors):
            means = "the difference of two sums shows the hospitals that are in one of them"
            yield broken(where, f"{what} was opened after another of the same round and phase", means)
    yield from _statistics(case, log, sums)
    yield from _measured(case, log, sums)


def _too_few(case: Case, where: str, phase: Phase, what: str, silos: tuple[str, ...]) -> Iterator[Finding]:
    """A sum has a quorum, and where the plan has groups each of them has one, and there are enough of them."""
    plan, means = case.bundle.plan, "with so few a hospital's own part can be worked out"
    groups = groups_of(plan, phase, silos)
    for group in groups:
        if len(group) < case.least:
            of = "" if len(groups) == 1 else "for a group of them "
            yield broken(where, f"{what} is {of}over {len(group)} hospitals, {case.least} are needed", means)
    if len(groups) < (fewest := fewest_groups(plan, phase)):
        yield broken(where, f"{what} is over {len(groups)} groups, {fewest} are needed", "one of them may decide it")


def _statistics(case: Case, log: Log, sums: _Sums) -> Iterator[Finding]:
    opened = {said.survivors for (_, phase, _), said in sums.opened.items() if phase == "statistics"}
    for entry in log.of(StatisticsTaken, case.study):
        if entry.event.survivors not in opened:
            means = "what the images are normalised with does not come out of a sum"
            yield broken(at(COORDINATOR, entry.number), "statistics of no sum that was opened", means)
    compared = {said.survivors for (_, phase, _), said in sums.opened.items() if phase == "personalise"}
    for one in log.of(PersonalisationSummed, case.study):
        if one.event.survivors not in compared:
            means = "at how many hospitals which model is better does not come out of a sum"
            yield broken(at(COORDINATOR, one.number), "comparisons of no sum that was opened", means)


def _measured(case: Case, log: Log, sums: _Sums) -> Iterator[Finding]:
    opened = {(number, phase, said.survivors) for (number, phase, _), said in sums.opened.items()}
    made = {one.event.round: one.event.tried or one.event.model_out for one in case.closed}
    named = dict(enumerate(case.bundle.plan.evaluation.models, start=1))
    for entry in log.of(ModelMeasured, case.study):
        said = entry.event
        wanted = made.get(said.round, said.model) if said.phase == "validate" else named.get(said.round)
        if said.model != wanted:
            found = f"round {said.round}: {said.phase} is said to be of another model than the round's"
            yield broken(at(COORDINATOR, entry.number), found, "the figures are not of the model they are shown for")
        if (said.round, said.phase, said.survivors) not in opened:
            means = "what is told of the model does not come out of a sum"
            yield broken(at(COORDINATOR, entry.number), f"round {said.round}: a model measured in no opened sum", means)


def models(case: Case) -> Iterator[Finding]:
    """Every closed round's model comes out of one sum, over exactly the hospitals that are said to contribute."""
    log = case.logs.get(COORDINATOR)
    if log is None:
        return
    sums = _Sums.of(log, case.study)
    for closed in case.closed:
        said, record = closed.event, case.records.get(closed.event.round)
        where = at(COORDINATOR, closed.number)
        yield from _too_few(case, where, "train", f"round {said.round}", said.contributing)
        strangers = set(said.contributing) - set(trainers(case.bundle.plan))
        if strangers:
            means = "their work is in the model without their being in the study for it"
            yield broken(where, f"round {said.round}: {names(strangers)} are not in the plan to train", means)
        if record is None:
            continue  # told as a missing record
        yield from _median(case, record)
        opened = sums.train(case, said)
        if opened is None:
            yield broken(where, f"round {said.round}: the log opened no such sum", "the model comes from elsewhere")
            continue
        if opened.surviving != said.contributing:
            found = f"round {said.round}: the sum is over {names(opened.surviving)}, not over those it names"
            yield broken(where, found, "somebody's work is in the model unnamed, or named and not in it")
        if record.transcript != transcript_of(opened.survivors, said.tried or said.model_out):
            means = "the model is bound to another sum than the one that was opened"
            yield broken(round_file(said.round), "the transcript is not of that sum and this model", means)


def _median(case: Case, record: RoundRecord) -> Iterator[Finding]:
    """A median is of the groups that contributed. Whether enough of their sums were sound, is told with the rounds."""
    plan, where, said = case.bundle.plan, round_file(record.round), record.median
    groups = len(groups_of(plan, "train", record.contributing)) if has_groups(plan) else None
    if groups != (None if said is None else said.groups):
        found = "no median" if said is None else f"the median of {said.groups} groups"
        yield broken(where, f"{found}, the plan's is of {groups or 'none'}", "a model of other sums than it says")


def hospitals(case: Case) -> Iterator[Finding]:
    """By the hospitals' logs: they gave what they are said to have given, and unmasked nothing but what is told."""
    coordinator = case.logs.get(COORDINATOR)
    if coordinator is None:
        return
    sums = _Sums.of(coordinator, case.study)
    last = max((closed.event.round for closed in case.closed), default=0)
    for silo, log in case.logs.items():
        if silo != COORDINATOR:
            yield from _helped(case, silo, log, sums, last)
            yield from _contributed(case, silo, log)
    yield from _enough(case, sums)


def _helped(case: Case, silo: str, log: Log, sums: _Sums, last: int) -> Iterator[Finding]:
    for entry in log.of(UnmaskingHelped, case.study):
        said, place, where = entry.event, place_of(entry.event), at(silo, entry.number)
        opened = sums.opened.get(place)
        mine = () if opened is None else _shared_with(case, silo, opened)
        if opened is not None and (opened.survivors != said.survivors or not _is_part(said.surviving, mine)):
            found = f"helped to unmask {_told(place)} over {names(said.surviving)}"
            yield broken(where, found, f"the coordinator says it was over {names(mine)}")
        if opened is None and place not in sums.failed and said.round <= last:
            found = f"helped to unmask {_told(place)}"
            yield broken(where, found, "the coordinator's log neither opened it nor gave it up: an untold sum")
        if len(set(said.surviving)) < case.least:
            found = f"helped to unmask {_told(place)} over {len(set(said.surviving))} hospitals"
            yield broken(where, found, "with so few a hospital's own part can be worked out")


def _shared_with(case: Case, silo: str, opened: SumOpened) -> tuple[str, ...]:
    """Those of a sum whose shares a hospital may hold: its group, where the plan has such."""
    groups = groups_of(case.bundle.plan, opened.phase, opened.surviving)
    return next((group for group in groups if silo in group), ())


def _is_part(helped: tuple[str, ...], group: tuple[str, ...]) -> bool:
    """Whether these are whom one hospital of the group holds shares of: all, up to a size, and then some of them."""
    return helped == group if len(group) <= COMPLETE_UP_TO else set(helped) <= set(group)


def _contributed(case: Case, silo: str, log: Log) -> Iterator[Finding]:
    """A log that goes on behind the round and lacks the contribution contradicts it; a shorter one only lacks it."""
    released = {place_of(one.event) for one in log.of(ContributionReleased, case.study)}
    for closed in case.closed:
        said, record = closed.event, case.records.get(closed.event.round)
        if silo not in said.contributing or record is None:
            continue
        if (said.round, "train", record.train.attempt) in released:
            continue
        found = f"its log has no contribution to round {said.round}, which names it"
        if case.shown_until.get(silo, 0) < said.round:
            yield incomplete(silo, found, "its log was not shown that far, or the entry is not shown")
        else:
            yield broken(silo, found, "the round claims work that the hospital did not give")


def _enough(case: Case, sums: _Sums) -> Iterator[Finding]:
    """No sum opens without the shares of enough hospitals, and each of them writes that down before it sends them."""
    helped: dict[Place, set[str]] = {}
    for silo, log in case.logs.items():
        for entry in log.of(UnmaskingHelped, case.study):
            helped.setdefault(place_of(entry.event), set()).add(silo)
    for closed in case.closed:
        opened = sums.train(case, closed.event)
        ready = None if opened is None else sums.decided.get(place_of(opened))
        if opened is None or ready is None or len(ready.members) < SMALLEST_COHORT:
            continue  # told with the models, with the cohorts
        for group in groups_of(case.bundle.plan, "train", ready.members):
            yield from _opened_by(case, closed.event, group, helped.get(place_of(opened), set()))


def _opened_by(case: Case, closed: RoundClosed, group: tuple[str, ...], helped: set[str]) -> Iterator[Finding]:
    if len(group) < SMALLEST_COHORT:
        return  # told with the cohorts
    needed, found = thresholds(len(group)).shares, len(helped.intersection(group))
    if found < needed:
        where = f"round {closed.round}"
        said = f"{found} hospitals helped to unmask its sum, {needed} are needed"
        if all(case.shown_until.get(silo, 0) >= closed.round for silo in group):
            yield broken(where, said, "a sum that could not be opened was opened: a log is not true")
        else:
            yield note(where, said, "the others' entries are not here")

"""Who was drawn for a round's training, and updates that came late: by the draw anybody can repeat, and once each."""

from collections.abc import Iterator
from itertools import takewhile

from boundary.drawing import drawn
from boundary.names import COORDINATOR
from boundary.parties import trainers
from boundary.rotation import resting_in_each
from compliance.events import (
    CohortDecided,
    ContributionReleased,
    HospitalsDrawn,
    LateUpdateOffered,
    PlanApprovalGiven,
    PlanDeclineGiven,
    WorkDone,
)
from compliance.verification.case import Case, Entry, Log
from compliance.verification.findings import Finding, at, broken, incomplete, names

_CHOSEN = "the coordinator chose who trains"
_TWICE = "one update in two sums: of the two a hospital's own part can be worked out"


def draws(case: Case) -> Iterator[Finding]:
    """Every training of a plan with a sample asked those whom the draw gives, out of all that had approved."""
    log = case.logs.get(COORDINATOR)
    if log is None:
        return  # told as a missing log
    selection = case.bundle.plan.selection
    rests = _rests(case)
    unknown = None if case.bundle.plan.robustness.leave_out else frozenset[str]()
    told = {(one.event.round, one.event.attempt): one for one in reversed(log.of(HospitalsDrawn, case.study))}
    for entry in log.of(HospitalsDrawn, case.study):
        said, where = entry.event, at(COORDINATOR, entry.number)
        wanted = drawn(
            case.plan_digest,
            said.round,
            said.consenting,
            selection.most_asked,
            without=frozenset(said.resting),
            least=case.bundle.plan.aggregation.quorum,
        )
        if said.drawn != wanted:
            yield broken(where, f"round {said.round}: {names(said.drawn)} instead of {names(wanted)}", _CHOSEN)
        yield from _out_of_all(case, log, entry, where)
        yield from _resting(said, rests.get(said.round, unknown), where)
    for decided in log.of(CohortDecided, case.study):
        about = decided.event
        if about.phase != "train":
            continue
        where, found = at(COORDINATOR, decided.number), told.get((about.round, about.attempt))
        if found is not None and {*about.members, *about.absent} != set(found.event.drawn):
            yield broken(where, f"round {about.round}: the cohort is not of those that were drawn", _CHOSEN)
        elif found is None and (selection.most_asked is not None or rests.get(about.round)):
            yield broken(where, f"round {about.round}: nothing tells whom the draw gave", _CHOSEN)
    yield from _trained_undrawn(case, told)


def _trained_undrawn(case: Case, told: dict[tuple[int, int], Entry[HospitalsDrawn]]) -> Iterator[Finding]:
    """By the hospitals' logs: who was asked beside the draw, so that the coordinator could take whom it liked."""
    asked: dict[int, set[str]] = {}
    for (number, _), entry in told.items():
        asked.setdefault(number, set()).update(entry.event.drawn)
    for silo, log in case.logs.items():
        for done in log.of(WorkDone, case.study):
            said = done.event
            if said.phase == "train" and silo not in asked.get(said.round, {silo}):
                yield broken(at(silo, done.number), f"trained in round {said.round}, and was not drawn", _CHOSEN)


def _out_of_all(case: Case, log: Log, entry: Entry[HospitalsDrawn], where: str) -> Iterator[Finding]:
    """Out of all that had approved, and of nobody else; who has said no since may be missing."""
    given = log.of(PlanApprovalGiven, case.study)
    may = trainers(case.bundle.plan)  # who only validates is never drawn
    approved = {one.event.silo for one in given if one.number < entry.number and one.event.silo in may}
    number, consenting = entry.event.round, set(entry.event.consenting)
    if strangers := consenting - approved:
        yield broken(where, f"round {number}: {names(strangers)} had not approved the plan", _CHOSEN)
    for silo in sorted(approved - consenting):
        own = case.logs.get(silo)
        if own is None:
            yield incomplete(
                where, f"round {number} was drawn without {silo}", "its log, which may say why, is missing"
            )
        elif not own.of(PlanDeclineGiven, case.study):
            yield broken(where, f"round {number} was drawn without {silo}, which had approved", _CHOSEN)


def _rests(case: Case) -> dict[int, frozenset[str]]:
    """Whom the plan leaves out in each round, as far as the log tells without a gap which ones were rolled back."""
    told = takewhile(lambda one: one[0] == one[1].event.round, enumerate(case.closed, 1))
    undone = [closed.event.tried is not None for _, closed in told]
    return dict(enumerate(resting_in_each(case.bundle.plan, undone), 1))


def _resting(said: HospitalsDrawn, wanted: frozenset[str] | None, where: str) -> Iterator[Finding]:
    """Those rest whose turn it is, by the plan and the rounds rolled back so far, and nobody else."""
    number = said.round
    if wanted is None:
        means = "a round before it is not closed in this log"
        yield incomplete(where, f"whose turn it was to rest in round {number} cannot be worked out", means)
        return
    wanted &= set(said.consenting)
    if others := set(said.resting) - wanted:
        yield broken(where, f"round {number} was drawn without {names(others)}, to rest", _CHOSEN)
    if others := set(wanted) - set(said.resting):
        yield broken(where, f"round {number} was drawn with {names(others)}, whose turn it was to rest", _CHOSEN)


def late(case: Case) -> Iterator[Finding]:
    """An update that came too late for its round is in one later sum, as soon as the plan says, and in none before."""
    selection = case.bundle.plan.selection
    for silo, log in case.logs.items():
        sent = {one.event.round for one in log.of(ContributionReleased, case.study) if one.event.phase == "train"}
        into: dict[int, int] = {}
        for entry in log.of(LateUpdateOffered, case.study):
            said, where = entry.event, at(silo, entry.number)
            found = f"what round {said.made_in} made was offered for round {said.round}"
            if not selection.keeps_late or not 0 < said.round - said.made_in <= selection.most_stale:
                yield broken(where, f"{found}, later than the plan lets it", "work that nobody had approved so")
            elif said.made_in in sent:
                yield broken(where, f"{found}, and had been given to its own", _TWICE)
            elif said.round in sent and into.setdefault(said.made_in, said.round) != said.round:
                yield broken(where, f"{found}, and had been given to another", _TWICE)

"""Who was in the study, under which keys, and whether each of them had approved exactly this plan beforehand."""

from collections.abc import Iterator

from boundary.approval import SignedApproval, check_approval
from boundary.canonical import digest
from boundary.errors import PeerFault, UnknownMember
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR, parse_timestamp
from boundary.roster import Roster, read_roster
from compliance.events import (
    ContributionReleased,
    PlanApprovalGiven,
    PlanPublished,
    RosterIssued,
    RoundOpened,
)
from compliance.verification.case import Case, Entry
from compliance.verification.findings import Finding, at, broken, incomplete, note


def members(case: Case) -> Iterator[Finding]:
    """The plan, the roster and `keys.toml` name the same parties with the same keys."""
    for hospital in case.bundle.plan.hospitals:
        believed = case.trust.hospitals.get(hospital.silo)
        if believed is None:
            means = "its signatures were checked with the key that the plan pins, which nobody here vouches for"
            yield incomplete(hospital.silo, "not in keys.toml", means)
        elif believed.text != hospital.signing_key:
            yield broken(hospital.silo, "the plan has another key than keys.toml", "somebody stands in for a hospital")
    yield from _roster(case)


def _roster(case: Case) -> Iterator[Finding]:
    if not case.bundle.roster:
        return  # told as a missing file
    try:
        roster = read_roster(case.bundle.roster, case.trust.coordinator).roster
    except PeerFault as why:
        yield broken("roster.json", str(why), "the membership is not what the coordinator of keys.toml signed")
        return
    if roster.coordinator.signing_key != case.trust.coordinator.text:
        means = "the coordinator's key was changed; take the new one into keys.toml if its owner confirms it"
        yield broken("roster.json", "names another key of the coordinator than keys.toml", means)
    for hospital in case.bundle.plan.hospitals:
        if _key_on(roster, hospital.silo) != hospital.signing_key:
            means = "the plan pins a key that is not that of the member"
            yield broken(hospital.silo, "not on the roster with the key of the plan", means)
    log = case.logs.get(COORDINATOR)
    if log is not None and digest(case.bundle.roster) not in {one.event.roster_digest for one in log.of(RosterIssued)}:
        means = "this roster was not issued in the open"
        yield broken("roster.json", "no entry of the coordinator's log has its digest", means)


def _key_on(roster: Roster, silo: str) -> str | None:
    try:
        return roster.member(silo).signing_key
    except UnknownMember:
        return None


def approvals(case: Case) -> Iterator[Finding]:
    """Before its first round, in its own log and in the coordinator's, signed by its steward, for this digest."""
    log = case.logs.get(COORDINATOR)
    if log is None:
        return  # told as a missing log
    opened = {entry.event.round: entry for entry in reversed(log.of(RoundOpened, case.study))}
    published = [one.number for one in log.of(PlanPublished, case.study) if one.event.plan_digest == case.plan_digest]
    given = log.of(PlanApprovalGiven, case.study)
    last_day = case.bundle.plan.purpose.expires
    first: dict[str, Entry[RoundOpened]] = {}
    for closed in case.closed:
        begun = opened.get(closed.event.round)
        if begun is None:
            continue  # told with the rounds
        where = at(COORDINATOR, begun.number)
        if not any(number < begun.number for number in published):
            yield broken(where, f"round {closed.event.round} of a plan that was not published", "nobody was asked")
        if parse_timestamp(closed.time).date() > last_day:
            means = "the hospitals had approved it until that day"
            yield broken(at(COORDINATOR, closed.number), f"closed after the plan's last day, {last_day}", means)
        for silo in closed.event.contributing:
            if silo in case.contributing and silo not in first:
                first[silo] = begun
    for silo, begun in sorted(first.items()):
        yield from _approval_of(case, silo, begun, given)


def _approval_of(
    case: Case, silo: str, begun: Entry[RoundOpened], given: list[Entry[PlanApprovalGiven]]
) -> Iterator[Finding]:
    means = f"{silo} is in round {begun.event.round} without having agreed to the plan"
    signed = case.bundle.approvals.get(silo)
    if signed is None:
        yield incomplete("approvals.json", f"no approval of {silo}", means)
        return
    yield from _steward(case, silo, signed, begun)
    dataset = signed.approval.dataset_digest
    told = [entry for entry in given if _is_of(case, entry.event, silo, dataset)]
    if not any(entry.number < begun.number for entry in told):
        found = f"round {begun.event.round} opened, {silo} had not approved by then"
        yield broken(at(COORDINATOR, begun.number), found, means)
    own = case.logs.get(silo)
    if own is None:
        return  # told as a missing log
    work = [one.number for one in own.of(ContributionReleased, case.study) if one.event.phase != "statistics"]
    before = min(work, default=own.size + 1)
    if not any(
        entry.number < before and _is_of(case, entry.event, silo, dataset)
        for entry in own.of(PlanApprovalGiven, case.study)
    ):
        found = "its own log has no such approval before its first contribution"
        if own.withheld:
            yield incomplete(silo, found, "it may be among the entries that are not shown, where it does not belong")
        else:
            yield broken(silo, found, means)


def _steward(case: Case, silo: str, signed: SignedApproval, begun: Entry[RoundOpened]) -> Iterator[Finding]:
    steward = case.trust.stewards.get(silo)
    try:
        check_approval(
            signed,
            plan=case.bundle.plan,
            silo=silo,
            steward=steward,
            dataset_digest=None,
            now=parse_timestamp(begun.time),
        )
    except PeerFault as why:
        yield broken("approvals.json", f"{silo}: {why}", "the approval does not hold for the round it was needed for")
    if steward is None:
        found = f"the steward of {silo} is not in keys.toml"
        means = f"who {_short(signed.steward)} is, only the hospital says, by its log"
        yield note("approvals.json", found, means)


def _is_of(case: Case, event: PlanApprovalGiven, silo: str, dataset: str) -> bool:
    return (event.plan_digest, event.silo, event.dataset_digest) == (case.plan_digest, silo, dataset)


def _short(key: str) -> str:
    return PublicIdentity(key).fingerprint[:19]

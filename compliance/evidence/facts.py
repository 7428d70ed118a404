"""The facts of a study, read from the logs of a bundle. Every fact keeps the entries it stands on."""

from collections.abc import Iterable
from dataclasses import dataclass

from boundary.approval import SignedApproval, check_approval
from boundary.canonical import Digest
from boundary.errors import BadSignature, BoundaryError
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR, parse_timestamp
from boundary.plan import StudyPlan, digest_of
from compliance.bundle import Bundle, SignedReceipt, parties_of
from compliance.events import (
    AttemptFailed,
    CohortDecided,
    HeadsWitnessed,
    IncidentClosed,
    IncidentOpened,
    PlanApprovalGiven,
    PlanDeclineGiven,
    RoundClosed,
    RoundOpened,
    SumOpened,
    WorkRefused,
)
from compliance.evidence.integrity import LogIntegrity, Problem, integrity_of, keys_of
from compliance.evidence.reading import Entry, ReadLog, in_round, missing, read_log
from compliance.evidence.spending import Spending, spending_of
from compliance.records import RoundRecord


@dataclass(frozen=True, slots=True)
class HospitalFacts:
    """One hospital: its log, its steward's approval and what is wrong with it, what its patients' data was spent on."""

    silo: str
    log: ReadLog
    approval: SignedApproval | None
    approval_problem: str | None
    given: tuple[Entry[PlanApprovalGiven], ...]
    declined: tuple[Entry[PlanDeclineGiven], ...]
    spending: Spending

    @property
    def hides(self) -> bool:
        """Whether anything of its log cannot be read: it is missing, or entries are withheld or broken."""
        return not self.log.is_there or bool(self.log.withheld or self.log.broken)


@dataclass(frozen=True, slots=True)
class ReceiptFacts:
    """Who signed a round's receipt so that it verifies, whose signature is missing, whose does not verify."""

    receipt: SignedReceipt
    valid: tuple[str, ...]
    absent: tuple[str, ...]
    invalid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """One round, as the coordinator logged and recorded it."""

    number: int
    opened: tuple[Entry[RoundOpened], ...]
    cohorts: tuple[Entry[CohortDecided], ...]
    failed: tuple[Entry[AttemptFailed], ...]
    sums: tuple[Entry[SumOpened], ...]
    closed: tuple[Entry[RoundClosed], ...]
    record: RoundRecord | None
    receipt: ReceiptFacts | None

    @property
    def contributing(self) -> tuple[str, ...]:
        """Whose work is in the round, by the log or else by the record."""
        if self.closed:
            return self.closed[0].event.contributing
        return self.record.contributing if self.record else ()

    @property
    def absent(self) -> dict[str, str]:
        """Silo -> why, as far as the record says."""
        why = dict(self.record.absent) if self.record else {}
        return {silo: why.get(silo, "UNKNOWN") for silo in (self.closed[0].event.absent if self.closed else why)}

    @property
    def dropouts(self) -> tuple[str, ...]:
        """Were in a cohort of a training sum that was opened, and not in the sum."""
        lost: set[str] = set()
        for opened in self.sums:
            about = (opened.event.phase, opened.event.attempt)
            for cohort in self.cohorts:
                if about == (cohort.event.phase, cohort.event.attempt):
                    lost |= set(cohort.event.members) - set(opened.event.surviving)
        return tuple(sorted(lost))


@dataclass(frozen=True, slots=True)
class Incident:
    """An incident that a party opened, and how it was closed, if it was."""

    opened: Entry[IncidentOpened]
    closed: Entry[IncidentClosed] | None


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it. `as_of` is the time of the coordinator's last entry that is shown."""

    study: str
    plan: StudyPlan
    plan_digest: Digest
    as_of: str | None
    coordinator: ReadLog
    hospitals: tuple[HospitalFacts, ...]
    rounds: tuple[RoundFacts, ...]
    incidents: tuple[Incident, ...]
    integrity: dict[str, LogIntegrity]
    roster_problems: tuple[Problem, ...]

    @property
    def trained(self) -> tuple[RoundFacts, ...]:
        """Without the one after the last, in which hospitals personalise: no model and no receipt comes of it."""
        return tuple(one for one in self.rounds if one.number <= self.plan.training.rounds or one.closed)

    @property
    def is_private(self) -> bool:
        return self.plan.privacy.mechanism != "none"

    @property
    def logs(self) -> tuple[ReadLog, ...]:
        return self.coordinator, *(hospital.log for hospital in self.hospitals)

    @property
    def approved(self) -> tuple[str, ...]:
        """Whose steward's signed approval is here and holds."""
        return tuple(one.silo for one in self.hospitals if one.approval is not None and not one.approval_problem)

    @property
    def no_guarantee(self) -> str:
        """What to say of a plan without one, and who approved that."""
        given, asked = len(self.approved), len(self.hospitals)
        return (
            "the plan gives no guarantee per patient, approved by each steward"
            if given == asked
            else f"the plan gives no guarantee per patient, and {given} of {asked} approvals of it are shown"
        )

    def hospital(self, silo: str) -> HospitalFacts:
        return next(one for one in self.hospitals if one.silo == silo)


def facts_of(bundle: Bundle) -> Facts:
    """Read everything. What cannot be read or is not there is a fact too; nothing is raised for it."""
    plan = bundle.plan
    parties = parties_of(plan)
    copies = {party: bundle.logs.get(party) for party in parties}
    logs = {
        party: missing(party) if copy is None else read_log(copy, bundle.study, frozenset(parties))
        for party, copy in copies.items()
    }
    keys, roster_problems = keys_of(plan, bundle.roster)
    seen = [entry for log in logs.values() for entry in log.of(HeadsWitnessed)]
    own = logs[COORDINATOR]
    rounds = _rounds(bundle, own, keys)
    taking_part = {COORDINATOR, *bundle.approvals} | {silo for one in rounds for silo in one.contributing}
    watching = frozenset(taking_part & set(parties))
    return Facts(
        study=bundle.study,
        plan=plan,
        plan_digest=digest_of(plan),
        as_of=own.last_time,
        coordinator=own,
        hospitals=tuple(_hospital(bundle, silo, logs[silo]) for silo in plan.silos),
        rounds=rounds,
        incidents=_incidents(logs.values()),
        integrity={party: integrity_of(copy, logs[party], keys, watching, seen) for party, copy in copies.items()},
        roster_problems=roster_problems,
    )


def _hospital(bundle: Bundle, silo: str, log: ReadLog) -> HospitalFacts:
    signed = bundle.approvals.get(silo)
    given = tuple(one for one in log.of(PlanApprovalGiven) if one.event.silo == silo)
    return HospitalFacts(
        silo=silo,
        log=log,
        approval=signed,
        approval_problem=None if signed is None else _approval_problem(bundle.plan, silo, signed, given),
        given=given,
        declined=log.of(PlanDeclineGiven),
        spending=spending_of(log),
    )


def _approval_problem(
    plan: StudyPlan, silo: str, signed: SignedApproval, given: tuple[Entry[PlanApprovalGiven], ...]
) -> str | None:
    """Why the signed approval is none, at the time the hospital logged it; None if it is one."""
    if not given:
        return "the hospital's log does not say that it was given"
    last = given[-1]
    try:
        check_approval(
            signed,
            plan=plan,
            silo=silo,
            steward=None,
            dataset_digest=last.event.dataset_digest,
            now=parse_timestamp(last.time),
        )
    except BoundaryError as why:
        return str(why)
    return None


def _rounds(bundle: Bundle, own: ReadLog, keys: dict[str, PublicIdentity]) -> tuple[RoundFacts, ...]:
    records = {record.round: record for record in bundle.rounds}
    opened = {entry.event.round for entry in own.of(RoundOpened)}
    closed = {entry.event.round for entry in own.of(RoundClosed)}
    numbers = sorted(opened | closed | set(records) | set(bundle.receipts))
    return tuple(
        RoundFacts(
            number=number,
            opened=tuple(in_round(own.of(RoundOpened), number)),
            cohorts=tuple(in_round(own.of(CohortDecided), number)),
            failed=tuple(in_round(own.of(AttemptFailed), number)),
            sums=tuple(in_round(own.of(SumOpened), number)),
            closed=tuple(in_round(own.of(RoundClosed), number)),
            record=records.get(number),
            receipt=_receipt(bundle.receipts.get(number), keys),
        )
        for number in numbers
    )


def _receipt(found: SignedReceipt | None, keys: dict[str, PublicIdentity]) -> ReceiptFacts | None:
    if found is None:
        return None
    wanted = (COORDINATOR, *found.receipt.contributing)
    valid, invalid = [], []
    for party in wanted:
        if party not in found.signatures:
            continue
        try:
            found.receipt.check(found.signatures[party], keys[party])
        except (BadSignature, KeyError):  # KeyError: of somebody the plan or roster does not know
            invalid.append(party)
        else:
            valid.append(party)
    absent = tuple(party for party in wanted if party not in found.signatures)
    return ReceiptFacts(found, tuple(valid), absent, tuple(invalid))


def _incidents(logs: Iterable[ReadLog]) -> tuple[Incident, ...]:
    found = []
    for log in logs:
        closed = {entry.event.incident: entry for entry in log.of(IncidentClosed)}
        found += [Incident(entry, closed.get(entry.event.incident)) for entry in log.of(IncidentOpened)]
    return tuple(found)


def refusals(facts: Facts) -> list[Entry[WorkRefused]]:
    """All refusals of work, hospital by hospital."""
    return [entry for hospital in facts.hospitals for entry in hospital.log.of(WorkRefused)]

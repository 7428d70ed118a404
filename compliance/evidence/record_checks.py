"""DAT, LOG, RET, RGT and LEG: data that was counted, logs that hold together, withdrawals, what people must judge."""

from boundary.canonical import digest
from compliance.events import (
    CELL,
    ContributionReleased,
    IntakeCounted,
    LateUpdateOffered,
    PatientWithdrawn,
    PlanApprovalGiven,
    RoundReceived,
    SecretsShared,
    TrainingStarted,
    WithdrawalEffective,
    WorkDone,
)
from compliance.evidence.facts import Facts, HospitalFacts, RoundFacts
from compliance.evidence.reading import Entry
from compliance.evidence.verdicts import Finding, Tally, Verdict
from compliance.records import to_bytes

SMALLEST_RETENTION = 6  # years; 45 CFR 164.316(b)(2)(i), 164.528(a)


def check_refused_files(facts: Facts) -> Finding:
    """DAT-01. The data set that was approved is the one that was counted after refusal; the agent uses no other."""
    tally = Tally()
    for hospital in _sending(facts):
        counted = _counted(hospital, tally)
        if counted is None:
            continue
        at = [counted.at, hospital.given[-1].at] if hospital.given else [counted.at]
        if not counted.event.usable:
            tally.wrong(f"hospital {hospital.silo} trained on data that did not meet the plan", at)
        if not hospital.given or hospital.given[-1].event.dataset_digest != counted.event.dataset_digest:
            tally.wrong(f"hospital {hospital.silo} approved another data set than the one it counted", at)
        tally.good(at)
    return tally.finding("each hospital approved exactly the data set that was left after refusal", "nobody trained")


def check_enough_patients(facts: Facts) -> Finding:
    """DAT-02. Counts are told as the next ten upwards, so the least a count can be is nine below."""
    least, tally = facts.plan.dataset.min_patients, Tally()
    for hospital in _sending(facts):
        counted = _counted(hospital, tally)
        if counted is None:
            continue
        most = counted.event.patients
        if most < least:
            tally.wrong(f"hospital {hospital.silo} has up to {most} patients, the plan asks for {least}", [counted.at])
        elif most - CELL + 1 < least:
            tally.unknown(
                f"hospital {hospital.silo} has up to {most} patients, too close to {least} to tell", [counted.at]
            )
        tally.good([counted.at])
    return tally.finding(f"every hospital that took part has at least the plan's {least} patients", "nobody trained")


def _sending(facts: Facts) -> list[HospitalFacts]:
    """Whose work left by anybody's account, or of whom we cannot tell."""
    named = {silo for one in facts.rounds for silo in one.contributing}
    sent = {one.silo for one in facts.hospitals if one.log.of(ContributionReleased) or not one.log.is_there}
    return [one for one in facts.hospitals if one.silo in named | sent]


def _counted(hospital: HospitalFacts, tally: Tally) -> Entry[IntakeCounted] | None:
    """The last count before the approval."""
    before = hospital.given[-1].at if hospital.given else None
    counted = [one for one in hospital.log.of(IntakeCounted) if before is None or one.at < before]
    if not counted:
        tally.unknown(f"hospital {hospital.silo} does not show what it counted", [one.at for one in hospital.given])
        return None
    return counted[-1]


def check_logs(facts: Facts) -> Finding:
    """LOG-01. Heads are signed, fit the entries and what others saw; enough others cosigned; no incident is open."""
    tally = Tally()
    for problem in facts.roster_problems:
        tally.wrong(problem.sentence, problem.at)
    for found in facts.integrity.values():
        for problem in found.problems:
            tally.wrong(problem.sentence, problem.at)
    for incident in facts.incidents:
        if incident.closed is None:
            tally.wrong(
                f"an incident about the log of {incident.opened.event.log} is open at {incident.opened.at.log}",
                [incident.opened.at],
            )
    for log in facts.logs:
        found, last = facts.integrity[log.party], _last_of_a_round(log.of(RoundReceived), facts, log.party)
        if not log.is_there:
            tally.unknown(f"the log of {log.party} is not in the bundle")
        elif found.covered < last or not found.covered:
            says = f"of {log.party} {found.covered} of {found.size} entries are cosigned by {found.needed} others"
            tally.unknown(says)
        tally.good(one.at for one in log.everything() if one.at.sequence == found.covered)
    for one in facts.rounds:
        _record_is_logged(one, tally)
    return tally.finding("all logs fit their signed heads, and more than half of the others cosigned each", "no log")


def _last_of_a_round(received: tuple[Entry[RoundReceived], ...], facts: Facts, party: str) -> int:
    """The entry that closed the last round in this log."""
    if party == facts.coordinator.party:
        return max((entry.at.sequence for one in facts.rounds for entry in one.closed), default=0)
    return max((entry.at.sequence for entry in received), default=0)


def _record_is_logged(one: RoundFacts, tally: Tally) -> None:
    if one.closed and one.record and digest(to_bytes(one.record)) != one.closed[0].event.record:
        tally.wrong(f"the record of round {one.number} is not the one that was logged", [one.closed[0].at])


def check_coverage(facts: Facts) -> Finding:
    """LOG-02. No log is missing, none ends before what it signed or others saw, no round is left out."""
    tally = Tally()
    for log in facts.logs:
        for problem in facts.integrity[log.party].gaps:
            tally.wrong(problem.sentence, problem.at)
        if not log.is_there:
            tally.unknown(f"the log of {log.party} is not in the bundle")
        elif facts.integrity[log.party].signed < log.size:
            tally.unknown(f"the last entries of {log.party} are under no signed head")
        tally.good([one.at for one in log.everything()][-1:])
    _rounds_follow(facts, tally)
    return tally.finding("every log is whole up to a signed head, and the rounds follow without a gap", "no log")


def _rounds_follow(facts: Facts, tally: Tally) -> None:
    model = None
    for expected, one in enumerate(facts.rounds, start=1):
        at = [entry.at for entry in one.closed]
        if one.number != expected:
            tally.unknown(f"round {expected} is not shown", at)
            return
        if model is not None and one.closed and one.closed[0].event.model_in != model:
            tally.wrong(f"round {one.number} did not begin from the model of the round before", at)
        if one.record is not None and not one.closed:
            tally.unknown(f"round {one.number} has a record and no closing entry")
        model = one.closed[0].event.model_out if one.closed else None


def check_retention(facts: Facts) -> Finding:
    """RET-01. What the approved plan says; that it will be kept is for people."""
    years, tally = facts.plan.purpose.retain_years, Tally()
    approved = [entry.at for hospital in facts.hospitals for entry in hospital.given]
    approved += [entry.at for entry in facts.coordinator.of(PlanApprovalGiven)]
    if years < SMALLEST_RETENTION:
        tally.wrong(f"the plan keeps records for {years} years, less than {SMALLEST_RETENTION}", approved)
    tally.good(approved)
    return tally.finding(f"the approved plan keeps records for {years} years", "no approval is shown")


def check_withdrawals(facts: Facts) -> Finding:
    """RGT-01. By the hospital's own log: effective before the next round it trained for."""
    tally, seen = Tally(), False
    for hospital in facts.hospitals:
        withdrawn = hospital.log.of(PatientWithdrawn)
        if hospital.hides or "withdrawals" not in facts.plan.evidence.disclose:
            tally.unknown(f"withdrawals at {hospital.silo} may be among the entries it does not show")
        for entry in withdrawn:
            seen = True
            _took_effect(facts, hospital, entry, tally)
        tally.good([one.at for one in withdrawn[:1]])
    found = tally.finding(
        "every withdrawal took effect before the next round at its hospital", "no withdrawal is shown"
    )
    if not seen and found.reason == "No withdrawal is shown.":
        return Finding(Verdict.NOT_APPLICABLE, "Nobody withdrew consent, by the log of every hospital.")
    return found


def next_round(hospital: HospitalFacts, withdrawn: Entry[PatientWithdrawn]) -> int:
    """The first round after the one that was under way, as far as the entries that are shown tell."""
    over = [one.event.round for one in hospital.log.of(RoundReceived) if one.at < withdrawn.at]
    over += [one.event.round for one in hospital.log.of(LateUpdateOffered) if one.at < withdrawn.at]
    for kind in (TrainingStarted, WorkDone, SecretsShared):
        entries: tuple[Entry[TrainingStarted | WorkDone | SecretsShared], ...] = hospital.log.of(kind)
        over += [one.event.round for one in entries if one.at < withdrawn.at and one.event.phase != "statistics"]
    return max([0, *over]) + 1


def _took_effect(facts: Facts, hospital: HospitalFacts, withdrawn: Entry[PatientWithdrawn], tally: Tally) -> None:
    """Whether a withdrawal that is about this study holds from the next round on.

    One without an entry about the study is of somebody who is not in it: the hospital's word. Where the starts of
    trainings are not shown, one may have been under way when somebody withdrew.
    """
    following = next_round(hospital, withdrawn)
    for effective in hospital.log.of(WithdrawalEffective):
        about = (effective.event.study, effective.event.private)
        if about != (facts.study, withdrawn.event.private) or effective.event.round <= following:
            continue
        if effective.event.round == following + 1 and not hospital.log.of(TrainingStarted):
            tally.unknown(f"{hospital.silo} does not show whether round {following} had begun when somebody withdrew")
        else:
            tally.wrong(
                f"hospital {hospital.silo} trained after a withdrawal before it took effect",
                [withdrawn.at, effective.at],
            )


def check_legal_basis(facts: Facts) -> Finding:
    """LEG-01."""
    purpose = facts.plan.purpose
    return _for_people(facts, f"The plan gives “{purpose.legal_basis}” and runs until {purpose.expires}: does it hold?")


def check_impact_assessment(facts: Facts) -> Finding:
    """LEG-02."""
    return _for_people(
        facts, "The plan has no place for an impact assessment (GDPR 35): is there one, and is it current?"
    )


def check_ethics(facts: Facts) -> Finding:
    """LEG-03."""
    reference = facts.plan.purpose.ethics_reference
    return _for_people(facts, f"The plan gives “{reference}”: is it an approval of this study, and unexpired?")


def check_agreements(facts: Facts) -> Finding:
    """LEG-04."""
    return _for_people(
        facts,
        "No agreement between the parties (joint controllers, processors, data use) is in the logs: is there one?",
    )


def _for_people(facts: Facts, question: str) -> Finding:
    approved = tuple(entry.at for hospital in facts.hospitals for entry in hospital.given)
    return Finding(Verdict.NEEDS_HUMAN, question, approved)

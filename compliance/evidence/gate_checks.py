"""APR-02: no work without the policy that the hospital's own people had signed."""

from compliance.events import Event, PolicyAdopted, StudyEnded
from compliance.evidence.facts import Facts, HospitalFacts
from compliance.evidence.reading import Pointer, ReadLog
from compliance.evidence.verdicts import Finding, Tally
from compliance.gates import OF_WORK, adoption_faults, passages


def check_gates(facts: Facts) -> Finding:
    """APR-02. By the hospital's own log every work began after all gates of its policy in force had passed.

    The order of a log counts, not its clock (`compliance.gates`). Gates are shown with the budget, or not at all.
    """
    tally = Tally()
    for hospital in facts.hospitals:
        if not hospital.log.is_there:
            tally.unknown(f"the log of {hospital.silo} is not in the bundle")
            continue
        for number, fault in adoption_faults((one.at.sequence, one.event) for one in hospital.log.of(PolicyAdopted)):
            tally.wrong(f"hospital {hospital.silo}: {fault}", [Pointer(hospital.silo, number)])
        if "budget" in facts.plan.evidence.disclose:
            _work_of(hospital, tally)
        else:
            tally.unknown(f"the plan does not have {hospital.silo} show its gates")
    return tally.finding(
        "every work began after all gates of the hospital's policy in force had passed", "nobody worked"
    )


def _work_of(hospital: HospitalFacts, tally: Tally) -> None:
    silo, log, hidden = hospital.silo, hospital.log, sorted((*hospital.log.withheld, *hospital.log.broken))
    hides_work = _may_be_work(hospital, hidden)
    if hides_work:
        tally.unknown(f"work of {silo} may be among the entries it does not show")
    for one in passages(_entries(log), hidden):
        at = [Pointer(silo, number) for number in (*one.rests_on, one.number)]
        says = f"hospital {silo}, round {one.round}, {one.phase}: {one.fault}"
        if one.fault is None:
            tally.good(at)
        elif one.is_sure:
            tally.wrong(says, at)
        elif not hides_work:
            tally.unknown(says, at)


def _entries(log: ReadLog) -> list[tuple[int, Event]]:
    return [(one.at.sequence, one.event) for kind in (PolicyAdopted, *OF_WORK) for one in log.of(kind)]


def _may_be_work(hospital: HospitalFacts, hidden: list[int]) -> bool:
    """Whether a start may be hidden: after the plan was approved here, before the study's end."""
    begun = min((entry.at.sequence for entry in hospital.given), default=0)
    end = min((entry.at.sequence for entry in hospital.log.of(StudyEnded)), default=hospital.log.size + 1)
    return any(begun < number < end for number in hidden)

"""PRV: what the guarantee per patient rests on, as far as the hospitals' logs show it."""

import math
from functools import cache, partial

from boundary.guarantee import PatientPrivacy
from compliance.errors import OutOfReach
from compliance.events import BudgetReserved, ContributionReleased, Event, PlanApprovalGiven
from compliance.evidence.facts import Facts, HospitalFacts
from compliance.evidence.reading import Entry, Pointer
from compliance.evidence.verdicts import Finding, Tally, Verdict
from compliance.terms import PlanTerms

_NOBODY = "no hospital trained"
_SAME = 1e-6  # relative; a sampling rate comes from a whole number of patients


def _not_applicable(facts: Facts) -> Finding:
    approvals = tuple(entry.at for hospital in facts.hospitals for entry in hospital.given)
    return Finding(Verdict.NOT_APPLICABLE, f"T{facts.no_guarantee[1:]}.", approvals)


def check_epsilon(facts: Facts) -> Finding:
    """PRV-01. Epsilon is recomputed from all reservations; the cap is the plan's."""
    if not facts.is_private:
        return _not_applicable(facts)
    cap = getattr(facts.plan.privacy, "epsilon", None)
    tally = Tally()
    for hospital in facts.hospitals:
        _epsilon_of(hospital, cap, tally)
    if cap is None:
        tally.unknown("the plan gives the noise and no cap; each hospital's own cap is in its configuration only")
    return tally.finding(f"recomputed epsilon stays within {cap or 0:g} at every hospital", _NOBODY)


def _epsilon_of(hospital: HospitalFacts, cap: float | None, tally: Tally) -> None:
    silo, spending = hospital.silo, hospital.spending
    at = [spent.at for spent in spending.after]
    if cap is not None and spending.last is not None and spending.last.epsilon > cap:
        tally.wrong(f"hospital {silo} spent epsilon {spending.last.epsilon:.4g}, the cap is {cap:g}", at)
    if spending.understated:
        tally.wrong(f"the log of {silo} says less than its own reservations come to", at)
    if not _is_all_shown(hospital, tally):
        return
    if spending.overstated:
        tally.wrong(f"the log of {silo} says more than all its reservations come to", at)
    if spending.unpaid:
        tally.wrong(f"hospital {silo} trained in round {spending.unpaid[0]} without a reservation", _sent(hospital))
    tally.good(at)


def _is_all_shown(hospital: HospitalFacts, tally: Tally) -> bool:
    """Whether nothing that was spent can be missing from what is shown."""
    silo, spending = hospital.silo, hospital.spending
    if not hospital.log.is_there:
        tally.unknown(f"the log of {silo} is not in the bundle")
    elif hospital.log.broken:
        tally.unknown(f"entries of {silo} cannot be read")
    elif hospital.hides and not spending.is_whole:
        tally.unknown(f"budget entries of {silo} may be among those it does not show")
    else:
        return True
    return False


def check_unit(facts: Facts) -> Finding:
    """PRV-02. Every training that left was reserved as a release whose unit is the patient."""
    if not facts.is_private:
        return _not_applicable(facts)
    tally = Tally()
    for hospital in facts.hospitals:
        if not _is_all_shown(hospital, tally):
            continue
        if hospital.spending.unpaid:
            tally.wrong(f"hospital {hospital.silo} trained without a release per patient", _sent(hospital))
        tally.good(spent.at for spent in hospital.spending.after)
    return tally.finding("every release is accounted for one patient with all images of that patient", _NOBODY)


def check_mechanism(facts: Facts) -> Finding:
    """PRV-03. Each reservation is the plan's mechanism: its sampling rate, its steps, at least its noise."""
    if not isinstance(facts.plan.privacy, PatientPrivacy):
        return _not_applicable(facts)
    tally = Tally()
    terms = cache(partial(_terms, facts.plan.privacy, facts.plan.rounds_in_all))
    for hospital in facts.hospitals:
        if not _is_all_shown(hospital, tally):
            continue
        for entry in hospital.log.of(BudgetReserved):
            fault = _fault(entry, terms(entry.event.delta_study))
            if fault:
                tally.wrong(f"hospital {hospital.silo} reserved {fault}", [entry.at])
            tally.good([entry.at])
    return tally.finding("every release has the sampling rate, steps and noise that follow from the plan", _NOBODY)


def _terms(privacy: PatientPrivacy, rounds: int, delta: float) -> PlanTerms | None:
    """The most patients a hospital declares follow from its delta (`compliance.terms.delta_of`)."""
    try:
        return PlanTerms.of(privacy, rounds, max(1, round(1 / (10 * delta))))
    except OutOfReach:
        return None


def _fault(entry: Entry[BudgetReserved], terms: PlanTerms | None) -> str | None:
    release = entry.event.release
    if terms is None:
        return "a release although no noise is enough for the plan"
    if not math.isclose(release.sampling_rate, terms.rate, rel_tol=_SAME):
        return "another sampling rate than the plan's"
    if release.steps != terms.privacy.steps:
        return "another number of steps than the plan's"
    if release.noise_multiplier < terms.noise_multiplier * (1 - _SAME):
        return "less noise than the plan's"
    return None


def check_noise_source(facts: Facts) -> Finding:
    """PRV-05. A log cannot show where random numbers came from."""
    if not facts.is_private:
        return _not_applicable(facts)
    return Finding(
        Verdict.NOT_MEASURED,
        "No entry shows which generator drew samples and noise; compare each hospital's software with its release.",
    )


def check_other_releases(facts: Facts) -> Finding:
    """PRV-04. Whatever left without being covered by a guarantee was in the plan that the steward had approved."""
    tally = Tally()
    for hospital in facts.hospitals:
        silo = hospital.silo
        if not hospital.log.is_there or hospital.log.broken:
            tally.unknown(f"the log of {silo} cannot be read in full")
            continue
        sent = [one for one in hospital.log.of(ContributionReleased) if _is_open(facts, one.event.phase)]
        for missing in _sums_with(facts, silo) - {(one.event.round, one.event.phase) for one in sent}:
            tally.unknown(f"hospital {silo} does not show what it sent in round {missing[0]}")
        for entry in sent:
            approved = approval_before(hospital, entry, facts.plan_digest)
            if approved is None:
                tally.wrong(f"hospital {silo} sent a sum without noise that its steward had not approved", [entry.at])
            else:
                tally.good([approved.at])
    return tally.finding(
        "every sum without noise was in the plan its hospital had approved before", "no such sum was sent"
    )


def _is_open(facts: Facts, phase: str) -> bool:
    """Whether no guarantee covers what is sent in this phase."""
    return not (facts.is_private and phase == "train")


def _sums_with(facts: Facts, silo: str) -> set[tuple[int, str]]:
    """(round, phase) of the sums without a guarantee in which the coordinator says a hospital was."""
    sums = [opened.event for one in facts.rounds for opened in one.sums]
    return {(said.round, said.phase) for said in sums if silo in said.surviving and _is_open(facts, said.phase)}


def approval_before(hospital: HospitalFacts, entry: Entry[Event], plan_digest: str) -> Entry[PlanApprovalGiven] | None:
    """The hospital's approval of this very plan in force when it wrote `entry`; a later refusal takes it back."""
    before = [one for one in hospital.given if one.at < entry.at and one.event.plan_digest == plan_digest]
    declined = [one for one in hospital.declined if one.at < entry.at and one.event.plan_digest == plan_digest]
    if not before or (declined and declined[-1].at > before[-1].at):
        return None
    return before[-1]


def _sent(hospital: HospitalFacts) -> list[Pointer]:
    """Where the trainings without a reservation left."""
    sent = hospital.log.of(ContributionReleased)
    return [one.at for one in sent if one.event.phase == "train" and one.event.round in hospital.spending.unpaid]

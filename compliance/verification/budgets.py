"""What hospitals spent on their patients: every epsilon worked out anew from the releases in the hospital's own log.

The log says before each private training what was released and what all of it came to. Both were signed and seen by
others, so a number that is too low stays too low for ever. Equal means to a relative 1e-6: the accountant's own
rounding is a thousandth of that, and another platform's `lgamma` and `exp` differ by less.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isclose

from boundary.guarantee import PatientPrivacy
from compliance.accountant import epsilon
from compliance.errors import ComplianceError
from compliance.events import BudgetCommitted, BudgetReserved, ContributionReleased
from compliance.privacy import PoissonGaussian, PrivacyEvent
from compliance.terms import delta_of, rate_of
from compliance.verification.case import Case, Entry, Log
from compliance.verification.findings import Finding, at, broken, incomplete, note

RELATIVE = 1e-6
MOST_MECHANISMS = 8  # of one hospital in one study, which has one; each costs the accountant a twentieth of a second
_LOW = "UNDER-REPORTED: its patients were promised more than they got"


@dataclass(slots=True)
class _Account:
    """What a hospital's log says of one study, as it is read."""

    steps: Counter[tuple[float, float]] = field(default_factory=Counter)
    waiting: Counter[tuple[int, PrivacyEvent]] = field(default_factory=Counter)
    single: dict[tuple[PrivacyEvent, float], float] = field(default_factory=dict)

    def add(self, said: BudgetReserved) -> None:
        self.steps[said.release.noise_multiplier, said.release.sampling_rate] += said.release.steps
        self.waiting[said.round, said.release] += 1

    def alone(self, release: PrivacyEvent, delta: float) -> float:
        """What one release costs; a study repeats it. Raises `NotAccountable`."""
        if (release, delta) not in self.single:
            self.single[release, delta] = epsilon([release], delta)
        return self.single[release, delta]

    def spent(self, delta: float) -> float:
        """Raises `NotAccountable`."""
        return epsilon([_event(noise, rate, steps) for (noise, rate), steps in self.steps.items()], delta)


def _event(noise: float, rate: float, steps: int) -> PoissonGaussian:
    """Composition depends on the number of steps only; their sum may pass what one release can have."""
    return PoissonGaussian.model_construct(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def budgets(case: Case) -> Iterator[Finding]:
    privacy = case.bundle.plan.privacy
    for silo, log in case.logs.items():
        yield from _account_of(case, silo, log)
        if isinstance(privacy, PatientPrivacy):
            if "budget" in case.bundle.plan.evidence.disclose:
                yield from _paid(case, silo, log)
            elif silo in case.contributing:
                means = "what it spent can be checked in the hospital only"
                yield note(silo, "its spending is not shown by the plan", means)


def _account_of(case: Case, silo: str, log: Log) -> Iterator[Finding]:
    account = _Account()
    entries: list[Entry[BudgetReserved] | Entry[BudgetCommitted]] = [
        *log.of(BudgetReserved, case.study),
        *log.of(BudgetCommitted, case.study),
    ]
    for entry in sorted(entries, key=lambda entry: entry.number):
        said, where = entry.event, at(silo, entry.number)
        if isinstance(said, BudgetCommitted):
            if not account.waiting[said.round, said.release]:
                means = "it left without having been spent beforehand"
                yield broken(where, "a release that was not reserved", means)
            account.waiting[said.round, said.release] -= 1
            continue
        account.add(said)
        yield from _terms(case, where, said)
        if len(account.steps) > MOST_MECHANISMS:
            means = "its epsilon was not worked out: no study does this"
            yield broken(where, f"more than {MOST_MECHANISMS} mechanisms in one study", means)
            return
        yield from _recomputed(case, where, log, account, said)


def _recomputed(case: Case, where: str, log: Log, account: _Account, said: BudgetReserved) -> Iterator[Finding]:
    try:
        found = account.spent(said.delta_study)
        alone = account.alone(said.release, said.delta_lifetime)
    except ComplianceError as why:
        yield broken(where, f"no epsilon can be worked out: {why}", "what its patients were promised is unknown")
        return
    told = f"says epsilon {said.epsilon_study:.6g} at delta {said.delta_study:.3g}, it is {found:.6g}"
    if isclose(said.epsilon_study, found, rel_tol=RELATIVE):
        pass
    elif said.epsilon_study < found:
        yield broken(where, told, _LOW)
    elif log.withheld and "budget" not in case.bundle.plan.evidence.disclose:
        yield note(where, told, "more than the entries that are shown come to: some are not")
    else:
        yield broken(where, told, "more was spent than this log has: a release is missing in it")
    if said.epsilon_lifetime < alone * (1 - RELATIVE):
        yield broken(where, f"a lifetime of {said.epsilon_lifetime:.6g}, this release alone is {alone:.6g}", _LOW)
    privacy = case.bundle.plan.privacy
    if isinstance(privacy, PatientPrivacy) and privacy.epsilon and found > privacy.epsilon * (1 + RELATIVE):
        means = "the plan that was approved promises less"
        yield broken(where, f"epsilon {found:.6g}, the plan allows {privacy.epsilon:g}", means)


def _terms(case: Case, where: str, said: BudgetReserved) -> Iterator[Finding]:
    """The release is the plan's for a hospital of some declared size, which its delta tells (`compliance.terms`)."""
    privacy = case.bundle.plan.privacy
    if not isinstance(privacy, PatientPrivacy):
        yield broken(where, "a private release in a study without a guarantee", "not the work that was approved")
        return
    release, patients = said.release, round(1 / (10 * said.delta_study))
    is_plan = (
        release.steps == privacy.steps
        and privacy.noise_multiplier in {None, release.noise_multiplier}
        and isclose(delta_of(max(1, patients)), said.delta_study, rel_tol=RELATIVE)
        and isclose(rate_of(privacy, max(1, patients)), release.sampling_rate, rel_tol=RELATIVE)
    )
    if not is_plan:
        found = (
            f"{release.steps} steps, noise {release.noise_multiplier:.6g}, rate {release.sampling_rate:.6g}, "
            f"delta {said.delta_study:.6g}"
        )
        yield broken(where, found, "not the release that the plan asks of a hospital of any size")


def _paid(case: Case, silo: str, log: Log) -> Iterator[Finding]:
    """Every contribution that became part of a model was reserved and committed before it left."""
    paid: dict[int, int] = {}
    for committed in log.of(BudgetCommitted, case.study):
        paid.setdefault(committed.event.round, committed.number)
    last = max((closed.event.round for closed in case.closed), default=0)
    for entry in log.of(ContributionReleased, case.study):
        said = entry.event
        if said.phase != "train" or said.round > last or paid.get(said.round, entry.number) < entry.number:
            continue
        found = f"a contribution to round {said.round}, nothing was spent for it before"
        if log.withheld:
            yield incomplete(at(silo, entry.number), found, "it may be among the entries that are not shown")
        else:
            yield broken(at(silo, entry.number), found, "patients' data left without its noise being accounted for")

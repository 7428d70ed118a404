"""What a private study costs this hospital's patients, in words and numbers: for the steward, before and after."""

import json
from dataclasses import dataclass
from typing import Any

from boundary.guarantee import PatientPrivacy
from boundary.plan import StudyPlan
from compliance.errors import ComplianceError
from compliance.ledger import Balance
from compliance.privacy import event_bytes
from silo_agent.budget import Terms, terms_of
from silo_agent.errors import WorkFailed
from silo_agent.journal import Journal
from silo_agent.policy.model import Policy, dataset_of
from silo_agent.state import StateFolder

TIGHT = "cost.json"  # beside a scan: the child's second opinion (compliance.prv), which the daemon is too small for


@dataclass(frozen=True, slots=True)
class Cost:
    """`whole` is epsilon of all rounds, `tight` the closer estimate of it; `fits` is how many rounds the caps allow."""

    terms: Terms
    whole: float
    tight: float | None
    balance: Balance
    fits: int


def cost_here(plan: StudyPlan, study: str, policy: Policy, journal: Journal, folder: StateFolder) -> Cost | None:
    """What the plan costs here, None without a guarantee. Raises `WorkFailed` if this hospital cannot take part so."""
    terms = terms_of(plan, dataset_of(policy, plan.dataset.name))
    if terms is None:
        return None
    ledger, population = journal.ledger, terms.declared.population
    try:
        balance = ledger.balance(population, study, terms.caps)
        fits = terms.rounds_that_fit(ledger.of_study(study), ledger.of_population(population))
    except ComplianceError as why:
        raise WorkFailed(why.code, str(why)) from why
    return Cost(terms, terms.epsilon, _tight(folder, study, terms), balance, fits)


def question_of(terms: Terms) -> dict[str, Any]:
    """What the second opinion is asked about: it holds for these numbers and no others."""
    return {"event": event_bytes(terms.whole).decode(), "delta": terms.delta}


def _tight(folder: StateFolder, study: str, terms: Terms) -> float | None:
    """None if there is none, or only one from before the policy was changed."""
    try:
        said = json.loads((folder.cache / study / TIGHT).read_bytes())
        return float(said["epsilon"]) if question_of(terms).items() <= said.items() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def guarantee_lines(plan: StudyPlan, cost: Cost | str | None) -> list[tuple[str, str]]:
    """(heading, text) pairs for the steward; `cost` as a sentence says why it cannot be told."""
    privacy = plan.privacy
    if not isinstance(privacy, PatientPrivacy):
        none = [("Guarantee", "NONE: this plan gives no mathematical guarantee per patient")]
        return none if cost is None else [*none, ("Not possible", str(cost))]
    how = (
        f"each of {privacy.steps} steps a round takes patients by chance, {privacy.patients_per_step} on average, and "
        f"at most {privacy.images_per_patient} images of each; a patient's change is cut to length {privacy.clip:g}"
    )
    if not isinstance(cost, Cost):
        return [("Guarantee", f"per patient, but not here: {cost}"), ("How", how)]
    terms, balance = cost.terms, cost.balance
    tight = "" if cost.tight is None else f", {cost.tight:.2f} by the closer estimate"
    fits = f"{cost.fits} of {terms.rounds} rounds" if not balance.reserved + balance.committed else f"{cost.fits} more"
    return [
        ("Guarantee", f"per patient: with or without any one patient, all images included, what leaves is nearly "
         f"the same. {_trainings(plan)} together cost epsilon {cost.whole:.2f}{tight}, at delta "
         f"{terms.delta:.1e}"),
        ("How", f"{how}, and noise of {terms.noise_multiplier:.3g} times that is added, before anything leaves. A "
         f"patient is in a step with probability {terms.rate:.3g}: {terms.declared.most_patients} patients are "
         "declared"),
        ("Budget", f"of this study {_of(balance.study.epsilon, balance.caps.study.epsilon)}; of all studies on "
         f"{terms.declared.population!r} {_of(balance.lifetime.epsilon, balance.caps.lifetime.epsilon)}. "
         f"There is room for {fits}; then we stop taking part, and the others go on"),
        ("Not covered", "the counts of right and wrong answers on held-back patients, on whom this study never trains"),
    ]  # fmt: skip


def _trainings(plan: StudyPlan) -> str:
    rounds = f"All {plan.training.rounds} rounds"
    return rounds if plan.personalisation is None else f"{rounds} and the fine-tuning after them"


def _of(spent: float, cap: float) -> str:
    return f"{spent:.2f} of {cap:g} is spent"


@dataclass(frozen=True, slots=True)
class Account:
    """One private study in the ledger. `unable` says why its balance cannot be told any more."""

    label: str
    study: str
    cost: Cost | None
    unable: str

    def figures(self) -> dict[str, Any]:
        """The same for a program. Epsilons at `delta`; `fits` is how many more rounds there is room for."""
        if self.cost is None:
            return {"study": self.study, "unable": self.unable}
        terms, balance = self.cost.terms, self.cost.balance
        return {
            "study": self.study,
            "plan": self.label,
            "epsilon": balance.study.epsilon,
            "cap": balance.caps.study.epsilon,
            "population": terms.declared.population,
            "lifetime_epsilon": balance.lifetime.epsilon,
            "lifetime_cap": balance.caps.lifetime.epsilon,
            "delta": terms.delta,
            "noise_multiplier": terms.noise_multiplier,
            "sampling_rate": terms.rate,
            "committed": balance.committed,
            "reserved": balance.reserved,
            "fits": self.cost.fits,
        }


def accounts(policy: Policy, journal: Journal, folder: StateFolder) -> list[Account]:
    """Every study with a guarantee that this hospital approved, oldest first."""
    found = []
    for kept in journal.plans():
        plan = kept.parsed
        if kept.approval is None or not isinstance(plan.privacy, PatientPrivacy):
            continue
        try:
            found.append(Account(plan.label, kept.study, cost_here(plan, kept.study, policy, journal, folder), ""))
        except WorkFailed as why:
            found.append(Account(plan.label, kept.study, None, str(why)))
    return found

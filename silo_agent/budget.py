"""What a plan with a guarantee per patient comes to in this hospital: its public numbers, its events, its caps.

Nothing here looks at a patient. The sampling rate and the noise follow from the plan and from the most patients that
the hospital declares; how many there really are decides nothing and is told nobody.
"""

from dataclasses import dataclass
from typing import Any

from boundary.guarantee import EPSILON_BANDS, PatientPrivacy
from boundary.plan import StudyPlan
from compliance.accountant import steps_left
from compliance.errors import OutOfReach
from compliance.ledger import Balance, Caps
from compliance.privacy import Budget, PrivacyEvent
from compliance.terms import PlanTerms
from silo_agent.errors import WorkFailed
from silo_agent.policy.model import PatientCaps, SiloDataset


@dataclass(frozen=True, slots=True)
class Terms(PlanTerms):
    """A private study here. `event` is what each round costs, `caps` what it may come to; delta is the same in both."""

    declared: PatientCaps

    @property
    def caps(self) -> Caps:
        """The study's cap is the hospital's or, if that is less, what the plan promises."""
        study = min(self.declared.study_epsilon, self.privacy.epsilon or self.declared.study_epsilon)
        return Caps(
            study=Budget(epsilon=study, delta=self.delta),
            lifetime=Budget(epsilon=self.declared.lifetime_epsilon, delta=self.delta),
        )

    def rounds_that_fit(self, study: list[PrivacyEvent], lifetime: list[PrivacyEvent]) -> int:
        """How many more rounds both caps have room for, after the events of this study and of all on the same people.

        A round that is in both is in both lists.
        """
        caps = self.caps
        fit = (steps_left(caps.study, self.event, study), steps_left(caps.lifetime, self.event, lifetime))
        return min(self.rounds, *fit)

    def excess(self, patients: int) -> str:
        """What is wrong with so many patients in the data; empty if nothing is."""
        most = self.declared.most_patients
        if patients <= most:
            return ""
        return (
            f"there are {patients} patients, more than the {most} that the policy declares as n_max_patients: declare "
            "a larger number, one that the archive will not outgrow"
        )

    def for_child(self, balance: Balance) -> dict[str, Any]:
        """What the training process is told: numbers of the plan and of the hospital, none of the archive."""
        return self._told(self.privacy.steps, [float(balance.study.epsilon < band) for band in EPSILON_BANDS])

    def for_trial(self, steps: int | None) -> dict[str, Any]:
        """The same for a training whose result never leaves: at most so many steps, and no word of a budget."""
        most = self.privacy.steps
        return self._told(most if steps is None else min(steps, most), [0.0] * len(EPSILON_BANDS))

    def _told(self, steps: int, bands: list[float]) -> dict[str, Any]:
        return {
            "steps": steps,
            "rate": self.rate,
            "denominator": self.denominator,
            "clip": self.privacy.clip,
            "noise_multiplier": self.noise_multiplier,
            "images": self.privacy.images_per_patient,
            "bands": bands,
        }


def terms_of(plan: StudyPlan, dataset: SiloDataset) -> Terms | None:
    """The terms of a private plan, None for a plan without a guarantee if the hospital takes part in such.

    None as well where nobody is trained on here: a guarantee is about training, and what is measured on patients who
    are held back no plan covers.

    Raises `WorkFailed` with what the hospital would have to change, or that no noise is enough.
    """
    declared = dataset.caps
    if dataset.is_held_back(plan):
        return None
    if not isinstance(plan.privacy, PatientPrivacy):
        if declared.required:
            raise WorkFailed(
                "GUARANTEE_REQUIRED", "the policy asks for a guarantee per patient, and the plan gives none"
            )
        return None
    rounds, patients = plan.rounds_in_all, declared.most_patients
    try:
        public = PlanTerms.of(plan.privacy, rounds, patients)
    except OutOfReach as why:
        raise WorkFailed(why.code, str(why)) from why
    return Terms(plan.privacy, rounds, patients, public.noise_multiplier, declared)

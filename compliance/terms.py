"""What a private plan comes to for a hospital of some declared size: public numbers only, the same for everybody.

Coordinators ask it when they write a plan, hospitals before they approve one, the audit when it trains as they would.
"""

from dataclasses import dataclass
from typing import Self

from boundary.guarantee import PatientPrivacy
from compliance.accountant import epsilon, noise_multiplier_for
from compliance.errors import OutOfReach
from compliance.privacy import Budget, PoissonGaussian

SMALLEST_NOISE, MOST_NOISE = 0.1, 60.0  # multipliers that the noise source can draw (`models.private`), with room


def rate_of(privacy: PatientPrivacy, most_patients: int) -> float:
    """The probability of a patient to be in a step."""
    return min(1.0, privacy.patients_per_step / most_patients)


def delta_of(most_patients: int) -> float:
    """A tenth of a patient: at this delta a mechanism that gives one patient away whole would not pass."""
    return 1 / (10 * most_patients)


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """A private plan for a hospital that declares `most_patients`."""

    privacy: PatientPrivacy
    rounds: int
    most_patients: int
    noise_multiplier: float

    @classmethod
    def of(cls, privacy: PatientPrivacy, rounds: int, most_patients: int) -> Self:
        """Work the noise out if the plan gives epsilon. Raises `OutOfReach` if it would have to be too large."""
        noise = privacy.noise_multiplier
        if noise is None:
            target = Budget(epsilon=privacy.epsilon or 0.0, delta=delta_of(most_patients))
            rate, steps = rate_of(privacy, most_patients), privacy.steps * rounds
            noise = max(SMALLEST_NOISE, noise_multiplier_for(target, rate, steps))
            if noise > MOST_NOISE:
                raise OutOfReach(
                    f"epsilon {target.epsilon:g} for {steps} steps that each take a patient with probability "
                    f"{rate:.3g} needs {noise:.3g} times the clipping norm as noise; {MOST_NOISE:g} is the most"
                )
        return cls(privacy, rounds, most_patients, noise)

    @property
    def rate(self) -> float:
        return rate_of(self.privacy, self.most_patients)

    @property
    def delta(self) -> float:
        return delta_of(self.most_patients)

    @property
    def denominator(self) -> float:
        """How many patients are expected in a step of an archive of `most_patients`."""
        return self.rate * self.most_patients

    @property
    def event(self) -> PoissonGaussian:
        """What a round costs."""
        return PoissonGaussian(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.rate, steps=self.privacy.steps
        )

    @property
    def whole(self) -> PoissonGaussian:
        """What all rounds cost, each trained once."""
        return self.event.model_copy(update={"steps": self.rounds * self.privacy.steps})

    @property
    def epsilon(self) -> float:
        """Of all rounds, at `delta`."""
        return epsilon([self.whole], self.delta)

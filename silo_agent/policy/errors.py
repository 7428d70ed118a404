"""Why the policy says no: one stable code each. A code may leave the hospital, the detail never does."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from compliance.events import BudgetRefused
from silo_agent.errors import WorkFailed


class PolicyCode(StrEnum):
    """Every way in which a gate or a change of the policy can refuse."""

    POLICY_UNSIGNED = "POLICY_UNSIGNED"
    POLICY_SIGNATURE_INVALID = "POLICY_SIGNATURE_INVALID"
    POLICY_NOT_IN_FORCE = "POLICY_NOT_IN_FORCE"
    POLICY_ROLLED_BACK = "POLICY_ROLLED_BACK"
    POLICY_OF_ANOTHER_SITE = "POLICY_OF_ANOTHER_SITE"
    POLICY_NOT_YET_VALID = "POLICY_NOT_YET_VALID"
    POLICY_EXPIRED = "POLICY_EXPIRED"
    STUDY_NOT_ALLOWED = "STUDY_NOT_ALLOWED"
    PLAN_NOT_ALLOWED = "PLAN_NOT_ALLOWED"
    STUDY_EXPIRED = "STUDY_EXPIRED"
    OUT_OF_HOURS = "OUT_OF_HOURS"
    DATASET_NOT_ALLOWED = "DATASET_NOT_ALLOWED"
    MODALITY_NOT_ALLOWED = "MODALITY_NOT_ALLOWED"
    IMAGES_PER_PATIENT = "IMAGES_PER_PATIENT"
    LOSSY_ADMITTED = "LOSSY_ADMITTED"
    BURNED_IN_ADMITTED = "BURNED_IN_ADMITTED"
    EXCLUSIONS_MISSING = "EXCLUSIONS_MISSING"
    EXCLUSIONS_STALE = "EXCLUSIONS_STALE"
    DATASET_TOO_SMALL = "DATASET_TOO_SMALL"
    DATASET_TOO_LARGE = "DATASET_TOO_LARGE"
    COHORT_TOO_SMALL = "COHORT_TOO_SMALL"
    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"
    WEIGHTS_NOT_ALLOWED = "WEIGHTS_NOT_ALLOWED"
    GUARANTEE_REQUIRED = "GUARANTEE_REQUIRED"
    STUDY_EPSILON = "STUDY_EPSILON"
    LIFETIME_EPSILON = "LIFETIME_EPSILON"
    DELTA_TOO_LARGE = "DELTA_TOO_LARGE"
    NOISE_TOO_LOW = "NOISE_TOO_LOW"
    METRIC_NOT_ALLOWED = "METRIC_NOT_ALLOWED"
    CELL_TOO_SMALL = "CELL_TOO_SMALL"
    EGRESS_TOO_LARGE = "EGRESS_TOO_LARGE"
    TOO_MANY_DEVICES = "TOO_MANY_DEVICES"
    ROUND_TOO_LONG = "ROUND_TOO_LONG"
    TOO_MANY_ROUNDS = "TOO_MANY_ROUNDS"
    DESTINATION_NOT_ALLOWED = "DESTINATION_NOT_ALLOWED"


# Time alone, or a list that is brought daily, changes the answer; everything else needs a person or another plan.
PASSES = frozenset({PolicyCode.OUT_OF_HOURS, PolicyCode.EXCLUSIONS_STALE, PolicyCode.EXCLUSIONS_MISSING})

# Which cap was reached says something about other studies, and which bound about how many patients there are.
TOLD_AS = {
    PolicyCode.STUDY_EPSILON: "BUDGET_SPENT",
    PolicyCode.LIFETIME_EPSILON: "BUDGET_SPENT",
    PolicyCode.DATASET_TOO_SMALL: "CONTRACT_NOT_MET",
    PolicyCode.DATASET_TOO_LARGE: "CONTRACT_NOT_MET",
}
_GATE_OF = {
    PolicyCode.DATASET_NOT_ALLOWED: "dataset",
    PolicyCode.EXCLUSIONS_MISSING: "exclusions",
    PolicyCode.STUDY_NOT_ALLOWED: "study",
    PolicyCode.PLAN_NOT_ALLOWED: "study",
    PolicyCode.STUDY_EXPIRED: "study",
}


@dataclass(frozen=True, slots=True)
class GatePassed:
    """One gate let a request through, under the policy with this digest. Each belongs into the trail."""

    gate: str
    policy: str
    at: datetime


class PolicyRefused(WorkFailed):
    """The policy does not allow this. `gate` is the one that refused, `passed` those before it, `policy` its digest.

    All three are filled in by `silo_agent.policy.gates.judge`. The detail names the fix and never tells a number that
    was counted on patients. `code` is what a coordinator may learn, `reason` what the hospital's own log says.
    """

    code = "POLICY_REFUSED"

    def __init__(self, code: PolicyCode, detail: str) -> None:
        super().__init__(TOLD_AS.get(code, code.value), detail, retryable=code in PASSES)
        self.reason, self.detail = code, detail
        self.gate = _GATE_OF.get(code, "signature")  # of what is found before the gates are asked
        self.policy = ""
        self.entry: BudgetRefused | None = None  # what else the trail has to say of it
        self.passed: tuple[GatePassed, ...] = ()

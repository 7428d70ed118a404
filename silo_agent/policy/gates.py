"""Every gate of the policy, as a pure decision, and the order in which they are asked.

A gate returns None or raises `PolicyRefused`. Comparisons are written so that a number that is none (NaN) refuses.
`judge` is the one way through all of them: what it returns is what the trail has to say before anything is trained.
"""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import assert_never

from boundary.names import parse_timestamp, timestamp
from boundary.plan import StudyPlan
from boundary.plan import digest_of as plan_digest_of
from boundary.requests import CLOCK_SKEW
from silo_agent.policy.adoption import PolicyInForce, check_standing, check_valid
from silo_agent.policy.errors import GatePassed, PolicyCode, PolicyRefused
from silo_agent.policy.facts import NothingSpent, Request, Spending, Unguarded
from silo_agent.policy.model import Policy, dataset_of, delta_of, digest_of
from silo_agent.policy.sections import DatasetRules, PrivacyRules, StudyRules

MB = 1_000_000
Gate = Callable[[Request, Policy, datetime], None]


def check_signature(request: Request, policy: Policy, _now: datetime) -> None:
    """The policy is the one in force here, and its approvers' signatures are over it."""
    check_standing(policy, request.standing)


def check_validity(_request: Request, policy: Policy, now: datetime) -> None:
    """Today, in UTC, is one of the policy's days."""
    check_valid(policy.valid, now)


def check_study(request: Request, policy: Policy, now: datetime) -> None:
    """The study is named, lists exactly this plan, and its papers have not expired."""
    _check_named(request.plan_name, request.plan_digest, policy, now)


def check_hours(_request: Request, policy: Policy, now: datetime) -> None:
    """The hospital's own clock is in one of the windows."""
    if not policy.hours.is_open(now):
        windows = ", ".join(policy.hours.windows) or "none"
        raise PolicyRefused(
            PolicyCode.OUT_OF_HOURS, f"the policy allows work at {windows} ({policy.hours.timezone}): wait, or widen it"
        )


def check_dataset(request: Request, policy: Policy, _now: datetime) -> None:
    """The data set is named, and the plan takes of it what may be taken."""
    rules, data = _dataset(request, policy), request.data
    check_modalities(data.name, data.modalities, rules)
    if not data.images_per_patient <= rules.max_images_per_patient:
        raise PolicyRefused(
            PolicyCode.IMAGES_PER_PATIENT,
            f"the plan takes {data.images_per_patient} images per patient, the policy allows "
            f"{rules.max_images_per_patient}: ask for another plan",
        )
    if data.admits_lossy and rules.lossy == "refuse":
        raise PolicyRefused(PolicyCode.LOSSY_ADMITTED, "the intake lets lossy images in: have it refuse them")
    if data.admits_burned_in and rules.burned_in == "refuse":
        raise PolicyRefused(PolicyCode.BURNED_IN_ADMITTED, "the intake lets burned-in text in: have it refuse it")


def check_modalities(name: str, modalities: Collection[str], rules: DatasetRules) -> None:
    """Also asked alone, before the archive is read for a proposal."""
    if not modalities or set(modalities) - set(rules.modalities):
        raise PolicyRefused(
            PolicyCode.MODALITY_NOT_ALLOWED, f"of {name} only {', '.join(rules.modalities)} may be used"
        )


def check_exclusions(request: Request, policy: Policy, now: datetime) -> None:
    """The list of those who withdrew is there and young enough."""
    allowed, written = _dataset(request, policy).exclusions, request.data.exclusions_at
    if written is None:
        raise PolicyRefused(
            PolicyCode.EXCLUSIONS_MISSING,
            f"{allowed.path} cannot be read: write the list, an empty one if there is none",
        )
    age = parse_timestamp(timestamp(now)) - parse_timestamp(timestamp(written))
    if age < -CLOCK_SKEW:
        raise PolicyRefused(
            PolicyCode.EXCLUSIONS_STALE, f"{allowed.path} is dated in the future: compare the clocks and write it again"
        )
    if age > timedelta(hours=allowed.max_age_hours):
        raise PolicyRefused(
            PolicyCode.EXCLUSIONS_STALE,
            f"{allowed.path} is older than {allowed.max_age_hours:g} hours: have the list brought up to date",
        )


def check_cohort(request: Request, policy: Policy, _now: datetime) -> None:
    """Enough hospitals in the sum, enough patients here, and not more than the mechanism was told."""
    rules, least = _dataset(request, policy), policy.release.min_parties_in_sum
    if not request.parties >= least:
        raise PolicyRefused(
            PolicyCode.COHORT_TOO_SMALL,
            f"a sum has to be over at least {least} hospitals, the plan, or our group in it, names fewer: ask for more",
        )
    if not request.data.patients >= rules.min_patients:
        raise PolicyRefused(
            PolicyCode.DATASET_TOO_SMALL, f"{request.data.name} has fewer patients than min_patients: wait for more"
        )
    if not request.data.patients <= rules.n_max_patients:
        raise PolicyRefused(
            PolicyCode.DATASET_TOO_LARGE,
            f"{request.data.name} has more patients than n_max_patients: declare a number it will not outgrow",
        )


def check_incoming(request: Request, policy: Policy, _now: datetime) -> None:
    """The model that comes in is not larger than allowed, and nothing begins with a file where none may."""
    most = policy.network.max_model_mb
    if not request.model_size <= most * MB:
        raise PolicyRefused(
            PolicyCode.MODEL_TOO_LARGE, f"the incoming model has {request.model_size} bytes, max_model_mb is {most}"
        )
    if request.pretrained is not None and policy.weights is None:
        raise PolicyRefused(
            PolicyCode.WEIGHTS_NOT_ALLOWED,
            f"the plan begins with the file {request.pretrained}, and the policy names no folder of such files: add "
            "[weights] with folder, and put the file there",
        )


def check_budget(request: Request, policy: Policy, _now: datetime) -> None:
    """What patients will have been exposed to stays under every cap. The ledger's reservation comes after this."""
    match request.spending:
        case Spending() as spending:
            _check_spending(spending, policy.privacy, _dataset(request, policy))
        case Unguarded():
            if policy.privacy.required:
                raise PolicyRefused(
                    PolicyCode.GUARANTEE_REQUIRED,
                    "the policy asks for a guarantee per patient, and the plan gives none",
                )
        case NothingSpent():
            return
        case other:
            assert_never(other)


def check_egress(request: Request, policy: Policy, _now: datetime) -> None:
    """What leaves is little enough, of the metrics that may be told, in cells that are large enough."""
    leaving, most, cell = request.leaving, policy.network.max_egress_mb_per_round, policy.release.smallest_cell
    unnamed = sorted(leaving.metrics - set(policy.release.metrics))
    if unnamed:
        raise PolicyRefused(PolicyCode.METRIC_NOT_ALLOWED, f"the policy does not let out {', '.join(unnamed)}")
    if not leaving.cell >= cell:
        raise PolicyRefused(
            PolicyCode.CELL_TOO_SMALL, f"counts would be told in steps of {leaving.cell}, smallest_cell is {cell}"
        )
    if not leaving.size <= most * MB:
        raise PolicyRefused(
            PolicyCode.EGRESS_TOO_LARGE,
            f"{leaving.size} bytes would leave in this round, max_egress_mb_per_round is {most}",
        )


def check_resources(request: Request, policy: Policy, _now: datetime) -> None:
    """Not more rounds, GPUs or hours than allowed."""
    rounds, most, using = _study(request.plan_name, policy).max_rounds, policy.resources, request.using
    if not request.round <= rounds:
        raise PolicyRefused(PolicyCode.TOO_MANY_ROUNDS, f"the policy allows {rounds} rounds of {request.plan_name}")
    if not using.devices <= most.devices:
        raise PolicyRefused(PolicyCode.TOO_MANY_DEVICES, f"the policy allows {most.devices} GPU(s): set the agent so")
    if not using.hours <= most.max_hours_per_round:
        raise PolicyRefused(
            PolicyCode.ROUND_TOO_LONG,
            f"the policy allows {most.max_hours_per_round:g} hours per round: they are used up",
        )


GATES: tuple[tuple[str, Gate], ...] = (
    ("signature", check_signature),
    ("validity", check_validity),
    ("study", check_study),
    ("hours", check_hours),
    ("dataset", check_dataset),
    ("exclusions", check_exclusions),
    ("cohort", check_cohort),
    ("incoming", check_incoming),
    ("budget", check_budget),
    ("egress", check_egress),
    ("resources", check_resources),
)


def judge(request: Request, policy: Policy, now: datetime) -> tuple[GatePassed, ...]:
    """Ask every gate in order; returns what passed, one for each. Changes nothing.

    Raises the `PolicyRefused` of the first that refuses, with its `gate`, those `passed` before it and the policy.
    """
    passed: tuple[GatePassed, ...] = ()
    digest = digest_of(policy)
    for name, check in GATES:
        try:
            check(request, policy, now)
        except PolicyRefused as why:
            why.gate, why.passed, why.policy = name, passed, digest
            raise
        passed += (GatePassed(name, digest, now),)
    return passed


def check_plan(plan: StudyPlan, force: PolicyInForce, now: datetime) -> None:
    """The gates that a plan has to pass at every step, whatever it asks for: signature, validity, study."""
    check_standing(force.policy, force.standing)
    check_valid(force.policy.valid, now)
    _check_named(plan.name, plan_digest_of(plan), force.policy, now)


def check_destination(host: str, port: int, spki_sha256: str | None, policy: Policy) -> None:
    """Asked when the agent dials, not per order: the address and the certificate's key are named together.

    Before a certificate was shown (None) the address alone is asked for.
    """
    keys = {one.spki_sha256 for one in policy.network.allow if (one.host, one.port) == (host, port)}
    if not keys:
        raise PolicyRefused(
            PolicyCode.DESTINATION_NOT_ALLOWED,
            f"[network] does not name {host}:{port}: `silo-agent check` shows its key; if IT confirms it, add both",
        )
    if spki_sha256 is not None and spki_sha256 not in keys:
        raise PolicyRefused(
            PolicyCode.DESTINATION_NOT_ALLOWED,
            f"[network] does not name {host}:{port} with the key {spki_sha256}: if IT confirms the key, add it",
        )


def _check_named(name: str, digest: str, policy: Policy, now: datetime) -> None:
    rules = _study(name, policy)
    if digest not in rules.plan_digest:
        raise PolicyRefused(
            PolicyCode.PLAN_NOT_ALLOWED,
            f"the policy names the study {name} but not the plan {digest}: add it to plan_digest once it has been read",
        )
    if parse_timestamp(timestamp(now)).date() > rules.legal.expires:
        raise PolicyRefused(
            PolicyCode.STUDY_EXPIRED,
            f"the papers of {name} expired after {rules.legal.expires} (UTC): renew them, then the policy",
        )


def _study(name: str, policy: Policy) -> StudyRules:
    rules = policy.study_of(name)
    if rules is None:
        raise PolicyRefused(
            PolicyCode.STUDY_NOT_ALLOWED,
            f"the policy names no study {name}: read the plan, then `silo-agent policy allow` proposes to add it",
        )
    return rules


def _dataset(request: Request, policy: Policy) -> DatasetRules:
    return dataset_of(policy, request.data.name).rules


def _check_spending(spending: Spending, privacy: PrivacyRules, rules: DatasetRules) -> None:
    """The delta of the ledger has to be this data set's own, or its epsilons are of something else."""
    delta = delta_of(rules)
    if not spending.delta <= privacy.max_delta:
        raise PolicyRefused(
            PolicyCode.DELTA_TOO_LARGE,
            f"delta is {spending.delta:g} and max_delta {privacy.max_delta:g}; delta = 1 / (10 n_max_patients) here is "
            f"{delta:g}: raise max_delta, or declare more patients if the archive is larger",
        )
    if not spending.delta <= delta * (1 + 1e-9):
        raise PolicyRefused(
            PolicyCode.DELTA_TOO_LARGE,
            f"epsilon was computed at delta {spending.delta:g} instead of {delta:g}: n_max_patients is not in force",
        )
    if not spending.noise_multiplier >= privacy.min_noise_multiplier:
        raise PolicyRefused(
            PolicyCode.NOISE_TOO_LOW,
            f"the noise multiplier is {spending.noise_multiplier:g}, the least is {privacy.min_noise_multiplier:g}",
        )
    if not spending.epsilon_study <= privacy.max_epsilon_per_study:
        raise PolicyRefused(
            PolicyCode.STUDY_EPSILON,
            f"the study would have come to epsilon {spending.epsilon_study:.4g}, the most is "
            f"{privacy.max_epsilon_per_study:g}",
        )
    if not spending.epsilon_lifetime <= privacy.max_epsilon_lifetime:
        raise PolicyRefused(
            PolicyCode.LIFETIME_EPSILON,
            f"all studies would have come to epsilon {spending.epsilon_lifetime:.4g}, the most is "
            f"{privacy.max_epsilon_lifetime:g}",
        )

"""`wardround plan cost`: what a private plan means for hospitals of different sizes, before anybody is asked."""

import tomllib
from typing import Any

from boundary.errors import InvalidPlan
from boundary.guarantee import PatientPrivacy
from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from compliance.errors import OutOfReach
from compliance.terms import PlanTerms

SIZES = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)  # patients that a hospital may declare


def private_plan(text: str) -> tuple[StudyPlan, PatientPrivacy]:
    """Parse a study.toml whose hospitals may be names only. Raises `InvalidPlan`, also for one without a guarantee."""
    try:
        value: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise InvalidPlan(f"not TOML: {why}") from why
    plan = parse_plan(value | {"hospitals": _hospitals(value.get("hospitals"))})
    if not isinstance(plan.privacy, PatientPrivacy):
        raise InvalidPlan('privacy.mechanism: "none" costs nothing and promises nothing; see `patient-dp`')
    return plan, plan.privacy


def cost_table(text: str) -> list[str]:
    """One line for each size of hospital."""
    plan, privacy = private_plan(text)
    rounds = plan.rounds_in_all
    asked = f"epsilon {privacy.epsilon:g}" if privacy.epsilon is not None else f"noise {privacy.noise_multiplier:g} x C"
    after = "" if plan.personalisation is None else ", the last of them the fine-tuning"
    lines = [
        f"{plan.label}: {rounds} rounds{after} of {privacy.steps} steps, {privacy.patients_per_step} patients a step, "
        f"{asked}",
        f"{'most patients':>13}  {'in a step':>9}  {'noise':>9}  {'epsilon':>8}  {'delta':>8}  noise on the mean, in C",
    ]
    for size in SIZES:
        try:
            terms = PlanTerms.of(privacy, rounds, size)
        except OutOfReach as why:
            lines.append(f"{size:>13,}  {why}")
            continue
        share = terms.noise_multiplier / terms.denominator
        lines.append(
            f"{size:>13,}  {terms.rate:>9.1%}  {terms.noise_multiplier:>7.2f} C  {terms.epsilon:>8.2f}"
            f"  {terms.delta:>8.0e}  {share:.4f} a step and weight"
        )
    return lines


def _hospitals(said: Any) -> Any:
    """Keys do not matter for the cost, and a draft names its hospitals only."""
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        return said
    return [{"silo": silo, "signing_key": SigningIdentity.generate().public.text} for silo in said]

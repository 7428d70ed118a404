"""What a private plan comes to in a hospital: from the plan and what the hospital declares, never from its patients."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.guarantee import EPSILON_BANDS, PatientPrivacy
from boundary.plan import StudyPlan
from compliance.accountant import epsilon
from compliance.ledger import Balance
from compliance.privacy import PoissonGaussian, Spent
from compliance.terms import SMALLEST_NOISE
from silo_agent.budget import Terms, terms_of
from silo_agent.errors import WorkFailed
from silo_agent.policy.model import PatientCaps, SiloDataset

PlanWith = Callable[..., StudyPlan]
CAPS: dict[str, Any] = {
    "most_patients": 1000, "study_epsilon": 8.0, "lifetime_epsilon": 16.0, "population": "everybody", "required": True,
}  # fmt: skip


def dataset(**caps: Any) -> SiloDataset:
    """A data set with these caps on top of the usual ones; its files do not matter here."""
    return SiloDataset("images", None, PatientCaps(**(CAPS | caps)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan_with(make_plan_for: Any, new_card: Any, private: Any) -> PlanWith:
    """A plan with a guarantee (`None` for none); by two underscores also other places of the plan."""
    cards = [new_card(name) for name in ("st-olavs", "charite", "utrecht")]

    def make(privacy: dict[str, Any] | None, **changes: Any) -> StudyPlan:
        made: StudyPlan = make_plan_for(cards, **({} if privacy is None else private(**privacy)) | changes)
        return made

    return make


def terms(plan: StudyPlan, **caps: Any) -> Terms:
    found = terms_of(plan, dataset(**caps))
    assert found is not None
    return found


# --- rates, denominators, deltas ---------------------------------------------------------------------
RATES: dict[str, tuple[int, int, float, float]] = {
    "ten of a thousand": (10, 1000, 0.01, 10.0),
    "as many as there may be": (1000, 1000, 1.0, 1000.0),
    "more than there may be": (4096, 1000, 1.0, 1000.0),
    "one of ten million": (1, 10_000_000, 1e-7, 1.0),
    "all of one": (32, 1, 1.0, 1.0),
}


@pytest.mark.parametrize(("wanted", "most", "rate", "denominator"), RATES.values(), ids=RATES)
def test_rate_and_denominator_follow_from_the_declared_number(
    plan_with: PlanWith, wanted: int, most: int, rate: float, denominator: float
) -> None:
    found = terms(plan_with({"patients_per_step": wanted}), most_patients=most)
    assert (found.rate, found.event.sampling_rate) == (rate, rate)
    assert found.denominator == pytest.approx(denominator, rel=1e-12)
    assert found.denominator == found.rate * most


@pytest.mark.parametrize("most", [1, 1000, 10_000_000])
def test_delta_is_a_tenth_of_a_patient_in_both_caps(plan_with: PlanWith, most: int) -> None:
    found = terms(plan_with({}), most_patients=most)
    assert found.delta == found.caps.study.delta == found.caps.lifetime.delta == 1 / (10 * most)


def test_a_round_costs_its_steps_and_the_study_all_of_them(plan_with: PlanWith) -> None:
    found = terms(plan_with({"noise_multiplier": 1.5, "steps": 7, "patients_per_step": 50}, training__rounds=4))
    assert found.event == PoissonGaussian(noise_multiplier=1.5, sampling_rate=0.05, steps=7)
    assert found.whole == PoissonGaussian(noise_multiplier=1.5, sampling_rate=0.05, steps=28)
    assert found.epsilon == epsilon([found.event] * 4, found.delta)


# --- caps --------------------------------------------------------------------------------------------
CAPPED: dict[str, tuple[dict[str, Any], float]] = {
    "the plan promises less than the hospital allows": ({"epsilon": 2.0, "noise_multiplier": None}, 2.0),
    "the hospital allows less than the plan promises": ({"epsilon": 50.0, "noise_multiplier": None}, 8.0),
    "the plan promises nothing but noise": ({}, 8.0),
}


@pytest.mark.parametrize(("privacy", "cap"), CAPPED.values(), ids=CAPPED)
def test_the_cap_of_a_study_is_the_smaller_of_the_plans_and_the_hospitals(
    plan_with: PlanWith, privacy: dict[str, Any], cap: float
) -> None:
    caps = terms(plan_with(privacy)).caps
    assert (caps.study.epsilon, caps.lifetime.epsilon) == (cap, 16.0)


# --- noise -------------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(
    promised=st.floats(0.3, 20),
    most=st.integers(50, 100_000),
    wanted=st.integers(1, 4096),
    steps=st.integers(1, 300),
    rounds=st.integers(1, 50),
)
def test_the_noise_is_enough_for_the_promised_epsilon_and_hardly_more(
    plan_with: PlanWith, promised: float, most: int, wanted: int, steps: int, rounds: int
) -> None:
    privacy = {"epsilon": promised, "noise_multiplier": None, "patients_per_step": wanted, "steps": steps}
    plan = plan_with(privacy, training__rounds=rounds)
    try:
        found = terms(plan, most_patients=most)
    except WorkFailed as why:
        assert why.code == "BUDGET_OUT_OF_REACH"  # noqa: PT017 - some draws ask for too much, which has its own test
        return
    assert epsilon([found.event] * rounds, found.delta) <= promised
    less = found.event.model_copy(update={"noise_multiplier": found.noise_multiplier * 0.998})
    assert found.noise_multiplier == SMALLEST_NOISE or epsilon([less] * rounds, found.delta) > promised
    assert found.rounds_that_fit([], []) == rounds or promised > 8, "the study's own promise has room for all of it"


def test_a_plan_gets_the_noise_it_names(plan_with: PlanWith) -> None:
    assert terms(plan_with({"noise_multiplier": 0.1})).noise_multiplier == 0.1
    assert terms(plan_with({"noise_multiplier": 60.0})).noise_multiplier == 60.0


def test_there_is_never_less_noise_than_can_be_drawn(plan_with: PlanWith) -> None:
    plan = plan_with(
        {"epsilon": 100.0, "noise_multiplier": None, "patients_per_step": 1, "steps": 1}, training__rounds=1
    )
    assert terms(plan, most_patients=1_000_000).noise_multiplier == SMALLEST_NOISE


# --- hospitals that cannot take part -----------------------------------------------------------------
OUT_OF_REACH: dict[str, dict[str, Any]] = {
    "more noise than can be drawn": {"epsilon": 0.05, "steps": 1000, "patients_per_step": 500},
    "no noise is enough": {"epsilon": 0.01, "steps": 100_000, "patients_per_step": 4096},
}
REFUSED: dict[str, tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any], str, str]] = {
    "no guarantee where one is asked for": (None, {}, {}, "GUARANTEE_REQUIRED", "the plan gives none"),
    **{
        name: (privacy | {"noise_multiplier": None}, {}, {}, "BUDGET_OUT_OF_REACH", "epsilon 0.0")
        for name, privacy in OUT_OF_REACH.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(("privacy", "caps", "changes", "code", "says"), REFUSED.values(), ids=REFUSED)
def test_a_hospital_says_why_it_cannot_take_part(
    plan_with: PlanWith,
    privacy: dict[str, Any] | None,
    caps: dict[str, Any],
    changes: dict[str, Any],
    code: str,
    says: str,
) -> None:
    with pytest.raises(WorkFailed) as refused:
        terms_of(plan_with(privacy, **changes), dataset(**caps))
    assert refused.value.code == code
    assert says in str(refused.value)
    assert not refused.value.retryable, "asking again changes nothing"


def test_a_plan_without_a_guarantee_has_no_terms_where_none_is_asked_for(plan_with: PlanWith) -> None:
    assert terms_of(plan_with(None), dataset(required=False)) is None


# --- what fits ---------------------------------------------------------------------------------------
def test_rounds_fit_until_the_study_or_all_studies_together_are_at_their_cap(plan_with: PlanWith) -> None:
    found = terms(plan_with({}, training__rounds=1000), most_patients=100, study_epsilon=1.0, lifetime_epsilon=1.5)
    one = found.event
    whole = found.rounds_that_fit([], [])
    assert epsilon([one] * whole, found.delta) <= 1.0 < epsilon([one] * (whole + 1), found.delta)
    assert found.rounds_that_fit([one] * 3, [one] * 3) == whole - 3
    elsewhere = [one] * 10  # another study on the same people
    assert found.rounds_that_fit([], elsewhere) < whole
    assert epsilon([*elsewhere, *[one] * found.rounds_that_fit([], elsewhere)], found.delta) <= 1.5
    assert found.rounds_that_fit([one] * (whole + 1), elsewhere) == 0


# --- what the child is told --------------------------------------------------------------------------
def balance(found: Terms, spent: float) -> Balance:
    said = Spent(epsilon=spent, delta=found.delta)
    return Balance(study=said, lifetime=said, caps=found.caps, reserved=1, committed=0)


def test_the_child_is_told_public_numbers_and_no_count_of_the_archive(plan_with: PlanWith) -> None:
    found = terms(plan_with({"clip": 0.5, "images_per_patient": 3}))
    assert found.for_child(balance(found, 0.5)) == {
        "steps": 5, "rate": 0.01, "denominator": 10.0, "clip": 0.5, "noise_multiplier": 2.0, "images": 3,
        "bands": [1.0, 1.0, 1.0, 1.0],
    }  # fmt: skip
    numbers = json.dumps(found.for_child(balance(found, 0.5)))
    assert "1000" not in numbers, "not even what is declared, but by the rate"


@pytest.mark.parametrize(
    ("spent", "below"),
    [(0.0, 4), (0.999, 4), (1.0, 3), (1.001, 3), (2.0, 2), (3.999, 2), (4.0, 1), (7.999, 1), (8.0, 0), (99.0, 0)],
)
def test_a_band_is_one_until_it_is_reached(plan_with: PlanWith, spent: float, below: int) -> None:
    found = terms(plan_with({}))
    bands = found.for_child(balance(found, spent))["bands"]
    assert bands == [0.0] * (len(EPSILON_BANDS) - below) + [1.0] * below


def test_the_plans_guarantee_is_the_one_that_is_kept(plan_with: PlanWith) -> None:
    plan = plan_with({"clip": 0.25})
    assert terms(plan).privacy is plan.privacy
    assert isinstance(plan.privacy, PatientPrivacy)

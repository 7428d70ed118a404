"""What a plan with a guarantee means for a hospital: public arithmetic, and noise that is enough but not more."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.guarantee import PatientPrivacy
from compliance.accountant import NOISE_PRECISION, epsilon
from compliance.errors import OutOfReach
from compliance.privacy import PoissonGaussian
from compliance.terms import MOST_NOISE, SMALLEST_NOISE, PlanTerms, delta_of, rate_of

SIZES = (50, 200, 1000, 10_000)


def asked(**wish: float) -> PatientPrivacy:
    return PatientPrivacy.model_validate({"mechanism": "patient-dp", "patients_per_step": 24, "steps": 20} | wish)


def test_the_rate_is_the_share_of_declared_patients_that_a_step_takes() -> None:
    assert rate_of(asked(epsilon=1), 240) == 0.1
    assert rate_of(asked(epsilon=1), 24) == 1.0


def test_a_hospital_with_fewer_patients_than_a_step_takes_puts_all_of_them_in() -> None:
    terms = PlanTerms.of(asked(noise_multiplier=2.0), rounds=3, most_patients=10)
    assert (terms.rate, terms.denominator) == (1.0, 10.0)


@pytest.mark.parametrize("most_patients", [1, 7, 240, 50_000])
def test_delta_is_a_tenth_of_a_patient(most_patients: int) -> None:
    """Publishing one patient in N, drawn at random, is (0, 1/N)-private: delta has to be well below that."""
    assert delta_of(most_patients) == pytest.approx(0.1 / most_patients, rel=1e-12)
    terms = PlanTerms.of(asked(noise_multiplier=2.0), rounds=1, most_patients=most_patients)
    assert terms.delta == delta_of(most_patients)


@pytest.mark.parametrize("most_patients", [24, 25, 240, 50_000])
def test_the_denominator_is_how_many_patients_a_step_takes_of_a_full_archive(most_patients: int) -> None:
    terms = PlanTerms.of(asked(noise_multiplier=2.0), rounds=1, most_patients=most_patients)
    assert terms.denominator == pytest.approx(24.0, rel=1e-12)


def test_a_given_noise_multiplier_is_kept_whatever_it_costs() -> None:
    for most_patients in (10, 240, 50_000):
        assert PlanTerms.of(asked(noise_multiplier=0.1), 3, most_patients).noise_multiplier == 0.1
    small, large = (PlanTerms.of(asked(noise_multiplier=1.0), 3, size) for size in (240, 50_000))
    assert small.epsilon > 5 * large.epsilon


def test_all_rounds_cost_what_one_round_costs_that_often() -> None:
    terms = PlanTerms.of(asked(noise_multiplier=1.5), rounds=7, most_patients=300)
    assert terms.event == PoissonGaussian(noise_multiplier=1.5, sampling_rate=0.08, steps=20)
    assert terms.whole == PoissonGaussian(noise_multiplier=1.5, sampling_rate=0.08, steps=140)
    assert terms.epsilon == epsilon([terms.event] * 7, 1 / 3000)
    assert terms.epsilon > epsilon([terms.event] * 6, 1 / 3000)


def test_noise_that_is_worked_out_meets_the_epsilon_and_a_little_less_does_not() -> None:
    for wish in (0.5, 3.0, 10.0):
        privacy = asked(epsilon=wish)
        terms = PlanTerms.of(privacy, rounds=10, most_patients=400)
        assert terms.epsilon <= wish
        less = PlanTerms(privacy, 10, 400, terms.noise_multiplier * (1 - 2 * NOISE_PRECISION))
        assert less.epsilon > wish


@given(st.floats(0.1, 50), st.integers(1, 200), st.integers(30, 100_000), st.integers(1, 64))
@settings(deadline=None, max_examples=8)
def test_no_plan_gets_less_noise_than_its_epsilon_needs(
    wish: float, rounds: int, most_patients: int, patients_per_step: int
) -> None:
    privacy = asked(epsilon=wish, patients_per_step=patients_per_step)
    try:
        terms = PlanTerms.of(privacy, rounds, most_patients)
    except OutOfReach:
        most = PlanTerms(privacy, rounds, most_patients, MOST_NOISE * (1 - NOISE_PRECISION))
        assert most.epsilon > wish
    else:
        assert terms.epsilon <= wish
        assert SMALLEST_NOISE <= terms.noise_multiplier <= MOST_NOISE


def test_a_generous_epsilon_still_gets_the_least_noise_that_can_be_drawn() -> None:
    terms = PlanTerms.of(asked(epsilon=100, patients_per_step=1, steps=1), rounds=1, most_patients=1000)
    assert terms.noise_multiplier == SMALLEST_NOISE
    assert terms.epsilon < 100


def test_an_epsilon_that_needs_more_noise_than_can_be_drawn_is_out_of_reach_and_says_so() -> None:
    with pytest.raises(OutOfReach, match=r"^epsilon 0\.01 for 200 steps .* probability 0\.8 needs \d+ times") as found:
        PlanTerms.of(asked(epsilon=0.01), rounds=10, most_patients=30)
    assert f"{MOST_NOISE:g} is the most" in str(found.value)


def test_an_epsilon_that_no_noise_meets_is_out_of_reach() -> None:
    with pytest.raises(OutOfReach, match="cannot be met by any noise"):
        PlanTerms.of(asked(epsilon=0.01, steps=100_000, patients_per_step=4096), rounds=10_000, most_patients=4096)


def test_larger_hospitals_need_less_noise_on_the_mean_of_a_step() -> None:
    """Why a hospital's size is what a coordinator looks at first: `wardround plan cost`."""
    privacy = asked(epsilon=2)
    shares = [terms.noise_multiplier / terms.denominator for terms in (PlanTerms.of(privacy, 10, n) for n in SIZES)]
    assert shares == sorted(shares, reverse=True)
    assert math.isclose(PlanTerms.of(privacy, 10, SIZES[-1]).denominator, 24)

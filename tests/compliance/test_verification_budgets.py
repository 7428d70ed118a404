"""What hospitals spent, worked out anew: every number that is wrong, and every release that nobody paid for."""

from dataclasses import replace
from typing import Any

import pytest

from boundary.guarantee import PatientPrivacy
from boundary.names import COORDINATOR
from compliance.accountant import epsilon
from compliance.bundle import Bundle
from compliance.events import (
    BudgetCommitted,
    BudgetReserved,
    RoundClosed,
)
from compliance.privacy import PoissonGaussian
from compliance.verification import budgets
from compliance.verification.case import Check, open_case
from compliance.verification.findings import Severity
from tests.compliance.made_study import SILOS, made_bundle, made_plan, plain_plan, trust
from tests.compliance.verification_cases import changed, clean_bundle, dropped, finds, hidden, retold

BROKEN, INCOMPLETE, NOTE = Severity
BROKEN, INCOMPLETE, NOTE = Severity


def of_round(number: int) -> Any:
    return lambda event: event.round == number


def only(check: Check, bundle: Bundle, severity: Severity, said: str) -> None:
    """The check finds exactly this."""
    found = finds(check, bundle)
    assert list(found) == [severity]
    assert len(found[severity]) == 1
    assert said in found[severity][0]


def any_of(check: Check, bundle: Bundle, said: str) -> None:
    found = finds(check, bundle).get(BROKEN, [])
    assert any(said in line for line in found), found


# --- budgets -----------------------------------------------------------------------------------------
def spending(**data: Any) -> Bundle:
    return retold("ucl", changed(BudgetReserved, of_round(3), **data))


def reserved(number: int) -> BudgetReserved:
    case = open_case(clean_bundle(), trust(), None)
    return next(one.event for one in case.logs["ucl"].of(BudgetReserved) if one.event.round == number)


def test_a_number_that_is_too_low_is_under_reported() -> None:
    true = reserved(3).epsilon_study
    only(budgets.budgets, spending(epsilon_study=true * (1 - 3e-6)), BROKEN, "says epsilon")
    assert finds(budgets.budgets, spending(epsilon_study=true * (1 - 5e-7))) == {}
    only(budgets.budgets, spending(epsilon_lifetime=0.01), BROKEN, "a lifetime of 0.01, this release alone is")


def test_a_number_that_is_too_high_is_broken_where_all_is_shown() -> None:
    more = spending(epsilon_study=7.5)
    only(budgets.budgets, more, BROKEN, "says epsilon 7.5")
    little = made_plan(disclose=())
    shown = retold("ucl", changed(BudgetReserved, of_round(3), epsilon_study=7.5), made_bundle(little))
    found = finds(budgets.budgets, hidden(shown, "ucl"))
    assert found.keys() == {NOTE}
    assert any("says epsilon 7.5" in line for line in found[NOTE])
    assert finds(budgets.budgets, shown)[BROKEN]


def test_a_release_that_was_left_out_shows_in_the_next() -> None:
    found = finds(budgets.budgets, retold("ucl", dropped(BudgetReserved, of_round(2))))[BROKEN]
    assert any("a release that was not reserved" in line for line in found)
    assert sum("says epsilon" in line for line in found) == 3


def test_a_release_is_committed_once_and_as_it_was_reserved() -> None:
    again = retold(
        "ucl",
        lambda events: [
            one for event in events for one in ([event] * 2 if isinstance(event, BudgetCommitted) else [event])
        ],
    )
    assert len(finds(budgets.budgets, again)[BROKEN]) == 5
    other = PoissonGaussian(noise_multiplier=9.0, sampling_rate=0.5, steps=10)
    only(budgets.budgets, retold("ucl", changed(BudgetCommitted, of_round(3), release=other)), BROKEN, "not reserved")


def test_a_training_that_was_started_twice_is_spent_twice() -> None:
    """What crashed stays spent; the log says so and the accountant agrees."""
    first, last = reserved(5), clean_bundle().plan.privacy
    assert isinstance(last, PatientPrivacy)
    cost = epsilon([first.release] * 6, first.delta_study)
    again = first.model_copy(update={"epsilon_study": cost, "epsilon_lifetime": cost})
    found = finds(budgets.budgets, retold("ucl", lambda events: [*events, again]))
    assert found == {BROKEN: [found[BROKEN][0]]}
    assert f"epsilon {cost:.6g}, the plan allows 8" in found[BROKEN][0]


TERMS: dict[str, dict[str, Any]] = {
    "fewer steps": {"steps": 9},
    "another rate": {"sampling_rate": 0.5},
    "another noise than the plan's": {"noise_multiplier": 3.0},
}


@pytest.mark.parametrize("what", TERMS)
def test_a_release_is_the_one_of_the_plan(what: str) -> None:
    plan = clean_bundle().plan
    if what == "another noise than the plan's":
        fixed = plan.privacy.model_copy(update={"epsilon": None, "noise_multiplier": 2.0})
        plan = plan.model_copy(update={"privacy": fixed})
    release = reserved(3).release.model_copy(update=TERMS[what])
    bundle = replace(spending(release=release), plan=plan)
    any_of(budgets.budgets, bundle, "steps, noise")


def test_a_delta_that_is_of_no_size_is_not_the_plans() -> None:
    any_of(budgets.budgets, spending(delta_study=0.7), "steps, noise")
    any_of(budgets.budgets, spending(delta_study=0.05), "steps, noise")


def test_a_study_without_a_guarantee_spends_nothing() -> None:
    bundle = replace(clean_bundle(), plan=plain_plan())
    any_of(budgets.budgets, bundle, "a private release in a study without a guarantee")
    for silo in SILOS:
        bundle = retold(silo, lambda events: dropped(BudgetCommitted)(dropped(BudgetReserved)(events)), bundle)
    assert finds(budgets.budgets, bundle) == {}


def test_numbers_that_nobody_can_account_for_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MOST_MECHANISMS", 2)
    most = reserved(3).release.model_copy(update={"steps": 10**9})
    any_of(budgets.budgets, spending(release=most), "no epsilon can be worked out")
    kinds = [
        reserved(3).model_copy(
            update={"release": PoissonGaussian(noise_multiplier=float(n), sampling_rate=1.0, steps=1)}
        )
        for n in range(20, 24)
    ]
    any_of(budgets.budgets, retold("ucl", lambda events: [*kinds, *events]), "more than 2 mechanisms")


def test_a_contribution_was_paid_for() -> None:
    late = retold("ucl", lambda events: sorted(events, key=lambda event: isinstance(event, BudgetCommitted)))
    found = finds(budgets.budgets, late)
    assert len(found[BROKEN]) == 4  # ucl dropped out of round 2
    assert "a contribution to round 1, nothing was spent for it before" in found[BROKEN][0]
    covered = finds(budgets.budgets, hidden(late, "ucl"))
    assert len(covered[INCOMPLETE]) == 4
    open_round = retold(COORDINATOR, dropped(RoundClosed, of_round(5)), late)
    assert len(finds(budgets.budgets, open_round)[BROKEN]) == 3


def test_what_the_plan_does_not_show_is_noted_for_those_that_worked() -> None:
    plan = made_plan(disclose=())
    bundle = replace(clean_bundle(), plan=plan)
    assert len(finds(budgets.budgets, bundle)[NOTE]) == 5
    assert finds(budgets.budgets, retold(COORDINATOR, dropped(RoundClosed), bundle)) == {}

"""What people read about a guarantee: the promise, what it leaves out, what is spent; or that there is none."""

from collections.abc import Callable

import pytest

from boundary.guarantee import EPSILON_BANDS
from boundary.plan import StudyPlan, digest_of, plan_from_toml, study_id
from compliance.records import RoundRecord
from flows.pages import guarantee, round_page, rounds_table, spent_so_far, study_page
from flows.records import ModelStart
from flows.store.studies import Study
from infra import golden

Make = Callable[..., RoundRecord]
NOISE = plan_from_toml(golden.private_toml("noise_multiplier = 1.25"))


def study(plan: StudyPlan, record: RoundRecord) -> Study:
    model = ModelStart.model_validate({"manifest": {"tensors": []}, "initial": record.model_out.model_dump()})
    return Study(
        study=study_id(plan), label=plan.label, plan=plan, plan_digest=digest_of(plan), model=model, statistics=None,
        personalised=None,
        state="running", driver=None, driver_until=None, published_at=golden.NOW,
    )  # fmt: skip


@pytest.fixture
def spent(round_record: Make) -> RoundRecord:
    """Round 2 of a private study: of three hospitals one is below epsilon 2, all are below 4."""
    return round_record(2, train_loss=None, below=(0, 1, 3, 3))


# --- the promise -------------------------------------------------------------------------------------
def test_a_plan_that_gives_epsilon_promises_it_in_every_hospital() -> None:
    said = guarantee(golden.private_plan(), [])
    assert said.startswith(
        "**Privacy: per patient**, epsilon 3.5 in every hospital for the whole study, at delta = 1 / (10 x the most "
        "patients it declares)."
    )


def test_a_plan_that_gives_noise_says_that_its_cost_differs() -> None:
    said = guarantee(NOISE, [])
    assert "noise multiplier 1.25; what that costs differs between hospitals." in said
    assert "epsilon" not in said


def test_what_the_guarantee_does_not_cover_is_said_beside_it() -> None:
    said = guarantee(golden.private_plan(), [])
    assert "Neither training loss nor patient counts are reported." in said
    assert said.endswith(
        "Not covered by it: the summed metrics of held-back patients, on whom this study never trains."
    )


def test_a_plan_without_a_guarantee_says_none_in_plain_words(round_record: Make) -> None:
    said = guarantee(golden.plan(), [round_record(1)])
    assert said == (
        "**Privacy noise: none** – this plan gives no mathematical guarantee per patient."  # noqa: RUF001 - as printed
    )


# --- what is spent -----------------------------------------------------------------------------------
def test_what_is_spent_is_counted_in_hospitals_below_each_band(spent: RoundRecord) -> None:
    assert EPSILON_BANDS == (1, 2, 4, 8)
    told = "Spent on this study after round 2, of 3 hospitals: 0 below 1, 1 below 2, 3 below 4, 3 below 8."
    assert spent_so_far(spent) == told
    assert guarantee(golden.private_plan(), [spent]).endswith(f" {told}")


def test_only_hospitals_in_the_sum_are_counted(spent: RoundRecord) -> None:
    fewer = spent.model_copy(update={"contributing": ("h1", "h2")})
    assert "of 2 hospitals: " in spent_so_far(fewer)


def test_what_is_spent_after_the_last_round_is_what_counts(spent: RoundRecord, round_record: Make) -> None:
    first = round_record(1, train_loss=None, below=(3, 3, 3, 3))
    said = guarantee(golden.private_plan(), [first, spent])
    assert "after round 2" in said
    assert "after round 1" not in said


def test_nothing_is_said_about_spending_before_the_first_round(round_record: Make) -> None:
    assert "Spent" not in guarantee(golden.private_plan(), [])
    assert spent_so_far(round_record(1)) == ""


# --- pages -------------------------------------------------------------------------------------------
def test_a_rounds_page_says_what_is_spent_only_where_there_is_a_guarantee(
    spent: RoundRecord, round_record: Make
) -> None:
    assert f"\n\n{spent_so_far(spent)}\n\n" in round_page(study(golden.private_plan(), spent), spent)
    plain = round_record(2)
    page = round_page(study(golden.plan(), plain), plain)
    assert "Spent" not in page
    assert "epsilon" not in page


def test_a_studys_page_carries_the_guarantee_or_that_there_is_none(spent: RoundRecord, round_record: Make) -> None:
    private = study(golden.private_plan(), spent)
    assert f"\n\n{guarantee(private.plan, [spent])}\n\n" in study_page(private, [spent], None)
    plain = study(golden.plan(), spent)
    assert "\n\n**Privacy noise: none**" in study_page(plain, [round_record(1)], None)
    assert "\n\n**Privacy: per patient**" in study_page(private, [], None)


def test_a_training_loss_that_nobody_knows_is_a_dash(spent: RoundRecord, round_record: Make) -> None:
    *_, plain, private = rounds_table(golden.plan(), [round_record(2), spent]).splitlines()
    assert plain.startswith("| 2 | 0.5000 | 0.2500 |")
    assert private.startswith("| 2 | – | 0.2500 |")  # noqa: RUF001 - as printed

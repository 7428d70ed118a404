"""Spending the patients' budget: before the training, with its audit entry or not at all, and never back."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from silo_agent_tests_benches import Cut, Mortal

from boundary.messages import Collection
from compliance.accountant import epsilon
from compliance.events import BudgetCommitted, BudgetRefused, BudgetReserved, PolicyAdopted
from compliance.privacy import event_bytes
from compliance.trail import read_leaf
from silo_agent.budget import Terms, terms_of
from silo_agent.errors import WorkFailed
from silo_agent.releases import Release, reserve


@pytest.fixture
def site(private_site: Any) -> Any:
    """0.42 for the first round, 0.56 for two, 0.68 for all three; the caps are 8 and 16."""
    return private_site


def terms(site: Any) -> Terms:
    found = terms_of(site.plan, site.permission().dataset(site.plan))
    assert found is not None
    return found


def reserved(site: Any, number: int = 1, start: int = 1, attempt: int = 1, study: str | None = None) -> Release:
    collection = site.collection(number, attempt=attempt).model_copy(update={"study": study or site.study})
    return reserve(site.journal, terms(site), collection, start, site.now)


def ledger(site: Any) -> list[Any]:
    found: list[Any] = site.journal._db.execute("SELECT slot, state FROM budget ORDER BY position").fetchall()
    return found


def audit(site: Any) -> list[Any]:
    found = [read_leaf(leaf).event for leaf in site.journal.trail()]
    return [event for event in found if not isinstance(event, PolicyAdopted)]


# --- reserving and committing ------------------------------------------------------------------------
def test_a_reservation_is_in_the_ledger_and_in_the_trail(site: Any) -> None:
    release = reserved(site)
    once, (told,) = terms(site).event, audit(site)
    assert ledger(site) == [(f"{site.study}/1/train/1#1", "reserved")]
    assert site.journal.ledger.of_study(site.study) == site.journal.ledger.of_population("everybody") == [once]
    assert told == BudgetReserved(
        study=site.study,
        round=1,
        release=once,
        epsilon_study=epsilon([once], 1e-3),
        delta_study=1e-3,
        epsilon_lifetime=epsilon([once], 1e-3),
        delta_lifetime=1e-3,
    )
    assert release.event == once
    assert release.private["noise_multiplier"] == once.noise_multiplier == 2.0


def test_what_the_child_is_told_is_what_was_reserved(site: Any) -> None:
    """Two places that disagree on the noise would be a guarantee on paper."""
    told = reserved(site).private
    (row,) = site.journal._db.execute("SELECT event FROM budget").fetchone()
    assert row == event_bytes(terms(site).event)
    event = terms(site).event
    assert (told["noise_multiplier"], told["rate"], told["steps"]) == (
        event.noise_multiplier,
        event.sampling_rate,
        event.steps,
    )


def test_a_commitment_is_in_the_ledger_and_in_the_trail(site: Any) -> None:
    reserved(site).commit(site.journal, site.now + timedelta(hours=1))
    assert ledger(site) == [(f"{site.study}/1/train/1#1", "committed")]
    assert audit(site)[1] == BudgetCommitted(study=site.study, round=1, release=terms(site).event)
    balance = site.journal.ledger.balance("everybody", site.study, terms(site).caps)
    assert (balance.reserved, balance.committed) == (0, 1)
    assert balance.study.epsilon == epsilon([terms(site).event], 1e-3), "nothing is cheaper for being done"


OTHER_STARTS: dict[str, dict[str, int]] = {
    "of the same order": {"start": 2},
    "of another attempt": {"attempt": 2},
    "of another round": {"number": 2},
}


@pytest.mark.parametrize("other", OTHER_STARTS.values(), ids=OTHER_STARTS)
def test_another_start_draws_other_noise_and_is_another_reservation(site: Any, other: dict[str, int]) -> None:
    reserved(site)
    reserved(site, **other)
    assert [state for _, state in ledger(site)] == ["reserved", "reserved"]
    assert [event.event for event in audit(site)] == ["budget-reserved"] * 2
    assert audit(site)[1].epsilon_study == epsilon([terms(site).event] * 2, 1e-3)


def test_bands_tell_of_the_balance_after_the_reservation(site: Any) -> None:
    """A hospital that would reach a band by this very training is not below it any more."""
    loud = terms(site).event.model_copy(update={"steps": 60})  # 1.34 alone
    with site.journal.transaction():
        site.journal.ledger.reserve("everybody", site.study, "before", loud, terms(site).caps, site.now)
    site.allow(study_epsilon=2.0)
    assert reserved(site).private["bands"] == [0.0, 1.0, 1.0, 1.0]


# --- over the cap ------------------------------------------------------------------------------------
CAPS: dict[str, tuple[dict[str, float], str, float]] = {
    "of the study": ({"study_epsilon": 0.5}, "study", 0.5),
    "of all studies on these people": ({"lifetime_epsilon": 0.5}, "lifetime", 0.5),
}
ELSEWHERE = "mr-knee-4567cdef"


@pytest.mark.parametrize(("caps", "which", "cap"), CAPS.values(), ids=CAPS)
def test_over_a_cap_nothing_is_reserved_and_the_refusal_is_audited(
    site: Any, caps: dict[str, float], which: str, cap: float
) -> None:
    site.allow(**caps)
    reserved(site, study=site.study if which == "study" else ELSEWHERE)
    for _ in range(2):
        with pytest.raises(WorkFailed, match=rf"the {which} would come to epsilon 0\.5") as refused:
            reserved(site, 2)
        assert (refused.value.code, refused.value.retryable) == ("BUDGET_SPENT", False)
    once = terms(site).event
    assert len(ledger(site)) == 1
    assert audit(site)[1:] == [
        BudgetRefused(
            study=site.study,
            round=2,
            cap=which,  # type: ignore[arg-type]
            asked=epsilon([once] * 2, 1e-3),
            left=cap - epsilon([once], 1e-3),
        )
    ] * 2  # fmt: skip


def test_a_plans_own_promise_is_a_cap_too(make_site: Any, private: Any) -> None:
    """An attack: a coordinator has the last round trained once more, over what the plan had promised."""
    site = make_site(most_patients=100, changes=private(noise_multiplier=None, epsilon=0.7))
    for number in (1, 2, 3):
        reserved(site, number)
    with pytest.raises(WorkFailed, match=r"the study would come to epsilon 0\.8\d*, its cap is 0\.7") as refused:
        reserved(site, 3, attempt=2)
    assert refused.value.code == "BUDGET_SPENT"


def test_another_study_on_the_same_people_is_charged_to_them(site: Any) -> None:
    site.allow(lifetime_epsilon=0.5)
    reserved(site)
    other = Collection(study="mr-knee-4567cdef", round=1, phase="train", attempt=1)
    with pytest.raises(WorkFailed, match="the lifetime would come to"):
        reserve(site.journal, terms(site), other, 1, site.now)


# --- all or nothing ----------------------------------------------------------------------------------
def fail_everywhere(site: Any, act: Callable[[], object]) -> int:
    """Have `act` fail at each of its statements; how many there were. Nothing may be left of any failure."""
    real, before = site.journal._db, (ledger(site), site.journal.trail())
    for statement in range(100):
        site.journal._db = Mortal(real, statement)
        try:
            act()
        except Cut:
            assert not real.in_transaction
        else:
            return statement
        finally:
            site.journal._db = real
        assert (ledger(site), site.journal.trail()) == before, f"something is left of a failure at {statement}"
    raise AssertionError("it never came to an end")


def test_a_failure_at_any_statement_leaves_neither_the_reservation_nor_its_entry(site: Any) -> None:
    assert fail_everywhere(site, lambda: reserved(site)) > 5, "BEGIN, caps, reservation, entry, COMMIT"
    assert (len(ledger(site)), len(audit(site))) == (1, 1)


def test_a_failure_at_any_statement_leaves_neither_the_commitment_nor_its_entry(site: Any) -> None:
    release = reserved(site)
    assert fail_everywhere(site, lambda: release.commit(site.journal, site.now)) > 4
    assert [event.event for event in audit(site)] == ["budget-reserved", "budget-committed"]


def test_what_was_never_reserved_is_not_committed(site: Any) -> None:
    never = Release(site.collection(), "nothing#1", terms(site).event, {})
    with pytest.raises(KeyError):
        never.commit(site.journal, site.now)
    assert (ledger(site), audit(site)) == ([], [])


# --- a ledger that cannot be read --------------------------------------------------------------------
def damage(site: Any) -> None:
    """As a restore from two backups would: an entry is gone, and the counter remembers it."""
    for name in ("budget_is_never_refunded", "budget_only_commits"):
        site.journal._db.execute(f"DROP TRIGGER {name}")
    site.journal._db.execute("DELETE FROM budget WHERE position = 1")


def test_nothing_is_spent_on_a_ledger_that_has_lost_an_entry(site: Any) -> None:
    """Found by reading: the daemon saw an unknown error and started the work again and again."""
    reserved(site)
    reserved(site, 2)
    damage(site)
    with pytest.raises(WorkFailed, match="some are gone") as refused:
        reserved(site, 3)
    assert (refused.value.code, refused.value.retryable) == ("LEDGER_UNREADABLE", False)
    assert (len(ledger(site)), len(audit(site))) == (1, 2)

"""What the patients' data was spent on, as bars against the caps. No patient and no count is in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from silo_agent.console.charts import Chart, Row, chart
from silo_agent.cost import Account, Cost


@dataclass(frozen=True, slots=True)
class Lifetime:
    """All studies on the same people. Epsilons at `delta`."""

    population: str
    spent: float
    cap: float
    delta: float


@dataclass(frozen=True, slots=True)
class BudgetView:
    """`studies` and `people` are None where nothing was spent and nothing is capped."""

    accounts: tuple[Account, ...]
    lifetimes: tuple[Lifetime, ...]
    studies: Chart | None
    people: Chart | None


def budget_view(accounts: Sequence[Account]) -> BudgetView:
    lifetimes = tuple(lifetimes_of(accounts))
    rows = [_against(one.label, one.cost.balance.study.epsilon, one.cost.balance.caps.study.epsilon)
            for one in accounts if one.cost is not None]  # fmt: skip
    people = [_against(one.population, one.spent, one.cap) for one in lifetimes]
    return BudgetView(
        tuple(accounts),
        lifetimes,
        chart("studies", "Epsilon spent per study, against its cap", rows),
        chart("people", "Epsilon spent for life, against the cap on the same people", people),
    )


def lifetimes_of(accounts: Iterable[Account]) -> list[Lifetime]:
    """One for each population, by name; the strictest delta of its studies, at which epsilon is largest."""
    found: dict[str, Lifetime] = {}
    for cost in (account.cost for account in accounts):
        if cost is None:
            continue
        balance, name = cost.balance, cost.terms.declared.population
        one = Lifetime(name, balance.lifetime.epsilon, balance.caps.lifetime.epsilon, cost.terms.delta)
        found[name] = min(found.get(name, one), one, key=lambda each: each.delta)
    return [found[name] for name in sorted(found)]


def cost_chart(cost: Cost) -> Chart | None:
    """For one plan: what is spent, and what all of its rounds come to, against both caps."""
    study, lifetime = cost.balance.caps.study.epsilon, cost.balance.caps.lifetime.epsilon
    return chart(
        "cost",
        "Epsilon of this plan here, against the caps",
        [
            _against("spent by this study", cost.balance.study.epsilon, study),
            _against("all rounds of the plan", cost.whole, study),
            _against("all studies, for life", cost.balance.lifetime.epsilon, lifetime),
        ],
    )


def _against(label: str, spent: float, cap: float) -> Row:
    return Row(label, spent, f"{spent:.2f} of {cap:g}", "warning" if spent >= cap else "plain", cap)

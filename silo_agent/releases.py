"""Spending the patients' budget: before a private training, in one transaction with its audit entry, and for good."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from boundary.messages import Collection
from compliance.errors import BudgetExceeded, ComplianceError
from compliance.events import BudgetCommitted, BudgetRefused, BudgetReserved
from compliance.privacy import PrivacyEvent
from silo_agent.budget import Terms
from silo_agent.errors import WorkFailed
from silo_agent.journal import Journal


@dataclass(frozen=True, slots=True)
class Release:
    """One start of a private training: its place in the ledger, its cost, and what the child is told."""

    collection: Collection
    slot: str
    event: PrivacyEvent
    private: dict[str, Any]

    def commit(self, journal: Journal, now: datetime) -> None:
        """The noisy result is kept: from now on it may leave."""
        about = self.collection
        with journal.transaction():
            journal.ledger.commit(self.slot, now)
            journal.record(BudgetCommitted(study=about.study, round=about.round, release=self.event), now)


def reserve(journal: Journal, terms: Terms, collection: Collection, start: int, now: datetime) -> Release:
    """Spend what this start of a training costs, before it.

    Every start draws other noise, so each is spent by itself and stays spent whatever comes of it. Raises `WorkFailed`:
    BUDGET_SPENT when a cap would be passed (the refusal is audited too), LEDGER_UNREADABLE when nobody can tell.
    """
    slot, study, number = f"{collection}#{start}", collection.study, collection.round
    with journal.transaction():
        try:
            balance = journal.ledger.reserve(
                terms.declared.population, study, slot, terms.event, caps=terms.caps, now=now
            )
        except BudgetExceeded as why:
            journal.record(BudgetRefused(study=study, round=number, cap=why.which, asked=why.asked, left=why.left), now)
            refused = WorkFailed(why.code, str(why))
        except ComplianceError as why:
            raise WorkFailed(why.code, str(why)) from why
        else:
            spent, life = balance.study, balance.lifetime
            event = BudgetReserved(
                study=study,
                round=number,
                release=terms.event,
                epsilon_study=spent.epsilon,
                delta_study=spent.delta,
                epsilon_lifetime=life.epsilon,
                delta_lifetime=life.delta,
            )
            journal.record(event, now)
            return Release(collection, slot, terms.event, terms.for_child(balance))
    raise refused

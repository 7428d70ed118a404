"""Why the privacy accounting says no. Each has a stable code; the sentence is for the hospital's own people."""

from typing import Literal


class ComplianceError(Exception):
    """Root of everything `compliance` raises on purpose."""

    code = "COMPLIANCE"


class UnknownPrivacyEvent(ComplianceError):
    """A release this version cannot account for: its cost is unknown, so nothing may build on it."""

    code = "UNKNOWN_PRIVACY_EVENT"


class NotAccountable(ComplianceError):
    """A number no accountant can work with: NaN, infinite, or outside the limits of what it stands for."""

    code = "NOT_ACCOUNTABLE"


class OutOfReach(ComplianceError):
    """No noise is large enough for this budget."""

    code = "BUDGET_OUT_OF_REACH"


class BudgetExceeded(ComplianceError):
    """A release that would pass a cap. Nothing was reserved. The numbers are for the hospital's own steward."""

    code = "BUDGET_SPENT"

    def __init__(self, which: Literal["study", "lifetime"], *, asked: float, cap: float, left: float) -> None:
        """`asked` is the epsilon there would be after the release, `left` what the cap still holds before it."""
        super().__init__(f"the {which} would come to epsilon {asked:.4g}, its cap is {cap:g} and {left:.4g} is left")
        self.which, self.asked, self.cap, self.left = which, asked, cap, left


class SlotReserved(ComplianceError):
    """One start of one training was reserved before, for something else."""

    code = "RESERVED_OTHERWISE"


class LedgerUnreadable(ComplianceError):
    """An entry is missing or does not say what was released. Nothing more is released until a person has looked."""

    code = "LEDGER_UNREADABLE"

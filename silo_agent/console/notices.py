"""What a page says after a decision. The address names one of these sentences; it can say nothing else."""

from silo_agent.console.errors import not_found

NOTICES = {
    "approved": "Approved and signed. The coordinator is told as soon as the agent reaches it.",
    "declined": "Declined. The agent drops what it is doing for this study; the coordinator learns that, not why.",
    "rescan": "The running agent will check our data against this plan again.",
    "paused": "Paused. What is being computed holds still after its step; nothing else is begun.",
    "resumed": "Work goes on where it was.",
    "closed": "The incident is closed. The log's next head is believed as the first was.",
}


def notice(name: str | None) -> str | None:
    """Raises `Declined` for a name that no decision leads to."""
    if name is None:
        return None
    if name not in NOTICES:
        raise not_found()
    return NOTICES[name]

"""`silo-agent incidents`: logs that are not what they were."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from silo_agent.commands.options import DEFAULT_STATE, StateOption, opened_journal

incidents_app = typer.Typer(help="Logs that are not what they were: look into one, close it.")


@incidents_app.callback(invoke_without_command=True)
def incidents(context: typer.Context, state: StateOption = DEFAULT_STATE) -> None:
    """List the incidents: logs that are not what they were. While one is open, no order is taken."""
    from silo_agent.trail_view import print_incidents

    if context.invoked_subcommand is None:
        with opened_journal(state) as journal:
            print_incidents(journal)


@incidents_app.command("close")
def incidents_close(
    number: Annotated[int, typer.Argument(help="The incident's number.")], state: StateOption = DEFAULT_STATE
) -> None:
    """Take orders again, after somebody has looked into an incident: that log is believed anew."""
    from silo_agent.witness import close_incident

    with opened_journal(state) as journal:
        closed = close_incident(journal, number, datetime.now(UTC))
    typer.echo(f"incident {number} about the log of {closed.log} is closed: its next head is believed as the first was")

"""`silo-agent plan`: look at, approve or decline the plans that were proposed."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from silo_agent.commands.options import DEFAULT_STATE, PlanArgument, StateOption, opened_journal, opened_outbound

plan_app = typer.Typer(no_args_is_help=True, help="Look at, approve or decline the plans that were proposed.")


@plan_app.command("list")
def plan_list(state: StateOption = DEFAULT_STATE) -> None:
    """List the plans that were proposed, and where each stands here."""
    from silo_agent.status import print_plans

    with opened_journal(state) as journal:
        print_plans(journal)


@plan_app.command("show")
def plan_show(plan: PlanArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Show in plain words what a plan does, to which data, what leaves and what stays, and what changed."""
    from silo_agent.state import StateFolder
    from silo_agent.status import print_dossier
    from silo_agent.steward import dossier, find_plan

    with opened_journal(state) as journal:
        print_dossier(dossier(journal, StateFolder(state), find_plan(journal, plan), datetime.now(UTC)))


@plan_app.command("await")
def plan_await(
    plan: PlanArgument,
    wait: Annotated[float, typer.Option(help="Seconds.")] = 600.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Wait until a plan has arrived and the running agent has checked our data against it; for scripts."""
    from silo_agent.steward import find_plan, wait_for_scan

    with opened_journal(state) as journal:
        wait_for_scan(journal, plan, wait)
        kept = find_plan(journal, plan)
    typer.echo(f"{kept.study}: {kept.state}")


@plan_app.command("approve")
def plan_approve(
    plan: PlanArgument,
    reason: Annotated[str, typer.Option(help="Why, for the hospital's own records; it does not leave.")],
    role: Annotated[str, typer.Option(help="In which role you approve.")] = "data_steward",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the running agent to check our data.")] = 0.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Approve exactly this digest, for exactly the data as they were checked. Any change needs a new approval."""
    from silo_agent.state import StateFolder
    from silo_agent.steward import approve, wait_for_scan

    with opened_journal(state) as journal:
        wait_for_scan(journal, plan, wait)
        kept = approve(journal, StateFolder(state), opened_outbound(state, journal), plan, role, reason)
    typer.echo(f"approved {kept.study}: {kept.digest}")


@plan_app.command("decline")
def plan_decline(
    plan: PlanArgument,
    reason: Annotated[str, typer.Option(help="Why, for the hospital's own records; it does not leave.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Say no, also to a plan that was approved: work on it stops. The coordinator learns that we decline, not why."""
    from silo_agent.steward import decline

    with opened_journal(state) as journal:
        kept = decline(journal, opened_outbound(state, journal), plan, reason)
    typer.echo(f"declined {kept.study}")


@plan_app.command("rescan")
def plan_rescan(plan: PlanArgument, state: StateOption = DEFAULT_STATE) -> None:
    """Check our data against the plan again, after the label table, the policy or a file of weights was changed."""
    from silo_agent.steward import forget_scan

    with opened_journal(state) as journal:
        kept = forget_scan(journal, plan)
    typer.echo(f"the running agent will check our data for {kept.study} again")

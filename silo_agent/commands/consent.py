"""`silo-agent withdraw`, `withdrawals`, `exclusions`: whose images are not to be used."""

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from silo_agent.commands.options import DEFAULT_STATE, StateOption, opened_journal
from silo_agent.errors import ConfigError


class Decision(StrEnum):
    """What becomes of models that saw a patient who withdraws (`compliance.events.WithdrawalEffective`)."""

    KEEP = "keep"
    RETRAIN = "retrain"
    RETIRE = "retire"


def add_to(app: typer.Typer) -> None:
    """The commands, in the order of `--help`."""
    app.command()(withdraw)
    app.command()(withdrawals)
    app.command()(exclusions)


def withdraw(
    decision: Annotated[Decision, typer.Option(help="What becomes of the models that have seen the patient.")],
    patient: Annotated[str | None, typer.Argument(help="Patient ID. Better leave it out: you are asked.")] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Record that a patient withdraws consent. From the next round on, and in all later scans, they are left out.

    Leave PATIENT out and type it when asked, unseen: an argument ends up in the shell's history, and others on this
    machine can see it while the command runs. It is the Patient ID (0010,0020) of the files the agent reads. It is kept
    nowhere, only a hash of it under this hospital's key; others learn that somebody withdrew only if the plan says so.

    Prints which rounds and models could have seen the patient, for this hospital's people. It cannot be undone, and
    nothing of the privacy budget comes back. Asking again for the same patient changes nothing and prints the same.
    """
    from silo_agent.config import load_config
    from silo_agent.exposure import exposures_of
    from silo_agent.ladder.scratch import clear
    from silo_agent.state import StateFolder
    from silo_agent.withdrawal import master_key
    from silo_agent.withdrawal import withdraw as withdraw_patient
    from silo_agent.withdrawal_view import print_answer

    folder = StateFolder(state)
    folder.check_private()
    if not clear(state):
        raise ConfigError("a dry run or a baseline has this hospital's images on the disk: end it, then withdraw")
    with opened_journal(state) as journal:
        who = patient or typer.prompt("Patient ID (not shown)", hide_input=True, confirmation_prompt=True)
        found, new = withdraw_patient(journal, folder, who, decision.value, datetime.now(UTC))
        print_answer(found, exposures_of(journal, master_key(folder), load_config(state).site, found), new=new)


def withdrawals(state: StateOption = DEFAULT_STATE) -> None:
    """List who withdrew consent, without saying who: when, the private entry, and what was decided for which study."""
    from silo_agent.withdrawal_view import print_withdrawals

    with opened_journal(state) as journal:
        print_withdrawals(journal)


def exclusions(
    dataset: Annotated[str, typer.Argument(help="The data set, as the policy names it.")],
    patients: Annotated[
        Path | None, typer.Option(help="A file with one Patient ID a line. Without it they come from standard input.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Bring the list of those whose images no study may use: for cron, daily. An empty list says that nobody opted out.

    The list lies where the policy says, as hashes under this hospital's key. Who is on it is left out of every scan;
    who is in a study already has withdrawn from its next round on, as with `withdraw --decision keep`. No round begins
    while the list is older than the policy allows.
    """
    from silo_agent.exclusions import write_exclusions
    from silo_agent.policy.files import load_policy
    from silo_agent.policy.model import dataset_of
    from silo_agent.state import StateFolder
    from silo_agent.withdrawal import master_key

    folder = StateFolder(state)
    folder.check_private()
    target = Path(dataset_of(load_policy(state).policy, dataset).rules.exclusions.path)
    try:
        lines = sys.stdin.read() if patients is None else patients.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as why:
        raise ConfigError(f"the Patient IDs cannot be read: {why}") from why
    count = write_exclusions(target, master_key(folder), lines.splitlines())
    typer.echo(f"{target} was written: {'nobody is' if not count else f'{count} are'} excluded from {dataset}")

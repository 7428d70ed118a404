"""`silo-agent personal`: this hospital's own models, and how they do on its own patients."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from silo_agent.commands.options import DEFAULT_STATE, StateOption, opened_journal
from silo_agent.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    app.command()(personal)


def personal(
    study: Annotated[str | None, typer.Argument(help="Study or NAME@REVISION. Without it all are listed.")] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the model and its figures; they cannot be had again.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show what a study left this hospital: its own model, and whether that or the federated one is worth it here.

    Each is compared with what the hospital would have trained alone, on the patients it held back, with 95 % intervals
    from a bootstrap over patients. The others only learn at how many hospitals which one was better, and by how much on
    average. The weights are safetensors, for the network that the row names.
    """
    from silo_agent.personal import find_own, lines, own_rows, remove_own, sentence
    from silo_agent.state import StateFolder
    from silo_agent.status import print_lines

    folder = StateFolder(state)
    folder.check_private()
    if study is None:
        if remove:
            raise ConfigError("say of which study: `silo-agent personal STUDY --remove`")
        found = own_rows(folder)
        for own in found:
            typer.echo(f"{own.study} ({own.label}): {sentence(own)}")
        if not found:
            typer.echo("no study has left a model of our own here yet")
        return
    own = find_own(folder, study)
    if remove:
        with opened_journal(state) as journal:
            remove_own(journal, folder, own, datetime.now(UTC))
        typer.echo(f"our own model of {own.study} and its figures were removed")
        return
    print_lines([("Study", f"{own.study} ({own.label})"), *lines(own)])

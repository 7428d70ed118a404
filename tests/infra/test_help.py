"""What the two commands say with `--help` arrives whole: square brackets are markup there."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from rich.text import Text

import flows.cli
import silo_agent.cli

BOLD = ("[bold]", "[/bold]")


def texts(command: Any) -> Iterator[str]:
    """Its own help and that of all its options, and of the commands below it."""
    yield command.help or ""
    yield from ((getattr(parameter, "help", None) or "") for parameter in command.params)
    for inner in getattr(command, "commands", {}).values():
        yield from texts(inner)


@pytest.mark.parametrize("app", [flows.cli.app, silo_agent.cli.app], ids=["wardround", "silo-agent"])
def test_no_word_of_the_help_is_lost_as_markup(app: typer.Typer) -> None:
    written = list(texts(typer.main.get_command(app)))
    assert len(written) > 50
    for text in written:
        plain = text.replace(BOLD[0], "").replace(BOLD[1], "")
        assert Text.from_markup(text).plain == plain

"""What many commands of `silo-agent` have in common: arguments, and the parts they open."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from silo_agent.journal import Journal

if TYPE_CHECKING:
    from silo_agent.daemon import Surroundings
    from silo_agent.outbound import Outbound

DEFAULT_STATE = Path("/var/lib/silo-agent")
StateOption = Annotated[
    Path, typer.Option("--state", envvar="SILO_AGENT_STATE", help="The agent's state folder (mode 0700).")
]
PlanArgument = Annotated[str, typer.Argument(help="Study, plan digest, or NAME@REVISION as `plan list` shows them.")]


@contextmanager
def opened_journal(state: Path) -> Iterator[Journal]:
    from silo_agent.config import load_config

    journal = Journal(state / "journal.sqlite", load_config(state).site)
    try:
        yield journal
    finally:
        journal.close()


def opened_outbound(state: Path, journal: Journal) -> "Outbound":
    from silo_agent.config import load_config
    from silo_agent.outbound import Outbound
    from silo_agent.state import StateFolder

    world = surroundings()
    return Outbound(
        load_config(state).site, StateFolder(state).identity, journal, world.now, world.entropy, world.version
    )


def surroundings() -> "Surroundings":
    """The world as it is."""
    from silo_agent.daemon import Surroundings

    return Surroundings(lambda: datetime.now(UTC), secrets.token_bytes, metadata.version("wardround"))

"""Arguments that many commands of `silo-agent` have in common."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STATE = Path("/var/lib/silo-agent")
StateOption = Annotated[
    Path, typer.Option("--state", envvar="SILO_AGENT_STATE", help="The agent's state folder (mode 0700).")
]
PlanArgument = Annotated[str, typer.Argument(help="Study, plan digest, or NAME@REVISION as `plan list` shows them.")]

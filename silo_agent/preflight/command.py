"""`silo-agent check`: the composition root of the preflight."""

import asyncio
import secrets
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich.console import Console

from silo_agent.preflight import view
from silo_agent.preflight.finding import Finding, exit_code
from silo_agent.preflight.ladder import run_checks
from silo_agent.preflight.setting import Setting
from silo_agent.state import StateFolder


def main(state: Path, *, as_json: bool, invitation: Path | None = None) -> int:
    """Run all checks on a state folder and print them; returns the exit code (`finding`'s table).

    With an `invitation` the way to its relay is tried before the hospital has joined; its token is not used.
    A line per check goes to standard error as it ends, the table or the JSON object to standard output.
    """
    progress = Console(stderr=True, highlight=False)

    def tell(finding: Finding) -> None:
        view.print_progress(progress, finding)

    setting = Setting(
        StateFolder(state), lambda: datetime.now(UTC), secrets.token_bytes, metadata.version("wardround"),
        invitation=invitation,
    )  # fmt: skip
    findings = asyncio.run(run_checks(setting, tell))
    if as_json:
        sys.stdout.write(view.as_json(findings) + "\n")
    else:
        view.print_table(Console(highlight=False), findings)
    return exit_code(findings)

"""The findings for people and for programs."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from silo_agent.plain import plain
from silo_agent.preflight.finding import Finding, Verdict, exit_code

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}

_AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def print_progress(console: Console, finding: Finding) -> None:
    """One line as a check ends; what it said is in the table."""
    line = Text(f"{finding.verdict.value:<5}", style=_STYLES[finding.verdict])
    console.print(line.append(f"{finding.check.value:<12}{finding.seconds:7.1f} s", style="default"))


def print_table(console: Console, findings: Sequence[Finding]) -> None:
    """All findings, each with its fix below what was said, then what is to be copied, in whole lines.

    Nothing is cut at the edge of a narrow terminal. Text, because square brackets are no markup here.
    """
    table = Table("check", "", Column("found", overflow="fold"), title="Preflight", title_justify="left")
    for finding in findings:
        said = Text(plain(finding.said))
        if finding.fix:
            said.append(f"\n-> {plain(finding.fix)}", style="bold")
        table.add_row(finding.check.value, Text(finding.verdict.value, style=_STYLES[finding.verdict]), said)
    console.print(table)
    for finding in findings:
        if finding.paste:
            console.print(f"for policy.toml, by `{finding.check.value}`:", plain(finding.paste), sep="\n", **_AS_IT_IS)
    failed = sum(finding.verdict is Verdict.FAIL for finding in findings)
    warned = sum(finding.verdict is Verdict.WARN for finding in findings)
    console.print(f"{failed} failed, {warned} warnings, exit code {exit_code(findings)}", **_AS_IT_IS)


def as_json(findings: Sequence[Finding]) -> str:
    """One object: `exit_code`, and `findings` in the order they were made."""
    return json.dumps(
        {"exit_code": exit_code(findings), "findings": [finding.model_dump(mode="json") for finding in findings]}
    )

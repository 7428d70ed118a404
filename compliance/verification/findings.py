"""What a verification says: checks, each with what it found, and one verdict over all."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How bad a finding is, the worst first."""

    BROKEN = "broken"  # two things contradict each other, or a signature is wrong
    INCOMPLETE = "incomplete"  # something that would have to be here is not
    NOTE = "note"  # a reviewer should know


class Verdict(StrEnum):
    """Of a whole bundle."""

    VERIFIED = "verified"
    BROKEN = "broken"
    INCOMPLETE = "incomplete"

    @property
    def exit_code(self) -> int:
        return {Verdict.VERIFIED: 0, Verdict.BROKEN: 1, Verdict.INCOMPLETE: 2}[self]


@dataclass(frozen=True, slots=True)
class Finding:
    """`where`: which file, or which entry of which log. `found`: the fact. `means`: what follows for a reviewer.

    They may quote what stands in a hostile file: whoever prints them takes out what is not printable.
    """

    severity: Severity
    where: str
    found: str
    means: str


@dataclass(frozen=True, slots=True)
class Checked:
    """One check with its findings. `claim` is what holds if nothing broken or incomplete was found."""

    name: str
    claim: str
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity | None:
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in Severity if severity in found), None)


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks, in the order in which they were made. `study` is None if not even the plan could be read."""

    study: str | None
    checks: tuple[Checked, ...]

    @property
    def verdict(self) -> Verdict:
        worst = {check.worst for check in self.checks}
        if Severity.BROKEN in worst:
            return Verdict.BROKEN
        return Verdict.INCOMPLETE if Severity.INCOMPLETE in worst else Verdict.VERIFIED

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for check in self.checks for finding in check.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "study": self.study,
            "verdict": self.verdict.value,
            "exit_code": self.verdict.exit_code,
            "checks": [
                {
                    "name": check.name,
                    "claim": check.claim,
                    "worst": check.worst,
                    "findings": [
                        {"severity": one.severity, "where": one.where, "found": one.found, "means": one.means}
                        for one in check.findings
                    ],
                }
                for check in self.checks
            ],
        }


def broken(where: str, found: str, means: str) -> Finding:
    return Finding(Severity.BROKEN, where, found, means)


def incomplete(where: str, found: str, means: str) -> Finding:
    return Finding(Severity.INCOMPLETE, where, found, means)


def note(where: str, found: str, means: str) -> Finding:
    return Finding(Severity.NOTE, where, found, means)


def at(log: str, entry: int) -> str:
    """Where an entry is, as people read it."""
    return f"{log}, entry {entry}"


def span(first: int, last: int) -> str:
    return f"entry {first}" if first == last else f"entries {first} to {last}"


def names(some: Iterable[str]) -> str:
    return ", ".join(sorted(some)) or "nobody"

"""The evidence report: one JSON value computed from a bundle and nothing else, so that anybody can compute it again.

No clock, no entropy, no environment: `wardround verify` builds it anew and compares the bytes. HTML and PDF show what
is in it and compute nothing.
"""

from typing import Any

from boundary.canonical import canonical_bytes
from compliance.bundle import Bundle
from compliance.evidence import closing, middle, opening
from compliance.evidence.controls import counts, judged, open_items
from compliance.evidence.crosswalk import clauses_by_control
from compliance.evidence.facts import Facts, facts_of
from compliance.evidence.opening import LOUD, NOT_CERTIFICATION
from compliance.evidence.tables import Section, table
from compliance.evidence.verdicts import Judged, Severity, Verdict

REPORT_VERSION = 1

Report = dict[str, Any]


def build(bundle: Bundle) -> Report:
    """All twelve sections, the verdicts by themselves, and a summary in words."""
    return build_from(bundle, facts_of(bundle))


def build_from(bundle: Bundle, facts: Facts) -> Report:
    """The same where the facts of the bundle are known already."""
    rows = judged(facts)
    return {
        "form": "wardround evidence report",
        "version": REPORT_VERSION,
        "study": facts.study,
        "label": facts.plan.label,
        "title": facts.plan.purpose.title,
        "as_of": facts.as_of,
        "plan_digest": facts.plan_digest,
        "statement": NOT_CERTIFICATION,
        "summary": _summary(facts, rows),
        "verdicts": counts(rows),
        "open": table(
            "Open items, worst first",
            ("control", "verdict", "severity", "who", "why"),
            map(opening.open_row, open_items(rows)),
        ),
        "controls": [_control(row) for row in rows],
        "sections": _sections(bundle, facts, rows),
    }


def report_bytes(bundle: Bundle) -> bytes:
    """The report in its one form."""
    return canonical_bytes(build(bundle))


def _sections(bundle: Bundle, facts: Facts, rows: tuple[Judged, ...]) -> list[Section]:
    return [
        opening.cover(bundle, facts, rows, counts(rows)),
        opening.matrix(rows),
        opening.approvals(facts),
        opening.data_used(facts),
        opening.identifiers(),
        middle.privacy(facts),
        middle.aggregation(facts),
        middle.egress(facts),
        closing.model(facts),
        closing.rights(facts),
        closing.trail(facts),
        closing.annexes(bundle),
    ]


def _control(row: Judged) -> dict[str, Any]:
    control, finding = row.control, row.finding
    return {
        "id": control.id,
        "title": control.title,
        "severity": control.severity.value,
        "owner": control.owner,
        "verdict": finding.verdict.value,
        "reason": finding.reason,
        "evidence": [{"log": one.log, "sequence": one.sequence} for one in finding.evidence],
        "clauses": list(clauses_by_control().get(control.id, ())),
    }


def _summary(facts: Facts, rows: tuple[Judged, ...]) -> list[str]:
    """A few sentences for somebody who reads nothing else."""
    found = counts(rows)
    failed = [row for row in rows if row.finding.verdict is Verdict.FAIL]
    blockers = [row.control.id for row in failed if row.control.severity is Severity.BLOCKER]
    if blockers:
        first = f"Do not rely on this study before these are settled: {', '.join(blockers)} failed."
    elif failed:
        first = (
            f"No blocker failed. {len(failed)} other control failed."
            if len(failed) == 1
            else (f"No blocker failed. {len(failed)} other controls failed.")
        )
    else:
        first = "No control failed."
    unmeasured = [row.control.id for row in open_items(rows) if row.finding.verdict is Verdict.NOT_MEASURED]
    said = [first]
    if not facts.is_private:
        said.append(LOUD + facts.no_guarantee + ".")
    said.append(f"{found['PASS']} of {len(rows)} controls were checked by a machine and hold.")
    said.append(f"For {len(unmeasured)} there is no evidence in this bundle: {', '.join(unmeasured)}.")
    said.append(f"{found['NEEDS-HUMAN']} wait for a person's judgement.")
    said.append(NOT_CERTIFICATION)
    return said

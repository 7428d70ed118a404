"""All files of a report, by their path in the bundle. The same bundle gives the same bytes, wherever they are made."""

from boundary.canonical import canonical_bytes
from compliance.bundle import Bundle
from compliance.evidence.facts import facts_of
from compliance.evidence.fhir import audit_events_from
from compliance.evidence.html import render_html
from compliance.evidence.pdf import render_pdf
from compliance.evidence.processing_record import processing_record
from compliance.evidence.report import build_from

REPORT, PDF = "report/report.json", "report/report.pdf"


def report_files(bundle: Bundle, *, pdf: bool = True) -> dict[str, bytes]:
    """What is written beside the logs, and what a verifier makes anew to compare; `pdf` needs reportlab."""
    facts = facts_of(bundle)
    report = build_from(bundle, facts)
    drawn = {PDF: render_pdf(report)} if pdf else {}
    return {
        REPORT: canonical_bytes(report),
        "report/report.html": render_html(report).encode(),
        "report/audit-events.json": canonical_bytes(audit_events_from(facts)),
        "report/article-30.md": processing_record(bundle.plan).encode(),
        **drawn,
    }

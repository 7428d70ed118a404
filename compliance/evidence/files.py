"""All files of a report, by their path in the bundle. The same bundle gives the same bytes, wherever they are made."""

from boundary.canonical import canonical_bytes
from compliance.bundle import Bundle
from compliance.evidence.fhir import audit_events
from compliance.evidence.html import render_html
from compliance.evidence.pdf import render_pdf
from compliance.evidence.processing_record import processing_record
from compliance.evidence.report import build


def report_files(bundle: Bundle) -> dict[str, bytes]:
    """What is written beside the logs, and what a verifier makes anew to compare."""
    report = build(bundle)
    return {
        "report/report.json": canonical_bytes(report),
        "report/report.html": render_html(report).encode(),
        "report/report.pdf": render_pdf(report),
        "report/audit-events.json": canonical_bytes(audit_events(bundle)),
        "report/article-30.md": processing_record(bundle.plan).encode(),
    }

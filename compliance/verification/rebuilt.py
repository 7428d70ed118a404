"""The report made again from a bundle, as `wardround verify` compares it with the files. See `compliance.evidence`."""

from importlib.util import find_spec

from boundary.canonical import canonical_bytes
from compliance.bundle import Bundle
from compliance.evidence.fhir import audit_events
from compliance.evidence.html import render_html
from compliance.evidence.pdf import render_pdf
from compliance.evidence.processing_record import processing_record
from compliance.evidence.report import build


def rebuilt(bundle: Bundle) -> dict[str, bytes | None]:
    """`compliance.evidence.files.report_files`, without the PDF where reportlab is not installed: None."""
    report = build(bundle)
    return {
        "report/report.json": canonical_bytes(report),
        "report/report.html": render_html(report).encode(),
        "report/report.pdf": None if find_spec("reportlab") is None else render_pdf(report),
        "report/audit-events.json": canonical_bytes(audit_events(bundle)),
        "report/article-30.md": processing_record(bundle.plan).encode(),
    }

"""The report made again from a bundle, as `wardround verify` compares it with the files. See `compliance.evidence`."""

from importlib.util import find_spec

from compliance.bundle import Bundle
from compliance.evidence.files import PDF, report_files


def rebuilt(bundle: Bundle) -> dict[str, bytes | None]:
    """The report's files; None for the PDF where reportlab is not installed."""
    can_draw = find_spec("reportlab") is not None
    files: dict[str, bytes | None] = {**report_files(bundle, pdf=can_draw)}
    return files if can_draw else files | {PDF: None}

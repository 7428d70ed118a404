"""What stops a whole scan. One bad file never does: that is a `Refusal`.

As at the boundary, a code may leave the hospital and the sentence never does. Each sentence names the fix.
"""

from silo_agent.errors import AgentError


class IntakeError(AgentError):
    """Root of everything that ends a scan before it has a result."""

    code = "INTAKE"


class ArchiveMissing(IntakeError):
    """The configured archive folder is not there, or is not a folder."""

    code = "ARCHIVE_MISSING"


class ArchiveDenied(IntakeError):
    """The agent's user may not list the archive folder at all."""

    code = "ARCHIVE_DENIED"


class LabelsMissingFile(IntakeError):
    """The configured label table is not there."""

    code = "LABELS_MISSING_FILE"


class LabelsDenied(IntakeError):
    """The agent's user may not read the label table."""

    code = "LABELS_DENIED"


class LabelsUnreadable(IntakeError):
    """The label table is not UTF-8 CSV with one header line, or it is too large."""

    code = "LABELS_UNREADABLE"


class LabelKeyMissing(IntakeError):
    """The label table has no column of UIDs or Accession Numbers to match images by."""

    code = "LABEL_KEY_MISSING"


class LabelColumnMissing(IntakeError):
    """The column that the plan names is not in the table, or the table has no label column."""

    code = "LABEL_COLUMN_MISSING"


class LabelColumnAmbiguous(IntakeError):
    """Several columns could be the label and the plan does not say which."""

    code = "LABEL_COLUMN_AMBIGUOUS"


class CacheMissing(IntakeError):
    """There is no finished scan at this place."""

    code = "CACHE_MISSING"


class CacheUnreadable(IntakeError):
    """A scan is there and its files do not fit together; scanning again replaces it."""

    code = "CACHE_UNREADABLE"

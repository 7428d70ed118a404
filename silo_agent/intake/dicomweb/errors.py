"""What ends the reading of an archive over DICOMweb. Each sentence shows the address, never a UID or a login.

They leave the hospital under the codes of `silo_agent.intake.errors`.
"""

from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing


class ArchiveUnreachable(ArchiveMissing):
    """Nothing answers, or what answers hands out nothing. It may pass by itself."""


class NotDicomweb(ArchiveMissing):
    """Something answers at the address that does not speak DICOMweb."""


class ArchiveNotListed(ArchiveMissing):
    """The archive cannot be listed as a whole: it does not page, or there is more than the limit."""


class ArchiveNotTrusted(ArchiveDenied):
    """The archive's certificate is not trusted, or the CA file cannot be used."""

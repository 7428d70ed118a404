"""Our TLS certificate's last day: told to people in time, because an expired one silences the hospital.

Renewal is an enrolment with a new invitation: the same keys, a new certificate, the old one valid meanwhile.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from silo_agent.errors import ConfigError

WARN_DAYS = (30, 14, 7)  # field-notes.md: renewal with overlap, warnings at 30/14/7 days
RENEWAL = "ask the coordinator for a new invitation and run `silo-agent enrol INVITATION`: all keys are kept"


@dataclass(frozen=True, slots=True)
class Certificate:
    """When a certificate ends."""

    expires_at: datetime

    def days_left(self, now: datetime) -> int:
        """Whole days; negative when it has expired."""
        return math.floor((self.expires_at - now) / timedelta(days=1))

    def stage(self, now: datetime) -> int | None:
        """The smallest of `WARN_DAYS` that was reached, 0 when it has expired, None when there is time."""
        if now >= self.expires_at:
            return 0
        return min((days for days in WARN_DAYS if self.expires_at - now <= timedelta(days=days)), default=None)

    def sentence(self, now: datetime) -> str:
        """For the log and the status page."""
        day = f"{self.expires_at:%Y-%m-%d %H:%M} UTC"
        match self.stage(now):
            case None:
                return f"valid until {day}"
            case 0:
                return f"EXPIRED at {day}: {RENEWAL}"
            case _:
                return f"valid until {day}, {self.days_left(now)} days left: {RENEWAL}"


def read_certificate(path: Path) -> Certificate:
    """Raises `ConfigError`."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as why:
        raise ConfigError(f"{path} cannot be read as a certificate: {why}") from why
    return Certificate(found.not_valid_after_utc.astimezone(UTC))

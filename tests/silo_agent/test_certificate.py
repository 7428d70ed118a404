"""The certificate's last day, told in time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from silo_agent.certificate import Certificate, read_certificate
from silo_agent.errors import ConfigError

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

STAGES = {
    "ninety days": (timedelta(days=90), None, "valid until"),
    "a little over thirty days": (timedelta(days=30, seconds=1), None, "valid until"),
    "thirty days": (timedelta(days=30), 30, "30 days left: ask the coordinator for a new invitation"),
    "fifteen days": (timedelta(days=15), 30, "15 days left"),
    "fourteen days": (timedelta(days=14), 14, "14 days left"),
    "a week": (timedelta(days=7), 7, "7 days left"),
    "an hour": (timedelta(hours=1), 7, "0 days left"),
    "none": (timedelta(0), 0, "EXPIRED at 2026-11-20 12:00 UTC"),
    "a year too late": (timedelta(days=-365), 0, "run `silo-agent enrol INVITATION`: all keys are kept"),
}


@pytest.mark.parametrize(("left", "stage", "says"), STAGES.values(), ids=STAGES)
def test_warnings_come_at_thirty_fourteen_and_seven_days(left: timedelta, stage: int | None, says: str) -> None:
    certificate = Certificate(NOW + left)
    assert certificate.stage(NOW) == stage
    assert says in certificate.sentence(NOW)


def test_the_day_is_read_from_the_file(authority: Any, tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text(authority.issue_server(["localhost"]).certificate_pem)
    left = read_certificate(tmp_path / "tls.crt").days_left(datetime.now(UTC))
    assert left in {364, 365}


def test_a_file_that_is_no_certificate_is_said(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("no")
    for name in ("tls.crt", "nowhere.crt"):
        with pytest.raises(ConfigError, match="cannot be read as a certificate"):
            read_certificate(tmp_path / name)

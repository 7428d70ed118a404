"""What `silo-agent check` says of an archive over DICOMweb."""

from pathlib import Path
from typing import Any

import pytest

from silo_agent.intake.dicomweb.archive import DicomwebArchive
from silo_agent.intake.dicomweb.errors import ArchiveUnreachable, NotDicomweb
from silo_agent.intake.dicomweb.limits import WebLimits
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.preflight import child_probe
from silo_agent.preflight.child import judge_archive
from silo_agent.preflight.finding import Finding


def probe(url: str, tmp_path: Path, credentials: Path | None = None) -> dict[str, Any]:
    beside = {"credentials": str(credentials or tmp_path / "none"), "authority": str(tmp_path / "none.pem")}
    return child_probe.archive({"source": {"kind": "dicomweb", "url": url} | beside, "labels": {}})


def judged(report: dict[str, Any]) -> Finding:
    return judge_archive("ct", report)


def test_the_first_images_are_read_and_no_more(web: Any, fill: Any, tmp_path: Path) -> None:
    fill(web, 30, 2)
    report = probe(web.url, tmp_path)
    assert (report["read"], report["tried"], report["codes"], report["more"]) == (5, 5, {}, True)
    assert (judged(report).verdict, judged(report).said) == (
        "ok",
        "ct: 50 or more files, 5 of the first 5 read as images",
    )
    assert len([path for path in web.asked if "/instances/" in path]) == 5


def test_what_is_no_image_is_counted_by_code(web: Any, fill: Any, tmp_path: Path) -> None:
    fill(web, 2)
    web.add("1.2", "1.2.1", "1.2.1.1", b"no DICOM file at all")
    web.add("1.3", "1.3.1", "1.3.1.1", b"", modality="SR")
    web.add("1.4", "1.4.1", "1.4.1.1", b"")
    web.studies["1.4"]["1.4.1"] = {}
    report = probe(web.url, tmp_path)
    assert report["codes"] == {"READ_ERROR": 2, "NO_PIXELS": 1}
    assert (report["files"], report["read"]) == (4, 2)
    assert judged(report).verdict == "fail", "an archive that loses files is not read whole"


def test_an_archive_that_is_empty_fails(web: Any, tmp_path: Path) -> None:
    assert judged(probe(web.url, tmp_path)).verdict == "fail"


def test_what_is_wrong_is_said_with_its_fix(web: Any, tmp_path: Path, sending: Any) -> None:
    web.instead["studies"] = lambda _web, handler: sending.whole(handler, 200, b"<html>", "text/html")
    with pytest.raises(NotDicomweb, match=r"correct source\.url"):
        probe(web.url, tmp_path)
    web.instead["studies"] = lambda _web, handler: sending.whole(handler, 401, b"", "text/plain")
    with pytest.raises(ArchiveDenied, match="asks for a login: write user:password into"):
        probe(web.url, tmp_path)


def test_nobody_there(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.close()
    paused: list[float] = []
    monkeypatch.setitem(DicomwebArchive.__init__.__kwdefaults__, "pause", paused.append)
    with pytest.raises(ArchiveUnreachable, match="cannot be reached"):
        probe(web.url, tmp_path)
    assert tuple(paused) == WebLimits().pauses, "a hiccup is waited for, an archive that is away is not"


def test_a_login_on_its_way_in_the_open_is_a_warning(web: Any, fill: Any, tmp_path: Path, login: Any) -> None:
    fill(web, 1)
    assert not probe(web.url, tmp_path, login("silo:secret"))["unencrypted"], "it does not leave this machine"
    elsewhere = {"files": 1, "more": False, "tried": 1, "read": 1, "codes": {}, "unencrypted": True}
    assert (judged(elsewhere).verdict, "https" in judged(elsewhere).fix) == ("warn", True)

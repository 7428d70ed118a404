"""What runs in the child: its device, the archive, the label table; and a child that hangs or dies."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from silo_agent.preflight import child, child_probe
from silo_agent.preflight.child import judge_archive, judge_device
from silo_agent.preflight.finding import Finding
from silo_agent.preflight.setting import Setting
from silo_agent.state import StateFolder

SettingOf = Callable[..., Setting]
DEVICE = {
    "torch": "2.13.0", "device": "cpu", "threads": 2, "cores": 8, "memory_mb": 540, "cuda_built": True,
    "gpu_there": False,
}  # fmt: skip
CARD = {"device": "cuda", "gpu_there": True, "gpu": "NVIDIA X", "gpu_free_mb": 70_000, "gpu_total_mb": 80_000}


def looked(look: Any, setting: Setting) -> Finding:
    finding: Finding = asyncio.run(look(setting))
    return finding


def archive(setting: Setting, name: str = "images") -> Finding:
    return asyncio.run(child.archive(name, setting))


def labels(setting: Setting, name: str = "images") -> Finding:
    return asyncio.run(child.labels(name, setting))


# --- the device --------------------------------------------------------------------------------------
DEVICES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "the processor, as asked": ({}, "cpu", "ok", ""),
    "the processor, and nothing else there": ({}, "auto", "ok", ""),
    "a card": (CARD, "auto", "ok", ""),
    "a card, as asked": (CARD, "cuda", "ok", ""),
    "a card that others fill": (CARD | {"gpu_free_mb": 100}, "cuda", "warn", "nvidia-smi"),
    "a card that torch cannot use": ({"gpu_there": True}, "auto", "warn", "driver renewed"),
    "a card that this torch was not built for": (
        {"gpu_there": True, "cuda_built": False}, "auto", "warn", "CUDA build of this torch",
    ),
    "none, and one was asked for": ({}, "cuda", "fail", "--gpus all"),
    "one that cannot be used, and one was asked for": ({"gpu_there": True}, "cuda", "fail", "driver renewed"),
    "torch without CUDA, and a card was asked for": ({"cuda_built": False}, "cuda", "fail", "CUDA build"),
    "a card on purpose not used": ({"gpu_there": True}, "cpu", "ok", ""),
    "more threads than cores": ({"threads": 16}, "cpu", "warn", "threads = 8"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "wanted", "verdict", "fix"), DEVICES.values(), ids=DEVICES)
def test_the_device_is(changes: dict[str, Any], wanted: str, verdict: str, fix: str) -> None:
    found = judge_device(DEVICE | changes, wanted)
    assert (found.verdict, fix in found.fix) == (verdict, True), found
    assert ("70,000 of 80,000 MiB free" in found.said) is (changes.get("gpu_free_mb") == 70_000)


def test_a_child_that_hangs_is_ended_and_said(enrolled: StateFolder, setting_of: SettingOf, stub_child: Any) -> None:
    module = stub_child(device=[("sleep", 30)], archive=[("sleep", 30)])
    began, setting = time.monotonic(), setting_of(enrolled, probe=module, child_seconds=0.6)
    assert "no answer within" in looked(child.child, setting).said
    found = archive(setting)
    assert ("did not answer" in found.said, "share" in found.fix) == (True, True)
    assert time.monotonic() - began < 20


def test_a_child_that_cannot_start_or_dies_is_said(enrolled: StateFolder, setting_of: SettingOf) -> None:
    found = looked(child.child, setting_of(enrolled, probe="no_such_module_at_all"))
    assert found.verdict == "fail"
    assert "check.log" in found.said
    assert "no_such_module_at_all" in (enrolled.root / "check.log").read_text()


FAILURES = {
    "no memory": ("OUT_OF_MEMORY", "more memory"),
    "no kernels for this card": ("DEVICE", "GPU driver"),
    "a broken installation": ("IMPORT", "pip install"),
    "something else": ("INTERNAL", "check.log"),
}


@pytest.mark.parametrize(("code", "fix"), FAILURES.values(), ids=FAILURES)
def test_a_child_fails_by(enrolled: StateFolder, setting_of: SettingOf, stub_child: Any, code: str, fix: str) -> None:
    event = {"event": "failed", "code": code, "detail": "x", "retryable": False}
    found = looked(child.child, setting_of(enrolled, probe=stub_child(device=[("say", event)])))
    assert (found.verdict, fix in found.fix) == ("fail", True), found


# --- the archive and its labels, in the real child ---------------------------------------------------
def of_its_own(site: Any, dicom: Path, table: Path | None = None) -> StateFolder:
    """The same hospital with other data."""
    site.allow(dicom=dicom, labels=table or dicom)
    folder: StateFolder = site.folder
    return folder


def test_a_real_archive_and_its_labels_are_read(enrolled: StateFolder, setting_of: SettingOf) -> None:
    found = archive(setting_of(enrolled))
    assert (found.verdict, "images: 24 files, 5 of the first 5 read as images" in found.said) == ("ok", True), found
    found = labels(setting_of(enrolled))
    assert (found.verdict, "24 rows, keyed by" in found.said) == ("ok", True), found


def test_an_archive_that_is_not_there_is_said(site: Any, setting_of: SettingOf, tmp_path: Path) -> None:
    found = archive(setting_of(of_its_own(site, tmp_path / "none")))
    assert (found.verdict, "no archive folder" in found.said, "Mount" in found.fix) == ("fail", True, True)


def test_no_name_of_a_file_is_ever_said(site: Any, setting_of: SettingOf, tmp_path: Path) -> None:
    """Archives name files and folders after patients."""
    root = tmp_path / "archive"
    for name in ("MUELLER^HANS", "report-of-MUELLER.txt"):
        (root / name).mkdir(parents=True)
        (root / name / "MUELLER.dcm").write_bytes(b"no image of MUELLER")
    (root / "MUELLER-link").symlink_to(root / "nowhere")
    (root / "MUELLER-loop").symlink_to(root)
    found = archive(setting_of(of_its_own(site, root)))
    assert (found.verdict, "2 files, 0 of the first 2" in found.said, "2 NOT_DICOM" in found.said) == (
        "warn",
        True,
        True,
    )
    assert "MUELLER" not in found.model_dump_json()
    assert "MUELLER" not in (site.folder.root / "check.log").read_text()


def probe(root: Path, table: Path | None = None) -> dict[str, Any]:
    labels = {"kind": "csv", "path": str(table or root / "none")}
    return child_probe.archive({"source": {"kind": "folder", "path": str(root)}, "labels": labels})


def test_counting_stops_in_a_large_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_probe, "MOST_LISTED", 20)
    for number in range(30):
        (tmp_path / f"{number}.dcm").write_bytes(b"x")
    report = probe(tmp_path)
    assert (report["files"], report["more"], report["read"]) == (20, True, 0)
    monkeypatch.setattr(child_probe, "MOST_LISTED", 30)
    assert (probe(tmp_path)["files"], probe(tmp_path)["more"]) == (30, False)


def test_the_label_table_and_the_links_in_circles_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("SeriesInstanceUID,label\n")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "one").write_bytes(b"x")
    assert probe(tmp_path, tmp_path / "labels.csv")["files"] == 1


def test_a_folder_within_that_may_not_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "one").write_bytes(b"x")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = probe(tmp_path)
    assert report["codes"]["PERMISSION_DENIED"] == 1
    found = judge_archive("ct", report)
    assert (found.verdict, "Grant the agent's user read access" in found.fix) == ("fail", True)


ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "images": ({"files": 10, "tried": 5, "read": 5, "codes": {}}, "ok"),
    "images among others": ({"files": 10, "tried": 9, "read": 5, "codes": {"NOT_DICOM": 4}}, "ok"),
    "nothing": ({"files": 0, "tried": 0, "read": 0, "codes": {}}, "fail"),
    "no images": ({"files": 10, "tried": 10, "read": 0, "codes": {"NOT_DICOM": 10}}, "warn"),
    "some that may not be read": ({"files": 10, "tried": 6, "read": 5, "codes": {"PERMISSION_DENIED": 1}}, "fail"),
    "a disk that fails": ({"files": 10, "tried": 6, "read": 5, "codes": {"READ_ERROR": 1}}, "fail"),
}


@pytest.mark.parametrize(("report", "verdict"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_with(report: dict[str, Any], verdict: str) -> None:
    found = judge_archive("ct", {"more": False, "unencrypted": False} | report)
    assert found.verdict == verdict
    assert bool(found.fix) is (verdict != "ok")


TABLES: dict[str, tuple[bytes | None, str, str]] = {
    "as it should be": (b"SeriesInstanceUID,label\n1.2,0\n1.3,1\n", "ok", "2 rows"),
    "of a German spreadsheet": ("﻿StudyInstanceUID;Befund\n1.2;0\n".encode(), "ok", "1 rows"),
    "with two columns that may be the label": (b"SeriesInstanceUID,a,b\n1.2,0,1\n", "ok", "1 rows"),
    "without a UID column": (b"patient,label\nHANS,0\n", "fail", "has no column SOPInstanceUID"),
    "without a label column": (b"SeriesInstanceUID\n1.2\n", "fail", "no column besides its keys"),
    "without rows": (b"SeriesInstanceUID,label\n", "fail", "0 rows"),
    "without a UID in any row": (b"SeriesInstanceUID,label\n,1\n", "fail", "0 rows"),
    "with a row too long": (b"SeriesInstanceUID,a,b\n1.2,0,1,2\n", "fail", "row 2"),
    "of another encoding": (b"SeriesInstanceUID,label\n1.2,\xfc\n", "fail", "not UTF-8"),
    "that is not there": (None, "fail", "no label table"),
}


def test_label_tables(site: Any, setting_of: SettingOf, tmp_path: Path) -> None:
    """One test, not one for each: the child is another process and takes a second."""
    found = {}
    for name, (data, verdict, says) in TABLES.items():
        table = tmp_path / "labels.csv"
        table.unlink(missing_ok=True)
        if data is not None:
            table.write_bytes(data)
        event = told({"do": "labels", "labels": {"kind": "csv", "path": str(table)}})
        found[name] = (verdict, says, event)
    for name, (verdict, says, event) in found.items():
        assert says in str(event.get("detail") or f"{event['result']['rows']} rows"), (name, event)
        good = event["event"] == "done" and event["result"]["rows"] > 0
        assert good is (verdict == "ok"), (name, event)
        assert "HANS" not in str(event)
    table.write_bytes(b"SeriesInstanceUID,label\n")
    settled = labels(setting_of(of_its_own(site, tmp_path, table)))
    assert (settled.verdict, "Add a row" in settled.fix) == ("fail", True)


class Said(list[dict[str, Any]]):
    """A conversation that keeps what it is told."""

    def say(self, **event: Any) -> None:
        self.append(event)


def told(command: dict[str, Any]) -> dict[str, Any]:
    said: Any = Said()
    child_probe.answer(said, command)
    (event,) = said
    return dict(event)


def test_an_error_nobody_foresaw_goes_with_its_kind_and_not_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_command: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("MUELLER^HANS cannot be parsed")

    monkeypatch.setattr(child_probe, "archive", broken)
    event = told({"do": "archive"})
    assert event["event"] == "failed"
    assert event["detail"] == "RuntimeError, see check.log in the state folder"
    assert told({"do": "no such thing"})["code"] == "INTERNAL"

"""A scan that the training child does over DICOMweb ends as one of a folder with the same files: byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boundary.plan import StudyPlan
from silo_agent import trainer
from silo_agent.errors import WorkCancelled
from silo_agent.intake.cache import load_cache
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.intake.sources import FETCHED
from silo_agent.results import sweep

WHOLE = {"images.npy", "labels.npy", "patients.npy", "split.npy", "withdrawn.bin", "known.bin", "made_of.npy"}
STUDY = "a-study-00000000"


class Daemon:
    """The daemon's side of the pipes. `stop` says after how many reports, or pauses, it wants no more."""

    def __init__(self, stop: int = 1_000_000) -> None:
        self.heard: list[tuple[int, int]] = []
        self.stop = stop

    def progress(self, step: int, steps: int) -> None:
        self.heard.append((step, steps))
        if len(self.heard) > self.stop:
            raise WorkCancelled("a test")

    def rest(self, _seconds: float) -> None:
        raise WorkCancelled("a test")


Scan = Callable[..., dict[str, Any]]


@pytest.fixture
def scan(tmp_path: Path, make_plan: Callable[..., StudyPlan]) -> Scan:
    """Have the child scan a source into tmp_path/<cache>; gives its report."""

    def scanned(cache: str, source: dict[str, Any], labels: Path, daemon: Daemon | None = None) -> dict[str, Any]:
        (tmp_path / "dataset.key").write_bytes(b"k" * 32)
        command = {
            "source": source, "labels": {"kind": "csv", "path": str(labels)}, "threads": 2, "study": STUDY,
            "plan": make_plan().model_dump(mode="json"), "key_file": str(tmp_path / "dataset.key"),
            "cache": str(tmp_path / cache), "withdrawn": {"before": [], "after": []},
            "index": str(tmp_path / "index.sqlite"),
        }  # fmt: skip
        return trainer._scan(command, daemon or Daemon())  # type: ignore[arg-type]

    return scanned


def over(url: str, tmp_path: Path, **files: Path) -> dict[str, Any]:
    """As the policy's source, with the files beside it."""
    beside = {
        name: str(tmp_path / f"archive-images.{end}")
        for name, end in (("credentials", "credentials"), ("authority", "pem"))
    }
    return {"kind": "dicomweb", "url": url} | beside | {name: str(path) for name, path in files.items()}


def files_of(cache: Path) -> dict[str, bytes]:
    return {name: (cache / name).read_bytes() for name in WHOLE}


def labels_of(people: list[Any], tmp_path: Path) -> Path:
    table = tmp_path / "labels.csv"
    rows = [f"{who.sop_uid},{number % 2}" for number, who in enumerate(people)]
    table.write_text("\n".join(["SOPInstanceUID,contrast", *rows, ""]))
    return table


@pytest.mark.parametrize("site", ["site-17", "site-50"])
def test_from_orthanc_come_the_tensors_of_the_folder(
    site: str, scan: Scan, start_orthanc: Callable[..., Any], shared_data: Path, tmp_path: Path, login: Any
) -> None:
    """The shared CT of one hospital, in a real archive that asks for a login."""
    folder = shared_data / "ct-contrast" / site
    orthanc = start_orthanc(users={"silo": "a secret"})
    for path in sorted((folder / "dicom").iterdir()):
        orthanc.upload(path.read_bytes(), "silo:a secret")
    from_folder = scan("folder", {"kind": "folder", "path": str(folder / "dicom")}, folder / "labels.csv")
    daemon = Daemon()
    source = over(orthanc.url, tmp_path, credentials=login("silo:a secret\n"))
    from_archive = scan("archive", source, folder / "labels.csv", daemon)
    assert files_of(tmp_path / "archive") == files_of(tmp_path / "folder")
    assert from_archive["dataset_digest"] == from_folder["dataset_digest"]
    assert (from_archive["images"], from_archive["patients"]) == (from_folder["images"], from_folder["patients"])
    # what the folder has twice under one UID, the archive keeps once
    assert from_archive["refused"].get("DUPLICATE", 0) == 0
    listed = [steps for step, steps in daemon.heard if step == 0]
    assert max(listed) == from_archive["files"], "the listing was followed"
    assert not (tmp_path / f".archive{FETCHED}").exists()


def test_a_table_by_accession_number_has_the_labels_of_one_by_uid(
    web: Any, fill: Any, scan: Scan, tmp_path: Path
) -> None:
    people = fill(web, 4)
    by_uid = scan("by-uid", over(web.url, tmp_path), labels_of(people, tmp_path))
    (tmp_path / "orders.csv").write_text(
        "\n".join(["AccessionNumber,contrast", *(f"{who.accession},{n % 2}" for n, who in enumerate(people)), ""])
    )
    by_order = scan("by-order", over(web.url, tmp_path), tmp_path / "orders.csv")
    assert (by_order["used"], by_order["refused"]) == (4, {})
    assert by_order["dataset_digest"] == by_uid["dataset_digest"]
    assert files_of(tmp_path / "by-order") == files_of(tmp_path / "by-uid")


def test_files_lie_on_the_disk_only_while_they_are_read(
    web: Any, fill: Any, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = fill(web, 4, 2)
    from silo_agent.intake.dicomweb.archive import DicomwebArchive

    seen = []
    whole = DicomwebArchive.fetch

    def fetch(self: DicomwebArchive, instance: Any) -> Any:
        seen.append(list((tmp_path / f".archive{FETCHED}").iterdir()))
        return whole(self, instance)

    monkeypatch.setattr(DicomwebArchive, "fetch", fetch)
    report = scan("archive", over(web.url, tmp_path), labels_of(people, tmp_path))
    assert (report["used"], len(seen)) == (8, 8)
    assert max(map(len, seen)) <= 1, "one at a time"
    arrays, _ = load_cache(tmp_path / "archive")
    assert len(arrays.images) == 8


def test_a_second_scan_asks_for_every_instance_again(web: Any, fill: Any, scan: Scan, tmp_path: Path) -> None:
    """Archives correct whose an image is under the same UIDs, and do not say when."""
    table = labels_of(fill(web, 4), tmp_path)
    first = scan("first", over(web.url, tmp_path), table)
    asked = [path for path in web.asked if "/instances/" in path]
    second = scan("second", over(web.url, tmp_path), table)
    assert [path for path in web.asked if "/instances/" in path] == asked * 2
    assert second == first


def test_a_scan_that_is_not_wanted_any_more_ends_while_the_archive_is_listed(
    web: Any, fill: Any, scan: Scan, tmp_path: Path
) -> None:
    table = labels_of(fill(web, 6), tmp_path)
    with pytest.raises(WorkCancelled):
        scan("archive", over(web.url, tmp_path), table, Daemon(stop=2))
    assert not (tmp_path / "archive").exists()
    assert not (tmp_path / f".archive{FETCHED}").exists()
    assert not [path for path in web.asked if "/instances/" in path]


def test_a_scan_that_is_not_wanted_any_more_ends_while_the_archive_is_waited_for(
    web: Any, fill: Any, scan: Scan, tmp_path: Path, sending: Any
) -> None:
    table = labels_of(fill(web, 2), tmp_path)
    web.instead[".*/instances/.*"] = lambda _web, handler: sending.whole(handler, 503, b"", "text/plain")
    with pytest.raises(WorkCancelled):
        scan("archive", over(web.url, tmp_path), table)
    assert not (tmp_path / "archive").exists()


def test_a_refused_login_ends_the_scan_with_the_file_to_correct(
    web: Any, scan: Scan, tmp_path: Path, sending: Any, login: Any
) -> None:
    web.instead[".*"] = lambda _web, handler: sending.whole(handler, 401, b"", "text/plain")
    path = login("silo:another secret")
    with pytest.raises(ArchiveDenied, match=r"archive\.credentials") as why:
        scan("archive", over(web.url, tmp_path, credentials=path), labels_of([], tmp_path))
    assert "secret" not in str(why.value)


def test_what_a_killed_scan_fetched_is_gone_when_the_agent_starts(site: Any) -> None:
    left = site.folder.cache / f".{STUDY}{FETCHED}"
    left.mkdir()
    (left / "instance-x.dcm").write_bytes(b"somebody")
    sweep(site.folder, site.journal)
    assert not left.exists()

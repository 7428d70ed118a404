"""From Orthanc comes the same, byte for byte and bit for bit, as from a folder of the same files."""

import urllib.error
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from boundary.plan import StudyPlan
from silo_agent.intake.cohort import Candidate, Cohort, build_cohort
from silo_agent.intake.dicomweb.errors import ArchiveUnreachable
from silo_agent.intake.dicomweb.search import Instance
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.intake.image import Refused, StoredImage, read_image
from silo_agent.intake.labels import read_labels
from silo_agent.intake.refusals import Refusal

SITES = ("site-17", "site-34", "site-50", "site-60", "site-92")
MODALITIES = ("CT", "MR")


@pytest.fixture(scope="module")
def ct_files(shared_data: Path) -> list[Path]:
    return [path for site in SITES for path in sorted((shared_data / "ct-contrast" / site / "dicom").iterdir())]


@pytest.fixture(scope="module")
def ct_orthanc(start_orthanc: Callable[..., Any], ct_files: list[Path]) -> Any:
    orthanc = start_orthanc()
    for path in ct_files:
        orthanc.upload(path.read_bytes())
    return orthanc


def read(path: Path) -> StoredImage | Refused:
    return read_image(path, modalities=MODALITIES)


def uid_of(found: StoredImage | Refused) -> str:
    return found.identifiers.sop_uid if isinstance(found, StoredImage) else ""


def are_the_same(one: StoredImage | Refused, other: StoredImage | Refused) -> bool:
    if isinstance(one, Refused) or isinstance(other, Refused):
        return one == other
    return (
        one.identifiers == other.identifiers
        and (one.modality, one.content) == (other.modality, other.content)
        and one.image.dtype == other.image.dtype
        and np.array_equal(one.image, other.image)
    )


def test_every_instance_is_the_file_byte_for_byte_and_reads_the_same(
    ct_orthanc: Any, ct_files: list[Path], opened: Any
) -> None:
    stored = {path.read_bytes(): path for path in ct_files}
    archive = opened(ct_orthanc.url)
    listing = archive.list_instances(MODALITIES)
    assert listing.refused == ()
    met = set()
    for instance in listing.instances:
        with archive.fetch(instance) as path:
            original = stored[path.read_bytes()]
            met.add(original)
            assert are_the_same(read(path), read(original))
            assert uid_of(read(path)) in {"", instance.sop_uid}
    assert met == set(stored.values())
    assert len(met) == 62


def test_the_cohort_and_its_tensors_are_those_of_the_folder(
    ct_orthanc: Any,
    ct_files: list[Path],
    shared_data: Path,
    opened: Any,
    make_plan: Callable[..., StudyPlan],
    key: bytes,
) -> None:
    plan = make_plan()
    tables = [read_labels(shared_data / "ct-contrast" / site / "labels.csv", plan.labels) for site in SITES]

    def cohort(images: Iterable[StoredImage | Refused]) -> tuple[Cohort, list[bytes]]:
        candidates, arrays = [], dict[int, bytes]()
        for number, found in enumerate(images):
            if isinstance(found, StoredImage):
                who = found.identifiers
                label = next(label for table in tables if isinstance(label := table.label_of(who), int))
                candidates.append(Candidate(number, label, who.sop_uid, who.patient_id, found.content))
                arrays[number] = found.image.tobytes()
        made = build_cohort(candidates, plan.dataset, key=key)
        return made, [arrays[member.file] for member in made.members]

    def fetched() -> Iterable[StoredImage | Refused]:
        archive = opened(ct_orthanc.url)
        for instance in archive.list_instances(plan.dataset.modalities).instances:
            with archive.fetch(instance) as path:
                yield read(path)

    from_folder, folder_images = cohort(read(path) for path in ct_files)
    from_archive, archive_images = cohort(fetched())
    assert from_archive.digest == from_folder.digest
    assert archive_images == folder_images
    assert len(archive_images) == 60
    without_file = [(one.label, one.patient, one.holdout) for one in from_archive.members]
    assert without_file == [(one.label, one.patient, one.holdout) for one in from_folder.members]


def test_a_list_of_many_pages_is_whole_and_in_order(ct_orthanc: Any, ct_files: list[Path], opened: Any) -> None:
    instances = opened(ct_orthanc.url, page=7).list_instances({"CT"}).instances
    assert list(instances) == sorted(set(instances))
    assert {one.sop_uid for one in instances} == {
        str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in ct_files
    }


def test_another_modality_is_not_there(ct_orthanc: Any, opened: Any) -> None:
    assert opened(ct_orthanc.url).list_instances({"US"}).instances == ()


def test_difficult_files_come_as_they_are_stored(
    shared_data: Path, start_orthanc: Callable[..., Any], opened: Any
) -> None:
    """Compressed, big endian, deflated, without a preamble: whatever Orthanc takes."""
    orthanc, uploaded = start_orthanc(), {}
    for path in sorted((shared_data / "dirty-headers").iterdir()):
        data = path.read_bytes()
        try:
            orthanc.upload(data)
        except urllib.error.HTTPError as why:  # not DICOM for Orthanc
            why.close()
        else:
            uploaded[data] = path
    archive = opened(orthanc.url)
    listing = archive.list_instances(())
    assert len(listing.instances) > 10
    for instance in listing.instances:
        with archive.fetch(instance) as found:
            assert isinstance(found, Path), instance.path
            assert are_the_same(read(found), read(uploaded[found.read_bytes()]))


def test_a_login_is_asked_for_refused_and_accepted(
    start_orthanc: Callable[..., Any], opened: Any, login: Callable[[str], Path], write_one: Callable[..., Path]
) -> None:
    orthanc = start_orthanc(users={"agent": "right-secret"})
    with pytest.raises(ArchiveDenied, match="asks for a login"):
        opened(orthanc.url).list_instances({"CT"})
    with pytest.raises(ArchiveDenied, match="refuses our login") as why:
        opened(orthanc.url, credentials=login("agent:wrong-secret")).list_instances({"CT"})
    assert "secret" not in str(why.value)
    orthanc.upload(write_one().read_bytes(), login="agent:right-secret")
    archive = opened(orthanc.url, credentials=login("agent:right-secret"))
    (instance,) = archive.list_instances({"CT"}).instances
    with archive.fetch(instance) as path:
        assert path.read_bytes() == write_one().read_bytes()


@pytest.fixture
def three(start_orthanc: Callable[..., Any], ct_files: list[Path]) -> Any:
    """An Orthanc with three studies."""
    orthanc = start_orthanc()
    for path in ct_files[:3]:
        orthanc.upload(path.read_bytes())
    yield orthanc
    orthanc.stop()


def test_an_orthanc_that_stops_half_way_ends_the_reading(three: Any, opened: Any, tmp_path: Path) -> None:
    archive = opened(three.url, pauses=(0.0,), patience=(0.0, 0.0))
    first, second, _ = archive.list_instances({"CT"}).instances
    with archive.fetch(first) as path:
        assert isinstance(read(path), StoredImage)
    three.stop()
    with pytest.raises(ArchiveUnreachable, match="cannot be reached"), archive.fetch(second):
        pass
    with pytest.raises(ArchiveUnreachable):
        archive.list_instances({"CT"})
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_orthanc_that_is_restarted_half_way_is_waited_for(three: Any, opened: Any) -> None:
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if seconds == 30.0:
            three.start()

    archive = opened(three.url, pauses=(1.0,), patience=(10.0, 30.0, 60.0), pause=pause)
    instances = archive.list_instances({"CT"}).instances
    three.stop()
    for instance in instances:
        with archive.fetch(instance) as path:
            assert isinstance(path, Path)
    assert waited == [1.0, 10.0, 30.0]


def test_an_instance_whose_file_orthanc_has_lost_is_refused_and_the_others_are_read(three: Any, opened: Any) -> None:
    archive = opened(three.url)
    instances = archive.list_instances({"CT"}).instances
    lost, files = 0, [path for path in (three.folder / "db").rglob("*") if path.is_file() and path.stat().st_size > 4e5]
    for path in files:
        if path.read_bytes()[128:132] == b"DICM" and instances[1].sop_uid.encode() in path.read_bytes():
            path.unlink()
            lost += 1
    assert lost == 1

    def taken(instance: Instance) -> bool | Refusal:
        with archive.fetch(instance) as found:
            return found if isinstance(found, Refusal) else isinstance(read(found), StoredImage)

    assert [taken(instance) for instance in instances] == [True, Refusal.READ_ERROR, True]

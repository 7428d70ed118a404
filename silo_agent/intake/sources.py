"""From what the policy says of a data set to what a scan reads: a folder tree, a DICOMDIR, an archive over DICOMweb."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from silo_agent.intake.archive import Inventory, LabelKind, Source, folder_inventory
from silo_agent.intake.dicomdir import list_dicomdir
from silo_agent.intake.refusals import Refusal

if TYPE_CHECKING:  # what speaks HTTP is loaded where an archive is asked
    from silo_agent.intake.dicomweb.archive import DicomwebArchive
    from silo_agent.intake.dicomweb.endpoint import Endpoint
    from silo_agent.intake.dicomweb.search import Instance

FETCHED = ".fetched"  # how the folder ends in which an archive's instances lie while they are read


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder tree of DICOM files, or the files that a DICOMDIR names."""

    path: Path
    labels_path: Path
    labels_kind: LabelKind | None = None

    def inventory(self, settled: float) -> Inventory:
        if self.path.is_file():
            return list_dicomdir(self.path).inventory(self.path.parent, settled)
        return folder_inventory(self.path, settled, skip=self.labels_path)


@dataclass(frozen=True, slots=True)
class DicomwebSource:
    """What an open archive has of these modalities; `heard` is told meanwhile how many instances there are so far."""

    archive: "DicomwebArchive"
    modalities: frozenset[str]
    heard: Callable[[int], None]
    labels_path: Path
    labels_kind: LabelKind | None = None

    def inventory(self, _settled: float) -> Inventory:
        """Nothing has a state: archives correct patients' data under the same UIDs and do not say when."""
        found = self.archive.list_instances(self.modalities, self.heard)
        return Inventory(self.archive.url, tuple(_Fetched(self.archive, one) for one in found.instances), found.refused)


@dataclass(frozen=True, slots=True)
class _Fetched:
    """An instance that is fetched for the time of a reading. Its name has UIDs and no more."""

    archive: "DicomwebArchive"
    instance: "Instance" = field(repr=False)
    state: None = None
    is_here: bool = False

    @property
    def name(self) -> str:
        return self.instance.path

    def opened(self) -> AbstractContextManager[Path | Refusal]:
        return self.archive.fetch(self.instance)

    def unchanged(self) -> bool:
        return False


@contextmanager
def opened_source(
    said: dict[str, Any],
    modalities: tuple[str, ...],
    scratch: Path,
    *,
    pause: Callable[[float], None],
    heard: Callable[[int], None],
) -> Iterator[Source]:
    """A data set as `policy.model.SiloDataset.told` has it, for as long as the context lasts.

    `scratch` is a folder of its own for what is fetched. `pause` waits the seconds it is given, also for an archive
    that is away. What `pause` and `heard` raise ends the scan. Raises an `IntakeError`.
    """
    labels, kind = Path(said["labels"]["path"]), said["labels"]["kind"]
    source = said["source"]
    if source["kind"] == "folder":
        yield FolderSource(Path(source["path"]), labels, kind)
        return
    from silo_agent.intake.dicomweb.archive import DicomwebArchive

    try:
        with DicomwebArchive(endpoint_of(source), scratch, pause=pause) as archive:
            yield DicomwebSource(archive, frozenset(modalities), heard, labels, kind)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def endpoint_of(source: dict[str, Any]) -> "Endpoint":
    """The archive's address with its login and CA, as `policy.model.SiloDataset.told` has them."""
    from silo_agent.intake.dicomweb.endpoint import Endpoint

    authority = Path(source["authority"])
    return Endpoint(source["url"], Path(source["credentials"]), authority if authority.exists() else None)

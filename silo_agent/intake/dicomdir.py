"""A DICOMDIR as the list of an archive's files (DICOM PS3.3 annex F, PS3.10 section 8).

Every record that is in use and names a file is taken, wherever in the hierarchy it hangs, and the file decides. The
offsets that link the records are not followed, so none of them can lead in a circle; they only tell whether records
are missing, since a list that is shorter than it was must not pass for whole. pydicom's `FileSet` is not used:
it leaves out what is missing with no more than a warning.
"""

import stat
from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue

from silo_agent.intake.archive import Listing, refusal_for
from silo_agent.intake.encoding import NATIVE
from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing
from silo_agent.intake.image import quiet
from silo_agent.intake.refusals import Refusal

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_RECORDS, _IN_USE, _FILE_ID = "DirectoryRecordSequence", "RecordInUseFlag", "ReferencedFileID"
_ROOT = (
    "OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity",
    "OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity",
)
_LINKS = ("OffsetOfTheNextDirectoryRecord", "OffsetOfReferencedLowerLevelDirectoryEntity")
_INACTIVE = 0  # PS3.3 F.3.2.2; others are in use or, retired, refer to other directories
_DAMAGED, _ELSEWHERE = "is damaged or cannot be read", "names files that are not in its folder"
MOST_BYTES = 32 * 1024 * 1024  # some 80,000 images; parsed it takes many times that


class DicomdirUnreadable(ArchiveMissing):
    """The file is no DICOMDIR, is damaged, or names files that are not in its folder."""


def list_dicomdir(dicomdir: Path) -> Listing:
    """List the files that a DICOMDIR names; all lie below its folder. What it names and is not there is refused.

    Names are found in whatever case the medium was copied. Raises `ArchiveMissing`, `ArchiveDenied` or
    `DicomdirUnreadable`.
    """
    folders, root = _Folders(), dicomdir.parent.resolve()
    files: set[Path] = set()
    refused: dict[Path, Refusal] = {}
    for parts in _named(_read(dicomdir), dicomdir):
        path = folders.find(dicomdir.parent, parts)
        if not path.resolve().is_relative_to(root):  # through a link on the medium
            raise _unreadable(dicomdir, _ELSEWHERE)
        try:
            is_file = stat.S_ISREG(path.stat().st_mode)
        except OSError as why:
            refused[path] = refusal_for(why)
            continue
        if is_file:
            files.add(path)
        else:
            refused[path] = Refusal.READ_ERROR
    return Listing(tuple(sorted(files)), tuple(sorted(refused.items())))


class _Folders:
    """Names as they stand on the disk: PS3.10 section 8.2 has capitals only, and many a copy has small letters."""

    def __init__(self) -> None:
        self._entries: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, parts: tuple[str, ...]) -> Path:
        """Return the path with each part as it is on the disk, or as it was asked for."""
        for part in parts:
            exact = folder / part
            folder = exact if exact.exists() else folder / self._listed(folder).get(part.casefold(), part)
        return folder

    def _listed(self, folder: Path) -> dict[str, str]:
        if folder not in self._entries:
            try:
                names = sorted(entry.name for entry in folder.iterdir())
            except OSError:
                names = []
            self._entries[folder] = {name.casefold(): name for name in names}
        return self._entries[folder]


def _read(dicomdir: Path) -> list[Dataset]:
    try:
        with quiet():
            return _records(dicomdir)
    except FileNotFoundError as why:
        raise ArchiveMissing(f"there is no DICOMDIR at {dicomdir}: correct source.path of the data set") from why
    except PermissionError as why:
        raise ArchiveDenied(f"{dicomdir} may not be read: grant the agent's user read access") from why
    except DicomdirUnreadable:
        raise
    except Exception:  # noqa: BLE001 - what pydicom raises on damaged bytes has no common root and no list
        raise _unreadable(dicomdir, _DAMAGED) from None


def _records(dicomdir: Path) -> list[Dataset]:
    """All records. The file's meta is looked at first, since a deflated file would be inflated whole.

    A record that another one refers to and that is not there means that records are lost.
    """
    if dicomdir.stat().st_size > MOST_BYTES:
        raise _unreadable(dicomdir, f"is longer than {MOST_BYTES} bytes")
    meta = read_file_meta_info(dicomdir)
    is_directory = str(meta.get("MediaStorageSOPClassUID", "")) == _MEDIA_DIRECTORY
    if not is_directory or str(meta.get("TransferSyntaxUID", "")) not in NATIVE:
        raise _unreadable(dicomdir, "is no DICOMDIR")
    ds = dcmread(dicomdir, specific_tags=[_RECORDS, *_ROOT])
    raw = ds.get_item(_RECORDS)
    if isinstance(raw, RawDataElement) and len(raw.value or b"") != raw.length:
        raise _unreadable(dicomdir, _DAMAGED)  # the file ends before the sequence does, and pydicom would not say so
    records = list(ds[_RECORDS].value)
    there = {record.seq_item_tell for record in records}
    links = [ds.get(root, 0) for root in _ROOT] + [record.get(link, 0) for record in records for link in _LINKS]
    if not there.issuperset(int(link) for link in links if link):
        raise _unreadable(dicomdir, _DAMAGED)
    return records


def _named(records: list[Dataset], dicomdir: Path) -> Iterator[tuple[str, ...]]:
    """The files that records in use name, as parts of a path below the DICOMDIR's folder."""
    for record in records:
        try:
            with quiet():
                in_use, value = record.get(_IN_USE), record.get(_FILE_ID)
        except Exception:  # noqa: BLE001 - values are parsed only now
            raise _unreadable(dicomdir, _DAMAGED) from None
        if in_use == _INACTIVE or value in (None, ""):
            continue
        parts = tuple(str(part) for part in value) if isinstance(value, MultiValue) else (str(value),)
        if not all(_is_a_name(part) for part in parts):
            raise _unreadable(dicomdir, _ELSEWHERE)
        yield parts


def _is_a_name(part: str) -> bool:
    return part not in {"", ".", ".."} and part.isprintable() and not set(part) & set("/\\\0:")


def _unreadable(dicomdir: Path, why: str) -> DicomdirUnreadable:
    return DicomdirUnreadable(
        f"{dicomdir} {why}: let the archive export it again, or give the folder of its files as source.path"
    )

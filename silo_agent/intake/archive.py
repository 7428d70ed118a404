"""Listing an archive: every file once, in a stable order, with what could not be listed.

A scan knows an archive as an inventory of items, each of which can be opened as a local file for the time of a reading.
A folder's items are such files; those of another source may be fetched when they are opened.
"""

import math
import os
import stat
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Literal, Protocol

from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing
from silo_agent.intake.refusals import Refusal

SETTLED_SECONDS = 2.0  # the coarsest clock of a file system (FAT): what changed just now may change again unseen
LabelKind = Literal["csv", "parquet", "seg", "nifti"]
_Inode = tuple[int, int]  # (device, inode)
_STATE = Struct("<qqqQ")  # bytes, modified and changed in ns, inode


class Item(Protocol):
    """One file of an archive, wherever that is.

    `name` is how `refused.csv` shows it, below the archive's root. `state` are bytes that change whenever the content
    may have; None where that cannot be told, and such an item is read anew by every scan.
    """

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> bytes | None: ...

    @property
    def is_here(self) -> bool:
        """Whether it is a file already, so that opening it costs nothing."""
        ...

    def opened(self) -> AbstractContextManager[Path | Refusal]:
        """A local file for as long as the context lasts, or why there is none. What it raises ends the scan.

        Called in a thread, never for two items of one archive at the same time.
        """
        ...

    def unchanged(self) -> bool:
        """Whether `state` still holds; asked after a reading that is to be remembered."""
        ...


@dataclass(frozen=True, slots=True)
class Inventory:
    """All items of an archive, and by name what is refused unopened. `root` tells it from the hospital's others."""

    root: str = field(repr=False)
    items: tuple[Item, ...] = field(repr=False)
    refused: tuple[tuple[str, Refusal], ...] = field(repr=False)


class Source(Protocol):
    """Where the images of a data set are, and the label table or the masks that go with them.

    Without a kind the name of the table decides.
    """

    @property
    def labels_path(self) -> Path: ...

    @property
    def labels_kind(self) -> LabelKind | None: ...

    def inventory(self, settled: float) -> Inventory:
        """List everything; what changed after `settled` (POSIX seconds) has no state. Raises an `IntakeError`."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """Regular files, and what is refused unopened: folders that cannot be listed, sockets, broken links."""

    files: tuple[Path, ...]
    refused: tuple[tuple[Path, Refusal], ...]

    def inventory(self, root: Path, settled: float) -> Inventory:
        """The same as a scan takes it, with names below `root`."""
        items = (LocalFile(os.fspath(file), shown(file, root), _state_of(file, settled)) for file in self.files)
        refused = tuple((shown(path, root), code) for path, code in self.refused)
        return Inventory(str(root.absolute()), tuple(items), refused)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on a disk or share; its state is what `stat` says of it."""

    path: str = field(repr=False)
    name: str = field(repr=False)
    state: bytes | None = field(repr=False)

    @property
    def is_here(self) -> bool:
        return True

    def opened(self) -> AbstractContextManager[Path | Refusal]:
        return nullcontext(Path(self.path))

    def unchanged(self) -> bool:
        return _state_of(self.path, math.inf) == self.state


def list_archive(root: Path, *, skip: Path | None = None) -> Listing:
    """Walk `root` without `skip` (the label table). Raises `ArchiveMissing` or `ArchiveDenied`.

    Linked folders are followed and each folder is visited once, so a loop of links ends. A folder that the
    agent's user may not list counts as one file with PERMISSION_DENIED: its content is unknown.
    """
    files, refused = _walk(root, skip)
    return Listing(
        tuple(Path(entry.path) for entry, _ in files), tuple(sorted((Path(path), code) for path, code in refused))
    )


def folder_inventory(root: Path, settled: float, *, skip: Path | None = None) -> Inventory:
    """The same as a scan takes it. A second scan spends its time here: one `stat` for each file, and no `Path`."""
    files, refused = _walk(root, skip)
    below = len(os.path.join(root, ""))  # noqa: PTH118 - as `scandir` puts it before each name
    items = (LocalFile(entry.path, entry.path[below:], _state(status, settled)) for entry, status in files)
    named = sorted((path[below:], code) for path, code in refused)
    return Inventory(str(root.absolute()), tuple(items), tuple(named))


_Walked = tuple[list[tuple[os.DirEntry[str], os.stat_result]], list[tuple[str, Refusal]]]


def _walk(root: Path, skip: Path | None) -> _Walked:
    """Regular files in the order of their paths, and what is refused."""
    files: list[tuple[os.DirEntry[str], os.stat_result]] = []
    refused: list[tuple[str, Refusal]] = []
    visited: set[_Inode] = set()
    skipped = _inode(skip.stat()) if skip is not None else None
    todo = [os.fspath(root)]
    while todo:
        folder = todo.pop()
        try:
            entries = _entries(folder, visited)
        except OSError as why:
            if not visited:
                raise _unusable(root, why) from why
            refused.append((folder, refusal_for(why)))
            continue
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as why:
                refused.append((entry.path, refusal_for(why)))
                continue
            if stat.S_ISDIR(status.st_mode):
                todo.append(entry.path)
            elif not stat.S_ISREG(status.st_mode):
                refused.append((entry.path, Refusal.NOT_DICOM))
            elif _inode(status) != skipped:
                files.append((entry, status))
    files.sort(key=lambda file: file[0].path.split("/"))  # as paths are sorted
    return files, refused


def refusal_for(why: OSError) -> Refusal:
    """Tell 'you may not' from 'the storage failed'."""
    return Refusal.PERMISSION_DENIED if isinstance(why, PermissionError) else Refusal.READ_ERROR


def shown(path: Path, root: Path) -> str:
    """Return the path relative to the archive, as `refused.csv` shows it."""
    return os.fspath(path.relative_to(root))


def _state_of(path: str | Path, settled: float) -> bytes | None:
    try:
        return _state(os.stat(path), settled)  # noqa: PTH116 - without a Path, which costs more than the call
    except OSError:
        return None


def _state(status: os.stat_result, settled: float) -> bytes | None:
    """What changes with a file's content. Without the device, which a network share gets anew at each mount."""
    if max(status.st_mtime, status.st_ctime) > settled:
        return None
    return _STATE.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _entries(folder: str, visited: set[_Inode]) -> list[os.DirEntry[str]]:
    """What lies in `folder`, nothing if it was visited before. Raises `OSError`."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    here = _inode(os.stat(folder))  # noqa: PTH116 - a path of the walk
    if here in visited:
        return []
    visited.add(here)
    return entries


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _unusable(root: Path, why: OSError) -> ArchiveDenied | ArchiveMissing:
    if isinstance(why, PermissionError):
        return ArchiveDenied(f"{root} may not be listed: grant the agent's user read access")
    return ArchiveMissing(f"there is no archive folder at {root}: correct source.path of the data set in the policy")

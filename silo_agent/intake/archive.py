"""Listing a folder tree: every file once, in a stable order, with what could not be listed."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing
from silo_agent.intake.refusals import Refusal

_Inode = tuple[int, int]  # (device, inode)


@dataclass(frozen=True, slots=True)
class Listing:
    """Regular files, and what is refused unopened: folders that cannot be listed, sockets, broken links."""

    files: tuple[Path, ...]
    refused: tuple[tuple[Path, Refusal], ...]


def list_archive(root: Path, *, skip: Path | None = None) -> Listing:
    """Walk `root` without `skip` (the label table). Raises `ArchiveMissing` or `ArchiveDenied`.

    Linked folders are followed and each folder is visited once, so a loop of links ends. A folder that the
    agent's user may not list counts as one file with PERMISSION_DENIED: its content is unknown.
    """
    files: list[Path] = []
    refused: list[tuple[Path, Refusal]] = []
    visited: set[_Inode] = set()
    skipped = _inode(skip.stat()) if skip is not None else None
    todo = [root]
    while todo:
        folder = todo.pop()
        try:
            if _seen(folder, visited):
                continue
            entries = sorted(folder.iterdir())
        except OSError as why:
            if folder == root:
                raise _unusable(root, why) from why
            refused.append((folder, refusal_for(why)))
            continue
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as why:
                refused.append((entry, refusal_for(why)))
                continue
            if stat.S_ISDIR(status.st_mode):
                todo.append(entry)
            elif not stat.S_ISREG(status.st_mode):
                refused.append((entry, Refusal.NOT_DICOM))
            elif _inode(status) != skipped:
                files.append(entry)
    return Listing(tuple(sorted(files)), tuple(sorted(refused)))


def refusal_for(why: OSError) -> Refusal:
    """Tell 'you may not' from 'the storage failed'."""
    return Refusal.PERMISSION_DENIED if isinstance(why, PermissionError) else Refusal.READ_ERROR


def shown(path: Path, root: Path) -> str:
    """Return the path relative to the archive, as `refused.csv` shows it."""
    return os.fspath(path.relative_to(root))


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _seen(folder: Path, visited: set[_Inode]) -> bool:
    here = _inode(folder.stat())
    if here in visited:
        return True
    visited.add(here)
    return False


def _unusable(root: Path, why: OSError) -> ArchiveDenied | ArchiveMissing:
    if isinstance(why, PermissionError):
        return ArchiveDenied(f"{root} may not be listed: grant the agent's user read access")
    return ArchiveMissing(f"there is no archive folder at {root}: correct source.path of the data set in agent.toml")

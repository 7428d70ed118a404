"""The result of a scan on disk: whole or not there, for the agent's user only, without identifiers.

A scan writes into a sibling folder and renames it when every byte is on the disk. `refused.csv` is the one
file that names files of the archive; it is for the hospital's own staff and is never loaded. Afterwards only one thing
changes: patients who withdraw consent are taken out (`silo_agent.intake.erasing`).
"""

import csv
import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from silo_agent.intake.erasing import GONE, MASKS, alone
from silo_agent.intake.errors import CacheMissing, CacheUnreadable
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.report import IntakeReport
from silo_agent.intake.reuse import checksum

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
SPARE_BYTES = 256 * 2**20
_STRETCH_BYTES = 64 * 2**20  # between two looks at the disk


@dataclass(frozen=True, slots=True)
class CohortArrays:
    """The cohort, one row per image, in an order that says nothing.

    `images` float32 [n,1,h,w], or [n,1,d,h,w] of volumes, as the plan's preprocessing made them; `labels` int64 [n], an
    index into the plan's classes, for segmentation the largest one that the image shows; `patients` int64 [n], an
    opaque number; `holdout` bool [n]; `withdrawn` bool [n], rows of zeros that nothing may be computed from; `masks`
    for segmentation uint8 [n,h,w] or [n,d,h,w], the class of every pixel or voxel.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]
    holdout: NDArray[np.bool_]
    withdrawn: NDArray[np.bool_]
    masks: NDArray[np.uint8] | None = None


@contextmanager
def replacing(cache: Path) -> Iterator[Path]:
    """Yield an empty private folder that takes the place of `cache` if the block ends without an error.

    A kill at any instant leaves the old cache, the new one or none, never half of one. One scan at a time
    per cache: what an earlier, killed scan left behind is cleared first.
    """
    partial, old = (cache.parent / f".{cache.name}.{end}" for end in ("partial", "old"))
    cache.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=PRIVATE_FOLDER)
    try:
        yield partial
        for file in partial.iterdir():
            file.chmod(PRIVATE_FILE)
            _to_disk(file)
        _to_disk(partial)
        with alone(cache.parent):
            shutil.rmtree(old, ignore_errors=True)
            if cache.exists():
                cache.rename(old)
            partial.rename(cache)
            _to_disk(cache.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Spool:
    """Rows of one shape on disk while it is not yet known which of them the cohort keeps.

    Never the last `spare` bytes of the disk: the agent's journal lies on it too. Then `OSError` with ENOSPC is raised.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], kind: str, spare: int) -> None:
        self._path, self._shape, self._kind, self._spare = path, shape, np.dtype(kind), spare
        self._file = _create(self._path)
        self._width = self._kind.itemsize * math.prod(shape)
        self._row_of: dict[int, int] = {}
        self._rows = 0  # written; of a file that is added again the last one counts
        self._unasked = 0  # bytes that may be written before the disk is looked at again

    def __contains__(self, file: int) -> bool:
        return file in self._row_of

    def add(self, file: int, values: NDArray[Any]) -> None:
        """Append a row under the number of its file; raises `ValueError` on another shape or type."""
        if values.shape != self._shape or values.dtype != self._kind:
            raise ValueError(f"preprocessing gave {values.dtype} {values.shape}, the plan asks for {self._shape}")
        self.add_row(file, np.ascontiguousarray(values, dtype=self._kind).tobytes())

    def add_row(self, file: int, row: bytes) -> None:
        """The same of an input that was made before; raises `ValueError` on another size."""
        if len(row) != self._width:
            raise ValueError(f"an input of {len(row)} bytes, the plan asks for {self._width}")
        if self._unasked < self._width:
            self._unasked = _STRETCH_BYTES
            self._check(self._unasked)
        self._unasked -= self._width
        self._row_of[file] = self._rows
        self._rows += 1
        self._file.write(row)

    def write(self, files: list[int], target: Path) -> list[int]:
        """Write the chosen rows as a NumPy file, a row at a time, and remove the spool. What was not added is zeros.

        Gives the checksum of each row (`reuse.checksum`).
        """
        self._file.close()
        self._check(len(files) * self._width)
        with self._path.open("rb") as spool, target.open("xb") as out:
            header = {"descr": self._kind.str, "fortran_order": False, "shape": (len(files), *self._shape)}
            np.lib.format.write_array_header_1_0(out, header)
            checksums = []
            for file in files:
                row = self._row(spool, file)
                out.write(row)
                checksums.append(checksum(row))
        self._path.unlink()
        return checksums

    def _row(self, spool: BinaryIO, file: int) -> bytes:
        number = self._row_of.get(file)
        if number is None:
            return bytes(self._width)
        spool.seek(number * self._width)
        return spool.read(self._width)

    def _check(self, wanted: int) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if free - wanted < self._spare:
            raise OSError(
                errno.ENOSPC, f"{free // 2**20} MB are free for the scan: make room for it", self._path.parent
            )

    def close(self) -> None:
        self._file.close()


class InputSpool(Spool):
    """Model inputs: float32 [1,h,w] or [1,d,h,w]."""

    def __init__(self, folder: Path, size: tuple[int, ...], spare: int = SPARE_BYTES) -> None:
        super().__init__(folder / "inputs.spool", (1, *size), "<f4", spare)


class MaskSpool(Spool):
    """The masks that go with them: uint8 [h,w] or [d,h,w]."""

    def __init__(self, folder: Path, size: tuple[int, ...], spare: int = SPARE_BYTES) -> None:
        super().__init__(folder / "masks.spool", size, "|u1", spare)


def write_refused(path: Path, rows: Iterable[tuple[str, Refusal]]) -> None:
    """Write `path relative to the archive, code, explanation`; names that are not UTF-8 are escaped."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "code", "explanation"))
        table.writerows((name, code.value, code.explanation) for name, code in rows)


def write_report(path: Path, report: IntakeReport) -> None:
    path.write_text(json.dumps(report.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def load_cache(cache: Path) -> tuple[CohortArrays, IntakeReport]:
    """Read a finished scan back; raises `CacheMissing` or `CacheUnreadable`."""
    try:
        report = IntakeReport.model_validate_json((cache / "report.json").read_bytes())
        arrays = CohortArrays(
            images=np.load(cache / "images.npy", allow_pickle=False),
            labels=np.load(cache / "labels.npy", allow_pickle=False),
            patients=np.load(cache / "patients.npy", allow_pickle=False),
            holdout=np.load(cache / "split.npy", allow_pickle=False),
            masks=np.load(cache / MASKS, allow_pickle=False) if (cache / MASKS).exists() else None,
            withdrawn=np.frombuffer((cache / GONE).read_bytes(), np.uint8).astype(np.bool_),  # last, see erasing
        )
    except FileNotFoundError as why:
        raise CacheMissing(f"there is no finished scan at {cache}: scan the archive first") from why
    except (OSError, ValueError, EOFError, ValidationError) as why:
        raise CacheUnreadable(f"the scan at {cache} cannot be read: scan the archive again") from why
    n = report.used
    fits = arrays.images.ndim in {4, 5} and arrays.images.shape[:2] == (n, 1) and _masks_fit(arrays)
    columns = (arrays.labels, arrays.patients, arrays.holdout, arrays.withdrawn)
    kinds = "".join(array.dtype.char for array in (arrays.images, *columns))
    if not fits or any(a.shape != (n,) for a in columns) or kinds != "fll??":
        raise CacheUnreadable(f"the files of the scan at {cache} do not fit together: scan the archive again")
    return arrays, report


def _masks_fit(arrays: CohortArrays) -> bool:
    if arrays.masks is None:
        return arrays.images.ndim == 4
    return arrays.masks.dtype == np.uint8 and arrays.masks.shape == (len(arrays.images), *arrays.images.shape[2:])


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE), "wb")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

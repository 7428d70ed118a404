"""Model inputs that another scan of this hospital has made already, found by what they were made of.

A finished scan keeps a tag and a checksum of each of its rows. The tag is a hash of the image and of how the input is
made of it, under the key of the scan's study: it is found again only for the same image, the same preprocessing and the
same software, and the tags of two studies cannot be matched without their keys. Rows of those who withdrew have
neither, and what is erased while it is read does not fit its checksum.
"""

import hashlib
import hmac
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from boundary.images import Preprocessing
from silo_agent.intake.erasing import MADE_OF

_KEY = b"wardround made of v1\x00"
_TAG_BYTES, _SUM_BYTES = 32, 4
_MAKERS = ("wardround", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class OtherScan:
    """The cache of a scan, which may be finished or not there, and the key of its study."""

    cache: Path
    key: bytes = field(repr=False)


def recipe_of(preprocessing: Preprocessing) -> bytes:
    """How inputs are made of images: what the plan says, and the software that does it."""
    software = {name: metadata.version(name) for name in _MAKERS}
    return json.dumps([preprocessing.model_dump(mode="json"), software], sort_keys=True).encode()


class Tags:
    """What one study calls its inputs."""

    def __init__(self, key: bytes, recipe: bytes) -> None:
        self._key = hmac.digest(key, _KEY + recipe, "sha256")

    def of(self, content: bytes) -> bytes:
        """`content` is the image's digest as `Pseudonyms.content` has it."""
        return hashlib.blake2b(content, key=self._key, digest_size=_TAG_BYTES).digest()


def made_of(rows: Iterable[tuple[bytes, int] | None]) -> NDArray[np.uint8]:
    """(tag, checksum) of each row, None where there is no image, as a scan keeps them: uint8 [n,36]."""
    nothing = bytes(_TAG_BYTES + _SUM_BYTES)
    joined = b"".join(nothing if row is None else row[0] + row[1].to_bytes(_SUM_BYTES, "little") for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, _TAG_BYTES + _SUM_BYTES)


def checksum(row: bytes) -> int:
    """CRC-32: it is to tell a row that was damaged, or is being erased, not one that was forged."""
    return zlib.crc32(row)


class OtherInputs:
    """Inputs of this `size` in finished scans. Use with `contextlib.closing`."""

    def __init__(self, others: Iterable[OtherScan], recipe: bytes, size: tuple[int, ...]) -> None:
        self._others, self._recipe, self._size = tuple(others), recipe, size
        self._opened: list[_Scan] | None = None

    @property
    def _scans(self) -> list["_Scan"]:
        """Opened when they are first asked: a scan that uses nothing asks nothing."""
        if self._opened is None:
            found = (_open(other, self._recipe, self._size) for other in self._others)
            self._opened = [scan for scan in found if scan is not None]
        return self._opened

    def close(self) -> None:
        for scan in self._opened or ():
            scan.images.close()

    def has(self, content: bytes) -> bool:
        """Whether there is a row, whole or not."""
        return any(scan.tags.of(content) in scan.rows for scan in self._scans)

    def row(self, content: bytes) -> bytes | None:
        """float32 [1,h,w], little endian, if it is there and whole."""
        for scan in self._scans:
            at = scan.rows.get(scan.tags.of(content))
            if at is not None and (row := scan.read(*at)) is not None:
                return row
        return None


@dataclass(frozen=True, slots=True)
class _Scan:
    tags: Tags
    rows: dict[bytes, tuple[int, int]] = field(repr=False)  # tag: (number of the row, checksum)
    images: BinaryIO
    start: int
    row_bytes: int

    def read(self, number: int, expected: int) -> bytes | None:
        with suppress(OSError):
            self.images.seek(self.start + number * self.row_bytes)
            row = self.images.read(self.row_bytes)
            if len(row) == self.row_bytes and checksum(row) == expected:
                return row
        return None


def _open(other: OtherScan, recipe: bytes, size: tuple[int, ...]) -> _Scan | None:
    try:
        known = np.load(other.cache / MADE_OF, allow_pickle=False)
        images = (other.cache / "images.npy").open("rb", buffering=0)
    except (OSError, ValueError, EOFError):
        return None
    try:
        shape, start = _header(images)
    except (OSError, ValueError):
        shape, start = None, 0
    if known.dtype != np.uint8 or known.ndim != 2 or shape != (len(known), 1, *size):
        images.close()
        return None
    return _Scan(Tags(other.key, recipe), _numbered(known), images, start, 4 * math.prod(size))


def _header(images: BinaryIO) -> tuple[Sequence[int] | None, int]:
    """The shape, if it is one of float32 in C order, and where the values start."""
    np.lib.format.read_magic(images)
    shape, is_fortran, kind = np.lib.format.read_array_header_1_0(images)
    return (None if is_fortran or kind != np.dtype("<f4") else shape), images.tell()


def _numbered(known: NDArray[np.uint8]) -> dict[bytes, tuple[int, int]]:
    rows = (row.tobytes() for row in known)
    return {
        row[:_TAG_BYTES]: (number, int.from_bytes(row[_TAG_BYTES:], "little"))
        for number, row in enumerate(rows)
        if any(row)
    }

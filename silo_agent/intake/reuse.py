"""Model inputs that another scan of this hospital has made already, found by what they were made of.

A finished scan keeps a tag of each of its rows, and a checksum of what it holds in each file. The tag is a hash of the
image and of how the input is made of it, under the key of the scan's study: it is found again only for the same image,
the same preprocessing and the same software, and the tags of two studies cannot be matched without their keys. Rows of
those who withdrew have neither, and what is erased while it is read does not fit its checksum.
"""

import hashlib
import hmac
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from boundary.images import Preprocessing
from silo_agent.intake.erasing import MADE_OF, MASKS
from silo_agent.intake.software import release_of

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
    software = {name: release_of(name) for name in _MAKERS}
    return json.dumps([preprocessing.model_dump(mode="json"), software], sort_keys=True).encode()


class Tags:
    """What one study calls its inputs."""

    def __init__(self, key: bytes, recipe: bytes) -> None:
        self._key = hmac.digest(key, _KEY + recipe, "sha256")

    def of(self, content: bytes) -> bytes:
        """`content` is the image's digest as `Pseudonyms.content` has it, of a part of a volume `part_of`."""
        return hashlib.blake2b(content, key=self._key, digest_size=_TAG_BYTES).digest()


def part_of(volume: bytes, depth: int) -> bytes:
    """What the input of a slice is made of, the volume as a whole where `depth` is 0 and there is one input.

    `volume` is `Pseudonyms.made_of` its values, mask and affine: an intensity may be scaled by the whole of it.
    """
    return hashlib.blake2b(volume + depth.to_bytes(4), digest_size=_TAG_BYTES).digest()


def made_of(rows: Iterable[tuple[bytes, Sequence[int]] | None], files: int) -> NDArray[np.uint8]:
    """(tag, checksum in each of the `files`) of each row, None where nothing is kept of it: uint8 [n,32+4*files]."""
    width = _TAG_BYTES + files * _SUM_BYTES
    joined = b"".join(bytes(width) if row is None else row[0] + _sums(row[1]) for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, width)


def checksum(row: bytes) -> int:
    """CRC-32: it is to tell a row that was damaged, or is being erased, not one that was forged."""
    return zlib.crc32(row)


def _sums(checksums: Iterable[int]) -> bytes:
    return b"".join(one.to_bytes(_SUM_BYTES, "little") for one in checksums)


class OtherInputs:
    """Inputs of this `size` in finished scans, with their masks if asked for. Use with `contextlib.closing`."""

    def __init__(
        self, others: Iterable[OtherScan], recipe: bytes, size: tuple[int, ...], *, with_masks: bool = False
    ) -> None:
        self._others, self._recipe = tuple(others), recipe
        self._kinds = [("images.npy", "<f4", (1, *size)), *([(MASKS, "|u1", size)] if with_masks else [])]
        self._opened: list[_Scan] | None = None

    @property
    def _scans(self) -> list["_Scan"]:
        """Opened when they are first asked: a scan that uses nothing asks nothing."""
        if self._opened is None:
            found = (_open(other, self._recipe, self._kinds) for other in self._others)
            self._opened = [scan for scan in found if scan is not None]
        return self._opened

    def close(self) -> None:
        for scan in self._opened or ():
            for one in scan.files:
                one.file.close()

    def has(self, content: bytes) -> bool:
        """Whether there is a row, whole or not."""
        return any(scan.tags.of(content) in scan.rows for scan in self._scans)

    def row(self, content: bytes) -> tuple[bytes, ...] | None:
        """float32 [1,h,w] or [1,d,h,w], little endian, and with masks uint8 [h,w] or [d,h,w], if there and whole."""
        for scan in self._scans:
            at = scan.rows.get(scan.tags.of(content))
            if at is not None and (row := scan.read(*at)) is not None:
                return row
        return None


_Kind = tuple[str, str, tuple[int, ...]]  # the name of a file, NumPy's type of its values, the shape of a row


@dataclass(frozen=True, slots=True)
class _Rows:
    """A file of a scan, and where its rows lie."""

    file: BinaryIO
    start: int
    row_bytes: int

    def read(self, number: int) -> bytes:
        """Raises `OSError`, `EOFError` where the file ends."""
        self.file.seek(self.start + number * self.row_bytes)
        row = self.file.read(self.row_bytes)
        if len(row) < self.row_bytes:
            raise EOFError
        return row


@dataclass(frozen=True, slots=True)
class _Scan:
    tags: Tags
    rows: dict[bytes, tuple[int, bytes]] = field(repr=False)  # tag: (number of the row, its checksums)
    files: tuple[_Rows, ...]

    def read(self, number: int, expected: bytes) -> tuple[bytes, ...] | None:
        with suppress(OSError, EOFError):
            found = tuple(one.read(number) for one in self.files)
            if _sums(checksum(row) for row in found) == expected:
                return found
        return None


def _open(other: OtherScan, recipe: bytes, kinds: Sequence[_Kind]) -> _Scan | None:
    with ExitStack() as opened:
        try:
            known = np.load(other.cache / MADE_OF, allow_pickle=False)
            if known.dtype != np.uint8 or known.shape[1:] != (_TAG_BYTES + len(kinds) * _SUM_BYTES,):
                return None
            files = tuple(
                _rows_of(opened.enter_context((other.cache / name).open("rb", buffering=0)), len(known), kind, shape)
                for name, kind, shape in kinds
            )
        except (OSError, ValueError, EOFError):
            return None
        opened.pop_all()
    return _Scan(Tags(other.key, recipe), _numbered(known), files)


def _rows_of(file: BinaryIO, rows: int, kind: str, shape: tuple[int, ...]) -> _Rows:
    """Raises `OSError`, and `ValueError` where it does not hold so many of them, in C order."""
    np.lib.format.read_magic(file)
    found, is_fortran, stored = np.lib.format.read_array_header_1_0(file)
    if is_fortran or stored != np.dtype(kind) or found != (rows, *shape):
        raise ValueError("not the rows of this plan")
    return _Rows(file, file.tell(), stored.itemsize * math.prod(shape))


def _numbered(known: NDArray[np.uint8]) -> dict[bytes, tuple[int, bytes]]:
    rows = (row.tobytes() for row in known)
    return {row[:_TAG_BYTES]: (number, row[_TAG_BYTES:]) for number, row in enumerate(rows) if any(row)}

"""Looks for traces of patients in everything a party holds: identifiers as text, pixels as bytes.

A needle is found wherever its bytes stand, in a database page as well as in a log. Compressed or encrypted copies
would not be found; the coordinator holds the key of none that it could not open, and opens none to disk.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

WINDOW = 24  # bytes of raw pixels: long enough that two equal ones are no accident
SHORTEST = 5  # bytes of an identifier: shorter ones stand in any database by accident
_HEAD = 3  # bytes of a needle that are looked up at every offset; only hits are compared in full
_PIECE = 1 << 20
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber")


def needles_of(archive: Path) -> set[bytes]:
    """Identifiers, file names and runs of pixels of every DICOM file under `archive`."""
    found: set[bytes] = set()
    for path in sorted(archive.rglob("*")):
        if not path.is_file() or path.suffix == ".csv":
            continue
        found.add(str(path).encode())
        dataset = pydicom.dcmread(path, force=True)
        for keyword in UIDS:
            text = str(dataset.get(keyword, "")).encode()
            if len(text) >= SHORTEST:
                found |= {text, text.decode().encode("utf-16-le")}
        found |= set(_windows(bytes(dataset.get("PixelData", b""))))
    return found


def _windows(pixels: bytes) -> Iterator[bytes]:
    """Runs from the middle of the image that are not background: at least eight different bytes."""
    taken = 0
    for at in range(len(pixels) // 3, len(pixels) - WINDOW, max(WINDOW, len(pixels) // 200)):
        run = pixels[at : at + WINDOW]
        if len(set(run)) >= 8:
            yield run
            taken += 1
            if taken == 8:
                return


def find_leaks(root: Path, needles: Iterable[bytes], *, leave_out: Iterable[Path] = ()) -> list[tuple[Path, bytes]]:
    """Give (file, needle) for every needle in any file under `root`."""
    wanted = set(needles)
    is_head = np.zeros(1 << 24, dtype=np.bool_)
    is_head[[int.from_bytes(needle[:_HEAD], "little") for needle in wanted]] = True
    lengths: dict[bytes, set[int]] = defaultdict(set)
    for needle in wanted:
        lengths[needle[:_HEAD]].add(len(needle))
    skipped = [path.resolve() for path in leave_out]
    found: list[tuple[Path, bytes]] = []
    for path in sorted(root.rglob("*")):
        if not path.is_file() or any(path.resolve().is_relative_to(skip) for skip in skipped):
            continue
        data = path.read_bytes()
        runs = {data[at : at + length] for at in _heads(data, is_head) for length in lengths[data[at : at + _HEAD]]}
        found += [(path, needle) for needle in sorted(runs & wanted)]
    return found


def _heads(data: bytes, is_head: NDArray[np.bool_]) -> Iterator[int]:
    """Where the first bytes of some needle stand: looked up at every offset, a piece of the file at a time."""
    whole = np.frombuffer(data, dtype=np.uint8)
    for begin in range(0, len(data), _PIECE):
        piece = whole[begin : begin + _PIECE + _HEAD - 1].astype(np.uint32)
        if len(piece) >= _HEAD:
            yield from (begin + np.flatnonzero(is_head[piece[:-2] | piece[1:-1] << 8 | piece[2:] << 16])).tolist()
